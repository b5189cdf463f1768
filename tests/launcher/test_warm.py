"""The warm process: ranks are forked clean, their ends are told, and none outlives its agent."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from launcher import warm

FILE = Path(warm.__file__)
HERE = Path(__file__).parent


class Agent:
    """The agent's end of a warm process, with a file each for what a rank prints."""

    def __init__(self, folder: Path, *modules: str) -> None:
        self.folder = folder
        self.sock, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.sock.settimeout(20)
        command = [sys.executable, str(FILE), str(theirs.fileno()), str(os.getpid()), *modules]
        env = {**os.environ, "PYTHONPATH": f"{folder}:{HERE}"}
        self.process = subprocess.Popen(
            command, pass_fds=(theirs.fileno(),), env=env, cwd=folder, stdin=subprocess.DEVNULL
        )
        theirs.close()
        self.ready = self.hear()

    def hear(self) -> Any:
        return warm.receive(self.sock)[0]

    def fork(self, target: str = "", rank: int = 0, command: list[str] | None = None, **more: Any) -> int:
        """Start a rank; its pid."""
        with (self.folder / "out").open("wb") as out, (self.folder / "err").open("wb") as err:
            env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(HERE), "WHO": f"rank {rank}"}
            request = {"type": "fork", "attempt": 1, "rank": rank, "env": env, "cwd": str(self.folder)}
            request |= {"agent_pid": os.getpid(), "target": target, "command": command or [], **more}
            warm.send(self.sock, request, (out.fileno(), err.fileno()))
        forked = self.hear()
        assert (forked["type"], forked["rank"]) == ("forked", rank)
        return forked["pid"]

    def ends(self) -> int:
        """The exit code of the rank that ends next."""
        told = self.hear()
        assert told["type"] == "exited"
        return told["code"]

    @property
    def out(self) -> str:
        return (self.folder / "out").read_text()

    @property
    def err(self) -> str:
        return (self.folder / "err").read_text()

    def close(self) -> None:
        self.sock.close()
        self.process.kill()
        self.process.wait()


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Agent]:
    agent = Agent(tmp_path, "warm_targets")
    yield agent
    agent.close()


def gone(pid: int, limit_s: float = 5.0) -> bool:
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.01)
    return False


# ---------------------------------------------------------------- ranks


def test_it_says_when_it_is_ready_and_how_long_imports_took(agent: Agent) -> None:
    assert agent.ready["type"] == "ready"
    assert (agent.ready["cold"], agent.ready["error"]) == ("", None)
    assert agent.ready["seconds"] >= 0


def test_a_target_runs_in_a_fork_that_has_its_modules_already(agent: Agent) -> None:
    agent.fork("warm_targets:facts", rank=3)
    assert agent.ends() == 0

    first, second = agent.out.splitlines()
    assert first == f"rank 3 True True {agent.folder} [] [0, 1, 2]"
    assert second == "['PATH', 'PYTHONPATH', 'WHO'] True"


def test_stdout_and_stderr_go_where_the_agent_wants_them(agent: Agent) -> None:
    agent.fork("warm_targets:hello")
    agent.ends()

    assert (agent.out, agent.err) == ("to stdout\n", "to stderr\n")


CODES = [("hello", 0, ""), ("seven", 7, ""), ("leaves", 5, ""), ("complains", 1, "the reason"),
         ("fails", 1, "ValueError: wrong on purpose"), ("killed", -signal.SIGSEGV, "Segmentation fault"),
         ("missing", 1, "AttributeError")]  # fmt: skip


@pytest.mark.parametrize(("function", "code", "said"), CODES)
def test_how_a_target_ends_is_told(agent: Agent, function: str, code: int, said: str) -> None:
    agent.fork(f"warm_targets:{function}")

    assert agent.ends() == code
    assert said in agent.err


def test_a_killed_rank_is_told_with_its_signal(agent: Agent) -> None:
    pid = agent.fork("warm_targets:sleeps")

    os.kill(pid, signal.SIGKILL)

    assert agent.ends() == -signal.SIGKILL


def test_many_ranks_that_end_at_once_are_all_told(agent: Agent) -> None:
    for rank in range(20):
        agent.fork("warm_targets:sleeps", rank=rank)
    pids = [child.pid for child in psutil.Process(agent.process.pid).children()]
    for pid in pids:
        os.kill(pid, signal.SIGKILL)

    told = [agent.hear() for _ in range(20)]

    assert sorted(one["rank"] for one in told) == list(range(20))


def test_a_command_is_run_as_it_is(agent: Agent) -> None:
    agent.fork(command=[sys.executable, "-c", "import os, sys; print(os.environ['WHO']); sys.exit(3)"])

    assert agent.ends() == 3
    assert agent.out == "rank 0\n"


def test_a_command_that_does_not_exist_ends_with_127_and_says_its_name(agent: Agent) -> None:
    agent.fork(command=["no-such-program", "--flag"])

    assert agent.ends() == 127
    assert agent.err == "FileNotFoundError: no-such-program: No such file or directory\n"


def test_a_working_folder_that_is_gone_is_an_error_of_the_rank(agent: Agent) -> None:
    agent.fork("warm_targets:hello", cwd=str(agent.folder / "gone"))

    assert agent.ends() == 1
    assert "FileNotFoundError" in agent.err


# ---------------------------------------------------------------- imports


def test_an_import_error_surfaces_in_the_rank_that_needs_it(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("import frobnicate\n")
    agent = Agent(tmp_path, "broken")
    assert agent.ready["error"] == ["ModuleNotFoundError", "No module named 'frobnicate'"]

    agent.fork("broken:main")

    assert agent.ends() == 1
    assert "ModuleNotFoundError" in agent.err
    agent.close()


def test_threads_left_by_an_import_make_ranks_start_cold_and_it_says_so(tmp_path: Path) -> None:
    (tmp_path / "threaded.py").write_text(
        "import os, threading, time\n"
        "threading.Thread(target=time.sleep, args=(600,), daemon=True).start()\n"
        "PARENT = os.getppid()\n"
        "def main(env): print(env['WHO'], len(os.listdir('/proc/self/task')))\n"
    )
    agent = Agent(tmp_path, "threaded")
    assert agent.ready["cold"] == "2 threads are alive after import"

    agent.fork("threaded:main", env={"WHO": "cold rank", "PYTHONPATH": str(tmp_path)})

    assert agent.ends() == 0, agent.err
    assert agent.out == "cold rank 2\n"  # its own thread, started by its own import: not a fork of ours
    agent.close()


def test_nothing_of_ours_can_shadow_what_a_trainer_imports(tmp_path: Path) -> None:
    (tmp_path / "wire.py").write_text("def main(env): print('mine')\n")
    agent = Agent(tmp_path, "wire")

    agent.fork("wire:main")

    assert agent.ends() == 0
    assert agent.out == "mine\n"
    agent.close()


# ---------------------------------------------------------------- the end of the agent


def test_ranks_and_warm_process_end_when_the_socket_closes(agent: Agent) -> None:
    pid = agent.fork("warm_targets:sleeps")

    agent.sock.close()

    assert gone(pid)
    assert agent.process.wait(5) == 0


def test_ranks_die_with_the_warm_process(agent: Agent) -> None:
    pid = agent.fork("warm_targets:sleeps")

    agent.process.kill()
    agent.process.wait()

    assert gone(pid)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_ranks_die_with_their_agent_however_it_ends(tmp_path: Path, number: int) -> None:
    program = (
        "import sys, time; from pathlib import Path; import test_warm\n"
        "agent = test_warm.Agent(Path(sys.argv[1]), 'warm_targets')\n"
        "pid = agent.fork('warm_targets:sleeps')\n"
        "print(agent.process.pid, pid, flush=True); time.sleep(600)"
    )
    agent = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": f"{HERE}:{HERE.parents[1]}"},
    )  # fmt: skip
    assert agent.stdout
    pids = [int(pid) for pid in agent.stdout.readline().split()]
    assert len(pids) == 2

    agent.send_signal(number)
    agent.wait()

    assert all(gone(pid) for pid in pids)


# ---------------------------------------------------------------- ports


def test_a_port_for_a_foreign_command_lies_below_the_ephemeral_range(agent: Agent) -> None:
    warm.send(agent.sock, {"type": "port", "attempt": 4, "host": "127.0.0.1"})

    told = agent.hear()

    assert (told["type"], told["attempt"]) == ("store", 4)
    assert 15000 <= told["port"] < 32000
