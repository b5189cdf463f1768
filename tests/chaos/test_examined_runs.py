"""Nodes that checks find broken, in real runs: replaced without a step lost, left out before the start, or kept."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from live_run import LiveRun
from trained_run import TrainedRun

from launcher.control import command
from launcher.events import ActionDone, CommandAnswered, Decision, NodeExamined
from launcher.report import report
from policies.examined import SETTLE_S

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

# A node is broken when a file of its name lies beside this script. Virtual nodes are told apart by their agents.
OWN = """\
agent=$(tr '\\0' ' ' < /proc/$(ps -o ppid= -p $PPID | tr -d ' ')/cmdline)
node=$(echo "$agent" | sed 's/.*launcher.agent [^ ]* \\([^ ]*\\) .*/\\1/')
[ ! -e "$(dirname "$0")/$node" ] || { echo "the disk of $node is broken"; exit 2; }
"""


class ExaminedRun(LiveRun):
    """A run whose nodes are examined by a check of the site's own. `folder`: of what is broken."""

    health = "before_start: standard, every: 1s"

    def __init__(self, root: Path, name: str, broken: tuple[str, ...] = (), **options: Any) -> None:
        self.folder = root / f"{name}.broken"
        self.folder.mkdir(parents=True)
        (self.folder / "own.sh").write_text(OWN)
        for node in broken:
            self.breaks(node)
        super().__init__(root, name, **options)

    def breaks(self, node: str) -> None:
        (self.folder / node).touch()

    def mends(self, node: str) -> None:
        (self.folder / node).unlink()

    def submit(self, file: Path, root: Path) -> None:
        check = f"{{name: own, command: [/bin/sh, {self.folder}/own.sh], nagios: true, tier: fast}}"
        file.write_text(f"{file.read_text()}health: {{{self.health}, checks: [{check}]}}\n")
        super().submit(file, root)


class TrainedAndExamined(ExaminedRun, TrainedRun):
    """With our own trainer, which can save when it is told to."""


class RarelyExamined(ExaminedRun):
    """Only before its start, and when it fails."""

    health = "before_start: standard, every: 1h"


Launch = Callable[..., Any]


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Launch]:
    """Submits runs; when the test is over no process of theirs is."""
    runs: list[LiveRun] = []

    def submit(kind: type[LiveRun], **options: Any) -> LiveRun:
        runs.append(run := kind(tmp_path / "runs", f"examined{len(runs)}", **options))
        return run

    yield submit
    for run in runs:
        run.clean_up()


def test_a_node_that_breaks_while_it_trains_is_replaced_without_a_step_lost(launch: Launch, corpus: Path) -> None:
    run = launch(kind=TrainedAndExamined, steps=100_000, corpus=corpus, every="100000 steps")
    run.wait("some steps", lambda run: run.step >= 3)
    run.breaks("node1")
    run.wait("another attempt", lambda run: len(run.attempts) == 2 and run.state == "RUNNING", limit_s=120)
    assert run.wait_for(NodeExamined, node="node1", id="left 2").tier == "standard"
    command(run.paths, "stop", {})
    end = run.ends("STOPPED")

    (out,) = run.decisions()
    assert out.at - run.of(NodeExamined, node="node1", verdict="fail")[0].at >= SETTLE_S
    assert (out.rule, out.nodes, [*out.actions]) == ("node-fault", ("node1",), ["exclude", "replace"])
    assert out.why == "node1: site-own: the disk of node1 is broken (exit code 2)"
    assert [set(one.slots) for one in end.attempts] == [{"node0", "node1"}, {"node0", "node2"}]
    assert (end.lost_steps, report(run.paths)["samples"]["faults"]) == (0, [])


def test_a_node_that_is_broken_before_the_start_never_trains(launch: Launch) -> None:
    run = launch(kind=ExaminedRun, broken=("node0",))
    end = run.ends()
    assert [set(one.slots) for one in end.attempts] == [{"node1", "node2"}]
    (out,) = run.decisions()
    assert (out.nodes, out.actions) == (("node0",), {"exclude": "blamed"})


def test_what_all_nodes_have_is_told_and_the_run_trains(launch: Launch) -> None:
    run = launch(kind=ExaminedRun, broken=("node0", "node1", "node2"))
    end = run.ends()
    assert len(end.attempts) == 1
    (told,) = run.decisions()
    assert (told.actions, told.blame) == ({}, "none")
    assert "3 of 3 nodes have site-own, a common cause" in told.why


def test_what_all_nodes_begin_to_have_while_they_train_changes_nothing(launch: Launch) -> None:
    run = launch(kind=ExaminedRun, steps=100_000)
    run.wait("some steps", lambda run: run.step >= 3)
    for node in ("node0", "node1", "node2"):
        run.breaks(node)
        run.wait_for(NodeExamined, node=node, verdict="fail")
    told = run.wait_for(Decision, rule="node-fault")
    command(run.paths, "stop", {})
    end = run.ends("STOPPED")
    assert (len(run.decisions()), told.actions, told.blame) == (1, {}, "none")
    assert "3 of 3 nodes have site-own, a common cause" in told.why
    assert (len(end.attempts), end.lost_steps) == (1, 0)


def test_a_check_that_is_stuck_delays_a_start_by_its_deadline_only_and_blames_nobody(launch: Launch) -> None:
    began = time.monotonic()
    run = launch(kind=ExaminedRun)
    (run.folder / "own.sh").write_text("sleep 1000\n")
    end = run.ends()
    assert (len(end.attempts), run.decisions()) == (1, [])
    assert time.monotonic() - began < 60


def test_a_person_asks_and_is_answered_while_it_trains(launch: Launch) -> None:
    run = launch(kind=RarelyExamined, steps=100_000)
    run.wait("some steps", lambda run: run.step >= 3)
    run.breaks("node2")
    ok, said = command(run.paths, "examine", {"tier": "fast", "nodes": ["node2"]})
    assert ok
    assert "node2: fail: site-own: the disk of node2 is broken (exit code 2)" in said
    out = run.wait_for(Decision)
    assert (out.nodes, out.actions) == (("node2",), {"exclude": "blamed"})  # the spare has lost its place

    run.mends("node2")
    ok, said = command(run.paths, "examine", {"tier": "fast"})
    assert ok
    assert "fail" not in said
    assert command(run.paths, "examine", {"nodes": ["node9"]}) == (
        False,
        "the run has no node node9; these it has: " + ", ".join(run.run.nodes),
    )
    command(run.paths, "do", {"actions": {"check": "standard", "exclude": "failed"}, "why": "a look"})
    run.wait_for(ActionDone, action="check", ok=True)
    assert {one.ok for one in run.of(CommandAnswered)} == {True, False}
    command(run.paths, "stop", {})
    run.ends("STOPPED")


def test_a_supervisor_that_dies_over_an_examination_leaves_it_to_the_next(launch: Launch) -> None:
    run = launch(kind=RarelyExamined, steps=100_000)
    run.wait("some steps", lambda run: run.step >= 3)
    (run.folder / "own.sh").write_text("sleep 3\n")
    command(run.paths, "do", {"actions": {"check": "fast"}, "why": "a look"})
    epoch = run.epoch()
    run.kill(run.supervisor())
    run.new_epoch(epoch)
    done = run.wait_for(ActionDone, action="check")
    assert (done.ok, done.epoch > epoch) == (True, True)
    asked = [(one.node, one.id) for one in run.of(NodeExamined) if one.id == done.decision]
    assert len(asked) == len(set(asked)) == 3
    command(run.paths, "stop", {})
    run.ends("STOPPED")


def test_who_fails_when_a_rank_has_failed_is_passed_over(launch: Launch) -> None:
    run = launch(kind=RarelyExamined, steps=100_000, step_s=0.02)
    run.saved(10)
    node = run.node_of(2)
    run.breaks(node)
    run.kill(run.rank(2))
    run.wait_for(NodeExamined, node=node, verdict="fail")  # no restart waits for it: it may be too late for this one
    run.wait("a step", lambda now: len(now.attempts) == 2 and now.state == "RUNNING")
    run.kill(run.rank(0))
    run.wait("a step", lambda now: len(now.attempts) == 3 and now.state == "RUNNING")
    command(run.paths, "stop", {})
    assert node not in run.ends("STOPPED").attempts[-1].slots


@pytest.mark.parametrize("spares", [1])
def test_healthy_nodes_are_examined_and_nothing_comes_of_it(launch: Launch, spares: int) -> None:
    run = launch(kind=ExaminedRun, steps=200, step_s=0.02, spares=spares)
    end = run.ends()
    assert (len(end.attempts), run.decisions()) == (1, [])
    told = run.of(NodeExamined)
    assert [one.id for one in told] == ["start"] * 3  # and of the many after it nothing was news
