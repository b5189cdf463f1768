"""A trainer that is not ours, on Slurm: submitted, and by `opt-launch run` in a batch script of the user's own."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cluster import Cluster
from own_job import OwnJob
from own_run import given
from slurm_run import SlurmRun

sys.path.insert(0, str(Path(__file__).parents[1] / "foreign"))

from foreign_run import TRAINER, ForeignRun

from launcher.events import AttemptStarted

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

KNOWN = """
telemetry: {{preset: nanogpt}}
checkpoints: {{glob: "{out}/ckpt-{{step}}", complete: {{marker: DONE}}, verify: full}}
capabilities: {{resume: {{args: ["--load", "{{dir}}", "--ckpt-step", "{{step}}"]}}}}
"""


def moved(cluster: Cluster, name: str) -> tuple[Path, str]:
    """A copy of the trainer that users of the cluster can run and write below, and what is known of it."""
    work = cluster.runs / f"{name}.work"
    shutil.copytree(TRAINER, work, ignore=shutil.ignore_patterns("__pycache__"))
    (work / "out").mkdir()
    (work / "out").chmod(0o1777)
    return work, KNOWN.format(out=work / "out")


class Foreign(ForeignRun):
    """In whatever job it runs."""

    def script_and_arguments(self, **options: Any) -> list[str]:
        out = self.work / "out"
        about = {"run": self.paths.root, "steps": self.steps, "out": out, "step_s": 0.1, "save_every": 10}
        return [str(self.work / "train.py"), *given(about | options)]


class SubmittedJob(Foreign, SlurmRun):
    """By opt-launch submit."""

    submit = SlurmRun.submit

    def __init__(self, cluster: Cluster, name: str, **options: Any) -> None:
        self.work, self.says = moved(cluster, name)
        SlurmRun.__init__(self, cluster, name, **options)

    def trainer(self, **options: Any) -> str:
        return f"command: {json.dumps([sys.executable, *self.script_and_arguments(**options)])}\n{self.says}"


class OwnForeignJob(Foreign, OwnJob):
    """By opt-launch run."""

    def __init__(self, cluster: Cluster, name: str, **options: Any) -> None:
        self.work, says = moved(cluster, name)
        (self.work / "known.yaml").write_text(says)
        OwnJob.__init__(self, cluster, name, "--config", str(self.work / "known.yaml"), **options)


@pytest.fixture
def job(cluster: Cluster, request: pytest.FixtureRequest) -> Iterator[Foreign]:
    kind = request.param
    run = kind(cluster, kind.__name__.lower(), steps=120, spares=1)
    yield run
    run.clean_up()
    cluster.restore()


@pytest.mark.parametrize("job", [SubmittedJob, OwnForeignJob], indirect=True)
def test_a_trainer_that_is_not_ours_loses_a_node_and_goes_on_from_its_own_checkpoint(job: Any) -> None:
    job.saved(20)

    job.cluster.lose(lost := job.node(1))
    end = job.ends()

    first, second = job.of(AttemptStarted)
    assert [(decision.detector, decision.nodes) for decision in job.decisions()] == [("node_lost", (lost,))]
    assert set(second.slots) == {*first.slots, job.node(2)} - {lost}
    assert second.restore[0] >= 20
    assert f"loaded {job.work / 'out' / 'ckpt-'}{second.restore[0]}\n" in job.printed(2)
    assert [line.step for line in job.lines(1)][:20] == [*range(20)]
    assert (job.lines(2)[0].step, job.found()[0]) == (second.restore[0], 120)
    assert end.lost_steps < 30
