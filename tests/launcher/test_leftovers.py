"""What is left of a run on a machine is known by its folder, its job and its agent: nothing else is ever ended."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from launcher import leftovers
from launcher.leftovers import clean, collect, processes

ROOT = Path(__file__).parents[2]
Start = Callable[..., int]
SLEEP = "import sys, time; print('up', flush=True); time.sleep(120)"


@pytest.fixture
def run(tmp_path: Path) -> str:
    (tmp_path / "run").mkdir()
    return str(tmp_path / "run")


@pytest.fixture
def start(run: str) -> Iterator[Start]:
    """Starts a process as ranks are started, with another environment where one is given; its pid."""
    started: list[subprocess.Popen[bytes]] = []

    def one(agent: int, *words: str, **other: str | None) -> int:
        asked = {
            "OPT_LAUNCH_TRAINER": f"{run}/trainer.json",
            "OPT_LAUNCH_SOCKET": f"/tmp/opt-launch-{agent}-node0-x/socket",
            "OPT_LAUNCH_NODE": "node0",
            "OPT_LAUNCH_RANK": "3",
        } | other
        plain = {name: value for name, value in os.environ.items() if not name.startswith(("OPT_LAUNCH", "SLURM"))}
        environment = {**plain, **{name: value for name, value in asked.items() if value is not None}}
        process = subprocess.Popen([sys.executable, "-c", SLEEP, *words], env=environment, stdout=subprocess.PIPE)
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        started.append(process)
        return process.pid

    yield one
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def gone(start: Start) -> int:
    """The pid of an agent that lives no more."""
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


def pids(found: object) -> set[int]:
    return {one.pid if isinstance(one, leftovers.Process) else one["pid"] for one in found}  # type: ignore[attr-defined]


def lives(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def test_ranks_whose_agent_is_gone_are_ended_and_nothing_else_is(run: str, start: Start, gone: int) -> None:
    left = {start(gone), start(gone, OPT_LAUNCH_RANK="4")}
    others = [
        start(gone, OPT_LAUNCH_TRAINER="/elsewhere/run/trainer.json"),
        start(gone, OPT_LAUNCH_TRAINER=None),
        start(gone, OPT_LAUNCH_SOCKET=None),
        start(gone, OPT_LAUNCH_TRAINER=f"{run}2/trainer.json"),
    ]
    assert pids(clean(run, [], end=False)["left"]) == left
    assert all(map(lives, left))

    told = clean(run, [], end=True)
    assert (pids(told["left"]), told["survived"]) == (left, [])
    assert not any(map(lives, left))
    assert all(map(lives, others))
    assert clean(run, [], end=True)["left"] == []


def test_processes_of_a_living_agent_are_its_business(run: str, start: Start, gone: int) -> None:
    agent = start(0, "-m", "launcher.agent", run, "node0", "0", OPT_LAUNCH_TRAINER=None)
    of_another = start(0, "-m", "launcher.agent", f"{run}2", "node0", "0", OPT_LAUNCH_TRAINER=None)
    rank, old = start(agent), start(of_another)
    assert {one.pid: one.left_over for one in processes(run, [])} == {rank: False, old: True}
    told = clean(run, [], end=True)
    assert (pids(told["left"]), told["living"]) == ({old}, 1)
    assert lives(rank)
    assert lives(of_another)


def test_a_job_that_a_rank_has_submitted_is_another_job(run: str, start: Start, gone: int) -> None:
    ours, array = start(gone, SLURM_JOB_ID="7"), {"SLURM_ARRAY_JOB_ID": "8", "SLURM_ARRAY_TASK_ID": "2"}
    element = start(gone, SLURM_JOB_ID="11", SLURM_RESTART_COUNT="1", **array)
    start(gone, SLURM_JOB_ID="9")
    start(gone)
    assert pids(processes(run, ["7", "8_2"])) == {ours, element}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has processes of somebody else")
def test_processes_of_somebody_else_are_never_touched(run: str, start: Start, gone: int) -> None:
    pid = start(gone)
    os.chown(run, 65534, 65534)
    program = (
        f"import os; os.setgid(65534); os.setuid(65534)\n"
        f"from launcher.leftovers import clean; print(clean({run!r}, [], True)['left'])"
    )
    command = [str(ROOT / ".ci" / "shown"), sys.executable, sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout == "[]\n"
    assert lives(pid)


def test_stacks_and_the_kernel_s_log_are_collected(run: str, start: Start, gone: int) -> None:
    pid = start(gone)
    texts = collect(run, [])["texts"]
    assert texts.keys() == {"kernel.log", f"{pid}.stack.txt"}
    assert f"pid {pid} rank 3 of node0, left over" in texts[f"{pid}.stack.txt"]
    assert "status: State:" in texts[f"{pid}.stack.txt"]
    assert texts["kernel.log"]


def test_a_process_that_survives_is_named(run: str, start: Start, gone: int, monkeypatch: pytest.MonkeyPatch) -> None:
    pid = start(gone)
    monkeypatch.setattr(leftovers, "DIE_S", 0.05)
    monkeypatch.setattr("signal.pidfd_send_signal", lambda handle, number: None)
    assert clean(run, [], end=True)["survived"] == [pid]
