"""Sweeps as Slurm arrays: each element a run of its own, supervised by itself."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from cluster import Cluster
from live_run import COUNTING
from slurm_run import SlurmRun, opt_launch

from launcher import control
from launcher.backends.slurm_jobs import jobs_of
from launcher.events import AttemptStarted, RunEnded
from launcher.paths import RunPaths

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

SWEEP = """
name: NAME
run:
  command: COMMAND
  cluster: {backend: slurm, nodes: 2, ranks_per_node: 2, spares: 1, wait_for_node: 30s, silence: 2s,
            slurm: {partition: train, time: 30m, lead: 60s, cpus_per_task: 4}}
  launch: {first_step: 30s}
  policy: [infra]
GRID
"""


class SweptRun(SlurmRun):
    """A run that a sweep has submitted."""

    def __init__(self, cluster: Cluster, name: str, steps: int) -> None:
        self.cluster, self.paths, self.steps = cluster, RunPaths(cluster.runs / name), steps

    @property
    def job(self) -> str:
        """Slurm's id of it."""
        return jobs_of(self.paths)[-1]

    def began_and_ended(self) -> tuple[float, float]:
        return self.of(AttemptStarted)[0].at, self.of(RunEnded)[0].at


class Swept:
    """A sweep of the counting trainer on the cluster, given by a user without rights."""

    def __init__(self, cluster: Cluster, name: str, grid: str, steps: int) -> None:
        self.cluster, self.name, self.steps = cluster, name, steps
        folder = cluster.runs / f"{name}.asked"
        folder.mkdir()
        self.file = folder / "SWEEP.yaml"
        command = [sys.executable, str(COUNTING), "--steps", str(steps), "--run", str(cluster.runs / name)]
        text = SWEEP.replace("NAME", name).replace("COMMAND", json.dumps(command)).replace("GRID", grid)
        self.file.write_text(text)
        folder.chmod(0o755)
        self.file.chmod(0o644)
        self.runs: list[SweptRun] = []

    def call(self, *flags: object) -> subprocess.CompletedProcess[str]:
        return opt_launch(self.cluster, "sweep", self.file, *flags)

    def submit(self, *flags: object) -> list[SweptRun]:
        done = self.call(*flags)
        assert done.returncode == 0, done.stderr
        self.runs = [SweptRun(self.cluster, name, self.steps) for name in done.stdout.split()]
        return self.runs

    def table(self) -> dict[str, Any]:
        return json.loads(opt_launch(self.cluster, "status", self.name, "--json").stdout)

    def jobs(self) -> list[str]:
        """What Slurm has of it, waiting or running."""
        said = self.cluster.call("squeue", "-h", "-r", "-n", self.name, "-o", "%i")
        return said.stdout.split()


@pytest.fixture
def sweep(cluster: Cluster) -> Iterator[Callable[..., Swept]]:
    """Writes SWEEP.yaml files; when the test is over, no process of their runs is, and all nodes are back."""
    sweeps: list[Swept] = []

    def make(name: str, grid: str, steps: int = 60) -> Swept:
        sweeps.append(Swept(cluster, name, grid, steps))
        return sweeps[-1]

    yield make
    for one in sweeps:
        for run in one.runs:
            run.clean_up()
    cluster.restore()


def test_six_runs_two_at_a_time_of_which_two_lose_a_node(sweep: Callable[..., Swept]) -> None:
    swept = sweep("six", "grid: {launch.env.LR: ['1e-4', '2e-4', '3e-4'], launch.env.SEED: ['1', '2']}", steps=40)

    runs = swept.submit("--max-parallel", 2)
    first, last = runs[0], runs[-1]
    first.saved(10)
    swept.cluster.lose(first.node(1))
    last.wait("a node", lambda run: run.nodes, limit_s=120)
    last.saved(10)
    swept.cluster.lose(last.node(0))  # with the batch script of the element whose number is the array's
    for run in runs:
        run.ends()

    lives = [run.began_and_ended() for run in runs]
    at_once = [sum(began <= moment < ended for began, ended in lives) for moment, _ in lives]
    assert max(at_once) == 2
    assert [[one.detector for one in run.decisions()] for run in runs] == [["node_lost"], [], [], [], [], ["node_lost"]]
    elements = [f"{first.job.split('_')[0]}_{index}" for index in range(6)]
    assert [run.job for run in runs] == elements
    assert [run.run.job_id for run in runs] == elements  # by which it would be requeued, or cancelled
    for run in runs[1:5]:
        run.becomes("COMPLETED")
    table = swept.table()
    assert table["states"] == {"SUCCEEDED": 6}
    assert [(one["run"], one["restarts"]) for one in table["runs"]] == [
        (run.paths.name, int(run in (first, last))) for run in runs
    ]
    assert first.paths.name == "six.LR1e-4.SEED1.ngpu4"


def test_an_array_that_is_refused_takes_the_others_with_it(sweep: Callable[..., Swept]) -> None:
    swept = sweep("halves", "list: [{cluster.slurm.partition: train}, {cluster.slurm.partition: nowhere}]")

    refused = swept.call()

    assert (refused.returncode, refused.stdout) == (3, "")
    assert "invalid partition" in refused.stderr.lower()
    assert swept.jobs() == []
    assert [path.name for path in swept.cluster.runs.glob("*halves*")] == ["halves.asked"]


def test_what_was_stopped_and_what_was_cancelled_is_resumed_and_nothing_else(sweep: Callable[..., Swept]) -> None:
    swept = sweep("again", "grid: {launch.env.SEED: ['1', '2', '3']}", steps=60)
    stopped, cancelled, held = swept.submit("--max-parallel", 1)

    swept.cluster.call("scancel", cancelled.job)
    stopped.saved(10)
    assert control.command(stopped.paths, "stop", {})[0]
    stopped.ends("STOPPED")
    held.saved(10)
    assert control.command(held.paths, "hold", {"reason": "let me look"})[0]
    resumed = swept.call("--resume-failed", "--max-parallel", 3)

    assert resumed.stdout.split() == [stopped.paths.name, cancelled.paths.name], resumed.stderr
    for run in (stopped, cancelled):
        run.ends()
    assert held.run.state == "HELD"
    assert control.command(held.paths, "release", {})[0]
    held.ends()
    assert [len(run.run.attempts) for run in swept.runs] == [2, 1, 2]
    assert (stopped.run.lost_steps, cancelled.run.lost_steps) == (0, 0)
    nothing = swept.call("--resume-failed")
    assert (nothing.returncode, nothing.stdout) == (0, "")
