"""A cluster that keeps accounts: Slurm can tell who ended a job."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster import Cluster, missing
from slurm_run import SlurmRun

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]


@pytest.fixture
def accounted() -> Iterator[Cluster]:
    if lacks := missing(accounting=True):
        why = f"ACCOUNTING NOT TESTED: missing {', '.join(lacks)} (make slurm installs it where root and apt allow)"
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(why)
    cluster = Cluster(Path(tempfile.mkdtemp(prefix="opt-slurm-")))
    try:
        cluster.up(4, accounting=True)
        yield cluster
    finally:
        cluster.down()


def test_status_tells_who_cancelled_the_job(accounted: Cluster) -> None:
    run = SlurmRun(accounted, "cancelled", steps=2000)
    run.saved(20)

    run.kill(*run.processes(), number=signal.SIGSTOP)  # nobody of the run is there to say what happens
    accounted.call("scancel", run.job)
    run.check_nothing_is_left()
    status = run.status_of_the_dead()

    assert status == f"none of its processes lives; job {run.job}: CANCELLED by root"
