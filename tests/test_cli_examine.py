"""`opt-launch hosts check`, `collect` and `clean` of other hosts, as scripts see them: JSON, exit codes, the ledger."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent / "launcher"))

from sshd import Sshd, free_port, require
from test_cli import Outcome, call

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    require()
    with Sshd(tmp_path_factory.mktemp("sshd")).running() as server:
        yield server


@pytest.fixture
def hosts(tmp_path: Path, server: Sshd) -> Callable[..., Outcome]:
    """`opt-launch hosts` where gpu-01 to gpu-03 are reached by ssh, and gpu-09 is dead."""
    (tmp_path / "known_hosts").write_text(server.known_host)
    (tmp_path / "ssh").write_text(
        f"Host gpu-09\nPort {free_port()}\nHost *\nHostName 127.0.0.1\nPort {server.port}\nIdentitiesOnly yes\n"
        f"IdentityFile {server.folder}/user_key\nUserKnownHostsFile {tmp_path}/known_hosts\n"
    )
    (tmp_path / "site.yaml").write_text("hosts: {ledger: ledger}\n")
    variables = {"OPT_LAUNCH_SITE": str(tmp_path / "site.yaml"), "HOME": str(tmp_path)}
    return partial(call, "hosts", cwd=tmp_path, **variables)


def test_hosts_are_checked_and_what_is_wrong_is_recorded(hosts: Callable[..., Outcome], tmp_path: Path) -> None:
    gone = str(tmp_path / "gone")
    said = hosts("check", "gpu-[01-02]", "--ssh-config", "ssh", "--folder", gone, "--json")
    assert said.code == 1, said.err
    told = json.loads(said.out)
    assert (told["schema"], told["verdict"]) == (1, "fail")
    assert [(one["host"], one["verdict"], one["problem"]) for one in told["hosts"]] == [
        ("gpu-01", "fail", None),
        ("gpu-02", "fail", None),
    ]
    [space] = [one for one in told["hosts"][0]["findings"] if one["code"] == "space"]
    assert (space["subject"], space["summary"]) == (gone, "no such file or directory")
    listed = json.loads(hosts("list", "--json").out)["hosts"]
    assert {one["host"]: one["checks"][f"space {gone}"]["verdict"] for one in listed} == {
        "gpu-01": "fail",
        "gpu-02": "fail",
    }
    assert hosts("check", "gpu-03", "--ssh-config", "ssh", "--no-record").code == 0
    assert "gpu-03" not in hosts("list", "--all").out


def test_a_host_that_cannot_be_asked_is_told_with_what_to_do(hosts: Callable[..., Outcome]) -> None:
    said = hosts("check", "gpu-01,gpu-09", "--ssh-config", "ssh", "--no-record")
    assert said.code == 5
    lines = said.out.splitlines()
    at = next(index for index, line in enumerate(lines) if "gpu-09" in line)
    assert "it refuses connections: no ssh server is there (ssh to 127.0.0.1 port" in lines[at]
    assert "try: --via srun needs none" in lines[at + 1]
    assert lines[-1].startswith("2 hosts: ")
    assert hosts("check", "gpu-09", "--ssh-config", "ssh", "--nagios").code == 3


def test_a_ledger_that_cannot_be_written_takes_nothing_from_what_was_found(
    hosts: Callable[..., Outcome], tmp_path: Path
) -> None:
    (tmp_path / "ledger").write_text("")
    bad = ("check", "gpu-01", "--ssh-config", "ssh", "--json")
    said = hosts(*bad)
    assert (said.code, json.loads(said.out)["hosts"][0]["host"]) == (1, "gpu-01")
    assert said.err.startswith("not recorded: the host ledger cannot be read: not a directory\n  while: ")
    assert hosts(*bad, "--nagios").code in (0, 1)  # as the machine is


@pytest.mark.parametrize(
    ("arguments", "code", "error"),
    [
        (["check", "gpu-[01-"], 2, "not a list of at most 100,000 nodes: 'gpu-[01-'"),
        (["check", "a;reboot"], 2, "not a list of at most 100,000 nodes: 'a;reboot'"),
        (["check", "-oProxyCommand=x"], 2, "No such option"),
        (["check", "a", "--via", "srun"], 2, "srun needs a job"),
        (["check", "a", "--timeout", "soon"], 2, "--timeout"),
        (["check", "a", "--timeout", "0"], 2, "0s is no time to answer in"),
        (["check", "a", "--ssh-config", "nowhere"], 1, "the ssh configuration cannot be read: no such file"),
        (["check", "--run", "none"], 4, "there is no run here"),
        (["clean", "--run", "none"], 4, "there is no run here"),
        (["collect"], 2, "Missing option '--run'"),
    ],
)
def test_what_makes_no_sense_is_refused(
    hosts: Callable[..., Outcome], arguments: list[str], code: int, error: str
) -> None:
    said = hosts(*arguments)
    assert (said.code, said.out) == (code, "")
    assert error in said.err


def test_a_terminal_shows_how_far_it_is_and_standard_output_does_not(
    hosts: Callable[..., Outcome], tmp_path: Path
) -> None:
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "cli", "hosts", "check", "gpu-01", "--ssh-config", str(tmp_path / "ssh"), "--json"]
    environment = {**os.environ, "HOME": str(tmp_path), "TERM": "xterm", "OPT_LAUNCH_SITE": str(tmp_path / "site.yaml")}
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=theirs) as process:
        os.close(theirs)
        assert process.stdout is not None
        out = process.stdout.read()
        shown = os.read(ours, 1 << 16)
    os.close(ours)
    assert json.loads(out)["hosts"][0]["host"] == "gpu-01"
    assert b"check, by ssh" in shown
