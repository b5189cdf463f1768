"""A node of a job that its admin drains: saved from, replaced, and given back, without a step lost."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from slurm_run import SlurmRun
from trained_run import TrainedRun

from launcher.events import NodeDraining
from launcher.report import report

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]


class TrainedJob(SlurmRun, TrainedRun):
    """Our own trainer in a Slurm job: it can save when it is told to."""


def test_a_draining_node_is_replaced_by_the_spare_and_no_step_is_lost(launch: Callable[..., SlurmRun]) -> None:
    run = launch(kind=TrainedJob, steps=100_000, spares=1, corpus="python", every="100000 steps")
    run.wait("a first step", lambda run: run.state == "RUNNING")
    node, spare = run.node(1), run.node(2)

    run.cluster.drain(node, "new disks")
    seen = run.wait_for(NodeDraining)
    run.wait("another attempt", lambda run: len(run.attempts) == 2 and run.state == "RUNNING")
    run.trains_on(5)
    run.call("stop", "--yes")
    end = run.ends("STOPPED")

    assert (seen.node, seen.reason) == (node, "Slurm says: draining (new disks)")
    assert [(one.rule, one.nodes, one.counts) for one in run.decisions()] == [("draining", (node,), False)]
    first, second = end.attempts
    assert (set(first.slots), set(second.slots)) == ({run.node(0), node}, {run.node(0), spare})
    assert second.restore == (first.last_step, 1)
    assert [*first.exits.values()] == [0, 0, 0, 0]
    assert (end.lost_steps, report(run.paths)["samples"]["faults"]) == (0, [])
    run.cluster.wait_for_nodes([node], "drained")
