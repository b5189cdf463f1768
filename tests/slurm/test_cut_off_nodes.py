"""A node that works on, and whose network is gone: neither the others nor it do harm."""

from __future__ import annotations

import time
from collections.abc import Iterator

import psutil
import pytest
from cluster import Cluster
from slurm_run import SlurmRun

from launcher.takeover import ALONE_S

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture
def run(wired: Cluster, request: pytest.FixtureRequest) -> Iterator[SlurmRun]:
    # Longer than it takes to replace a supervisor that is cut off itself, also on a busy machine.
    usual = ("--set", "cluster.silence=20s", "--policy", "infra")
    cut = SlurmRun(wired, f"cut{request.param}", steps=100_000, spares=1, flags=usual)
    yield cut
    cut.clean_up()
    wired.restore()


@pytest.mark.parametrize("run", [0, 1], indirect=True, ids=["the supervisor's", "another"])
def test_a_node_that_is_cut_off_is_replaced_and_disturbs_nobody_until_it_is_back(
    run: SlurmRun, request: pytest.FixtureRequest
) -> None:
    run.saved(10)
    index = request.node.callspec.params["run"]
    node, spare = run.node(index), run.node(2)
    agent, ranks = psutil.Process(run.run.nodes[node].pid), [run.rank(2 * index), run.rank(2 * index + 1)]

    run.cluster.cut_off(node)
    cut_at = time.monotonic()
    run.wait("a second attempt", lambda run: len(run.attempts) == 2 and run.state == "RUNNING", 90)
    trains_at, epoch = time.monotonic(), run.run.epoch
    assert all(process.status() in ("sleeping", "running") for process in (agent, *ranks))
    long = ALONE_S + 10 if index else 0  # by then it would take over, if it were the only one left
    while time.monotonic() < cut_at + long:
        run.trains_on(20)
    run.cluster.give_back(node)
    run.wait("it answers", lambda run: run.nodes[node].state == "ALIVE", 30)
    assert psutil.wait_procs(ranks, timeout=10)[1] == []
    end = run.run
    run.stops()

    assert trains_at - cut_at < 80
    assert [(one.detector, one.nodes) for one in run.decisions()] == [("node_lost", (node,))]
    assert (end.epoch, len(end.attempts)) == (epoch, 2)
    assert set(end.attempts[-1].slots) == {run.node(1 - index), spare}
