"""Fewer nodes than wanted, and nodes that are to be replaced while they work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simulated_fleet import Simulation
from tale import Tale

from launcher.abilities import Abilities
from launcher.backends.report import NodeReport, drain_changes
from launcher.backends.slurm_words import reports
from launcher.crew import assign
from launcher.events import PERSON, ActionDone, CommandReceived, JobEnding, NodeDraining, NodeUndrained
from launcher.moves import Emit, Inventory, Limits, Requeue, Send
from launcher.recovery import GENTLE_LIMIT_S
from launcher.replacement import checked
from launcher.reporter import SAVE, STOP
from launcher.run import RunState
from launcher.sizes import skipped, smaller
from launcher.spec import load_spec
from launcher.view.dry_run import plan_text

WAIT_S = 30.0


def world_of(
    nodes: int = 2, spares: int = 0, smaller: tuple[int, ...] = (1,), train: int = 10, save: bool = True
) -> Simulation:
    """A run that trains and may go on with these numbers of nodes."""
    tale = Tale(nodes=nodes, spares=spares, target=None).train(train)
    return Simulation(tale.save() if save else tale, limits=Limits(WAIT_S, smaller=smaller))


def running(attempts: int) -> Any:
    return lambda run: len(run.attempts) == attempts and run.state is RunState.RUNNING


def turns(world: Simulation, count: int) -> None:
    for _ in range(count):
        world.turn()


# ---------------------------------------------------------------- going on with fewer nodes


def test_without_a_spare_the_run_waits_and_then_goes_on_smaller() -> None:
    world = world_of()
    since = world.tale.at
    world.lose("n1", shrink=True)

    world.until(running(2))

    assert world.run.attempts[-1].slots == {"n0": (0, 1)}
    assert world.run.attempts[-1].started_at - since >= WAIT_S
    assert world.run.attempts[-1].restore == (10, 1)


def test_a_node_that_is_back_in_time_makes_the_run_whole() -> None:
    world = world_of()
    world.lose("n1", shrink=True)
    turns(world, 10)
    world.give_back("n1")

    world.until(running(2))

    assert set(world.run.attempts[-1].slots) == {"n0", "n1"}


@pytest.mark.parametrize(
    ("by", "reason", "restarts"), [(PERSON, "replace by told so", 0), ("draining", "draining: told so", 1)]
)
def test_what_replaces_a_node_is_told_and_only_the_policy_s_is_a_restart(by: str, reason: str, restarts: int) -> None:
    world = world_of(spares=1)
    world.tale.decide(rule=by, detector=by, nodes=["n1"], actions={"replace": "blamed"})

    world.until(running(2))

    assert (world.run.attempts[0].reason, world.run.restarts) == (reason, restarts)


def test_a_spare_is_taken_at_once_though_the_run_could_be_smaller() -> None:
    world = world_of(spares=1)
    since = world.tale.at
    world.lose("n1", shrink=True)

    world.until(running(2))

    assert set(world.run.attempts[-1].slots) == {"n0", "n2"}
    assert world.run.attempts[-1].started_at - since < WAIT_S


@pytest.mark.parametrize(
    ("lost", "fits", "left"),
    [(1, (3, 2, 1), 3), (1, (2, 1), 2), (2, (3, 1), 1), (2, (3,), None), (3, (2,), None), (1, (), None)],
)
def test_the_largest_number_that_fits_is_taken_and_where_none_does_the_run_is_held(
    lost: int, fits: tuple[int, ...], left: int | None
) -> None:
    world = world_of(nodes=4, smaller=fits)
    world.lose(*(f"n{3 - i}" for i in range(lost)), shrink=True)

    world.until(lambda run: run.state is RunState.HELD or running(2)(run))

    assert (len(world.run.attempts[1].slots) if left else None) == left
    assert (world.run.state is RunState.HELD) == (left is None)
    assert left or "4 nodes are needed" in world.run.hold_reason


def test_only_a_policy_that_says_so_lets_a_run_go_on_smaller() -> None:
    world = world_of()
    world.lose("n1")

    world.until(lambda run: run.state is RunState.HELD)

    assert len(world.run.attempts) == 1
    assert "2 nodes are needed, waited 30s, have: n0" in world.run.hold_reason


def test_a_healthy_smaller_run_is_not_disturbed_when_nodes_are_back() -> None:
    world = world_of()
    world.lose("n1", shrink=True)
    world.until(running(2))

    world.give_back("n1")
    turns(world, 100)

    assert len(world.run.attempts) == 2
    assert world.run.state is RunState.RUNNING


def test_a_smaller_run_that_must_restart_takes_all_nodes_that_are_back() -> None:
    world = world_of()
    world.lose("n1", shrink=True)
    world.until(running(2))
    world.give_back("n1")
    turns(world, 5)

    world.tale.exit(0).decide()
    world.until(running(3))

    assert set(world.run.attempts[-1].slots) == {"n0", "n1"}


def test_a_smaller_run_that_must_restart_goes_on_as_it_was_without_waiting_again() -> None:
    world = world_of()
    world.lose("n1", shrink=True)
    world.until(running(2))

    since = world.tale.at
    world.tale.exit(0).decide()  # by a rule that says nothing of shrinking
    world.until(running(3))

    assert set(world.run.attempts[-1].slots) == {"n0"}
    assert world.tale.at - since < WAIT_S


def test_a_supervisor_that_has_just_taken_over_listens_for_all_nodes_first() -> None:
    world = world_of()
    world.lose("n1", shrink=True)
    world.until(running(2))
    world.tale.exit(0).decide()
    turns(world, 3)
    world.settled = False

    turns(world, 60)
    assert len(world.run.attempts) == 2
    world.settled = True
    world.until(running(3))


def test_a_new_allocation_begins_whole() -> None:
    world = world_of()
    world.lose("n1", shrink=True)
    world.until(running(2))
    world.tale.resume().join(0, "new")
    world.agents = {"n0": Inventory("new", 0, 0)}

    turns(world, 100)
    assert world.run.state is RunState.PENDING
    world.tale.join(1, "new")
    world.agents["n1"] = Inventory("new", 0, 0)
    world.dead = frozenset()
    world.until(running(3))

    assert set(world.run.attempts[-1].slots) == {"n0", "n1"}


def test_where_nodes_come_one_by_one_those_that_are_there_are_enough_in_time() -> None:
    tale = Tale(nodes=3, spares=0)
    world = Simulation(tale, dead=frozenset({"n2"}), limits=Limits(WAIT_S, smaller=(2, 1), begins_smaller=True))
    since = tale.at

    world.until(running(1))
    began = world.run.attempts[0]
    world.dead = frozenset()
    turns(world, 50)

    assert (set(began.slots), began.started_at - since < WAIT_S + 5) == ({"n0", "n1"}, True)
    assert len(world.run.attempts) == 1, "a node that is late does not disturb those that train"


def test_fewer_than_the_least_number_of_nodes_wait_for_more() -> None:
    limits = Limits(WAIT_S, smaller=(2,), begins_smaller=True)
    world = Simulation(Tale(nodes=3, spares=0), dead=frozenset({"n1", "n2"}), limits=limits)

    turns(world, 200)
    assert (world.run.state, world.run.attempts) == ("PENDING", ())
    world.dead = frozenset({"n2"})

    world.until(running(1))


def test_smaller_runs_have_their_ranks_without_gaps_and_nodes_keep_what_they_can() -> None:
    tale = Tale(nodes=4, spares=0).train(5)
    nodes = [node for node in tale.run.nodes.values() if node.name != "n1"]

    assert assign(tale.run, nodes) == {"n0": (0, 1), "n3": (2, 3), "n2": (4, 5)}


def test_a_job_that_lacks_nodes_is_given_back_when_the_policy_says_so() -> None:
    world = world_of(smaller=())
    world.lose("n1", requeue=True)
    since = world.run.recovering_since or 0.0

    world.until(lambda run: bool(run.job_ending))
    told = [move.event for _, move in world.log if isinstance(move, Emit) and isinstance(move.event, JobEnding)]

    assert told[0].at - since >= WAIT_S
    assert "2 nodes are needed" in told[0].reason
    assert world.moves() == [Requeue(("n1",))]


def test_shrinking_comes_before_giving_the_job_back() -> None:
    world = world_of(nodes=3, smaller=(2,))
    world.lose("n2", shrink=True, requeue=True)
    world.until(running(2))
    assert len(world.run.attempts[-1].slots) == 2

    world.lose("n1", shrink=True, requeue=True)
    world.until(lambda run: bool(run.job_ending))
    assert len(world.run.attempts) == 2


# ---------------------------------------------------------------- replacing nodes that work


def test_a_draining_node_is_replaced_by_a_spare_after_a_save_and_no_step_is_lost() -> None:
    world = world_of(spares=1, train=15, save=False)
    world.tale.draining("n1")

    world.until(running(2))

    assert world.run.attempts[-1].slots == {"n0": (0, 1), "n2": (2, 3)}
    assert world.run.lost_steps == 0
    assert [*world.run.attempts[0].exits.values()] == [0, 0, 0, 0], "no rank was killed"
    assert [(one.state, one.lost_steps) for one in world.run.incidents] == [("RECOVERED", 0)]


def test_the_trainer_is_told_to_save_and_end_only_after_the_journal_says_so() -> None:
    world = world_of(spares=1)
    world.tale.draining("n1")

    (begun,) = world.turn()
    assert isinstance(begun, Emit)
    assert isinstance(begun.event, ActionDone)
    assert "n2 is there to take the place of n1" in begun.event.detail
    (wish,) = world.moves()
    assert isinstance(wish, Send)
    assert wish.message["message"] == {"type": "wanted", "bits": STOP | SAVE, "wish": begun.event.at}


@pytest.mark.parametrize("spares", [0, 1])
def test_without_a_spare_it_is_saved_and_works_on(spares: int) -> None:
    world = world_of(spares=spares)
    if spares:
        world.dead = frozenset({"n2"})
    before = world.run.head
    world.tale.draining("n1")

    turns(world, 50)

    assert world.run.head != before
    assert len(world.run.attempts) == 1
    assert [one.state for one in world.run.incidents] == ["NOTED"]


def test_a_draining_spare_is_nobody_to_replace_a_draining_node() -> None:
    world = world_of(spares=1)
    world.tale.tell(NodeDraining(at=world.tale.at, node="n2", reason="new disks"))
    world.tale.draining("n1")

    turns(world, 50)

    assert len(world.run.attempts) == 1


def test_a_spare_that_comes_later_takes_its_place_then() -> None:
    world = world_of(spares=1)
    world.dead = frozenset({"n2"})
    world.tale.draining("n1")
    turns(world, 20)

    world.give_back("n2")
    opened = world.tale.at
    world.until(running(2))

    assert set(world.run.attempts[-1].slots) == {"n0", "n2"}
    (incident,) = world.run.incidents
    assert incident.opened_at >= opened, "the time in which it trained on is no cost of the incident"


def test_a_node_that_is_drained_no_more_stays() -> None:
    world = world_of(spares=1)
    world.dead = frozenset({"n2"})
    world.tale.draining("n1")
    turns(world, 5)
    world.tale.undrained("n1")

    world.give_back("n2")
    turns(world, 50)

    assert len(world.run.attempts) == 1


def test_what_has_begun_is_carried_through_though_spare_and_reason_are_gone() -> None:
    world = world_of(spares=1)
    world.tale.draining("n1")
    world.turn()
    world.dead = frozenset({"n2"})
    world.tale.undrained("n1")

    world.until(running(2))

    assert set(world.run.attempts[-1].slots) == {"n0", "n1"}
    assert world.run.lost_steps == 0


@pytest.mark.parametrize("draining", ["n0", "n3"])
def test_any_restart_prefers_nodes_that_nobody_wants_back(draining: str) -> None:
    world = world_of(nodes=3, spares=2)
    world.tale.tell(NodeDraining(at=world.tale.at, node=draining, reason="new disks"))

    world.tale.exit(5).decide(nodes=["n2"], actions={"exclude": "blamed", "restart": {"from": "latest"}})
    world.until(running(2))

    assert draining not in world.run.attempts[-1].slots


def test_draining_nodes_are_used_where_there_are_no_others() -> None:
    world = world_of(spares=1)
    for node in ("n0", "n2"):
        world.tale.tell(NodeDraining(at=world.tale.at, node=node, reason="new disks"))
    world.lose("n1")

    world.until(running(2))

    assert set(world.run.attempts[-1].slots) == {"n0", "n2"}


def test_a_node_stays_draining_when_its_agent_is_started_anew() -> None:
    tale = Tale().train(5).draining("n1").join(1, "b")
    assert tale.run.nodes["n1"].draining == "new disks"


def test_a_trainer_that_is_done_meanwhile_is_not_started_again() -> None:
    world = world_of(spares=1)
    world.tale.draining("n1")
    world.turn()
    world.tale.done()
    world.all_exit(0)

    world.until(lambda run: run.state is RunState.SUCCEEDED)

    assert len(world.run.attempts) == 1


def test_a_trainer_that_is_done_is_not_asked_to_make_way() -> None:
    world = world_of(spares=1)
    world.dead = frozenset({"n2"})
    world.tale.draining("n1")
    world.tale.done()
    world.give_back("n2")

    assert not [move for move in world.turn() if isinstance(move, Emit)]


def test_a_run_that_has_made_way_and_finds_no_nodes_is_held_in_the_end() -> None:
    world = world_of(spares=1)
    world.tale.draining("n1")
    world.until(lambda run: run.state is RunState.RECOVERING)
    world.dead = frozenset({"n1", "n2"})

    world.until(lambda run: run.state is RunState.HELD)

    assert "2 nodes are needed" in world.run.hold_reason


def test_the_attempt_has_not_ended_before_what_it_saved_last_is_there_to_go_on_from() -> None:
    world = world_of(spares=1)
    world.tale.draining("n1")
    world.turn()
    world.turn()
    world.committing = True
    assert len(world.run.attempts[0].exits) == 4

    turns(world, 5)
    assert world.run.live_attempt is not None
    world.committing = False
    world.until(running(2))


def test_a_save_may_take_its_time() -> None:
    world = world_of(spares=1)
    world.tale.draining("n1")
    world.turn()
    world.tale.at += GENTLE_LIMIT_S - 10
    assert {move.message["type"] for move in world.moves() if isinstance(move, Send)} == {"to_rank"}
    world.tale.at += 20
    assert {move.message["type"] for move in world.moves() if isinstance(move, Send)} == {"kill"}


def test_a_failure_while_the_trainer_saves_and_ends_is_judged_like_any_other() -> None:
    world = world_of(spares=1)
    world.tale.draining("n1")
    world.turn()
    world.lose("n0")

    world.until(running(2))

    assert set(world.run.attempts[-1].slots) == {"n1", "n2"}, "there is nobody else: the draining node works on"


@pytest.mark.parametrize("wish", ["stop", "hold"])
def test_a_person_s_stop_or_hold_comes_before_a_replacement(wish: str) -> None:
    world = world_of(spares=1)
    world.tale.draining("n1")
    world.turn()
    world.tale.tell(CommandReceived(at=world.tale.at, id="c", verb=wish, author="ann"))

    world.until(lambda run: run.state in (RunState.STOPPED, RunState.HELD))

    assert len(world.run.attempts) == 1
    assert world.run.replace is world.run.replacing_since is None


# ---------------------------------------------------------------- a person has a node replaced


def asked(world: Simulation, node: str, trainer: Abilities | None = None) -> dict[str, Any]:
    """What becomes of a person's command to replace a node."""
    args: dict[str, Any] = {"node": node, "reason": "looks slow"}
    command = CommandReceived(at=1.0, id="c1", verb="replace", author="ann", args=args)
    return dict(checked(command, world.run, trainer or Abilities()).args)


def test_a_person_s_replacement_goes_the_same_way() -> None:
    world = world_of(spares=1)
    assert asked(world, "n0") == {"why": "looks slow", "actions": {"replace": "blamed"}, "nodes": ["n0"]}
    world.tale.decide(nodes=["n0"], detector="person", actions={"replace": "blamed"})

    world.until(running(2))

    assert world.run.attempts[-1].slots == {"n2": (0, 1), "n1": (2, 3)}
    assert world.run.lost_steps == 0


@pytest.mark.parametrize(
    ("world", "node", "why_not"),
    [
        (lambda: world_of(spares=1), "n2", "'n2' does not train; these do: n0, n1"),
        (lambda: world_of(spares=1), "node1", "'node1' does not train; these do: n0, n1"),
        (lambda: world_of(spares=0), "n1", "no spare is there to take the place of n1"),
        (lambda: Simulation(Tale().train(5).draining("n2")), "n1", "no spare is there to take the place of n1"),
        (lambda: Simulation(Tale().train(5).hold()), "n1", "nothing to replace: the run is HELD"),
        (lambda: Simulation(Tale().start()), "n1", "nothing to replace: the run is STARTING"),
    ],
)
def test_what_cannot_be_replaced_is_refused_with_the_reason(world: Any, node: str, why_not: str) -> None:
    assert asked(world(), node) == {"why": "looks slow", "refused": why_not}


def test_a_command_that_never_saved_would_lose_its_steps() -> None:
    world = Simulation(Tale(save_every=None).train(5))
    assert "its steps would be lost" in asked(world, "n1")["refused"]
    assert "actions" in asked(world, "n1", Abilities(saves="exits", signal="SIGUSR1"))
    assert "cannot be told to save" in asked(world, "n1", Abilities(saves="never"))["refused"]
    world.tale.save()
    assert "actions" in asked(world, "n1")


# ---------------------------------------------------------------- from any point

FAULTS = {
    "n1 dies": lambda world: world.lose("n1", shrink=True),
    "n0 dies": lambda world: world.lose("n0", shrink=True),
    "n1 comes back": lambda world: world.give_back("n1") if "n1" in world.dead else None,
    "n0 comes back": lambda world: world.give_back("n0") if "n0" in world.dead else None,
    "n0 drains": lambda world: world.tale.draining("n0"),
    "n2 drains": lambda world: world.tale.draining("n2"),
    "n0 drains no more": lambda world: world.tale.undrained("n0"),
    "a rank dies": lambda world: world.tale.exit(0).decide(),
    "a supervisor takes over": lambda world: world.tale.epoch(),
    "held and released": lambda world: world.tale.hold().release(),
}


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(sorted(FAULTS)), st.integers(0, 9)), max_size=7))
def test_whatever_happens_each_attempt_has_a_size_that_fits_and_no_run_is_taken_for_done(
    faults: list[tuple[str, int]],
) -> None:
    world = world_of(nodes=3, spares=1, smaller=(2,))
    world.limits = Limits(wait_for_node_s=4, smaller=(2,))
    for fault, count in faults:
        FAULTS[fault](world)
        turns(world, count)

    world.until(lambda _: world.at_rest)

    assert not world.run.state.is_terminal
    for attempt in world.run.attempts[1:]:
        assert len(attempt.slots) in (3, 2)
        assert sorted(rank for ranks in attempt.slots.values() for rank in ranks) == list(range(attempt.ranks))
        assert attempt.restore is not None


# ---------------------------------------------------------------- what a RUN.yaml asks for

RUN = """\
name: demo
trainer: {size: tiny, steps: 10, batch_tokens: 1536, seq_len: 128, parallel: {fsdp: 6, tensor: 1}}
cluster: {nodes: 6, ranks_per_node: 1, min_nodes: 1}
"""


def resolved(folder: Path, *overrides: str) -> Any:
    (folder / "RUN.yaml").write_text(RUN)
    return load_spec(folder / "RUN.yaml", overrides)


def test_sizes_that_do_not_fit_are_named_and_not_used(tmp_path: Path) -> None:
    run = resolved(tmp_path)
    assert smaller(run.spec) == (4, 3, 2, 1)
    assert skipped(run.spec) == "5 nodes skipped: a batch of 12 sequences cannot be divided among 5 fsdp ranks"
    assert f"# shrinks  to 4, 3, 2, 1 of 6 nodes; {skipped(run.spec)}\n" in plan_text(run, tmp_path)


@pytest.mark.parametrize(
    ("overrides", "fits"),
    [
        (["cluster.min_nodes=4"], (4,)),
        (["cluster.min_nodes=6"], ()),
        (["trainer.micro_batch=2"], (3, 2, 1)),
        (["trainer.parallel={fsdp: 3, tensor: 2}"], (4, 2)),
        (["cluster.nodes=3", "cluster.ranks_per_node=2"], (2, 1)),
    ],
)
def test_micro_batches_and_tensor_parallel_ranks_stay_whole(
    tmp_path: Path, overrides: list[str], fits: tuple[int, ...]
) -> None:
    assert smaller(resolved(tmp_path, *overrides).spec) == fits


def test_unless_asked_for_no_run_goes_on_smaller(tmp_path: Path) -> None:
    (tmp_path / "RUN.yaml").write_text(RUN.replace(", min_nodes: 1", ""))
    run = load_spec(tmp_path / "RUN.yaml")
    assert smaller(run.spec) == ()
    assert "shrink" not in plan_text(run, tmp_path)
    assert not any("shrink" in rung.actions for rule in run.policy.rules for rung in rule.do)


# ---------------------------------------------------------------- what the backend says


def test_slurm_s_words_for_nodes_are_understood_with_their_reasons() -> None:
    text = """\
a allocated none
b draining new disks on monday
c drained* kernel
d down* Not responding
e mixed- none
f drng@ x
g idle"""
    found = reports(text)
    assert {node: one.draining for node, one in found.items() if one.draining} == {
        "b": "Slurm says: draining (new disks on monday)",
        "c": "Slurm says: drained* (kernel)",
        "f": "Slurm says: drng@ (x)",
    }
    assert {node: one.down for node, one in found.items() if one.down} == {"d": "Slurm says: down* (Not responding)"}
    assert list(found) == list("abcdefg")


def test_only_what_is_new_of_nodes_of_ours_that_are_up_is_told() -> None:
    run = Tale(nodes=4).draining("n1").draining("n2").run
    said = {
        "n0": NodeReport("", draining="x"), "n1": NodeReport(""), "n2": NodeReport("", draining="y"),
        "n3": NodeReport("gone", draining=""), "other": NodeReport("", draining="z"),
        "n4": NodeReport("", draining="w (opt-launch tale: hot)", drain_reason="opt-launch tale: hot"),
    }  # fmt: skip
    assert list(drain_changes(run, said, 7.0)) == [
        NodeDraining(at=7.0, node="n0", reason="x"),
        NodeUndrained(at=7.0, node="n1"),
    ]
