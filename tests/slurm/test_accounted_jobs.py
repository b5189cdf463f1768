"""A cluster that keeps accounts: Slurm can tell who ended a job."""

from __future__ import annotations

import json
import time

import pytest
from cluster import Cluster
from slurm_run import SlurmRun

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]


def test_status_tells_who_cancelled_a_job_that_never_began(accounted: Cluster) -> None:
    accounted.call("scontrol", "update", "PartitionName=short", "State=DOWN")
    nowhere = ("--set", "cluster.slurm.partition=short", "--set", "cluster.slurm.time=5m")
    run = SlurmRun(accounted, "cancelled", steps=2000, waits=True, flags=nowhere)

    accounted.call("scancel", run.job)
    deadline = time.monotonic() + 60
    while (told := json.loads(run.call("status", "--json").stdout))["alive"] and time.monotonic() < deadline:
        time.sleep(1)

    assert (told["state"], told["alive"]) == ("PENDING", False)
    assert told["reason"] == f"none of its processes lives; job {run.job}: CANCELLED by root"
    assert "opt-launch resume" in told["next_action"]
