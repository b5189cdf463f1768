"""Which nodes are drained for us, what is written there, and what the run knows of it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tale import Tale

from launcher.backends.slurm_words import nodes_of
from launcher.crew import by_preference
from launcher.drain import is_ours, is_too_many, reason_of, to_drain, to_open, wanted
from launcher.events import Decision, DrainDone, DrainUndone
from launcher.fold import View
from launcher.news import news
from launcher.view.plain import plain
from launcher.view.snapshot import snapshot_of

RESTART: dict[str, Any] = {"restart": {"from": "latest"}}


def decision(**about: Any) -> Decision:
    values = {"detector": "hang", "blame": "certain", "actions": {"exclude": "blamed", **RESTART}, "why": "stopped"}
    return Decision(at=1.0, id="d", incident=1, attempt=1, rule="r", nodes=("n1", "n2"), **{**values, **about})


@pytest.mark.parametrize(
    ("about", "drained"),
    [
        ({}, True),
        ({"blame": "likely"}, True),
        ({"blame": "undecidable"}, False),
        ({"blame": "none"}, False),
        ({"actions": RESTART}, False),
        ({"mode": "advise"}, False),
        ({"detector": "exit", "blame": "likely"}, False),
        ({"detector": "node_lost"}, True),
        ({"detector": "node_lost", "actions": {"hold": {}}}, True),
        ({"detector": "draining", "actions": {"replace": "blamed"}}, False),
    ],
)
def test_only_nodes_that_look_broken_are_drained(about: dict[str, Any], drained: bool) -> None:
    assert wanted(decision(**about)) == (dict.fromkeys(("n1", "n2"), "stopped") if drained else {})


@given(st.text(max_size=400))
def test_what_scontrol_prints_of_a_reason_is_what_was_written_there(why: str) -> None:
    reason = reason_of("demo", why)
    line = f"NodeName=n1 State=IDLE+DRAIN Partitions=a Reason={reason} [alice@2026-01-01T00:00:00]"

    assert [node.reason for node in nodes_of(line)] == [reason]
    assert is_ours(reason, "demo") == bool(reason.removeprefix("opt-launch demo:"))
    assert not is_ours(reason, "dem")
    assert len(reason) <= 200


@pytest.mark.parametrize(("nodes", "recent", "too_many"), [(2, 0, False), (2, 1, True), (19, 1, True), (20, 1, False)])
def test_one_node_in_ten_is_drained_within_an_hour(nodes: int, recent: int, too_many: bool) -> None:
    tale = Tale(nodes=nodes, spares=0)
    tale.tell(*(done(tale, f"n{index}") for index in range(recent)))
    assert is_too_many(tale.run, tale.at) == too_many
    assert not is_too_many(tale.run, tale.at + 3700)


def done(tale: Tale, node: str, ok: bool = True, refused: bool = False) -> DrainDone:
    return DrainDone(at=tale.at, node=node, decision="d", ok=ok, reason="ours", detail="told", refused=refused)


def test_a_drained_node_takes_part_only_where_there_is_no_other_until_it_is_opened() -> None:
    tale = Tale(nodes=2).train(5)
    tale.tell(done(tale, "n0"), done(tale, "n2", ok=False))

    assert {node: one.reason for node, one in tale.run.drained.items()} == {"n0": "ours"}
    assert [node.name for node in by_preference(tale.run, tale.run.nodes.values())] == ["n1", "n2", "n0"]
    tale.tell(DrainUndone(at=tale.at, node="n0", ok=True, detail="opened again"))
    assert tale.run.drained == {}
    assert [node.name for node in by_preference(tale.run, tale.run.nodes.values())] == ["n0", "n1", "n2"]


LOST: dict[str, Any] = {"detector": "node_lost", "actions": {"exclude": "blamed", **RESTART}, "blame": "certain"}


def test_a_drained_node_is_opened_once_it_takes_part_in_another_attempt_than_the_one_it_broke() -> None:
    tale = Tale(nodes=2).train(5).down(1)
    tale.decide(nodes=["n1"], **LOST)
    asked = list(to_drain(tale.run))
    tale.tell(done(tale, "n1"))
    while_ranks_end = list(to_open(tale.run))
    tale.end_attempt().start(nodes=["n0", "n2"])
    elsewhere = list(to_open(tale.run))
    tale.join(1, "b").end_attempt().start()

    assert (asked, while_ranks_end, elsewhere, list(to_open(tale.run))) == (["n1"], [], [], ["n1"])


def test_a_node_that_takes_part_again_by_the_time_it_is_drained_is_opened_at_once() -> None:
    tale = Tale(nodes=2).train(5).down(1)
    tale.decide(nodes=["n1"], **LOST)
    tale.end_attempt().join(1, "a").start()
    assert list(to_drain(tale.run)) == []
    tale.tell(done(tale, "n1"))
    assert list(to_open(tale.run)) == ["n1"]


def test_what_another_allocation_drained_is_opened_in_the_first_attempt_that_it_takes_part_in() -> None:
    tale = Tale(nodes=2).train(5)
    tale.tell(done(tale, "n1")).resume()
    for index in range(2):
        tale.join(index, "c")
    assert list(to_open(tale.run)) == []
    tale.start()
    assert list(to_open(tale.run)) == ["n1"]


def test_what_looks_broken_is_to_be_drained_until_the_scheduler_was_asked_or_the_allocation_is_another() -> None:
    tale = Tale(nodes=2).train(5)
    tale.decide(nodes=["n0"], detector="node_lost", actions={"exclude": "blamed", **RESTART}, blame="certain")
    assert {node: (one.why, one.is_lost) for node, one in tale.run.broken.items()} == {"n0": ("told so", True)}
    tale.tell(done(tale, "n0", ok=False))
    assert tale.run.broken == {}

    tale.decide(nodes=["n1"], detector="hang", actions={"exclude": "blamed", **RESTART}, blame="likely")
    assert [*tale.run.broken] == ["n1"]
    assert tale.resume().run.broken == {}


def test_a_node_whose_agent_was_only_started_anew_does_not_look_broken() -> None:
    tale = Tale(nodes=2).train(5).join(1, "b")
    tale.decide(nodes=["n1"], detector="node_lost", actions={"exclude": "blamed", **RESTART}, blame="certain")
    assert tale.run.broken == {}


def test_a_refusal_holds_for_the_allocation() -> None:
    tale = Tale().train(5)
    tale.tell(done(tale, "n0", ok=False, refused=True))

    assert (tale.run.drained, tale.run.drain_refused) == ({}, "told")
    assert tale.resume().run.drain_refused == ""


def test_whoever_looks_sees_which_nodes_are_drained_and_that_none_may_be() -> None:
    tale = Tale().train(5)
    tale.tell(done(tale, "n0"))
    drained = plain(snapshot_of("tale", View().taken(tale.events), {}, tale.at))
    tale.tell(done(tale, "n1", ok=False, refused=True))
    refused = plain(snapshot_of("tale", View().taken(tale.events), {}, tale.at))

    assert any(line.startswith("node n0") and line.endswith("drained in Slurm (ours)") for line in drained)
    assert "no node is drained: told" in refused
    assert news(tale.events[-2], "tale") == "n0: told in Slurm: ours"
