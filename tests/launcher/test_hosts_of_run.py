"""What a run and the host ledger say to each other: blame and service go out, and who is left out comes in."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from simulated_fleet import LIMITS, Simulation
from tale import Tale

from launcher.advance import advance
from launcher.events import NodeAllowed, NodeExcluded, RunHeld
from launcher.host_watch import HostWatch
from launcher.hosts.ledger import Ledger
from launcher.hosts.of_run import blamed, changes, seen, served, serving, suspicions
from launcher.hosts.records import Blamed, Excluded
from launcher.moves import Emit
from launcher.recovery import plan
from launcher.run import RunState
from launcher.spec import load_spec

RESTART = {"restart": {"from": "latest", "save_first": False}}
WITHOUT = {"exclude": "blamed"} | RESTART


def left_out(*names: str, automatic: bool = True) -> dict[str, Excluded]:
    return {
        name: Excluded(id=name, at=1, by="alice", host=name, reason="hot", until=None, automatic=automatic)
        for name in names
    }


def told(tale: Tale, out: dict[str, Excluded], *, settled: bool = True) -> Tale:
    """The run hears what of the ledger it did not know."""
    return tale.tell(*changes(tale.run, out, tale.at, settled=settled))


def excluded(tale: Tale) -> dict[str, str]:
    return {node.name: node.barred for node in tale.run.nodes.values() if node.barred}


# ---------------------------------------------------------------- who is left out


def test_a_run_begins_without_the_excluded_and_the_spare_takes_its_place() -> None:
    tale = told(Tale(), left_out("n0"))
    Simulation(tale).until(lambda run: run.state is RunState.RUNNING)
    assert excluded(tale) == {"n0": "excluded by alice: hot"}
    assert set(tale.run.attempts[0].slots) == {"n1", "n2"}


def test_it_trains_on_with_who_is_excluded_meanwhile_and_leaves_it_out_at_the_next_start() -> None:
    tale = Tale().train(5)
    told(tale, left_out("n1"))
    assert tale.run.state is RunState.RUNNING
    simulation = Simulation(tale)
    simulation.turn()
    assert len(tale.run.attempts) == 1
    tale.decide(actions=RESTART)
    simulation.until(lambda run: len(run.attempts) == 2)
    assert set(tale.run.attempts[1].slots) == {"n0", "n2"}


def test_it_is_told_once_and_told_when_the_host_is_allowed_again() -> None:
    tale = told(Tale(), left_out("n0"))
    assert [*changes(tale.run, left_out("n0"), tale.at, settled=True)] == []
    assert [*changes(tale.run, {}, 5.0, settled=True)] == [NodeAllowed(at=5.0, node="n0")]
    assert excluded(told(tale, {})) == {}


def test_a_new_supervisor_allows_nobody_before_it_has_read_the_ledger(tmp_path: Path) -> None:
    told(tale := Tale(), out := left_out("n0"))
    ledger = tmp_path / "hosts"
    Ledger(ledger).append(*out.values())
    file = tmp_path / "RUN.yaml"
    file.write_text(f"name: tale\ncommand: [sh]\ncluster: {{backend: slurm, nodes: 2}}\nhosts: {{ledger: {ledger}}}\n")
    watch = HostWatch(load_spec(file).spec, tell=print)

    found, deadline = [], time.monotonic() + 30
    while not watch.is_ready:
        assert time.monotonic() < deadline
        found += watch.changes(tale.run, {}, settled=True)
    found += watch.changes(tale.run, {}, settled=True)
    watch.close(5)

    assert found == []


def test_an_agent_that_is_started_anew_is_still_of_an_excluded_host() -> None:
    assert excluded(told(Tale(), left_out("n0")).join(0, "b")) == {"n0": "excluded by alice: hot"}


def test_never_so_many_are_left_out_that_too_few_remain_unless_a_person_says_so() -> None:
    assert len(excluded(told(Tale(nodes=2, spares=1), left_out("n0", "n1")))) == 1
    assert len(excluded(told(Tale(nodes=2, spares=1), left_out("n0", "n1", automatic=False)))) == 2


def test_the_excluded_comes_back_where_another_is_lost() -> None:
    tale = told(Tale(nodes=2, spares=1).train(3), left_out("n2"))
    tale.down("n1")
    assert excluded(told(tale, left_out("n2"))) == {}


def test_whose_agents_may_still_come_count_as_there() -> None:
    tale = Tale(nodes=2, spares=1)
    del tale.run.nodes["n2"]  # type: ignore[attr-defined]
    assert [*changes(tale.run, left_out("n0"), 1.0, settled=True)] == []
    expected = NodeExcluded(at=1.0, node="n0", reason="excluded by alice: hot")
    assert [*changes(tale.run, left_out("n0"), 1.0, settled=False)] == [expected]


def test_a_run_that_a_person_leaves_too_few_nodes_is_held_at_once_and_says_why() -> None:
    tale = told(Tale(nodes=2, spares=0), left_out("n0", automatic=False))
    [move] = Simulation(tale).moves()
    assert isinstance(move, Emit)
    assert isinstance(move.event, RunHeld)
    assert move.event.reason == "2 nodes are needed, have: n1; without n0, excluded by alice: hot"


def test_it_is_not_held_as_long_as_another_node_may_come() -> None:
    tale = Tale(nodes=2, spares=1)
    del tale.run.nodes["n2"]  # type: ignore[attr-defined]
    run = advance(tale.run, NodeExcluded(at=1.0, node="n0", reason="r"))
    assert plan(run, Simulation(tale).fleet, LIMITS) == []


def test_what_is_said_of_a_node_nobody_knows_changes_nothing() -> None:
    run = Tale().run
    for event in (NodeExcluded(at=1.0, node="x", reason="r"), NodeAllowed(at=1.0, node="x")):
        assert advance(run, event).nodes == run.nodes


# ---------------------------------------------------------------- what is remembered


def decision(detector: str, **about: Any) -> tuple[Tale, list[Blamed], list[Any]]:
    about = {"nodes": ["n1"], "blame": "likely", "actions": WITHOUT} | about
    tale = Tale().train(3).decide(detector=detector, **about)
    event = tale.events[-1]
    records = blamed(tale.run, event, "run tale")
    return tale, records, suspicions(event, records)


def test_blame_is_remembered_and_an_exclusion_of_the_policy_is_a_suspicion() -> None:
    _, [record], [suspicion] = decision("exit")
    assert (record.host, record.run, record.code, record.why) == ("n1", "tale", "exit", "told so")
    assert (suspicion.host, suspicion.proof, suspicion.id) == ("n1", "soft", record.id)
    assert decision("exit")[1] == [record]  # of the same decision always the same


def test_a_lost_node_is_remembered_and_no_more() -> None:
    _, [record], [suspicion] = decision("node_lost", blame="certain")
    assert (record.code, suspicion.proof) == ("node_lost", "lost")


def test_wrong_bits_are_a_proof() -> None:
    assert decision("sdc", blame="certain")[2][0].proof == "hard"


@pytest.mark.parametrize(
    "about", [{"blame": "undecidable"}, {"blame": "none"}, {"nodes": []}, {"rule": "person", "blame": "certain"}]
)
def test_who_is_not_blamed_is_not_remembered(about: dict[str, Any]) -> None:
    assert decision("exit", **about)[1:] == ([], [])


def test_a_node_that_is_drained_works() -> None:
    assert decision("draining", blame="certain")[1:] == ([], [])


def test_what_is_only_advised_is_remembered_and_excludes_nobody() -> None:
    _, records, suspected = decision("hang", mode="advise")
    assert (len(records), suspected) == (1, [])
    assert decision("hang", actions=RESTART)[2] == []


def test_nodes_have_served_from_the_first_step_to_the_end_of_the_attempt() -> None:
    tale = Tale().start()
    assert serving(tale.run, tale.run.attempts[0], tale.at, "x") == []
    tale.steps(10).end_attempt()
    [record] = served(tale.run, tale.events[-1], "run tale")
    assert (record.hosts, round(record.hours * 3600)) == (("n0", "n1"), 10)
    assert served(tale.run, tale.events[-2], "run tale") == []


def test_a_machine_is_told_of_when_it_is_not_the_one_that_is_known() -> None:
    machines = {"n0": ("b1", ("G1",)), "n1": ("b2", ()), "n2": ("", ())}
    assert [one.host for one in seen(machines, {}, 1.0, "x")] == ["n0", "n1"]
    assert [one.host for one in seen(machines, {"n0": ("b1", ("G1",)), "n1": ("b1", ())}, 1.0, "x")] == ["n1"]
