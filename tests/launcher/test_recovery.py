"""What is done next follows from the journal and the fleet alone."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simulated_fleet import LIMITS, Simulation
from tale import Tale

from launcher.abilities import SAVE_LIMIT_S
from launcher.events import (
    ActionDone,
    AttemptEnded,
    AttemptStarted,
    Branch,
    CheckpointCommitted,
    CommandReceived,
    JobEnding,
    JobOver,
    NodeDown,
    RunEnded,
    RunHeld,
)
from launcher.moves import Emit, Inspect, Inventory, Limits, Requeue, Send
from launcher.recovery import COLLECT_LIMIT_S, plan
from launcher.reporter import SAVE, STOP
from launcher.run import RunState

RESTART = {"restart": {"from": "latest", "save_first": False}}


def emitted(moves: list[Any]) -> list[Any]:
    return [move.event for move in moves if isinstance(move, Emit)]


def sent(moves: list[Any]) -> list[tuple[str, str]]:
    return [(move.node, str(move.message["type"])) for move in moves if isinstance(move, Send)]


def stop_asked(tale: Tale) -> Tale:
    return tale.tell(CommandReceived(at=tale.at, id="c", verb="stop", author="ann"))


# ---------------------------------------------------------------- beginning


def test_a_new_run_starts_its_attempt_then_the_store_then_the_ranks() -> None:
    world = Simulation(Tale())

    (started,) = emitted(world.turn())
    assert isinstance(started, AttemptStarted)
    assert started.slots == {"n0": (0, 1), "n1": (2, 3)}
    assert sent(world.turn()) == [("n0", "store")]
    assert sent(world.turn()) == [("n0", "start"), ("n1", "start")]
    assert sent(world.turn()) == []
    assert world.run.state is RunState.RUNNING


def test_the_first_attempt_waits_until_all_agents_had_time_to_come() -> None:
    world = Simulation(Tale())

    assert plan(world.run, replace(world.fleet, settled=False), LIMITS) == []


def test_each_node_is_told_its_ranks_and_its_place() -> None:
    world = Simulation(Tale())
    world.turn()
    world.turn()

    starts = {move.node: move.message for move in world.moves() if isinstance(move, Send)}

    assert {node: (m["ranks"], m["group_rank"]) for node, m in starts.items()} == {
        "n0": ([0, 1], 0),
        "n1": ([2, 3], 1),
    }
    assert {m["world_size"] for m in starts.values()} == {4}
    assert {(m["master_addr"], m["master_port"]) for m in starts.values()} == {("h", 1)}


def test_an_agent_restarted_since_the_attempt_began_is_not_told_to_join_it() -> None:
    world = Simulation(Tale())
    world.turn()
    world.turn()
    world.agents["n1"] = Inventory("another", 0, 0)

    assert sent(world.moves()) == [("n0", "start")]


def test_a_run_that_has_all_it_wants_is_left_alone() -> None:
    world = Simulation(Tale())
    world.until(lambda run: run.state is RunState.RUNNING)

    assert world.moves() == []


def test_when_all_ranks_are_done_the_run_has_succeeded_and_agents_leave() -> None:
    world = Simulation(Tale(target=5))

    world.until(lambda run: run.state is RunState.SUCCEEDED)
    world.turn()

    assert world.left == {"n0", "n1", "n2"}


# ---------------------------------------------------------------- restarting


def test_a_restart_kills_first_looks_at_the_checkpoint_and_then_begins() -> None:
    world = Simulation(Tale().train(10).save().steps(3).exit(0).decide(actions=RESTART))

    assert sent(world.turn()) == [("n0", "kill"), ("n1", "kill")]
    assert [type(event) for event in emitted(world.turn())] == [AttemptEnded]
    assert world.turn() == [Inspect((10, 1))]
    (started,) = emitted(world.turn())
    assert (started.attempt, started.restore) == (2, (10, 1))


def test_a_node_that_answers_no_more_is_not_waited_for() -> None:
    world = Simulation(Tale().train(10), dead=frozenset({"n1"}))
    world.lose("n1")

    assert sent(world.turn()) == [("n0", "kill")]
    assert isinstance(emitted(world.turn())[0], AttemptEnded)


@pytest.mark.parametrize(("lost", "slots"), [
    ("n0", {"n2": (0, 1), "n1": (2, 3)}),
    ("n1", {"n0": (0, 1), "n2": (2, 3)}),
])  # fmt: skip
def test_a_spare_takes_exactly_the_slots_of_the_lost_node(lost: str, slots: dict[str, tuple[int, ...]]) -> None:
    world = Simulation(Tale().train(10).save())
    world.lose(lost)

    world.until(lambda run: run.state is RunState.RUNNING)

    assert world.run.attempts[-1].slots == slots
    assert list(world.run.attempts[-1].slots) == list(slots)


def test_two_spares_take_the_slots_of_two_nodes_and_the_others_keep_theirs() -> None:
    world = Simulation(Tale(nodes=4, spares=2).train(10).save())
    world.lose("n1", "n2")

    world.until(lambda run: run.state is RunState.RUNNING)

    assert world.run.attempts[-1].slots == {"n0": (0, 1), "n4": (2, 3), "n5": (4, 5), "n3": (6, 7)}


def test_an_excluded_node_is_left_out_once() -> None:
    actions = {"exclude": "blamed", **RESTART}
    world = Simulation(Tale().train(10).save().exit(0, 1).decide(nodes=["n0"], actions=actions))

    world.until(lambda run: run.state is RunState.RUNNING)
    assert "n0" not in world.run.attempts[-1].slots
    world.tale.exit(0, 1).decide(nodes=["n1"], actions=actions)
    world.until(lambda run: run.state is RunState.RUNNING)

    assert set(world.run.attempts[-1].slots) == {"n0", "n2"}


def test_a_run_short_of_nodes_waits_then_is_held() -> None:
    world = Simulation(Tale(spares=0).train(10).save())
    world.lose("n1")
    since = world.tale.at

    world.until(lambda run: run.state is RunState.HELD)

    assert world.tale.at - since >= LIMITS.wait_for_node_s
    assert "2 nodes are needed" in world.run.hold_reason
    assert "n0" in world.run.hold_reason


def test_a_node_that_comes_back_in_time_is_used() -> None:
    world = Simulation(Tale(spares=0).train(10).save())
    world.lose("n1")
    for _ in range(10):
        world.turn()
    world.tale.join(1, "b")
    world.dead = frozenset()
    world.agents["n1"] = Inventory("b", 0, 0)

    world.until(lambda run: run.state is RunState.RUNNING)

    assert world.run.attempts[-1].incarnations["n1"] == "b"


def test_a_damaged_checkpoint_is_passed_over_and_without_any_the_run_is_held() -> None:
    world = Simulation(Tale().train(10).save().steps(10).save().decide(), damaged=frozenset({(20, 1)}))
    world.until(lambda run: run.state is RunState.RUNNING)
    assert world.run.attempts[-1].restore == (10, 1)

    world.damaged |= {(10, 1)}
    world.tale.decide()
    world.until(lambda run: run.state is RunState.HELD)

    assert "no usable checkpoint" in world.run.hold_reason


def test_back_off_is_respected_after_the_ranks_are_dead() -> None:
    world = Simulation(Tale().train(10).save().exit(0, 1).decide(delay_s=25.0))
    decided = world.run.pending
    assert decided is not None

    world.until(lambda run: run.state is RunState.RUNNING)

    ended = next(at for at, move in world.log if isinstance(move, Emit) and isinstance(move.event, AttemptEnded))
    started = next(at for at, move in world.log if isinstance(move, Emit) and isinstance(move.event, AttemptStarted))
    assert ended < decided.at + 25 <= started


def test_ranks_of_an_older_attempt_are_ended_wherever_they_turn_up() -> None:
    world = Simulation(Tale().train(10).save())
    world.lose("n1")
    world.until(lambda run: run.state is RunState.RUNNING)

    world.dead = frozenset()  # it thaws, with its ranks
    world.tale.back("n1")

    assert ("n1", "kill") in sent(world.moves())
    world.turn()
    assert world.agents["n1"].ranks_alive == 0
    assert world.moves() == []


# ---------------------------------------------------------------- before the ranks are killed


def test_evidence_is_collected_before_anything_is_killed() -> None:
    world = Simulation(Tale().train(10).save().decide(actions={"collect": ["stacks"], **RESTART}))

    assert sent(world.turn()) == [("n0", "collect"), ("n1", "collect")]
    (done,) = emitted(world.turn())
    assert isinstance(done, ActionDone)
    assert done.ok
    assert sent(world.turn()) == [("n0", "kill"), ("n1", "kill")]


def test_an_agent_that_collects_nothing_is_not_waited_for_for_ever() -> None:
    tale = Tale().train(10).save().decide(actions={"collect": ["stacks"], **RESTART})
    world = Simulation(tale)
    world.turn()
    world.agents["n1"] = replace(world.agents["n1"], collected=frozenset())
    tale.at += COLLECT_LIMIT_S + 1

    (done,) = emitted(world.moves())

    assert isinstance(done, ActionDone)
    assert not done.ok
    assert done.detail == "from n0; not from n1"


def test_a_hold_asked_for_by_a_person_saves_first_and_loses_no_step() -> None:
    tale = Tale().train(15)
    tale.tell(CommandReceived(at=tale.at, id="c", verb="hold", author="ann", args={"reason": "lunch"}))
    world = Simulation(tale)

    world.until(lambda run: run.state is RunState.HELD)

    assert world.run.hold_reason == "ann: lunch"
    assert world.run.head is not None
    assert world.run.head[0] == world.run.step


def test_before_its_job_ends_a_run_is_saved_and_waits_to_begin_anew() -> None:
    tale = Tale().train(15)
    world = Simulation(tale.tell(JobEnding(at=tale.at, reason="the time limit of the job")))

    world.until(lambda run: run.state is RunState.PENDING)

    assert world.moves() == [Requeue()]
    assert world.run.head is not None
    assert world.run.head[0] == world.run.step


def test_where_jobs_may_not_begin_anew_the_run_is_stopped_after_its_save() -> None:
    tale = Tale().train(15)
    world = Simulation(tale.tell(JobEnding(at=tale.at, reason="the time limit")))
    world.limits = Limits(continue_by="none")

    world.until(lambda run: run.state is RunState.STOPPED)

    assert world.run.ended_reason == "the time limit"
    assert world.run.lost_steps == 0


def test_what_goes_on_in_a_job_that_waits_already_is_left_to_it() -> None:
    tale = Tale().train(15)
    world = Simulation(tale.tell(JobEnding(at=tale.at, reason="the time limit")))
    world.limits = Limits(continue_by="chain")

    world.until(lambda run: run.state is RunState.PENDING)

    assert set(sent(world.moves())) == {("n0", "leave"), ("n1", "leave"), ("n2", "leave")}


def test_the_next_life_of_a_job_does_without_the_nodes_that_were_lost() -> None:
    tale = Tale().train(15).tell(NodeDown(at=0, node="n2", reason="DOWN"))
    world = Simulation(tale.tell(JobEnding(at=tale.at, reason="the time limit")))

    world.until(lambda run: run.state is RunState.PENDING)

    assert world.moves() == [Requeue(("n2",))]


@pytest.mark.parametrize("continue_by", ["requeue", "chain", "none"])
def test_of_a_job_that_was_ended_by_others_nothing_is_asked_any_more(continue_by: Any) -> None:
    tale = Tale().train(15)
    world = Simulation(tale.tell(JobEnding(at=tale.at, reason="Slurm ends the job", decided=True)))
    world.limits = Limits(continue_by=continue_by)

    world.until(lambda run: run.state is RunState.PENDING)
    assert world.moves() == []
    tale.tell(JobOver(at=tale.at, reason="Slurm has ended job 8 for good"))
    world.until(lambda run: run.state is RunState.STOPPED)

    assert (world.run.ended_reason, world.run.lost_steps) == ("Slurm has ended job 8 for good", 0)


def test_before_the_first_step_a_hold_waits_for_no_save() -> None:
    tale = Tale().start()
    tale.tell(CommandReceived(at=tale.at, id="c", verb="hold", author="ann"))

    assert {message for _, message in sent(Simulation(tale).moves())} == {"kill"}


def test_save_first_waits_for_the_save() -> None:
    save_first = {"restart": {"from": "latest", "save_first": True}}
    world = Simulation(Tale().train(15).decide(actions=save_first))

    world.until(lambda run: run.state is RunState.RUNNING)

    assert world.run.attempts[-1].restore is not None
    assert world.run.attempts[-1].restore[0] >= 15
    assert world.run.lost_steps <= 3


def test_save_first_gives_up_in_time() -> None:
    tale = Tale().train(15).decide(actions={"restart": {"from": "latest", "save_first": True}})
    tale.at += SAVE_LIMIT_S + 2

    (done,) = emitted(Simulation(tale).moves())

    assert isinstance(done, ActionDone)
    assert (done.action, done.ok) == ("save", False)


@pytest.mark.parametrize(("action", "event"), [("hold", RunHeld), ("stop", RunEnded)])
def test_a_decision_to_hold_or_stop_ends_the_ranks_first(action: str, event: type) -> None:
    world = Simulation(Tale().train(5).decide(actions={action: {"reason": "enough"}}))

    assert sent(world.turn()) == [("n0", "kill"), ("n1", "kill")]
    assert isinstance(emitted(world.turn())[0], AttemptEnded)
    (end,) = emitted(world.turn())
    assert isinstance(end, event)
    assert end.reason == "enough: told so"


# ---------------------------------------------------------------- stopping


def test_a_stop_saves_first() -> None:
    world = Simulation(stop_asked(Tale().train(15)))

    (wish,) = world.moves()
    assert isinstance(wish, Send)
    asked_at = world.run.stop_requested_at
    assert wish.message["message"] == {"type": "wanted", "bits": STOP | SAVE, "wish": asked_at}
    world.until(lambda run: run.state is RunState.STOPPED)

    assert world.run.head is not None
    assert world.run.head[0] == world.run.step
    assert world.run.ended_reason == "stopped by ann"


def test_a_stop_at_once_kills_the_ranks_also_after_one_that_saves() -> None:
    tale = stop_asked(Tale().train(15))
    tale.tell(CommandReceived(at=tale.at, id="n", verb="stop", author="bob", args={"now": True}))
    world = Simulation(tale)
    assert sent(world.moves()) == [("n0", "kill"), ("n1", "kill")]
    world.until(lambda run: run.state.is_terminal)
    assert (world.run.state, world.run.head, world.run.ended_reason) == ("STOPPED", None, "stopped by bob")


def test_a_branch_begins_from_its_checkpoint_and_is_held_without_it() -> None:
    for damaged, state in ((frozenset(), "STARTING"), (frozenset({(40, 0)}), "HELD")):
        world = Simulation(branched(), damaged=damaged)
        world.until(lambda run, state=state: run.state == state)
        assert [attempt.restore for attempt in world.run.attempts] == ([] if damaged else [(40, 0)])
        assert (world.run.step, world.run.lost_steps) == (40, 0)


def branched() -> Tale:
    """A run that begins from step 40 of another one."""
    tale = Tale(branch=Branch(run="parent", step=40, attempt=3))
    return tale.tell(CheckpointCommitted(at=tale.at, step=40, attempt=0, parent=None, manifest_digest="d", bytes=1))


def test_what_a_person_asks_of_a_held_run_is_done() -> None:
    tale = Tale().train(5).save().steps(5).end_attempt().hold()
    tale.decide(detector="person", rule="person", actions=RESTART)
    assert (tale.run.state, tale.run.hold_reason) == ("RECOVERING", "")
    world = Simulation(tale)
    world.until(lambda run: run.state == "RUNNING")
    assert [attempt.restore for attempt in world.run.attempts] == [None, (5, 1)]


def test_a_rule_does_not_begin_what_is_held() -> None:
    tale = Tale().train(5).save().end_attempt().hold().decide(actions=RESTART)
    assert (tale.run.state, tale.run.pending) == ("HELD", None)


def test_a_trainer_that_does_not_stop_is_ended() -> None:
    tale = stop_asked(Tale().train(15))
    tale.at += SAVE_LIMIT_S + 2

    assert sent(Simulation(tale).moves()) == [("n0", "kill"), ("n1", "kill")]


@pytest.mark.parametrize("before", [lambda tale: tale.decide(), lambda tale: tale.hold(), lambda tale: tale])
def test_a_stop_comes_through_in_every_state(before: Any) -> None:
    world = Simulation(stop_asked(before(Tale().train(5))))

    world.until(lambda run: run.state is RunState.STOPPED)

    assert (world.run.ended_reason, world.run.live_attempt, len(world.run.attempts)) == ("stopped by ann", None, 1)
    world.turn()
    assert world.left == {"n0", "n1", "n2"}, "every agent has been told to leave"


def test_a_held_run_ends_its_ranks_keeps_its_agents_and_goes_on_when_released() -> None:
    world = Simulation(Tale().train(10).save().hold())
    for _ in range(5):
        world.turn()
    assert world.run.live_attempt is None
    assert world.left == set()

    world.tale.release()
    world.until(lambda run: run.state is RunState.RUNNING)

    assert world.run.attempts[-1].restore == (10, 1)


@pytest.mark.parametrize(("asked", "step"), [(None, 10), ({"restart": {"from": "latest"}}, 20)])
def test_a_run_held_for_its_numbers_goes_on_from_before_them_or_as_a_person_says(asked: Any, step: int) -> None:
    tale = Tale().train(10).save().steps(10).save()
    tale.decide(detector="spike", onset_step=12, actions={"hold": {"reason": "the loss keeps leaving its level"}})
    world = Simulation(tale)
    world.until(lambda run: run.state is RunState.HELD)

    if asked is None:
        world.tale.release()
    else:
        world.tale.decide(detector="person", rule="person", actions=asked)
    world.until(lambda run: run.state is RunState.RUNNING)

    assert world.run.attempts[-1].restore == (step, 1)


# ---------------------------------------------------------------- from any point


def restart_agent(world: Simulation, node: str) -> None:
    incarnation = f"{world.run.nodes[node].incarnation}'"
    world.dead -= {node}
    world.agents[node] = Inventory(incarnation, 0, 0)
    world.tale.join(int(node[1:]), incarnation)
    live = world.run.live_attempt
    if live and live.incarnations.get(node, incarnation) != incarnation:
        world.tale.decide(nodes=[node], detector="node_lost")
        world.tale.join(int(node[1:]), incarnation)


def spoil(world: Simulation) -> None:
    if world.run.head:
        world.damaged |= {world.run.head}


FAULTS = {
    "a rank dies": lambda world: world.tale.exit(3).decide(),
    "a node dies": lambda world: world.lose("n1"),
    "the first node dies": lambda world: world.lose("n0"),
    "an agent starts anew": lambda world: restart_agent(world, "n1"),
    "a person saves": lambda world: world.tale.tell(CommandReceived(at=world.tale.at, id="s", verb="save", author="a")),
    "a hang": lambda world: world.tale.decide(detector="hang", actions={"collect": ["stacks"], **RESTART}),
    "numbers": lambda world: world.tale.decide(
        detector="non_finite", onset_step=world.run.step - 1, actions={"restart": {"from": "last_good"}}
    ),
    "held": lambda world: world.tale.hold(),
    "released": lambda world: world.tale.release(),
    "checkpoint spoilt": spoil,
    "a supervisor takes over": lambda world: world.tale.epoch(),
    "nothing": lambda world: None,
}


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(sorted(FAULTS)), st.integers(0, 6)), max_size=6))
def test_from_any_point_planning_again_and_again_leads_to_rest(faults: list[tuple[str, int]]) -> None:
    world = Simulation(Tale(target=None).train(10).save())
    for fault, turns in faults:
        FAULTS[fault](world)
        for _ in range(turns):
            world.turn()

    world.until(lambda _: world.at_rest)

    if world.run.state is RunState.HELD:
        assert world.run.hold_reason
    for attempt in world.run.attempts[1:]:
        assert attempt.restore is not None, "a run with history began at step 0"
    for attempt in world.run.attempts:
        assert sorted(rank for ranks in attempt.slots.values() for rank in ranks) == [0, 1, 2, 3]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(sorted(FAULTS)), st.integers(0, 6)), max_size=6))
def test_planning_changes_nothing_and_forgets_nothing(faults: list[tuple[str, int]]) -> None:
    world = Simulation(Tale().train(10).save())
    for fault, turns in faults:
        FAULTS[fault](world)
        for _ in range(turns):
            before = copy.deepcopy((world.run, world.fleet))
            first, second = world.moves(), plan(*before, LIMITS)
            assert first == second
            assert (world.run, world.fleet) == before
            world.turn()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(sorted(FAULTS)), st.integers(0, 4)), max_size=4))
def test_a_message_sent_twice_does_no_harm(faults: list[tuple[str, int]]) -> None:
    world = Simulation(Tale().train(10).save())
    for fault, turns in faults:
        FAULTS[fault](world)
        for _ in range(turns):
            for move in world.moves():
                if isinstance(move, Send) and move.node not in world.dead:
                    world.obey(move.node, dict(move.message))
                    once = copy.deepcopy(world.agents)
                    world.obey(move.node, dict(move.message))
                    assert world.agents == once
            world.turn()
