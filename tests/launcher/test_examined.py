"""What examinations make of a run: whom it prefers, how long a start waits for them, and who is asked until when."""

from __future__ import annotations

from dataclasses import replace

from simulated_fleet import LIMITS, Simulation
from tale import Tale

from launcher.events import (
    ActionDone,
    CheckFinding,
    CommandAnswered,
    CommandReceived,
    NodeExamined,
    NodeExcluded,
)
from launcher.examined import checked
from launcher.hosts.of_run import blamed, found, suspicions
from launcher.hosts.records import Blamed
from launcher.moves import Emit, Send
from launcher.recovery import plan
from launcher.run import RunState
from launcher.terms import Verdict

EXAMINES = replace(LIMITS, examined_within_s=20.0)
HOT = CheckFinding(
    code="gpu-clocks", subject="GPU-1", verdict="fail", summary="91 C", limit=87, limit_source="device",
    evidence={"celsius": 91}, remedy="drain",
)  # fmt: skip
RESTART = {"restart": {"from": "latest", "save_first": False}}


def examined(tale: Tale, node: str, *findings: CheckFinding, id_: str = "", number: int = 1) -> NodeExamined:
    verdict: Verdict = "fail" if findings else "ok"
    return NodeExamined(
        at=tale.at, node=node, incarnation=tale.run.nodes[node].incarnation, number=number, tier="standard",
        verdict=verdict, measured=9, took_s=0.4, id=id_, findings=findings,
    )  # fmt: skip


def well(one: CheckFinding) -> CheckFinding:
    return CheckFinding(code=one.code, subject=one.subject, verdict="ok", summary="is gone")


def slots(tale: Tale) -> set[str]:
    return set(tale.run.attempts[-1].slots)


# ---------------------------------------------------------------- who takes part


def test_who_fails_is_the_last_to_be_taken() -> None:
    tale = Tale()
    tale.tell(examined(tale, "n0", HOT))
    Simulation(tale).until(lambda run: run.state is RunState.RUNNING)
    assert slots(tale) == {"n1", "n2"}


def test_who_fails_is_taken_where_there_is_nobody_else() -> None:
    tale = Tale(spares=0)
    tale.tell(examined(tale, "n0", HOT))
    Simulation(tale).until(lambda run: run.state is RunState.RUNNING)
    assert slots(tale) == {"n0", "n1"}


OUT = {"actions": {"exclude": "blamed"}, "detector": "gpu_fault", "blame": "certain"}


def test_who_is_left_out_for_a_check_is_taken_again_when_another_is_gone() -> None:
    tale = Tale()
    tale.tell(examined(tale, "n0", HOT)).decide(nodes=("n0",), **OUT)
    world = Simulation(tale)
    world.lose("n1")
    world.until(lambda run: run.state is RunState.RUNNING)
    assert slots(tale) == {"n0", "n2"}


def test_who_is_left_out_for_a_check_is_so_also_if_it_is_well_before_the_start() -> None:
    tale = Tale()
    tale.tell(examined(tale, "n0", HOT)).decide(nodes=("n0",), **OUT)
    tale.tell(examined(tale, "n0", well(HOT), number=2))
    Simulation(tale).until(lambda run: run.state is RunState.RUNNING)
    assert slots(tale) == {"n1", "n2"}


def test_a_restart_knows_what_was_found_meanwhile() -> None:
    tale = Tale().train(5)
    tale.tell(examined(tale, "n1", HOT)).decide(actions=RESTART)
    Simulation(tale).until(lambda run: len(run.attempts) == 2)
    assert slots(tale) == {"n0", "n2"}


def test_who_is_well_again_is_as_good_as_any() -> None:
    tale = Tale()
    tale.tell(examined(tale, "n0", HOT))
    tale.tell(examined(tale, "n0", well(HOT), number=2))
    Simulation(tale).until(lambda run: run.state is RunState.RUNNING)
    assert slots(tale) == {"n0", "n1"}


def test_the_word_of_an_agent_that_is_gone_counts_for_nothing() -> None:
    tale = Tale()
    tale.tell(replace(examined(tale, "n0", HOT), incarnation="another"))
    assert tale.run.nodes["n0"].faults == ()


def test_a_node_that_is_well_again_need_not_be_replaced() -> None:
    tale = Tale(spares=0).train(5)
    tale.tell(examined(tale, "n1", HOT))
    tale.decide(actions={"replace": "blamed"}, nodes=("n1",), detector="gpu_fault")
    assert tale.run.replace is not None
    tale.tell(examined(tale, "n1", well(HOT), number=2))
    assert tale.run.replace is None


# ---------------------------------------------------------------- before the first start


def test_the_first_start_waits_for_all_examinations() -> None:
    tale = Tale()
    world = Simulation(tale, limits=EXAMINES)
    for node in ("n0", "n1"):
        tale.tell(examined(tale, node, id_="start"))
        assert world.moves() == []
    tale.tell(examined(tale, "n2", id_="start"))
    assert [type(move) for move in world.moves()] == [Emit]


def test_it_waits_for_a_check_that_is_stuck_for_a_while_only() -> None:
    tale = Tale()
    began = tale.at
    Simulation(tale, limits=EXAMINES).until(lambda run: bool(run.attempts))
    assert tale.at - began <= EXAMINES.examined_within_s + 5


def test_it_waits_for_no_agent_that_comes_again_and_again() -> None:
    tale = Tale()
    world, began = Simulation(tale, limits=EXAMINES), tale.at
    for node in ("n0", "n1"):
        tale.tell(examined(tale, node, id_="start"))
    for _ in range(10):
        world.give_back("n2")  # each time another agent, which has not been heard of an examination
        for _ in range(5):
            world.turn()
    assert tale.run.attempts[0].started_at - began <= EXAMINES.examined_within_s + 1


def test_it_waits_for_no_node_that_takes_no_part() -> None:
    tale = Tale()
    world = Simulation(tale, limits=EXAMINES)
    for node in ("n0", "n1"):
        tale.tell(examined(tale, node, id_="start"))
    tale.tell(NodeExcluded(at=tale.at, node="n2", reason="it failed yesterday"))
    assert [type(move) for move in world.moves()] == [Emit]


def test_a_restart_waits_for_no_examination() -> None:
    tale = Tale().train(5).decide(actions=RESTART)
    before = tale.at
    Simulation(tale, limits=EXAMINES).until(lambda run: len(run.attempts) == 2)
    assert tale.at - before < EXAMINES.examined_within_s


# ---------------------------------------------------------------- an action, a command


def test_a_restart_whose_rung_says_check_waits_for_it_and_not_for_ever() -> None:
    tale = Tale().train(5).decide(actions={"check": "standard"} | RESTART)
    world = Simulation(tale)
    moves = world.moves()
    asked = {move.node for move in moves if isinstance(move, Send) and move.message["type"] == "examine"}
    assert asked == {"n0", "n1", "n2"}
    id_ = tale.run.pending.id if tale.run.pending else ""
    for node in ("n0", "n1"):
        tale.tell(examined(tale, node, id_=id_))
    for _ in range(10):
        world.turn()
    assert len(tale.run.attempts) == 1
    tale.tell(examined(tale, "n2", HOT, id_=id_))
    world.until(lambda run: len(run.attempts) == 2)
    (done,) = [event for event in tale.events if isinstance(event, ActionDone) and event.action == "check"]
    assert done.ok
    assert done.detail == "2 ok, 1 fail; n2: fail: gpu-clocks GPU-1: 91 C (limit 87, from the device)"


def test_who_does_not_answer_is_named_and_the_restart_goes_on() -> None:
    tale = Tale().train(5).decide(actions={"check": "fast"} | RESTART)
    Simulation(tale).until(lambda run: len(run.attempts) == 2)
    (done,) = [event for event in tale.events if isinstance(event, ActionDone) and event.action == "check"]
    assert (done.ok, done.detail) == (False, "no answer from n0, n1, n2")


def test_a_person_is_answered_when_the_nodes_they_named_have_been_examined() -> None:
    tale = Tale().train(5)
    tale.tell(CommandReceived(at=tale.at, id="c", verb="examine", author="me", args={"nodes": ["n2"], "tier": "fast"}))
    asked = Send("n2", {"type": "examine", "id": "c", "tier": "fast"})
    assert asked in plan(tale.run, Simulation(tale).fleet, LIMITS)
    tale.tell(examined(tale, "n2", HOT, id_="c"))
    moves = plan(tale.run, Simulation(tale).fleet, LIMITS)
    (answer,) = [move.event for move in moves if isinstance(move, Emit)]
    assert isinstance(answer, CommandAnswered)
    assert (answer.id, answer.ok) == ("c", True)
    tale.tell(answer)
    assert tale.run.examining == {}


def test_who_names_a_node_that_is_not_there_is_told_so() -> None:
    command = CommandReceived(at=1, id="c", verb="examine", author="me", args={"nodes": ["n7"]})
    assert checked(command, Tale().run).args["refused"] == "the run has no node n7; these it has: n0, n1, n2"


# ---------------------------------------------------------------- the host ledger


def test_what_is_found_and_who_is_excluded_for_it_are_for_the_host_ledger() -> None:
    tale = Tale().train(5)
    event = examined(tale, "n1", HOT)
    (record,) = found(tale.run, event, "me")
    assert (record.host, record.code, record.verdict, record.evidence) == (
        "n1",
        "gpu-clocks GPU-1",
        "fail",
        {"celsius": 91},
    )
    about = {"code": "gpu-clocks", "remedy": "drain", "told": HOT.told, "limit": 87, "readings": {"celsius": 91}}
    tale.tell(event).decide(
        actions={"exclude": "blamed"}, nodes=("n1",), detector="gpu_fault", blame="certain",
        evidence={"findings": {"n1": about}},
    )  # fmt: skip
    decision = tale.events[-1]
    (blame,) = blamed(tale.run, decision, "me")
    assert isinstance(blame, Blamed)
    assert (blame.code, blame.why) == ("gpu-clocks", HOT.told)
    (one,) = suspicions(decision, [blame])
    assert (one.proof, one.remedy, one.evidence) == ("hard", "drain", {"celsius": 91, "limit": 87})
    assert tale.run.nodes["n1"].avoided == HOT.told
