"""Jobs in which no supervisor can be had: they are given back, and do not stay without work."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from slurm_run import SlurmRun

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

Launch = Callable[..., SlurmRun]
SOON = ("--set", "cluster.unsupervised=12s")


@pytest.mark.parametrize("first_node", ["lives", "is lost"])
def test_a_job_without_a_supervisor_is_requeued_by_the_last_agent_and_goes_on(launch: Launch, first_node: str) -> None:
    run = launch(steps=100_000, flags=SOON)
    run.saved(10)
    agents = [run.run.nodes[run.node(index)].pid for index in (1, 2)]
    (run.paths.root / "supervisor").chmod(0o555)  # nobody may claim an epoch

    if first_node == "lives":
        run.kill(run.supervisor())
    else:
        run.cluster.lose(run.node(0))
    run.lives(2)
    (run.paths.root / "supervisor").chmod(0o755)
    anew = run.wait("a second attempt", lambda run: len(run.attempts) == 2 and run.state == "RUNNING", 100)

    assert anew.job_id == f"{run.job}.1"
    assert not {node.pid for node in anew.nodes.values()} & {*agents}
    assert anew.attempts[-1].restore is not None
    assert run.decisions() == []
    run.call("stop", "--yes")
    run.ends("STOPPED")


def test_a_job_that_lost_its_first_node_and_may_not_begin_anew_is_ended(launch: Launch) -> None:
    run = launch(steps=100_000, by="none", flags=SOON)
    run.saved(10)
    (run.paths.root / "supervisor").chmod(0o555)

    run.cluster.lose(run.node(0))
    run.becomes("CANCELLED")
    run.check_nothing_is_left()

    assert run.run.state == "RUNNING"  # nobody was there to say otherwise
    shown = run.call("status", "--once").stdout
    assert shown.startswith(f"run {run.paths.name}  GONE  (none of its processes lives")
