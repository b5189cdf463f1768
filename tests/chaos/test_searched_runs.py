"""Runs whose nodes are tried with each other: real all-reduces among the agents, a fault from outside, no step lost."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from live_run import LiveRun

from launcher.control import command
from launcher.events import ActionDone, NodeExamined, SearchBegan, TrialsEnded

pytestmark = [pytest.mark.slow, pytest.mark.timeout(280)]

SEARCH_S = 200.0
DEEP = {"check": "deep", "exclude": "failed", "restart": {"from": "latest"}}
NODES = ("node0", "node1", "node2", "node3")

Launch = Callable[..., LiveRun]


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Launch]:
    """Submits runs on two nodes with two spares; when the test is over no process of theirs is."""
    runs: list[LiveRun] = []

    def submit(**options: object) -> LiveRun:
        runs.append(run := LiveRun(tmp_path / "runs", f"searched{len(runs)}", spares=2, **options))  # type: ignore[arg-type]
        return run

    yield submit
    for run in runs:
        run.clean_up()


@contextlib.contextmanager
def broken(run: LiveRun, node: str) -> Iterator[None]:
    """What the node computes with others is killed as soon as it is connected to them: from outside, as by a fault."""
    over = threading.Event()

    def kill() -> None:
        while not over.wait(0.02):
            for process in run.agent(node).children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    words = " ".join(process.cmdline())
                    is_met = "health.collective" in words and '"world": 0' not in words and process.net_connections()
                    if is_met:
                        process.kill()

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def test_a_node_that_breaks_all_reduces_is_found_before_the_restart_and_left_out(launch: Launch) -> None:
    run = launch(steps=60).reaches(15)
    with broken(run, "node1"):
        assert command(run.paths, "do", {"actions": DEEP, "why": "it hung, and nobody knows why"})[0]
        run.wait("another attempt", lambda now: len(now.attempts) == 2, SEARCH_S)
    end = run.ends()

    assert run.of(SearchBegan)[0].nodes == NODES
    assert "node1" not in end.attempts[1].slots
    (told,) = [one for one in run.of(NodeExamined, tier="deep") if one.verdict == "fail"]
    assert told.node == "node1"
    assert told.findings[0].summary.endswith("which pass with others: its process ended by SIGKILL")
    (out,) = [one for one in run.decisions() if one.actions == {"exclude": "blamed"}]
    assert out.nodes == ("node1",)


def test_a_supervisor_that_dies_meanwhile_is_replaced_and_the_search_goes_on(launch: Launch) -> None:
    run = launch(steps=60).reaches(15)
    assert command(run.paths, "do", {"actions": DEEP, "why": "x"})[0]
    run.wait("the first round", lambda _: run.of(TrialsEnded), SEARCH_S)
    run.kill(run.supervisor())
    run.new_epoch(after=1)
    run.wait("another attempt", lambda now: len(now.attempts) == 2, SEARCH_S)
    run.ends()

    assert len(run.of(SearchBegan)) == 1
    (done,) = run.of(ActionDone, action="check")
    assert done.detail.endswith("all-reduces of 4 nodes pass")
    assert not [one for one in run.of(NodeExamined, tier="deep") if one.verdict == "fail"]


def test_a_person_has_the_nodes_of_a_paused_run_tried_and_ranks_have_the_first_claim_to_them(launch: Launch) -> None:
    run = launch(steps=60).reaches(10)
    done, said = command(run.paths, "examine", {"tier": "deep"})
    assert (done, said.startswith("its ranks need the nodes: pause it first")) == (False, True)

    command(run.paths, "hold", {"reason": "to look at the nodes"})
    run.wait("a hold", lambda now: now.state == "HELD")
    asked = threading.Thread(target=command, args=(run.paths, "examine", {"tier": "deep"}, SEARCH_S))
    asked.start()
    run.wait("a search", lambda _: run.of(SearchBegan), SEARCH_S)
    began = time.monotonic()
    command(run.paths, "release", {})
    run.wait("another attempt", lambda now: len(now.attempts) == 2 and now.state == "RUNNING")
    assert time.monotonic() - began < 30
    asked.join()
    run.ends()
