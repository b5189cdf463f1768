"""Hosts over ssh: a real server on loopback, and everything that can be wrong with one."""

from __future__ import annotations

import json
import socket
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from sshd import Sshd, free_port, make_key, require

from launcher.errors import LaunchError, Unreachable
from launcher.remote.answer import Answer, Output
from launcher.remote.ask import Question, ask
from launcher.remote.examined import examined
from launcher.remote.ssh import Ssh
from launcher.remote.trials import search

LIMIT_S = 60.0
CHECK = {"tier": "fast", "folders": [], "interface": ""}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    require()
    with Sshd(tmp_path_factory.mktemp("sshd")).running() as server:
        yield server


@dataclass
class Client:
    """A configuration of ssh in a folder: `names` lead to the server, and more lines may say otherwise."""

    folder: Path
    server: Sshd

    def config(self, *names: str, known: str | None = None, key: Path | None = None, more: str = "") -> Path:
        (self.folder / "known_hosts").write_text(self.server.known_host if known is None else known)
        common = (
            f"UserKnownHostsFile {self.folder}/known_hosts\nGlobalKnownHostsFile /dev/null\n"
            f"IdentityFile {key or self.server.folder / 'user_key'}\nIdentitiesOnly yes\n"
        )
        here = f"HostName 127.0.0.1\nPort {self.server.port}\n"
        file = self.folder / "config"
        file.write_text(f"{more}\nHost {' '.join(names)}\n{here}\nHost *\n{common}")
        return file

    def asks(self, config: Path, *names: str, limit_s: float = LIMIT_S, python: str = sys.executable) -> list[Answer]:
        question = Question("check", CHECK, python, limit_s)
        return sorted(ask(Ssh(config), dict.fromkeys(names, question)), key=lambda one: one.host)

    def refused(self, config: Path, name: str, limit_s: float = LIMIT_S) -> LaunchError:
        [answer] = self.asks(config, name, limit_s=limit_s)
        assert answer.problem is not None
        return answer.problem


@pytest.fixture
def client(tmp_path: Path, server: Sshd) -> Client:
    return Client(tmp_path, server)


def test_a_command_runs_there_with_its_words_as_they_are(client: Client) -> None:
    words = ["a b", "$HOME", "it's; ls", '{"x": "*"}']
    program = "import sys, json; print(json.dumps(sys.argv[1:])); sys.exit(3)"
    output = Ssh(client.config("a")).run("a", [sys.executable, "-c", program, *words], LIMIT_S)
    assert (output.code, json.loads(output.text)) == (3, words)


def test_many_hosts_are_examined_at_once(client: Client) -> None:
    names = [f"gpu-{number:02d}" for number in range(1, 13)]
    found = examined(client.asks(client.config(*names), *names))
    assert [one.host for one in found] == names
    assert [one.problem for one in found] == [None] * len(names)
    assert all({"cpu-count", "memory-available"} <= {finding.code for finding in one.findings} for one in found)


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_hosts_are_tried_with_each_other_and_one_that_cannot_be_reached_takes_no_part(
    client: Client,
) -> None:
    config = client.config("a", "b", "c", more=f"Host dead\nHostName 127.0.0.1\nPort {free_port()}\n")
    seen: list[str] = []

    def watch(answers: Iterator[Answer], total: int, what: str) -> Iterator[Answer]:
        seen.append(f"{what} ({total})")
        return answers

    told = search(Ssh(config), ["a", "b", "c", "dead"], sys.executable, "", watch)
    assert {host: one.verdict for host, one in told.items()} == {"a": "ok", "b": "ok", "c": "ok", "dead": "unknown"}
    assert told["dead"].summary == "took no part: it refuses connections: no ssh server is there"
    assert seen == [
        "round 1: each alone (4)", "round 2: 1 pairs (2)", "round 3: 1 pairs (2)", "round 4: 3 together (3)",
    ]  # fmt: skip


def test_a_host_whose_key_is_not_known_is_not_talked_to(client: Client) -> None:
    problem = client.refused(client.config("a", known=""), "a")
    assert isinstance(problem, Unreachable)
    assert problem.message.startswith("its host key is not known: ssh-ed25519 SHA256:")
    assert problem.hint == f"ssh a once, and compare the key; it goes to {client.folder}/known_hosts"


def test_a_host_whose_key_has_changed_is_not_talked_to(client: Client) -> None:
    other = " ".join(make_key(client.folder / "other").split()[:2])
    problem = client.refused(client.config("a", known=f"[127.0.0.1]:{client.server.port} {other}\n"), "a")
    assert problem.message == "its host key has changed: perhaps it is another machine"
    assert f"-R '[127.0.0.1]:{client.server.port}'" in problem.hint


def test_no_setting_makes_a_host_trusted_whose_key_is_not_known(client: Client) -> None:
    lax = "Host *\nStrictHostKeyChecking no\nUserKnownHostsFile /dev/null\n"
    assert "not known" in client.refused(client.config("a", more=lax), "a").message


def test_a_key_that_is_revoked_is_not_accepted(client: Client) -> None:
    revoked = f"{client.server.known_host}@revoked {client.server.known_host}"
    assert "revoked" in client.refused(client.config("a", known=revoked), "a").message


def test_a_wrong_key_is_refused_and_nobody_is_asked_for_a_password(client: Client) -> None:
    make_key(client.folder / "wrong")
    problem = client.refused(client.config("a", key=client.folder / "wrong"), "a")
    assert problem.message.startswith("it refuses our keys")
    assert problem.hint == "'ssh a' must work without a password: a key, or one in ssh-agent"


def test_a_key_file_that_is_not_there_is_no_key(client: Client) -> None:
    assert client.refused(client.config("a", key=client.folder / "none"), "a").message == "we have no key to show it"


def test_a_host_without_a_server_or_a_name_is_told(client: Client) -> None:
    config = client.config("a", more=f"Host b\nHostName 127.0.0.1\nPort {free_port()}\nHost c\nHostName c.invalid")
    assert client.refused(config, "b").message == "it refuses connections: no ssh server is there"
    assert client.refused(config, "c").message == "nobody knows an address of it"


@pytest.fixture
def silent() -> Iterator[int]:
    """The port of a machine that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        held: list[socket.socket] = []

        def take() -> None:
            while True:
                try:
                    held.append(listener.accept()[0])
                except OSError:
                    return

        thread = threading.Thread(target=take)
        thread.start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()
        for sock in held:
            sock.close()


def test_a_dead_or_slow_host_keeps_no_other_waiting(client: Client, silent: int) -> None:
    config = client.config("a", "b", more=f"Host dead\nHostName 127.0.0.1\nPort {silent}\n")
    question = Question("check", CHECK, sys.executable, 8.0)
    began = time.monotonic()
    hosts = [one.host for one in ask(Ssh(config), dict.fromkeys(["dead", "a", "b"], question))]
    assert hosts[2] == "dead"
    assert time.monotonic() - began < 20
    problem = client.refused(config, "dead", limit_s=2.0)
    assert problem.message == "it takes the connection, and says nothing in time"


def test_a_host_that_is_slow_to_answer_is_given_up_at_its_deadline(client: Client) -> None:
    slow = client.folder / "slow"
    slow.write_text("#!/bin/sh\nexec sleep 60\n")
    slow.chmod(0o755)
    began = time.monotonic()
    [answer] = client.asks(client.config("a"), "a", limit_s=3.0, python=str(slow))
    assert answer.problem is not None
    assert answer.problem.message == "no answer within 3 s"
    assert time.monotonic() - began < 20


def test_hosts_behind_a_jump_host_share_its_connection(client: Client, tmp_path: Path) -> None:
    with Sshd(tmp_path / "jump").running() as jump:
        names = [f"n{number}" for number in range(8)]
        gate = (
            f"Host gate\nHostName 127.0.0.1\nPort {jump.port}\nIdentityFile {jump.folder}/user_key\n"
            f"Host {' '.join(names)}\nProxyJump gate\n"
        )
        config = client.config(*names, known=client.server.known_host + jump.known_host, more=gate)
        answers = client.asks(config, *names)
        assert [one.problem for one in answers] == [None] * 8
        assert jump.log.count("Accepted publickey") == 1


def test_several_jump_hosts_are_gone_through_in_their_order(client: Client, tmp_path: Path) -> None:
    with Sshd(tmp_path / "first").running() as first, Sshd(tmp_path / "second").running() as second:
        gates = "".join(
            f"Host {name}\nHostName 127.0.0.1\nPort {one.port}\nIdentityFile {one.folder}/user_key\n"
            for name, one in (("first", first), ("second", second))
        )
        known = client.server.known_host + first.known_host + second.known_host
        config = client.config("n", known=known, more=f"{gates}Host n\nProxyJump first,second\n")
        [answer] = client.asks(config, "n")
        assert answer.problem is None
        assert (first.log.count("Accepted publickey"), second.log.count("Accepted publickey")) == (1, 1)


def test_what_is_wrong_with_a_jump_host_is_told_of_it(client: Client, silent: int) -> None:
    gate = f"Host gate\nHostName 127.0.0.1\nPort {free_port()}\nHost n\nProxyJump gate\nHost loop\nProxyJump loop\n"
    config = client.config("n", "loop", more=gate)
    assert client.refused(config, "n").message == "jump host gate: it refuses connections: no ssh server is there"
    assert client.refused(config, "loop").message == "its jump hosts lead to each other"


def test_a_jump_host_that_cannot_reach_the_host_says_so(client: Client) -> None:
    more = f"Host far\nHostName 127.0.0.1\nPort {free_port()}\nProxyJump a\n"
    assert client.refused(client.config("a", more=more), "far").message.startswith("jump host a cannot connect to it")


def test_a_configuration_that_cannot_be_followed_is_refused(client: Client) -> None:
    config = client.config("a", more="Host a\nProxyCommand nc %h %p\n")
    assert client.refused(config, "a").message == "ProxyCommand is not supported"
    (client.folder / "bad").write_text("Host\n=\n")
    with pytest.raises(LaunchError, match="the ssh configuration"):
        Ssh(client.folder / "missing")


@pytest.mark.parametrize(
    ("python", "message", "hint"),
    [
        ("/nowhere/python", "there is no /nowhere/python", "--python PATH"),
        ("{folder}/bare", "opt-launch cannot be imported by {folder}/bare there: ", "--python PATH"),
        ("{folder}/loud", "its opt-launch ended with exit code 7: oh no", "try it by hand there"),
    ],
)
def test_an_opt_launch_that_is_not_there_is_told_with_what_to_do(
    client: Client, python: str, message: str, hint: str
) -> None:
    _program(client.folder / "bare", f'exec {sys.executable} -I -S "$@"')
    _program(client.folder / "loud", "echo oh no; exit 7")
    [answer] = client.asks(client.config("a"), "a", python=python.format(folder=client.folder))
    assert answer.problem is not None
    assert answer.problem.message.startswith(message.format(folder=client.folder))
    assert hint in answer.problem.hint


def test_what_login_scripts_print_is_not_taken_for_the_answer(client: Client) -> None:
    noisy = _program(client.folder / "noisy", f'echo "{{welcome}}" >&2; {sys.executable} "$@"; echo bye')
    [answer] = client.asks(client.config("a"), "a", python=str(noisy))
    assert answer.problem is None
    assert examined([answer])[0].findings


def _program(file: Path, text: str) -> Path:
    file.write_text(f"#!/bin/sh\n{text}\n")
    file.chmod(0o755)
    return file


class Slow:
    """A way to hosts on which calls block, whatever their deadline."""

    def run(self, host: str, command: object, limit_s: float) -> Output:
        threading.Event().wait(30)
        raise AssertionError

    def close(self) -> None:
        pass


def test_a_call_that_never_comes_back_is_left_to_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("launcher.remote.ask._GRACE_S", 0.1)
    [answer] = ask(Slow(), {"a": Question("check", CHECK, "python", 0.2)})
    assert (answer.host, str(answer.problem)) == ("a", "no answer within 0.2 s")
