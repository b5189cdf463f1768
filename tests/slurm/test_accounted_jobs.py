"""A cluster that keeps accounts: Slurm can tell who ended a job."""

from __future__ import annotations

import json
import os
import tempfile
import time
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


def test_status_tells_who_cancelled_a_job_that_never_began(accounted: Cluster) -> None:
    accounted.call("scontrol", "update", "PartitionName=train", "State=DOWN")
    run = SlurmRun(accounted, "cancelled", steps=2000, waits=True)

    accounted.call("scancel", run.job)
    deadline = time.monotonic() + 60
    while (told := json.loads(run.call("status", "--json").stdout))["alive"] and time.monotonic() < deadline:
        time.sleep(1)

    assert (told["state"], told["alive"]) == ("PENDING", False)
    assert told["reason"] == f"none of its processes lives; job {run.job}: CANCELLED by root"
    assert "opt-launch resume" in told["next_action"]
