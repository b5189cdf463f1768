"""A person pauses a run: no step is lost, nothing is counted, and no allocation is asked for to do nothing in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from simulated_fleet import Simulation
from tale import Tale

from launcher.abilities import Abilities
from launcher.advance import fold
from launcher.deeds import what_ends
from launcher.events import CommandReceived, JobEnding, JobOver, RunEnded, RunPaused, RunUnpaused
from launcher.ledger import account
from launcher.moves import Emit, Limits, Requeue, Send
from launcher.pausing import checked
from launcher.run import Run, RunState

RESTART = {"restart": {"from": "last_good", "save_first": False}}
SIGNALLED = Abilities(saves="goes_on", signal="SIGUSR1")


def asked(tale: Tale, trainer: Abilities | None = None, **args: Any) -> CommandReceived:
    wish = CommandReceived(at=tale.at, id=f"p{len(tale.events)}", verb="pause", author="ann", args=args)
    return checked(wish, tale.run, trainer or Abilities())


def pause(tale: Tale, **args: Any) -> Tale:
    return tale.tell(asked(tale, reason="a look at node n1", **args))


def unpause(world: Simulation) -> None:
    world.tale.tell(RunUnpaused(at=world.tale.at, author="ann"))


def turns(world: Simulation, count: int) -> None:
    for _ in range(count):
        world.turn()


def paused(run: Run) -> bool:
    return run.state is RunState.PAUSED


# ---------------------------------------------------------------- there and back


def test_a_pause_saves_ends_the_ranks_and_keeps_the_agents() -> None:
    world = Simulation(pause(Tale().train(15)))

    world.until(paused)
    turns(world, 20)

    assert (world.run.state, world.run.paused_by) == ("PAUSED", "ann: a look at node n1")
    assert world.run.live_attempt is None
    assert [one.ranks_alive for one in world.agents.values()] == [0, 0, 0]
    assert world.left == set()
    assert [*world.run.attempts[0].exits.values()] == [0, 0, 0, 0], "no rank was killed"


def test_unpaused_it_goes_on_where_it_was_and_no_step_is_lost() -> None:
    world = Simulation(pause(Tale().train(15)))
    world.until(paused)

    unpause(world)
    world.until(lambda run: run.state is RunState.RUNNING)

    assert world.run.attempts[1].restore == world.run.head
    assert (world.run.lost_steps, world.run.paused_by, world.run.incidents) == (0, "", ())


def test_a_pause_at_once_loses_what_was_not_saved() -> None:
    world = Simulation(pause(Tale().train(10).save().steps(5), now=True))

    world.until(paused)
    unpause(world)
    world.until(lambda run: run.state is RunState.RUNNING)

    assert (world.run.attempts[1].restore, world.run.lost_steps) == ((10, 1), 5)


def test_who_finds_a_pause_too_slow_may_have_it_at_once() -> None:
    tale = pause(Tale().train(15))
    assert asked(tale).args["refused"] == "the run is being paused: ann: a look at node n1"

    pause(tale, now=True)

    moves = Simulation(tale).moves()
    assert {move.message["type"] for move in moves if isinstance(move, Send)} == {"kill"}


@pytest.mark.parametrize("tale", [Tale, lambda: Tale().start(), lambda: Tale().train(9).save().decide()])
def test_it_is_paused_in_every_state_in_which_it_lives(tale: Callable[[], Tale]) -> None:
    world = Simulation(pause(tale()))
    world.until(paused)
    unpause(world)
    world.until(lambda run: run.state is RunState.RUNNING)


def test_a_run_that_comes_to_its_end_meanwhile_has_succeeded() -> None:
    world = Simulation(pause(Tale().train(15)).done())
    world.all_exit(0)

    world.until(lambda run: run.state.is_terminal)

    assert (world.run.state, len(world.run.attempts)) == ("SUCCEEDED", 1)


def test_a_new_supervisor_keeps_it_paused() -> None:
    world = Simulation(pause(Tale().train(15)))
    world.until(paused)

    world.tale.epoch()
    turns(world, 5)

    assert paused(world.run)


# ---------------------------------------------------------------- trouble comes first


def test_what_a_rule_had_decided_is_done_after_the_pause() -> None:
    tale = Tale(probation=2).train(5).save().verify().steps(5).save()
    world = Simulation(pause(tale.decide(detector="non_finite", actions=RESTART, onset_step=9)))

    world.until(paused)
    turns(world, 5)
    assert [one.state for one in world.run.incidents] == ["OPEN"]
    unpause(world)
    world.until(lambda run: run.state is RunState.RUNNING)

    assert world.run.attempts[1].restore == (5, 1), "the last good one, as the rule said, not the latest"


def test_what_is_to_be_held_is_held_and_not_paused() -> None:
    world = Simulation(pause(Tale().train(5).decide(actions={"hold": {"reason": "enough"}})))

    world.until(lambda run: run.state is RunState.HELD)

    assert (world.run.hold_reason, world.run.paused_by) == ("enough: told so", "")


@pytest.mark.parametrize(("verb", "state"), [("stop", "STOPPED"), ("hold", "HELD")])
def test_a_paused_run_can_be_stopped_or_held(verb: str, state: str) -> None:
    world = Simulation(pause(Tale().train(15)))
    world.until(paused)

    world.tale.tell(CommandReceived(at=world.tale.at, id="s", verb=verb, author="bob"))
    world.until(lambda run: run.state == state)

    assert (world.run.lost_steps, world.run.paused_by) == (0, "")


def test_where_a_node_is_silent_its_save_is_not_waited_for_as_long() -> None:
    world = Simulation(pause(Tale().train(15).silent("n1")), dead=frozenset({"n1"}))
    since = world.tale.at

    world.until(paused)

    assert world.tale.at - since < 2 * Abilities().save_s


# ---------------------------------------------------------------- the end of its job


@pytest.mark.parametrize("continue_by", ["requeue", "chain", "none"])
def test_no_job_is_begun_anew_for_a_run_that_would_do_nothing_in_it(continue_by: Any) -> None:
    world = Simulation(pause(Tale().train(15)), limits=Limits(continue_by=continue_by))
    world.until(paused)

    world.tale.tell(JobEnding(at=world.tale.at, reason="the time limit of the job"))
    world.until(lambda run: run.state is RunState.STOPPED)

    assert world.run.ended_reason == "paused by ann: a look at node n1, until the time limit of the job"
    assert world.run.lost_steps == 0
    assert not any(isinstance(move, Requeue) for _, move in world.log)


def test_what_becomes_of_a_job_that_others_end_is_theirs_to_say() -> None:
    world = Simulation(pause(Tale().train(15)))
    world.until(paused)

    world.tale.tell(JobEnding(at=world.tale.at, reason="Slurm ends the job", decided=True))
    turns(world, 5)
    assert (world.run.state, world.moves()) == ("PAUSED", [])
    world.tale.tell(JobOver(at=world.tale.at, reason="Slurm has ended job 8 for good"))

    (end,) = world.moves()
    assert isinstance(end, Emit)
    assert isinstance(end.event, RunEnded)


def test_it_stays_paused_when_its_job_was_requeued() -> None:
    world = Simulation(pause(Tale().train(15)))
    world.until(paused)

    why = world.run.paused_by
    world.tale.resume().tell(RunPaused(at=world.tale.at, reason=why))

    assert (world.run.state, world.run.paused_by) == ("PAUSED", why)


# ---------------------------------------------------------------- refused


HELD = "held already: told to hold"
NO_SAVE = "the trainer cannot be told to save: its steps would be lost: --now pauses it all the same"
NEVER_SAVED = "the command has saved nothing so far: its steps would be lost: --now pauses it all the same"
BEGINS_ANEW = "the trainer always begins at step 0: its steps would be lost: --now pauses it all the same"


@pytest.mark.parametrize(
    ("tale", "trainer", "why_not"),
    [
        (lambda: Tale().train(5).end_attempt().hold(), Abilities(), HELD),
        (lambda: Tale().train(5).end(), Abilities(), "the run is STOPPED"),
        (lambda: Tale().train(5), Abilities(saves="never"), NO_SAVE),
        (lambda: Tale(save_every=None).train(5), Abilities(), NEVER_SAVED),
        (lambda: Tale().train(5), Abilities(begins_anew=True), BEGINS_ANEW),
        (lambda: Tale(save_every=None).train(5), SIGNALLED, ""),
        (lambda: Tale(save_every=None).train(5).save(), Abilities(), ""),
        (lambda: Tale().start(), Abilities(saves="never"), ""),
    ],
)
def test_a_pause_that_would_lose_steps_is_refused_unless_it_is_to_be_at_once(
    tale: Callable[[], Tale], trainer: Abilities, why_not: str
) -> None:
    assert asked(tale(), trainer).args.get("refused", "") == why_not
    if "--now" in why_not:
        assert "refused" not in asked(tale(), trainer, now=True).args


def test_a_pause_that_was_given_before_a_hold_was_known_does_not_outlast_it() -> None:
    tale = Tale().train(5)
    wish = asked(tale)
    assert tale.end_attempt().hold().tell(wish).run.paused_by == ""


def test_nothing_else_is_begun_while_it_is_paused() -> None:
    world = Simulation(pause(Tale().train(15)))
    assert what_ends(world.run) == "the run is being paused: ann: a look at node n1"
    world.until(paused)
    assert what_ends(world.run) == "the run is paused: ann: a look at node n1; unpause it first"


# ---------------------------------------------------------------- the time it took


def test_paused_time_is_told_apart_from_all_other_time() -> None:
    tale = pause(Tale(spares=0).train(10).save())
    world = Simulation(tale)
    world.until(paused)
    began = tale.events[-1].at
    tale.at = began + 3600
    unpause(world)
    world.until(lambda run: run.state is RunState.RUNNING)

    books = account(tale.events, now=tale.at)

    assert books.seconds["paused"] == 3600
    assert books.gpu_hours["paused"] == pytest.approx(4)
    assert books.seconds["held"] == 0
    assert books.total_us == sum(books.parts_us.values())
    assert fold(tale.events).restarts == 0  # a person asked for it
