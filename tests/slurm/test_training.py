"""The real trainer as a Slurm job: losing nodes changes not a bit of what it ends with."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cluster import Cluster
from slurm_run import SlurmRun
from trained_run import TrainedRun

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


class SlurmTrainedRun(SlurmRun, TrainedRun):
    """A job of the real trainer."""


@pytest.fixture
def train(cluster: Cluster) -> Iterator[Any]:
    corpus = cluster.runs / "corpus"
    corpus.mkdir(exist_ok=True)
    for module in ("argparse.py", "ast.py", "typing.py", "dataclasses.py"):
        (corpus / module).write_text(Path(os.__file__).with_name(module).read_text())
    runs: list[SlurmTrainedRun] = []

    def submit(name: str, **options: Any) -> SlurmTrainedRun:
        alone = ("--set", "cluster.slurm.exclusive=true")  # what becomes of one's nodes is not to touch the other
        options |= {"flags": alone, "corpus": corpus / "*.py"}
        runs.append(run := SlurmTrainedRun(cluster, name, steps=40, **options))
        return run

    yield submit
    for run in runs:
        run.clean_up()
    cluster.restore()


def test_a_job_that_lost_its_first_node_and_another_ends_in_the_same_bits(train: Any) -> None:
    calm, hurt = train("calm", spares=0), train("hurt", spares=2)
    hurt.saved(8)

    hurt.cluster.lose(hurt.node(1))
    hurt.wait("a second attempt", lambda run: len(run.attempts) == 2 and run.state == "RUNNING", 120)
    hurt.saved(16)
    hurt.cluster.lose(hurt.node(0))

    end, undisturbed = hurt.ends(limit_s=240), calm.ends(limit_s=240)
    assert [decision.detector for decision in hurt.decisions()] == ["node_lost", "node_lost"]
    assert set(end.attempts[-1].slots) == {hurt.node(2), hurt.node(3)}
    assert undisturbed.restarts == 0
    assert hurt.kept() == calm.kept()
    assert hurt.digest() == calm.digest()
