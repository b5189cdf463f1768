"""`opt-launch run` on one machine: as torchrun, but that it recovers, saves at Ctrl-C and can go on."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import counting
import psutil
import pytest
from own_run import PROGRAM, OwnRun, environment

from launcher.view.snapshot import snapshot

signal.signal(signal.SIGINT, signal.default_int_handler)  # who tests in the background may have had it ignored
pytestmark = [pytest.mark.slow]

Make = Callable[..., OwnRun]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    runs: list[OwnRun] = []

    def own_run(*flags: str, **options: object) -> OwnRun:
        runs.append(OwnRun(tmp_path, f"own{len(runs)}", *flags, **options))  # type: ignore[arg-type]
        return runs[-1]

    yield own_run
    for run in runs:
        run.clean_up()


def test_a_killed_rank_is_recovered_from_and_the_output_is_that_of_all_attempts(make: Make) -> None:
    run = make(say="hello from")
    process = run.start()
    run.begins()
    run.saved(10)

    run.kill(run.rank(2))
    out, err = process.communicate(timeout=60)
    end = run.ends()

    assert process.returncode == 0, err
    assert sorted(out.splitlines()) == [f"hello from {rank} {attempt}" for rank in range(4) for attempt in (1, 2)]
    assert end.attempts[1].restore is not None
    told = [line.removeprefix("opt-launch: ") for line in err.splitlines() if line.startswith("opt-launch: ")]
    assert told[0] == f"run {run.paths.name} in {run.paths.root}"
    assert run.epoch() > 2 or [" ".join(line.split()[:2]) for line in told[1:]] == [  # a successor says none again
        "attempt 1", "rank-exit: rank", "attempt 2", "SUCCEEDED",
    ]  # fmt: skip
    assert "hello from 2 1" in run.call("logs").stdout


def test_a_script_that_fails_is_1_and_its_error_is_seen(make: Make) -> None:
    run = make("--nproc-per-node", "2", raise_at_import=True)
    process = run.start()

    _, err = process.communicate(timeout=60)

    assert process.returncode == 1
    assert err.count("ImportError: No module named 'frobnicate'") >= 2  # in both ranks' tracebacks
    assert err.splitlines()[-1].startswith("opt-launch: FAILED: the same error on every node before the first step")


def test_ctrl_c_saves_and_the_same_command_goes_on_without_losing_a_step(make: Make) -> None:
    run = make(steps=80, save_every=1000)
    process = run.start()
    run.begins()
    run.wait("step 20", lambda now: now.step >= 20)

    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    stopped = run.ends("STOPPED")

    assert process.returncode == 130, err
    assert stopped.head == (stopped.step, 1)
    refused = run.call("resume")
    assert (refused.returncode, "the same command again" in refused.stderr) == (1, True)

    assert run.start().wait(60) == 0
    assert run.ends().lost_steps == 0
    again = run.start()
    _, err = again.communicate(timeout=30)
    assert (again.returncode, "has succeeded already" in err) == (0, True)


def test_a_second_ctrl_c_ends_it_at_once(make: Make) -> None:
    run = make(save_s=30.0)
    process = run.start()
    run.begins()
    run.phase("save")
    alive = psutil.Process(process.pid).children(recursive=True)

    process.send_signal(signal.SIGINT)
    assert process.stderr
    while "second signal" not in process.stderr.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGINT)

    assert process.wait(10) == 130
    assert psutil.wait_procs(alive, timeout=10)[1] == []
    run.check_nothing_is_left()


PLAIN = """
import os, time
path, step = f"step.{os.environ['RANK']}", 0
if os.path.exists(path):
    step = int(open(path).read())
while True:
    time.sleep(0.1)
    step += 1
    with open(path + ".new", "w") as file:
        file.write(str(step))
    os.replace(path + ".new", path)
"""


def test_a_script_that_tells_no_steps_runs_and_recovers_and_loses_none_unasked(make: Make, tmp_path: Path) -> None:
    run = make("--nproc-per-node", "2")
    (tmp_path / "plain.py").write_text(PLAIN)
    run.script = ["plain.py"]
    process = run.start()
    run.begins()
    run.wait("RUNNING", lambda now: now.state == "RUNNING")

    refused = [run.call(verb) for verb in ("save", "pause")]
    os.kill(snapshot(run.paths)["nodes"][0]["ranks"][1]["pid"], signal.SIGKILL)
    run.wait("RUNNING again", lambda now: len(now.attempts) == 2 and now.state == "RUNNING")
    snap = snapshot(run.paths)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)

    assert [one.returncode for one in refused] == [1, 1]
    assert all("cannot be told to save" in one.stderr for one in refused)
    assert (snap["step"], snap["ettr"], snap["lost_steps"]) == (None, None, None)
    assert [(one["state"], one["step"], one["lost_steps"]) for one in snap["incidents"]] == [("RECOVERED", None, None)]
    assert "opt-launch: attempt 2 as the script resumes by itself on" in err
    assert "stopping without a checkpoint: the script cannot be told to save" in err
    assert process.returncode == 130


def test_a_run_that_is_alive_or_another_is_not_disturbed(make: Make) -> None:
    run = make(steps=1000)
    run.start()
    run.begins()
    run.saved()

    twin = run.start()
    run.script.append("--nan-always")
    other = run.start()
    codes = [(one.wait(30), one.stderr.read()) for one in (twin, other) if one.stderr]

    assert [code for code, _ in codes] == [3, 3]
    assert f"run '{run.paths.name}' is alive" in codes[0][1]
    assert "was started with another command" in codes[1][1]
    assert run.call("stop", "--yes").returncode == 0
    assert run.started[0].wait(30) == 1
    assert len(run.ends("STOPPED").attempts) == 1


def test_their_modules_win_in_their_script_and_not_in_ours(tmp_path: Path) -> None:
    for name in ("cli.py", "launcher/__init__.py", "policies/__init__.py", "model/__init__.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("WHOSE = 'theirs'\n")
    theirs = "import cli, launcher, model, policies\nprint({m.WHOSE for m in (cli, launcher, model, policies)})\n"
    (tmp_path / "train.py").write_text(theirs)

    for script in (["train.py"], ["-m", "train"]):
        done = subprocess.run(
            [PROGRAM, "run", *script], cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=60,
            check=False,
        )  # fmt: skip
        assert (done.returncode, done.stdout) == (0, "{'theirs'}\n"), done.stderr


def test_nobody_reading_on_does_not_stop_the_training(tmp_path: Path) -> None:
    """Neither a reader who stalls nor one who has left; the logs have it all."""
    (tmp_path / "train.py").write_text("for i in range(3_000): print(i, '.' * 1000)\n")
    process = subprocess.Popen(
        [PROGRAM, "run", "--name", "a", "train.py"], cwd=tmp_path, env=environment(), stdout=subprocess.PIPE
    )
    assert process.wait(60) == 0
    gone, reads_none = os.pipe()
    os.close(gone)
    done = subprocess.run(
        [PROGRAM, "run", "--name", "b", "train.py"], cwd=tmp_path, env=environment(), stdout=reads_none, timeout=60,
        check=False,
    )  # fmt: skip
    os.close(reads_none)

    assert done.returncode == 0
    for name in ("a", "b"):
        (log,) = (tmp_path / "runs" / name / "logs" / "0001").glob("*.log")
        assert sum(1 for _ in log.open()) == 3_000
    assert process.stdout
    process.stdout.close()


class ElasticRun(OwnRun):
    """The digest at its end depends on how many ranks there were when."""

    def check_history(self) -> None:
        samples = [sample for first, last in self.kept() for sample in range(first, last)]
        assert samples == list(range(self.steps * counting.BATCH))


def test_a_range_of_nodes_begins_with_those_that_come_and_goes_on_with_those_that_stay(tmp_path: Path) -> None:
    hosts = ("--nnodes", "1:3", "--nproc-per-node", "2", "--master-addr", "127.0.0.1")
    run = ElasticRun(tmp_path, "elastic", *hosts, "--set", "cluster.wait_for_node=4s", steps=100)
    try:
        first, second = [run.start("--node-rank", str(rank)) for rank in (0, 1)]
        run.begins()
        run.saved(20)
        lost = psutil.Process(second.pid)
        run.kill(lost, *lost.children(recursive=True))
        run.wait("a second attempt", lambda now: len(now.attempts) == 2)
        assert first.wait(60) == 0
        end = run.ends()
    finally:
        run.clean_up()

    assert [len(one.slots) for one in end.attempts] == [2, 1]
    assert [decision.detector for decision in run.decisions()] == ["node_lost"]


def test_hosts_without_slurm_go_on_when_the_first_is_lost(make: Make) -> None:
    hosts = ("--nnodes", "3", "--spares", "1", "--nproc-per-node", "2", "--master-addr", "127.0.0.1")
    run = make(*hosts, steps=80)
    first, *others = [run.start("--node-rank", str(rank)) for rank in (0, 1, 2)]
    run.begins()
    run.saved(10)
    deadline = time.monotonic() + 30
    while len([*run.paths.agents.glob("*.json")]) < 3:
        assert time.monotonic() < deadline
        time.sleep(0.05)

    run.kill(psutil.Process(first.pid), *psutil.Process(first.pid).children(recursive=True))
    end = run.ends()

    assert [one.wait(10) for one in others] == [0, 0]
    assert [decision.detector for decision in run.decisions()] == ["node_lost"]
    assert len(end.attempts) == 2
