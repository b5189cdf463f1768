"""The state of a run follows from its events."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tale import Tale

from launcher.events import (
    PERSON,
    CommandAnswered,
    CommandReceived,
    EnvironmentChanged,
    RunResumed,
    StepDone,
    TrainerDone,
)
from launcher.news import news
from launcher.run import NodeState, RunState

Deed = Callable[[Tale], Tale]

IN_STATE: dict[str, Deed] = {
    "PENDING": lambda tale: tale,
    "STARTING": lambda tale: tale.start(),
    "RUNNING": lambda tale: tale.train(1),
    "SUSPECT": lambda tale: tale.train(1).silent("n1"),
    "RECOVERING": lambda tale: tale.train(1).decide(),
    "HELD": lambda tale: tale.train(1).hold(),
    "SUCCEEDED": lambda tale: tale.train(1).end("SUCCEEDED"),
    "FAILED": lambda tale: tale.train(1).end("FAILED"),
    "STOPPED": lambda tale: tale.train(1).end("STOPPED"),
}
LIVE = ["PENDING", "STARTING", "RUNNING", "SUSPECT", "RECOVERING"]
ENDED = ["SUCCEEDED", "FAILED", "STOPPED"]

HOLD = {"hold": {"reason": "enough"}}
STOP = {"stop": {"reason": "enough"}}

TRANSITIONS: list[tuple[str, str, Deed, str]] = [
    ("PENDING", "an attempt starts", lambda tale: tale.start(), "STARTING"),
    ("STARTING", "its first step is done", lambda tale: tale.steps(1), "RUNNING"),
    ("STARTING", "a node falls silent", lambda tale: tale.silent(), "STARTING"),
    ("STARTING", "nothing moves", lambda tale: tale.stopped(proof=False), "STARTING"),
    ("RUNNING", "an active node falls silent", lambda tale: tale.silent("n1"), "SUSPECT"),
    ("RUNNING", "an active node is down", lambda tale: tale.down("n1"), "SUSPECT"),
    ("RUNNING", "a spare falls silent", lambda tale: tale.silent("n2"), "RUNNING"),
    ("RUNNING", "steps have stopped", lambda tale: tale.stopped(), "SUSPECT"),
    ("RUNNING", "steps stand still in an evaluation", lambda tale: tale.stopped(proof=False), "RUNNING"),
    ("RUNNING", "another step", lambda tale: tale.steps(1), "RUNNING"),
    ("RUNNING", "a rule that only advises", lambda tale: tale.decide(mode="advise"), "RUNNING"),
    ("RUNNING", "a rule that tells someone", lambda tale: tale.decide(actions={"notify": "oncall"}), "RUNNING"),
    ("SUSPECT", "the node is back", lambda tale: tale.back("n1"), "RUNNING"),
    ("SUSPECT", "another node is back", lambda tale: tale.silent("n0").back("n0"), "SUSPECT"),
    ("SUSPECT", "the node is back but nothing moves", lambda tale: tale.stopped().back("n1"), "SUSPECT"),
    ("SUSPECT", "back, and steps move", lambda tale: tale.stopped().back("n1").moving(), "RUNNING"),
    ("SUSPECT", "steps move but the node is silent", lambda tale: tale.stopped().moving(), "SUSPECT"),
    *((state, "a restart", lambda tale: tale.decide(), "RECOVERING") for state in LIVE),
    *((state, "a decision to hold", lambda tale: tale.decide(actions=HOLD), "RECOVERING") for state in LIVE),
    *((state, "a decision to stop", lambda tale: tale.decide(actions=STOP), "RECOVERING") for state in LIVE),
    *((state, "it is held", lambda tale: tale.hold(), "HELD") for state in LIVE),
    *((state, "it ends", lambda tale, end=end: tale.end(end), end) for state in [*LIVE, "HELD"] for end in ENDED),
    *((state, "it is resumed", lambda tale: tale.resume(), "PENDING") for state in IN_STATE),
    ("RECOVERING", "an attempt starts", lambda tale: tale.end_attempt().start(), "STARTING"),
    ("RECOVERING", "a late step", lambda tale: tale.steps(1), "RECOVERING"),
    ("RECOVERING", "a node falls silent", lambda tale: tale.silent(), "RECOVERING"),
    ("HELD", "a person releases it", lambda tale: tale.release(), "RECOVERING"),
    ("HELD", "a restart is decided", lambda tale: tale.decide(), "HELD"),
    ("RUNNING", "released without being held", lambda tale: tale.release(), "RUNNING"),
    *((state, "a decision comes too late", lambda tale: tale.decide(), state) for state in ENDED),
    *((state, "held too late", lambda tale: tale.hold(), state) for state in ENDED),
    *((state, "released too late", lambda tale: tale.release(), state) for state in ENDED),
]


@pytest.mark.parametrize(
    ("before", "deed", "after"),
    [pytest.param(b, deed, a, id=f"{b}, {what}: {a}") for b, what, deed, a in TRANSITIONS],
)
def test_transition(before: str, deed: Deed, after: str) -> None:
    tale = IN_STATE[before](Tale())
    assert tale.run.state == before

    assert deed(tale).run.state == after


# ---------------------------------------------------------------- steps


def test_steps_given_up_are_counted_once_per_restart() -> None:
    tale = Tale().train(10).save().steps(7)

    tale.decide().end_attempt().start((10, 1))

    assert (tale.run.step, tale.run.lost_steps, tale.run.restarts) == (10, 7, 1)
    assert tale.run.incidents[0].lost_steps == 7
    tale.steps(2).decide().end_attempt().start((10, 1))
    assert (tale.run.step, tale.run.lost_steps, tale.run.restarts) == (10, 9, 2)


def test_what_a_person_asks_for_is_no_restart() -> None:
    tale = Tale().train(10).save()
    tale.decide(rule=PERSON).end_attempt().start((10, 1))
    tale.steps(1).hold().end_attempt().release().start((10, 1))
    assert (tale.number, tale.run.restarts) == (3, 0)


def test_numbers_of_a_step_that_is_no_more_are_forgotten() -> None:
    tale = Tale().train(10).save().steps(2, loss=3.0)
    assert tale.decide().end_attempt().start((10, 1)).run.metrics == {}


def test_what_ends_or_holds_the_run_is_told_once_with_its_outcome() -> None:
    tale = Tale().train(1).decide().decide(actions=STOP)
    assert [news(one, "tale") for one in tale.events[-2:]] == ["a-rule: told so: restart", ""]


def test_a_node_that_leaves_because_the_run_is_over_is_not_lost() -> None:
    tale = Tale().train(1).end("STOPPED").silent("n0").down("n0")
    assert tale.run.nodes["n0"].state is NodeState.ALIVE


def test_a_restart_at_step_0_loses_everything() -> None:
    tale = Tale().train(4).decide().end_attempt().start()

    assert (tale.run.step, tale.run.lost_steps) == (0, 4)


def test_the_incident_is_over_with_the_first_step() -> None:
    tale = Tale().train(4).decide()
    assert tale.run.incidents[0].state == "OPEN"

    tale.end_attempt().start()
    assert tale.run.incidents[0].recovered_at is None
    tale.steps(1)

    assert tale.run.incidents[0].state == "RECOVERED"
    assert tale.run.incidents[0].recovered_at == tale.at - 1


def test_what_an_attempt_found_different_may_be_told_when_it_is_over() -> None:
    tale = Tale().train(5).decide().end_attempt().start()
    before = tale.run
    tale.tell(EnvironmentChanged(at=tale.at, attempt=1, changes={"cpu": ["x", "y"]}))

    assert [one.differs for one in tale.run.attempts] == [{"cpu": ["x", "y"]}, {}]
    assert (tale.run.state, tale.run.step) == (before.state, before.step)


def test_a_late_word_of_an_older_attempt_changes_nothing() -> None:
    tale = Tale().train(5).decide().end_attempt().start()
    before = tale.run

    tale.tell(StepDone(at=tale.at, attempt=1, step=50, metrics={"loss": math.nan}))
    tale.tell(TrainerDone(at=tale.at, attempt=1, step=50))

    assert (tale.run.step, tale.run.attempts, tale.run.state) == (before.step, before.attempts, before.state)


def test_a_step_told_again_by_an_agent_is_not_counted_again() -> None:
    tale = Tale().train(5).save()
    before = tale.run.checkpoints

    tale.tell(StepDone(at=tale.at, attempt=1, step=2, metrics={"loss": 1.0}))

    assert tale.run.step == 5
    assert tale.run.checkpoints == before


# ---------------------------------------------------------------- checkpoints


def test_after_a_rollback_the_line_leads_past_what_was_given_up() -> None:
    tale = Tale().train(10).save().steps(10).save().steps(10).save()
    tale.decide().end_attempt().start((10, 1)).steps(10).save()

    assert [one.id for one in tale.run.lineage()] == [(20, 2), (10, 1)]
    assert (30, 1) in tale.run.checkpoints


def test_a_late_commit_of_an_ended_attempt_exists_but_is_not_the_head() -> None:
    tale = Tale().train(10).save().steps(5).decide().end_attempt().start((10, 1))

    tale.save(step=15, attempt=1)

    assert tale.head == (10, 1)
    assert (15, 1) in tale.run.checkpoints


@pytest.mark.parametrize(
    ("verified", "healthy", "good"), [(True, 3, True), (True, 2, False), (False, 3, False), (False, 99, False)]
)
def test_good_needs_every_byte_read_back_and_healthy_steps_after(verified: bool, healthy: int, good: bool) -> None:
    tale = Tale(probation=3).train(10).save()
    if verified:
        tale.verify()

    tale.steps(healthy)

    assert tale.run.is_good(tale.run.checkpoints[10, 1]) is good


def test_steps_done_while_it_was_written_count_for_probation() -> None:
    tale = Tale(probation=3).train(13).save(step=10).verify()

    assert tale.run.is_good(tale.run.checkpoints[10, 1])


def test_a_skipped_step_is_no_proof_of_health_and_no_doubt() -> None:
    tale = Tale(probation=3).train(10).steps(1, grad_norm=math.inf, skipped=1.0)
    tale = tale.save(step=11).verify().steps(3, grad_norm=math.inf, skipped=1.0)
    assert tale.run.checkpoints[11, 1].healthy_steps == 0
    assert not tale.run.checkpoints[11, 1].doubted

    tale.steps(3)
    assert tale.run.checkpoints[11, 1].healthy_steps == 3


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("when", ["the step before it was committed", "during its probation"])
def test_a_checkpoint_with_numbers_gone_wrong_is_never_good(bad: float, when: str) -> None:
    tale = Tale(probation=3).train(9)
    if when == "during its probation":
        tale.steps(1).save().steps(2).steps(1, loss=bad)
    else:
        tale.steps(1, loss=bad).save()

    tale.verify().steps(20)

    assert not tale.run.is_good(tale.run.checkpoints[10, 1])


def test_what_has_passed_its_probation_stays_good_whatever_comes() -> None:
    tale = Tale(probation=3).train(10).save().verify().steps(3).steps(5, loss=math.nan)

    assert tale.run.is_good(tale.run.checkpoints[10, 1])


def test_a_rejected_or_removed_checkpoint_is_not_good() -> None:
    tale = Tale(probation=1).train(10).save().verify().steps(1).save().verify().steps(1)
    assert all(tale.run.is_good(one) for one in tale.run.lineage())

    tale.reject((10, 1)).remove((11, 1))

    assert not any(tale.run.is_good(one) for one in tale.run.lineage())


# ---------------------------------------------------------------- nodes


def test_a_lost_node_is_told_by_the_decision() -> None:
    tale = Tale().train(1).silent("n1").decide(detector="node_lost", nodes=["n1"])

    assert tale.run.nodes["n1"].state is NodeState.LOST


def test_a_lost_node_comes_back_as_another_incarnation() -> None:
    tale = Tale().train(1).silent("n1").decide(detector="node_lost", nodes=["n1"])

    assert tale.silent("n1").run.nodes["n1"].state is NodeState.LOST
    assert tale.join(1, incarnation="b").run.nodes["n1"].state is NodeState.ALIVE


def test_a_node_that_came_back_before_its_loss_was_told_is_not_lost() -> None:
    actions = {"exclude": "blamed", "restart": {"from": "latest"}}
    tale = Tale().train(1).join(1, incarnation="b").decide(detector="node_lost", nodes=["n1"], actions=actions)

    assert tale.run.nodes["n1"].state is NodeState.ALIVE
    assert not tale.run.nodes["n1"].excluded


def test_an_exclusion_holds_for_one_choice_and_survives_a_reconnect() -> None:
    tale = Tale().train(1).decide(nodes=["n1"], actions={"exclude": "blamed", "restart": {"from": "latest"}})
    assert tale.run.nodes["n1"].excluded

    tale.join(1)
    assert tale.run.nodes["n1"].excluded
    tale.end_attempt().start(nodes=["n0", "n2"])

    assert not tale.run.nodes["n1"].excluded


def test_a_resumed_run_knows_its_checkpoints_but_no_nodes() -> None:
    tale = Tale().train(10).save().steps(3).end().resume()

    assert tale.run.state is RunState.PENDING
    assert tale.run.nodes == {}
    assert tale.run.live_attempt is None
    assert tale.head == (10, 1)
    assert tale.run.stop_requested == ""


# ---------------------------------------------------------------- commands


def test_a_command_waits_until_it_is_answered() -> None:
    tale = Tale().train(1)
    tale.tell(CommandReceived(at=tale.at, id="c1", verb="save", author="ann"))
    assert tale.run.save_requested_at is not None
    assert list(tale.run.commands) == ["c1"]

    tale.tell(CommandAnswered(at=tale.at, id="c1", ok=True))
    tale.steps(1).save()

    assert not tale.run.commands
    assert tale.run.save_requested_at is None


def test_a_checkpoint_begun_before_a_save_was_asked_for_does_not_fulfil_it() -> None:
    tale = Tale().train(3)
    asked_at = tale.at
    tale.tell(CommandReceived(at=asked_at, id="c1", verb="save", author="ann"))
    tale.tell(StepDone(at=asked_at - 0.5, attempt=1, step=3, metrics={"loss": 2.0}, step_s=1.0))  # told late
    tale.save()
    assert tale.run.save_requested_at == asked_at

    tale.steps(1).save()

    assert tale.run.save_requested_at is None
    assert tale.head == (5, 1)


def test_a_hold_that_a_person_asks_for_is_remembered_until_the_run_is_held() -> None:
    tale = Tale().train(1)
    tale.tell(CommandReceived(at=tale.at, id="c1", verb="hold", author="ann", args={"reason": "lunch"}))
    assert tale.run.hold_requested == "ann: lunch"

    tale.end_attempt().hold()

    assert (tale.run.hold_requested, tale.run.state) == ("", RunState.HELD)


def test_a_stop_is_remembered_with_its_author_and_time() -> None:
    tale = Tale().train(1)
    at = tale.at
    tale.tell(CommandReceived(at=at, id="c1", verb="stop", author="ann"))

    assert (tale.run.stop_requested, tale.run.stop_requested_at) == ("ann", at)


# ---------------------------------------------------------------- any order of events

DEEDS: list[Deed] = [
    lambda tale: tale.start(),
    lambda tale: tale.steps(1),
    lambda tale: tale.steps(1, loss=math.nan),
    lambda tale: tale.save() if tale.number else tale,
    lambda tale: tale.verify() if tale.run.head else tale,
    lambda tale: tale.reject(tale.head) if tale.run.head else tale,
    lambda tale: tale.silent(),
    lambda tale: tale.back(),
    lambda tale: tale.down("n0"),
    lambda tale: tale.stopped(),
    lambda tale: tale.moving(),
    lambda tale: tale.exit(0),
    lambda tale: tale.end_attempt(),
    lambda tale: tale.decide(nodes=["n1"], detector="node_lost"),
    lambda tale: tale.decide(actions=HOLD),
    lambda tale: tale.hold(),
    lambda tale: tale.release(),
    lambda tale: tale.end("FAILED"),
    lambda tale: tale.resume().join(0).join(1),
    lambda tale: tale.join(1, "b"),
    lambda tale: tale.epoch(),
]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(DEEDS), max_size=15))
def test_no_order_of_events_raises_or_breaks_what_always_holds(deeds: list[Deed]) -> None:
    tale = Tale().train(1)
    for deed in deeds:
        if set(tale.run.nodes) >= {"n0", "n1"}:
            deed(tale)
        run = tale.run
        assert run.step >= 0
        assert run.lost_steps >= 0
        assert (run.pending is None) or not run.state.is_terminal
        assert run.head is None or run.head in run.checkpoints
        assert sum(attempt.ended_at is None for attempt in run.attempts) <= 1
        assert [attempt.number for attempt in run.attempts] == list(range(1, len(run.attempts) + 1))
        assert len({one.id for one in run.lineage()}) == len(list(run.lineage()))
        assert (run.hold_reason != "") <= (run.state is RunState.HELD)


@pytest.mark.parametrize(
    ("actions", "mode", "state"),
    [
        ({"restart": {"from": "latest"}}, "act", "OPEN"),
        ({"notify": "owner", "save": {"when": "now"}}, "act", "NOTED"),
        ({"restart": {"from": "latest"}}, "advise", "ADVISED"),
    ],
)
def test_an_incident_is_open_only_if_its_decision_ends_the_attempt(
    actions: dict[str, Any], mode: str, state: str
) -> None:
    run = Tale().train(1).decide(actions=actions, mode=mode).run

    assert run.incidents[-1].state == state
    assert (run.save_requested_at is not None) == ("save" in actions)


def test_jobs_whose_place_another_has_taken_are_of_the_past() -> None:
    tale = Tale().train(1)
    assert tale.epoch().run.past_jobs == frozenset()  # a new supervisor of the same job
    tale.epoch("1.1").tell(RunResumed(at=tale.at, epoch=tale.run.epoch, author="the scheduler"))
    assert tale.run.past_jobs == {"1"}
    tale.resume()  # by a person, and no other job has begun yet
    assert tale.run.past_jobs == {"1", "1.1"}
    assert tale.epoch("7").run.past_jobs == {"1", "1.1"}
