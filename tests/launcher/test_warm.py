"""The warm process: ranks are forked clean, their ends are told, and none outlives its agent."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

from launcher import warm

FILE = Path(warm.__file__)
HERE = Path(__file__).parent


class Agent:
    """The agent's end of a warm process, with a file each for what a rank prints."""

    def __init__(self, folder: Path, *modules: str, prefix: Sequence[str] = ()) -> None:
        self.folder = folder
        self.sender = 0  # the pid of who spoke last
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
            path = Path(tempfile.mkdtemp(dir=folder)) / "s"
            listener.bind(str(path))
            listener.listen(1)
            listener.settimeout(20)
            command = [*prefix, sys.executable, str(FILE), str(path), *modules]
            env = {"LC_ALL": "C.UTF-8", "PATH": os.environ["PATH"], "PYTHONPATH": f"{folder}:{HERE}"}
            self.process = subprocess.Popen(command, env=env, cwd=folder, stdin=subprocess.DEVNULL)
            self.sock, _ = listener.accept()
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self.sock.settimeout(20)
        self.ready = self.hear()

    def hear(self) -> Any:
        message, _, self.sender = warm.receive(self.sock)
        return message

    def fork(self, target: str = "", rank: int = 0, command: list[str] | None = None, **more: Any) -> int:
        """Start a rank; its pid."""
        with (self.folder / "out").open("wb") as out, (self.folder / "err").open("wb") as err:
            request = {"type": "fork", "attempt": 1, "rank": rank, "env": {"WHO": f"rank {rank}"}}
            request |= {
                "cwd": str(self.folder),
                "tracer": os.getpid(),
                "target": target,
                "command": command or [],
                **more,
            }
            warm.send(self.sock, request, (out.fileno(), err.fileno()))
        forked = self.hear()
        assert (forked["type"], forked["rank"]) == ("forked", rank)
        return self.sender

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
    assert second == "['LC_ALL', 'PATH', 'PYTHONPATH', 'WHO'] True"


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

    agent.fork("threaded:main", env={"WHO": "cold rank"})

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


class InAnotherProcess(subprocess.Popen[str]):
    """An agent with one rank, to be killed. `pids`: its warm process and its rank."""

    def __init__(self, folder: Path, then: str = "") -> None:
        program = (
            "import os, sys, time; from pathlib import Path; import test_warm\n"
            "agent = test_warm.Agent(Path(sys.argv[1]), 'warm_targets')\n"
            f"pid = agent.fork('warm_targets:sleeps')\n{then}\n"
            "print(agent.process.pid, pid, flush=True); time.sleep(600)"
        )
        env = {**os.environ, "PYTHONPATH": f"{HERE}:{HERE.parents[1]}"}
        super().__init__([sys.executable, "-c", program, str(folder)], stdout=subprocess.PIPE, text=True, env=env)
        assert self.stdout
        self.pids = [int(pid) for pid in self.stdout.readline().split()]
        assert len(self.pids) == 2


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_ranks_die_with_their_agent_however_it_ends(tmp_path: Path, number: int) -> None:
    agent = InAnotherProcess(tmp_path)

    agent.send_signal(number)
    agent.wait()

    assert all(gone(pid) for pid in agent.pids)


def test_what_a_rank_has_started_in_a_session_of_its_own_ends_too(agent: Agent) -> None:
    pid_file = agent.folder / "pid"
    program = (
        "import os, subprocess, sys\n"
        "child = subprocess.Popen(['sleep', '600'], start_new_session=True)\n"
        f"open('{pid_file}.new', 'w').write(str(child.pid)); os.rename('{pid_file}.new', '{pid_file}')\n"
        "child.wait()"
    )
    agent.fork(command=[sys.executable, "-c", program], env={"OPT_LAUNCH_SOCKET": str(agent.folder / "ranks")})
    deadline = time.monotonic() + 20
    while not pid_file.exists():
        assert time.monotonic() < deadline, agent.err
        time.sleep(0.01)

    agent.sock.close()

    assert gone(int(pid_file.read_text()))


def test_a_stopped_warm_process_ends_with_its_agent_all_the_same(tmp_path: Path) -> None:
    agent = InAnotherProcess(tmp_path, then="os.kill(agent.process.pid, 19)")

    agent.kill()
    agent.wait()

    assert all(gone(pid) for pid in agent.pids)


# ---------------------------------------------------------------- behind a prefix

BEHIND = {
    "root": ["unshare", "--mount", "--pid", "--fork"],
    "anyone": ["unshare", "--user", "--map-root-user", "--mount", "--pid", "--fork", "--mount-proc"],
    "unmapped": ["unshare", "--user", "--mount", "--pid", "--fork"],
}


@pytest.mark.parametrize("prefix", BEHIND.values(), ids=BEHIND)
def test_a_rank_in_another_pid_namespace_is_known_by_the_pid_it_has_here(tmp_path: Path, prefix: list[str]) -> None:
    if subprocess.run([*prefix, "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip(f"NAMESPACES NOT TESTED: this user may not run {' '.join(prefix)}")
    agent = Agent(tmp_path, "warm_targets", prefix=prefix)

    pid = agent.fork("warm_targets:sleeps")
    inside = Path(f"/proc/{pid}/status").read_text().split("NSpid:")[1].split("\n")[0].split()
    os.killpg(pid, signal.SIGKILL)

    assert (inside[0], len(inside)) == (str(pid), 2)
    assert agent.ends() == -signal.SIGKILL
    agent.close()


@pytest.mark.parametrize("prefix", BEHIND.values(), ids=BEHIND)
def test_nothing_is_left_behind_a_prefix_when_the_agent_is_gone(tmp_path: Path, prefix: list[str]) -> None:
    if subprocess.run([*prefix, "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip(f"NAMESPACES NOT TESTED: this user may not run {' '.join(prefix)}")
    agent = Agent(tmp_path, "warm_targets", prefix=prefix)
    pids = [agent.fork("warm_targets:sleeps", rank=rank) for rank in range(2)]

    agent.sock.close()

    assert all(gone(pid) for pid in pids)
    assert agent.process.wait(5) == 0
