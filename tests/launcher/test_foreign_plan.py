"""What is done next, and what counts, when the trainer is not ours."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from simulated_fleet import LIMITS, Simulation
from tale import Tale

from launcher.abilities import Abilities
from launcher.commands import Commands, Grounds
from launcher.control import leave
from launcher.events import (
    AttemptEnded,
    AttemptStarted,
    CheckpointCommitted,
    CheckpointFailed,
    CheckpointSetAside,
    CommandAnswered,
    CommandReceived,
    Event,
    JobEnding,
    RunEnded,
    RunHeld,
    StepDone,
)
from launcher.foreign import NO_SAVE
from launcher.ledger import account
from launcher.moves import Emit, Search, Send
from launcher.paths import RunPaths
from launcher.recovery import plan
from launcher.run import RunState
from policies.meaning import RunFacts
from policies.schema import Policy

SIGNALLED = Abilities(signal="SIGUSR1", save_s=30.0)
NEVER = Abilities(saves="never", refusal=NO_SAVE)
RESTART = {"restart": {"from": "latest", "save_first": False}}


def world(tale: Tale, trainer: Abilities) -> Simulation:
    return Simulation(tale, limits=replace(LIMITS, trainer=trainer))


def emitted(moves: list[Any]) -> list[Any]:
    return [move.event for move in moves if isinstance(move, Emit)]


def sent(moves: list[Any]) -> list[tuple[str, str]]:
    return [(move.node, str(move.message["type"])) for move in moves if isinstance(move, Send)]


def told(tale: Tale, step: int, step_s: float = 1.0) -> Tale:
    """A line about this step."""
    return tale.tell(StepDone(at=tale.at, attempt=tale.number, step=step, metrics={"loss": 2.0}, step_s=step_s))


def found(tale: Tale, step: int) -> Tale:
    return tale.tell(
        CheckpointCommitted(
            at=tale.at, step=step, attempt=tale.number, parent=tale.run.head, manifest_digest="d", bytes=1,
            path=f"/w/ckpt-{step}", written_at=tale.at,
        )
    )  # fmt: skip


def asked(tale: Tale, verb: str) -> Tale:
    return tale.tell(CommandReceived(at=tale.at, id=verb, verb=verb, author="me"))


# ---------------------------------------------------------------- beginning


def test_what_the_trainer_has_saved_is_looked_for_before_a_start() -> None:
    simulation = world(Tale(), Abilities())
    unlooked = replace(simulation.fleet, searched=False)
    assert plan(simulation.run, unlooked, simulation.limits) == [Search()]


def test_a_half_checkpoint_and_no_other_is_a_matter_for_a_person() -> None:
    simulation = world(Tale().train(10).exit(0).decide(actions=RESTART).end_attempt(), Abilities())
    fleet = replace(simulation.fleet, unfinished=("/w/ckpt-5",))
    (held,) = emitted(plan(simulation.run, fleet, simulation.limits))
    assert isinstance(held, RunHeld)
    assert "/w/ckpt-5" in held.reason


def test_the_command_gets_the_checkpoint_it_is_to_begin_from() -> None:
    tale = found(Tale().train(10), 10).exit(0).decide(actions=RESTART)
    simulation = world(tale, Abilities(resume_args=("--load", "{dir}", "--ckpt-step", "{step}")))
    simulation.until(lambda run: run.state is RunState.RUNNING and len(run.attempts) == 2)
    starts = [m.message for _, m in simulation.log if isinstance(m, Send) and m.message["type"] == "start"]
    assert starts
    assert {tuple(m["args"]) for m in starts} == {("--load", "/w/ckpt-10", "--ckpt-step", "10")}  # type: ignore[arg-type]


def test_a_first_attempt_begins_with_the_command_as_it_is() -> None:
    simulation = world(Tale(), Abilities(resume_args=("--load", "{dir}")))
    simulation.turn()
    simulation.turn()
    starts = [move.message["args"] for move in simulation.moves() if isinstance(move, Send)]
    assert starts == [[], []]


# ---------------------------------------------------------------- saving and stopping


def test_a_save_is_asked_for_by_a_signal_to_every_node() -> None:
    simulation = world(asked(Tale().train(10), "save"), SIGNALLED)
    assert sent(simulation.moves()) == [("n0", "signal"), ("n1", "signal")]
    (message,) = {(m.message["signal"], m.message["wish"]) for m in simulation.moves() if isinstance(m, Send)}
    assert message == ("SIGUSR1", simulation.run.save_requested_at)


def test_before_its_first_step_a_process_may_not_know_the_signal() -> None:
    assert world(asked(Tale().start(), "save"), SIGNALLED).moves() == []
    assert sent(world(asked(Tale().start(), "stop"), SIGNALLED).moves()) == [("n0", "kill"), ("n1", "kill")]


def test_a_signal_that_nothing_comes_of_is_forgotten_in_time() -> None:
    tale = asked(Tale().train(10), "save")
    tale.at += 40
    (failed,) = emitted(world(tale, SIGNALLED).moves())
    assert isinstance(failed, CheckpointFailed)
    assert world(tale.tell(failed), SIGNALLED).moves() == []


def test_a_stop_waits_for_the_checkpoint_and_then_ends_the_ranks() -> None:
    tale = asked(Tale().train(10), "stop")
    assert sent(world(tale, SIGNALLED).moves()) == [("n0", "signal"), ("n1", "signal")]
    assert sent(world(found(tale, 11), SIGNALLED).moves()) == [("n0", "kill"), ("n1", "kill")]


def test_a_stop_waits_for_a_trainer_that_ends_when_it_saves() -> None:
    exits = replace(SIGNALLED, saves="exits")
    tale = found(asked(Tale().train(10), "stop"), 11)
    assert sent(world(tale, exits).moves()) == [("n0", "signal"), ("n1", "signal")]
    for rank in range(4):
        tale.exit(rank, 0)
    simulation = world(tale, exits)
    simulation.until(lambda run: run.state.is_terminal)
    assert simulation.run.state is RunState.STOPPED


@pytest.mark.parametrize("what", ["stop", "hold", "the job ends"])
def test_a_trainer_that_cannot_save_is_not_waited_for(what: str) -> None:
    tale = Tale().train(10)
    tale = tale.tell(JobEnding(at=tale.at, reason="limit")) if what == "the job ends" else asked(tale, what)
    assert sent(world(tale, NEVER).moves()) == [("n0", "kill"), ("n1", "kill")]


def test_the_last_checkpoint_of_a_stopped_run_is_still_found() -> None:
    simulation = world(asked(Tale().train(10).end_attempt(), "stop"), NEVER)
    assert plan(simulation.run, replace(simulation.fleet, searched=False), simulation.limits) == [Search()]
    assert isinstance(emitted(simulation.moves())[0], RunEnded)


def test_a_save_that_the_trainer_cannot_do_is_answered_at_once(tmp_path: Any) -> None:
    said: list[Event] = []
    grounds = Grounds(NEVER, RunFacts(), lambda: Policy(version=1, name="none"), "ann")
    paths, tale = RunPaths(tmp_path), Tale().train(10)
    paths.control.mkdir()
    commands = Commands(paths, lambda: tale.run, lambda event: said.append(event) or event, grounds)
    leave(paths, "s", "save")
    commands.look_for_files(tale.run)
    tale.tell(said[0])
    commands.durable(tale.run, said[0])
    _, answer = said
    assert isinstance(answer, CommandAnswered)
    assert (answer.ok, answer.message) == (False, NO_SAVE)
    assert tale.run.save_requested_at is None


# ---------------------------------------------------------------- the goal


def ended(tale: Tale, done: int) -> list[Any]:
    for rank in range(4):
        tale.exit(rank, 0)
    return emitted(world(tale, Abilities(done_step=done)).moves())


def test_ranks_that_end_well_before_the_goal_have_not_succeeded() -> None:
    (end,) = ended(Tale().train(99), 100)
    assert isinstance(end, AttemptEnded)
    assert (end.early, end.reason) == (True, "all ranks ended at step 99, before 100")


@pytest.mark.parametrize(
    ("lines", "early"), [((0, 40, 80), False), ((0, 30, 60), True), ((0, 99), False), ((0,), True)]
)
def test_what_was_done_since_the_last_line_may_have_reached_the_goal(lines: tuple[int, ...], early: bool) -> None:
    tale = Tale().start()
    for step in lines:
        told(tale, step)
    events = ended(tale, 100)
    assert events[0].early is early
    assert (len(events) == 1) is early


def test_a_checkpoint_of_the_goal_proves_it_reached() -> None:
    assert len(ended(found(told(Tale().start(), 0), 100), 100)) == 2


def test_without_a_goal_all_is_well_that_ends_well() -> None:
    tale = Tale().train(3)
    for rank in range(4):
        tale.exit(rank, 0)
    assert [event.type for event in emitted(world(tale, Abilities()).moves())] == ["attempt_ended", "run_ended"]


# ---------------------------------------------------------------- steps that are seldom told


def test_every_step_since_the_last_line_counts_for_probation() -> None:
    tale = found(told(told(Tale(probation=30).start(), 0), 20), 21)
    told(tale, 40)
    assert tale.run.checkpoints[21, 1].healthy_steps == 20
    tale.verify()
    assert not tale.run.is_good(tale.run.checkpoints[21, 1])
    told(tale, 60)
    assert tale.run.is_good(tale.run.checkpoints[21, 1])


def restarted(tale: Tale, *, by_itself: bool = True) -> Tale:
    tale.exit(0).decide(actions=RESTART).end_attempt()
    slots, incarnations = {"n0": (0, 1), "n1": (2, 3)}, {"n0": "a", "n1": "a"}
    return tale.tell(
        AttemptStarted(
            at=tale.at,
            attempt=2,
            slots=slots,
            incarnations=incarnations,
            restore=None,
            why="",
            resumes_itself=by_itself,
        )
    )


@pytest.mark.parametrize(("first", "lost"), [(300, 51), (340, 11), (351, 0), (0, 351)])
def test_a_trainer_that_resumes_by_itself_tells_with_its_first_step_what_was_lost(first: int, lost: int) -> None:
    tale = restarted(told(told(Tale().start(), 0), 350))
    assert (tale.run.step, tale.run.lost_steps) == (351, 0)  # not known yet
    told(tale, first)
    assert (tale.run.step, tale.run.lost_steps) == (first + 1, lost)
    assert [incident.lost_steps for incident in tale.run.incidents] == [lost]
    told(tale, first + 50)
    assert (tale.run.step, tale.run.lost_steps) == (first + 51, lost)
    assert account(tale.events).lost_steps == lost


def test_a_trainer_that_begins_anew_loses_all_at_once() -> None:
    assert restarted(told(Tale().start(), 350), by_itself=False).run.lost_steps == 351


def test_of_a_line_that_speaks_for_many_steps_those_before_the_checkpoint_are_kept() -> None:
    tale = found(told(told(Tale().start(), 99), 199), 150)
    tale.exit(0).decide(actions=RESTART).end_attempt().start((150, 1))
    told(tale, 249)
    books = account(tale.events)
    assert (books.lost_steps, tale.run.lost_steps) == (50, 50)
    assert [(step.step, step.steps) for step in books.kept] == [(99, 100), (149, 50), (249, 100)]
    assert sum(books.parts_us.values()) == books.total_us


def test_the_median_is_of_steps_and_not_of_lines() -> None:
    tale = told(Tale().start(), 0)
    for step in (100, 200, 300):
        tale.at += 49
        told(tale, step, 0.5)
    books = account(tale.events)
    assert books.median_step_s == pytest.approx(0.5)


def test_what_was_set_aside_is_not_chosen_again() -> None:
    tale = found(found(Tale().train(20), 10), 20)
    tale.tell(CheckpointSetAside(at=tale.at, path="/w/ckpt-20", moved_to="/w/set_aside/ckpt-20"))
    assert [one.step for one in tale.run.lineage() if one.usable] == [10]
