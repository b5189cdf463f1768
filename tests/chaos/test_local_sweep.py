"""A sweep on this machine: runs wait for their turn, and what is killed goes on when it is resumed."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from live_run import COUNTING, LiveRun

from launcher.events import AttemptStarted, RunEnded
from launcher.paths import RunPaths

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
STEPS = 40
SWEEP = """
name: three
run:
  command: COMMAND
  cluster: {nodes: 2, ranks_per_node: 2, silence: 2s}
  policy: [infra]
grid: {launch.env.SEED: ['1', '2', '3']}
max_parallel: 1
"""


class SweptRun(LiveRun):
    """A run that a sweep has started."""

    def __init__(self, root: Path, name: str) -> None:
        self.paths, self.steps = RunPaths(root / name), STEPS

    def attempted(self) -> list[tuple[float, float]]:
        """From when to when it ran in its last allocation."""
        ended = self.of(RunEnded)
        return [(self.of(AttemptStarted)[-1].at, ended[-1].at)] if ended else []


class Sweep:
    """Its command line, its runs and the queue they wait in."""

    def __init__(self, folder: Path) -> None:
        self.root, self.file = folder / "runs", folder / "SWEEP.yaml"
        command = [sys.executable, str(COUNTING), "--steps", str(STEPS), "--run", str(self.root)]
        self.file.write_text(SWEEP.replace("COMMAND", json.dumps(command)))

    def call(self, *arguments: object) -> str:
        """What the command printed; it must succeed."""
        command = [sys.executable, "-m", "cli", *map(str, arguments), "--root", str(self.root)]
        done = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60, stdin=subprocess.DEVNULL
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def start(self, *flags: object) -> list[SweptRun]:
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


def test_what_was_killed_is_resumed_so_many_at_a_time_and_nothing_is_left(sweep: Sweep) -> None:
    first, *waiting = sweep.start()
    first.saved(10)
    assert [(one.run.state, len(one.run.attempts)) for one in waiting] == [("PENDING", 0)] * 2
    assert "--resume-failed" not in sweep.call("status", "three")  # those that wait are alive
    sweep.call("stop", waiting[0].paths.name, "--yes")
    assert waiting[0].run.state == "STOPPED"

    sweep.kill()
    deadline = time.monotonic() + 30
    while sweep.states() != {"GONE": 2, "STOPPED": 1}:  # a run that has just spoken is not doubted for 5 s
        assert time.monotonic() < deadline
    runs = sweep.start("--resume-failed", "--max-parallel", 2)

    assert [run.paths.name for run in runs] == [run.paths.name for run in (first, *waiting)]
    for run in runs:
        run.ends()
    lives = [life for run in runs for life in run.attempted()]
    assert max(sum(began <= moment < ended for began, ended in lives) for moment, _ in lives) == 2
    assert [len(run.run.attempts) for run in runs] == [2, 1, 1]
    assert sweep.states() == {"SUCCEEDED": 3}
    assert not sweep.processes()
