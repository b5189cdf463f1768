"""A command of whose steps nothing is declared and nobody tells: what is not known is never told as 0."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from simulated_fleet import LIMITS, Simulation
from tale import Tale

from launcher.abilities import SILENT, Abilities
from launcher.commands import Commands, Grounds
from launcher.control import leave
from launcher.events import (
    AttemptStarted,
    CommandAnswered,
    CommandReceived,
    Event,
    RanksUp,
    StepDone,
    from_json,
    to_json,
)
from launcher.fleet import UP_S, Contact, Fleet
from launcher.fold import View
from launcher.ledger import account
from launcher.live import next_action
from launcher.moves import Emit, Send
from launcher.news import news
from launcher.paths import RunPaths
from launcher.pausing import checked
from launcher.report import attempt_account
from launcher.run import Run
from launcher.view.plain import plain
from launcher.view.snapshot import snapshot_of
from policies.meaning import RunFacts
from policies.schema import Policy

SILENT_COMMAND = Abilities(resumes_itself=True, observed=False)
RESTART = {"restart": {"from": "latest", "save_first": False}}


def tale() -> Tale:
    return Tale(spares=0, target=None, save_every=None)


def begun(of: Tale | None = None, **how: Any) -> Tale:
    return (of or tale()).start(resumes_itself=True, observed=False, **how)


def failed(of: Tale) -> Tale:
    return of.exit(0).decide(actions=RESTART).end_attempt()


def shown(of: Tale, live: dict[str, Any] | None = None) -> dict[str, Any]:
    view = View().taken(of.events)
    return snapshot_of("tale", view, live or {}, of.at)


def answers(of: Tale, verb: str, tmp_path: Path, trainer: Abilities = SILENT_COMMAND) -> list[tuple[bool, str]]:
    """What is said at once to a person who asks for this."""
    emitted: list[Event] = []

    def emit(event: Event) -> Event:
        emitted.append(event)
        return event

    grounds = Grounds(trainer, RunFacts(), lambda: Policy(version=1, name="p"), "me")
    paths = RunPaths(tmp_path)
    paths.control.mkdir(exist_ok=True)
    commands = Commands(paths, lambda: of.run, emit, grounds)
    leave(paths, f"c{of.at}", verb)
    commands.look_for_files(of.run)
    commands.durable(of.tell(emitted[0]).run, emitted[0])
    return [(one.ok, one.message) for one in emitted if isinstance(one, CommandAnswered)]


# ---------------------------------------------------------------- its states


def test_it_runs_once_its_ranks_have_run_for_a_while() -> None:
    assert begun().run.state == "STARTING"
    assert begun().up().run.state == "RUNNING"


def test_an_incident_is_over_since_its_new_ranks_run() -> None:
    again = begun(failed(begun().up()))
    assert [one.state for one in again.run.incidents] == ["OPEN"]

    again.up(for_s=3.0)

    (incident,) = again.run.incidents
    assert (incident.state, incident.recovered_at, incident.lost_steps) == ("RECOVERED", again.at - 4.0, None)


def test_of_a_trainer_that_is_to_tell_its_steps_living_ranks_prove_nothing() -> None:
    assert tale().start().up().run.state == "STARTING"
    assert begun(failed(begun().steps(3))).up().run.state == "STARTING"  # it has told some


def test_who_tells_a_step_after_all_is_known_from_then_on() -> None:
    run = begun().up().steps(2).run
    assert (run.state, run.step, run.is_unobserved) == ("RUNNING", 2, False)


def test_what_is_paused_or_held_meanwhile_stays_so() -> None:
    assert begun().hold().up().run.state == "HELD"


# ---------------------------------------------------------------- what is shown


@pytest.mark.parametrize("of", [begun(), begun().up(), begun(failed(begun().up())), begun(failed(begun())).up()])
def test_no_number_that_is_not_known_is_shown_as_0(of: Tale) -> None:
    snap = shown(of)
    assert (snap["step"], snap["loss"], snap["ettr"], snap["goodput"]) == (None, None, None, None)
    assert snap["lost_steps"] == (None if snap["restarts"] else 0)
    assert {(one["step"], one["lost_steps"]) for one in snap["incidents"]} <= {(None, None)}
    lines = plain(snap)
    assert lines[1].startswith("step -  loss -")
    assert "ettr -" in lines[1]
    assert "from step 0" not in snap["next_action"]


def test_where_an_attempt_began_its_first_step_tells() -> None:
    of = begun()
    rows = [attempt_account(one, []) for one in of.run.attempts]
    assert [(one["from_step"], one["last_step"]) for one in rows] == [(None, None)]

    known = failed(tale().start(resumes_itself=True).steps(18)).start(resumes_itself=True)
    assert [attempt_account(one, [])["from_step"] for one in known.run.attempts] == [0, None]
    known.tell(StepDone(at=known.at, attempt=2, step=10, metrics={}, step_s=1.0))
    assert [attempt_account(one, [])["from_step"] for one in known.run.attempts] == [0, 10]


def test_a_rank_that_never_tells_of_itself_has_no_step() -> None:
    def rank(step: int, phase: str, *, heard: bool) -> dict[str, Any]:
        return {"pid": 1, "alive": True, "step": step, "phase": phase, "heard": heard}

    ranks = {"0": rank(13, "", heard=True), "1": rank(-1, "start", heard=False)}
    of = tale().start().steps(14)

    snap = shown(of, {"epoch": 1, "at": of.at, "nodes": {"n0": {"beat_s": 0.1, "ranks": ranks}}})

    assert "node n0  active  alive  ranks 0,1  step 13" in plain(snap)


def test_the_news_says_who_decides_where_it_begins() -> None:
    starts = [one for one in begun(failed(begun())).events if one.type == "attempt_started"]
    assert [news(one, "r") for one in starts] == [
        f"attempt {number} as the script resumes by itself on n0, n1" for number in (1, 2)
    ]


# ---------------------------------------------------------------- where its time goes


def test_all_the_time_of_its_ranks_is_unobserved() -> None:
    first = begun()  # from 1004
    for _ in range(20):
        first.up()
    again = begun(failed(first))

    seconds = account(again.events, now=again.at + 5).seconds

    ended = next(one.at for one in again.events if one.type == "decision")
    assert seconds["unobserved"] == pytest.approx((ended - 1004.0) + (again.at + 5 - again.run.attempts[1].started_at))
    assert seconds["restarting"] == again.run.attempts[1].started_at - ended
    assert account(again.events).ettr is None


def test_of_who_tells_after_all_it_was_a_start() -> None:
    books = account(begun(failed(begun().up())).steps(3).events)
    assert books.parts_us["unobserved"] == 0
    assert books.ettr


# ---------------------------------------------------------------- what it can be asked for


def test_it_cannot_be_told_to_save(tmp_path: Path) -> None:
    assert answers(begun().up(), "save", tmp_path) == [(False, SILENT)]
    of = begun()
    assert answers(of, "save", tmp_path) == [(False, SILENT)]
    assert of.steps(1).run.save_requested_at is None, "what was refused is not done later"


@pytest.mark.parametrize("verb", ["stop", "hold"])
def test_who_stops_it_is_told_that_nothing_is_saved(verb: str, tmp_path: Path) -> None:
    ((ok, message),) = answers(begun().up(), verb, tmp_path)
    assert (ok, message.endswith("at once: the trainer cannot be told to save")) == (True, True)


@pytest.mark.parametrize("of", [begun(), begun().up(), begun(failed(begun()))])
def test_no_pause_throws_away_what_it_has_done(of: Tale) -> None:
    wish = CommandReceived(at=of.at, id="p", verb="pause", author="ann")
    why = "the trainer cannot be told to save: its steps would be lost: --now pauses it all the same"

    assert checked(wish, of.run, SILENT_COMMAND.known(has_told=of.run.has_told)).args["refused"] == why
    now = replace(wish, args={"now": True})
    assert "refused" not in checked(now, of.run, SILENT_COMMAND.known(has_told=False)).args


def test_once_it_has_told_a_step_it_is_asked_through_the_reporter(tmp_path: Path) -> None:
    assert answers(begun().steps(1), "save", tmp_path) == []  # answered when it is done
    assert answers(begun().steps(1), "stop", tmp_path) == [(True, "stopping after a last checkpoint")]


def test_a_signal_that_asks_for_a_save_is_sent_once_its_ranks_have_run_for_a_while() -> None:
    trainer = replace(SILENT_COMMAND, signal="SIGUSR1", save_s=30.0)

    def sent(of: Tale) -> set[str]:
        of.tell(CommandReceived(at=of.at, id="s", verb="stop", author="me"))
        moves = Simulation(of, limits=replace(LIMITS, trainer=trainer)).moves()
        return {str(move.message["type"]) for move in moves if isinstance(move, Send)}

    assert (sent(begun()), sent(begun().up())) == ({"kill"}, {"signal"})


def test_an_attempt_says_whether_its_steps_are_told() -> None:
    for trainer, expected in ((SILENT_COMMAND, False), (Abilities(), True)):
        moves = Simulation(tale(), limits=replace(LIMITS, trainer=trainer)).moves()
        assert [move.event.observed for move in moves if isinstance(move, Emit)] == [expected]  # type: ignore[attr-defined]


def test_what_comes_next_promises_no_save() -> None:
    run: Run = begun().up().tell(CommandReceived(at=1100.0, id="s", verb="stop", author="me")).run
    assert next_action(run, 1.0, saves=False) == "stop at once, as me asked"


# ---------------------------------------------------------------- when its ranks have run for a while


def beating(tmp_path: Path, ranks: dict[str, list[dict[str, Any]]]) -> tuple[Fleet, list[Event]]:
    """A fleet whose nodes have just told of their ranks."""
    paths, emitted = RunPaths(tmp_path), list[Event]()
    paths.secret.write_bytes(b"secret")

    def emit(event: Event) -> Event:
        emitted.append(event)
        return event

    fleet = Fleet(paths, 1, "1", 10.0, emit, lambda _contact, _message: None, lambda: None)
    for node, told in ranks.items():
        contact = Contact(node, "h", 1, "a", time.monotonic(), {}, beat_at=time.monotonic(), attempt=1)
        contact.ranks = {str(number): rank for number, rank in enumerate(told)}
        fleet.contacts[node] = contact
    return fleet, emitted


def rank(up_s: float, *, heard: bool = False, alive: bool = True) -> dict[str, Any]:
    return {"alive": alive, "heard": heard, "up_s": up_s, "moved_s": 0.1}


LONG, SHORT = UP_S + 5, UP_S - 5


@pytest.mark.parametrize(
    ("ranks", "expected"),
    [
        ({"n0": [rank(LONG), rank(LONG)], "n1": [rank(LONG), rank(LONG)]}, 1),
        ({"n0": [rank(LONG), rank(LONG)], "n1": [rank(LONG), rank(SHORT)]}, 0),
        ({"n0": [rank(LONG), rank(LONG)], "n1": [rank(LONG), rank(LONG, alive=False)]}, 0),
        ({"n0": [rank(LONG), rank(LONG)], "n1": [rank(LONG), rank(0.0)]}, 0),
        ({"n0": [rank(LONG), rank(LONG)], "n1": []}, 0),
        ({"n0": [rank(LONG), rank(LONG)]}, 0),
        ({"n0": [rank(LONG, heard=True), rank(LONG)], "n1": [rank(LONG), rank(LONG)]}, 0),  # its first step will tell
    ],
)
def test_ranks_are_up_once_all_of_them_have_run_for_a_while(
    tmp_path: Path, ranks: dict[str, list[dict[str, Any]]], expected: int
) -> None:
    fleet, emitted = beating(tmp_path, ranks)
    run = begun().run

    fleet.tick(run)
    fleet.tick(run)

    up = [one for one in emitted if isinstance(one, RanksUp)]
    assert len(up) == expected, "said once, and only if it is so"
    assert all(one.at - one.since == pytest.approx(LONG, abs=1) for one in up)


def test_of_an_observed_run_nothing_is_said_of_that(tmp_path: Path) -> None:
    fleet, emitted = beating(tmp_path, {node: [rank(LONG), rank(LONG)] for node in ("n0", "n1")})
    fleet.tick(tale().start().run)
    assert not any(isinstance(one, RanksUp) for one in emitted)


def test_a_journal_of_before_has_no_word_of_it() -> None:
    (started,) = (one for one in begun().events if isinstance(one, AttemptStarted))
    fields = json.loads(to_json(started))
    del fields["observed"]
    before = from_json(json.dumps(fields))
    assert isinstance(before, AttemptStarted)
    assert before.observed
