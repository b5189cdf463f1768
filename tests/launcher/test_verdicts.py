"""What a person says about one incident, and what it does to the run."""

from __future__ import annotations

from typing import Any

import pytest
from tale import Tale

from launcher.checkpoints import removable
from launcher.events import CommandReceived, RunReleased
from launcher.live import next_action
from launcher.verdicts import checked

RESTART: dict[str, Any] = {"restart": {"from": "last_good", "save_first": False}}


def asked(otherwise: str = "act") -> Tale:
    tale = Tale().train(20).save()
    return tale.decide(detector="spike", mode="ask", actions=RESTART, due_at=tale.at + 1800, otherwise=otherwise)


def answered(tale: Tale) -> Tale:
    return tale.decide(incident=1, detector="spike", actions=RESTART)


def left(tale: Tale) -> Tale:
    return tale.decide(incident=1, detector="spike", actions={})


def verdict(tale: Tale, verb: str, incident: object = 1, **args: Any) -> dict[str, Any]:
    command = CommandReceived(at=tale.at, id="c", verb=verb, author="ann", args={"incident": incident, **args})
    return dict(checked(command, tale.run).args)


@pytest.mark.parametrize(
    ("tale", "verb"),
    [
        (asked(), "approve"),
        (asked(), "hold"),
        (answered(asked()), "hold"),
        (left(asked()), "release"),
        (answered(asked()).hold(), "release"),
    ],
)
def test_what_can_be_said_goes_to_the_policy_with_the_rule(tale: Tale, verb: str) -> None:
    assert verdict(tale, verb) == {"incident": 1, "rule": "a-rule"}


@pytest.mark.parametrize(
    ("tale", "verb", "incident", "refused"),
    [
        (Tale(), "approve", 1, "there is no incident 1: none so far"),
        (asked(), "approve", 2, "there is no incident 2: 1 to 1"),
        (asked(), "approve", True, "there is no incident True: 1 to 1"),
        (asked(), "approve", "1", "there is no incident '1': 1 to 1"),
        (answered(asked()), "approve", 1, "nothing is asked about incident 1: it is OPEN"),
        (left(asked()), "hold", 1, "nothing waits to be done about incident 1"),
        (asked(), "release", 1, "incident 1 is not held: it is ASKED"),
    ],
)
def test_what_says_nothing_is_refused(tale: Tale, verb: str, incident: object, refused: str) -> None:
    assert verdict(tale, verb, incident) == {"incident": None, "refused": refused}


def test_a_note_needs_words() -> None:
    assert verdict(asked(), "note", text=" ")["refused"] == "a note without a word"
    assert verdict(asked(), "note", text="seen")["text"] == "seen"


def test_an_incident_goes_from_asked_to_what_came_of_it() -> None:
    assert [tale.run.incidents[0].state for tale in (asked(), answered(asked()), left(asked()))] == [
        "ASKED", "OPEN", "LEFT",
    ]  # fmt: skip
    assert answered(asked()).run.pending is not None
    assert left(asked()).run.pending is None


def test_what_may_be_gone_back_to_is_kept_as_long_as_nobody_has_answered() -> None:
    tale = Tale().train(20).save()
    tale.decide(detector="spike", mode="ask", actions=RESTART, onset_step=21)
    for _ in range(9):
        tale.steps(5).save()
    assert (20, 1) not in {one.id for one in removable(tale.run, 2, None)}
    left(tale)
    assert (20, 1) in {one.id for one in removable(tale.run, 2, None)}


def test_a_new_attempt_ends_what_was_asked() -> None:
    assert asked().decide(detector="exit").start().run.incidents[0].state == "LEFT"


def test_a_hold_of_an_incident_is_no_hold_of_the_run() -> None:
    tale = asked()
    tale.tell(CommandReceived(at=tale.at, id="c", verb="hold", author="ann", args={"incident": 1}))
    assert not tale.run.hold_requested


def test_notes_stay_with_their_incident() -> None:
    tale = asked()
    tale.tell(CommandReceived(at=tale.at, id="c", verb="note", author="ann", args={"incident": 1, "text": "a fan"}))
    (note,) = tale.run.incidents[0].notes
    assert (note.author, note.text) == ("ann", "a fan")


@pytest.mark.parametrize(
    ("otherwise", "told"),
    [
        ("act", "restart in 30m: incidents tale approve 1, or hold: a-rule: told so"),
        ("nothing", "restart only if approved within 30m: incidents tale approve 1, or hold: a-rule: told so"),
    ],
)
def test_what_is_asked_is_what_the_run_does_next(otherwise: str, told: str) -> None:
    tale = asked(otherwise)
    assert next_action(tale.run, tale.run.incidents[0].due_at - 1800) == told


def test_a_held_run_is_tried_again_and_goes_on() -> None:
    tale = Tale().train(20).save().decide(actions={"hold": {"reason": "x", "every_s": 600.0}}).end_attempt().hold()
    tale.decide(incident=1, rule="hold-retry", actions=RESTART)
    assert (tale.run.state, tale.run.incidents[0].state) == ("RECOVERING", "OPEN")
    tale.start().steps(1)
    assert tale.run.incidents[0].state == "RECOVERED"
    assert not any(isinstance(event, RunReleased) for event in tale.events)
