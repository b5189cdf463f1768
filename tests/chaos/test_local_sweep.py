"""A sweep on this machine: runs wait for their turn, and what is killed goes on when it is resumed."""

from __future__ import annotations

import contextlib
import grp
import json
import os
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from live_run import COUNTING, LiveRun

from launcher import control
from launcher.access import RUN
from launcher.backends import local
from launcher.paths import RunPaths

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
STEPS = 120
SWEEP = """
name: three
run:
  command: COMMAND
  cluster: {nodes: 2, ranks_per_node: 2, silence: 2s}
  policy: [infra]
  access: {group: GROUP}
grid: {launch.env.SEED: ['1', '2', '3']}
max_parallel: 1
"""


class SweptRun(LiveRun):
    """A run that a sweep has started."""

    def __init__(self, root: Path, name: str) -> None:
        self.paths, self.steps = RunPaths(root / name), STEPS

    def holds(self) -> None:
        """Wait until it trains, and hold it."""
        self.wait("training", lambda run: run.state == "RUNNING")
        assert control.command(self.paths, "hold", {"reason": "let me look"})[0]
        self.wait("a hold", lambda run: run.state == "HELD")


class Sweep:
    """Its command line, its runs and the queue they wait in."""

    def __init__(self, folder: Path) -> None:
        self.root, self.file = folder / "runs", folder / "SWEEP.yaml"

    def call(self, *arguments: object) -> str:
        """What the command printed; it must succeed."""
        command = [sys.executable, "-m", "cli", *map(str, arguments), "--root", str(self.root)]
        done = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60, stdin=subprocess.DEVNULL
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def start(self, *flags: object, steps: int = STEPS) -> list[SweptRun]:
        command = [sys.executable, str(COUNTING), "--steps", str(steps), "--run", str(self.root)]
        group = grp.getgrgid(os.getegid()).gr_name
        self.file.write_text(SWEEP.replace("COMMAND", json.dumps(command)).replace("GROUP", group))
        return [SweptRun(self.root, name) for name in self.call("sweep", self.file, *flags).split()]

    def states(self) -> dict[str, int]:
        return json.loads(self.call("status", "three", "--json"))["states"]

    def processes(self) -> list[psutil.Process]:
        """Everything of the sweep that lives: the queue, and all of the runs."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                of_ours = str(self.root) in " ".join(process.cmdline()) and process.pid != os.getpid()
                if of_ours and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def kill(self) -> None:
        """The machine room is gone."""
        deadline = time.monotonic() + 10
        while (left := self.processes()) and time.monotonic() < deadline:
            for process in left:
                with contextlib.suppress(psutil.Error):
                    process.kill()
            time.sleep(0.05)
        assert not self.processes()


@pytest.fixture
def sweep(tmp_path: Path) -> Iterator[Sweep]:
    sweep = Sweep(tmp_path)
    yield sweep
    sweep.kill()


def test_a_sweep_is_held_and_stopped_as_a_whole_and_what_waits_never_begins(sweep: Sweep) -> None:
    first, second, third = sweep.start(steps=100_000)
    first.wait("training", lambda run: run.state == "RUNNING")

    sweep.call("hold", "three", "--reason", "let me look")
    first.wait("a hold", lambda run: run.state == "HELD")
    assert [one.run.state for one in (second, third)] == ["PENDING", "PENDING"]
    sweep.call("release", "three")
    first.wait("a second attempt", lambda run: len(run.attempts) == 2)
    sweep.call("stop", "three", "--yes")
    end = first.ends("STOPPED")

    assert (end.lost_steps, sweep.states()) == (0, {"STOPPED": 3})
    assert [len(one.run.attempts) for one in (first, second, third)] == [2, 0, 0]
    deadline = time.monotonic() + 30
    while sweep.processes():  # the queue leaves, since nobody waits in it
        assert time.monotonic() < deadline
        time.sleep(0.05)
    sweep.call("stop", "three", "--yes")  # nothing is left to stop


def test_what_was_killed_is_resumed_so_many_at_a_time_and_nothing_is_left(sweep: Sweep) -> None:
    first, second, third = sweep.start()
    first.holds()
    assert [one.run.state for one in (second, third)] == ["PENDING", "PENDING"]
    assert "--resume-failed" not in sweep.call("status", "three")  # those that wait are alive
    sweep.call("stop", second.paths.name, "--yes")
    assert second.run.state == "STOPPED"

    sweep.kill()
    deadline = time.monotonic() + 30
    while sweep.states() != {"GONE": 2, "STOPPED": 1}:  # a run that has just spoken is not doubted for 5 s
        assert time.monotonic() < deadline
    resumed = sweep.start("--resume-failed", "--max-parallel", 2)

    assert [run.paths.name for run in resumed] == [run.paths.name for run in (first, second, third)]
    first.holds()
    second.holds()  # beside the first
    assert local.is_waiting(third.paths)
    for run in (first, second):
        assert control.command(run.paths, "release", {})[0]
    for run in (first, second, third):
        run.ends()
    assert third.run.lost_steps == 0
    assert sweep.states() == {"SUCCEEDED": 3}
    assert stat.S_IMODE((sweep.root / "three.sweep").stat().st_mode) == RUN
    assert {file.stat().st_mode & 0o040 for file in (sweep.root / "three.sweep", third.paths.allocation)} == {0o040}
    assert not sweep.processes()
