"""Fewer nodes than wanted, and a node that a person has replaced: on real runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from live_run import LiveRun
from trained_run import TrainedRun

from launcher import control
from launcher.report import report

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]


class ElasticRun(TrainedRun):
    """A run that may go on with one node, and whose lost nodes stay away."""

    backend = "backend: local, min_nodes: 1, local: {return_after: 1h}"
    wait_for_node = "1s"


def test_a_run_whose_node_is_gone_for_good_goes_on_with_the_other_and_uses_each_sample_once(
    tmp_path: Path, corpus: Path
) -> None:
    run = ElasticRun(tmp_path / "runs", "elastic", steps=40, spares=0, corpus=corpus)
    try:
        run.saved(8)
        run.lose("node1")
        end = run.ends()
    finally:
        run.clean_up()

    assert [(one.detector, one.nodes) for one in run.decisions()] == [("node_lost", ("node1",))]
    assert [dict(one.slots) for one in end.attempts] == [{"node0": (0, 1), "node1": (2, 3)}, {"node0": (0, 1)}]
    body = report(run.paths)
    assert body["samples"]["faults"] == []
    assert body["digest"] == {"comparable": False, "why": "the attempts had 2, 4 ranks"}


def test_a_node_that_a_person_has_replaced_costs_no_step(launch: Callable[..., LiveRun]) -> None:
    run = launch(steps=120, spares=1, save_every=20)
    run.saved(20)

    nobody = control.command(run.paths, "replace", {"node": "node2"})
    done = control.command(run.paths, "replace", {"node": "node1", "reason": "it smells of smoke"})
    end = run.ends()

    assert nobody == (False, "'node2' does not train; these do: node0, node1")
    assert done == (True, "saving; then a spare takes its place")
    assert [set(one.slots) for one in end.attempts] == [{"node0", "node1"}, {"node0", "node2"}]
    assert (end.lost_steps, [*end.attempts[0].exits.values()]) == (0, [0, 0, 0, 0])
    assert end.incidents[0].why.endswith(": it smells of smoke")
