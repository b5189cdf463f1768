"""The search for bad nodes in a run: when it begins, what each node is asked, what comes of it, who goes on with it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from simulated_fleet import Simulation
from tale import Tale

from launcher.events import ActionDone, CommandAnswered, CommandReceived, NodeExamined, SearchBegan, TrialsEnded
from launcher.examined import checked
from launcher.localize import Diagnosis
from launcher.moves import Emit, Send
from launcher.recovery import plan
from launcher.run import RunState
from launcher.trials import ROUND_S, Part, Report, findings_of, moved, parts, present, result_of
from launcher.view.snapshot import next_action

DEEP = {"check": "deep", "restart": {"from": "latest", "save_first": False}}
STANDARD = {**DEEP, "check": "standard"}


@dataclass
class Cluster(Simulation):
    """`bad`: nodes with which every all-reduce fails. `mute`: agents that never tell how a trial went."""

    bad: frozenset[str] = frozenset()
    mute: frozenset[str] = frozenset()
    asked: list[tuple[str, str, dict[str, Any]]] = field(default_factory=list)

    def obey(self, node: str, message: dict[str, object]) -> None:
        super().obey(node, message)
        if message["type"] == "examine":
            self.examined(node, str(message["id"]))
        if message["type"] == "trial" and node not in self.mute:
            self.tries(node, str(message["key"]), message["part"])

    def examined(self, node: str, id_: str) -> None:
        about = self.run.nodes[node]
        self.emit(
            NodeExamined(
                at=self.tale.at, node=node, incarnation=about.incarnation, number=about.examinations + 1,
                tier="standard", verdict="ok", measured=9, took_s=0.4, id=id_,
            )
        )  # fmt: skip

    def tries(self, node: str, key: str, part: Any) -> None:
        assert self.agents[node].ranks_alive == 0, "a trial beside ranks"
        self.asked.append((node, key, part))
        together = self.together(key, part)
        fails = bool(part["world"]) and bool(self.bad & together)
        report = Report(
            "failed" if fails else "passed", said="reset" if node in self.bad else "", port=1000 + len(self.asked)
        )
        self.agents[node] = replace(self.agents[node], tried={key: report})

    def together(self, key: str, part: Any) -> set[str]:
        """The nodes of the trial in which this is a part: those that are to meet at the same place."""
        for id_, asked in self.run.examining.items():
            if asked.search and key.startswith(f"{id_}/"):
                trials = present(asked.search.nodes, asked.search.rounds)
                assert isinstance(trials, tuple)
                for trial in trials:
                    places = parts(trial, asked.search.places)
                    if any(
                        one.port == part["port"] and one.world == part["world"] and part["world"]
                        for one in places.values()
                    ):
                        return set(trial)
        return set()


def of(tale: Tale, kind: type) -> list[Any]:
    return [event for event in tale.events if isinstance(event, kind)]


def test_a_restart_that_wants_it_waits_for_the_search_and_leaves_out_who_it_finds() -> None:
    tale = Tale(nodes=4, spares=1).train(5).decide(actions=DEEP)
    world = Cluster(tale, bad=frozenset({"n1"}))
    world.until(lambda run: len(run.attempts) == 2, turns=60)
    assert set(tale.run.attempts[-1].slots) == {"n0", "n2", "n3", "n4"}
    (finding,) = tale.run.nodes["n1"].faults
    assert finding.told == "collective: failed with n0 and n3, which pass with others: reset"
    (done,) = [one for one in of(tale, ActionDone) if one.action == "check"]
    assert done.ok
    assert done.detail.endswith("all-reduces of 4 nodes pass; n1 failed with n0 and n3, which pass with others")


def test_no_trial_is_begun_before_all_ranks_are_gone_and_no_attempt_before_it_is_over() -> None:
    tale = Tale(nodes=4, spares=0).train(5).decide(actions=DEEP)
    Cluster(tale).until(lambda run: len(run.attempts) == 2, turns=60)
    kinds = [event.type for event in tale.events]
    began, over = kinds.index("search_began"), kinds.index("action_done")
    assert kinds.index("attempt_ended") < began < over < len(kinds) - 1 - kinds[::-1].index("attempt_started")


def test_other_checks_begin_no_search() -> None:
    tale = Tale().train(5).decide(actions=STANDARD)
    Cluster(tale).until(lambda run: len(run.attempts) == 2, turns=60)
    assert of(tale, SearchBegan) == []


def test_who_never_answers_holds_it_up_for_a_round_and_is_not_called_bad() -> None:
    tale = Tale(nodes=3, spares=1).train(5).decide(actions=DEEP)
    began = tale.at
    Cluster(tale, mute=frozenset({"n2"})).until(lambda run: len(run.attempts) == 2, turns=300)
    assert tale.at - began < ROUND_S + 30
    assert tale.run.nodes["n2"].faults == ()
    assert tale.run.nodes["n2"].findings["collective"].verdict == "unknown"


def test_who_is_lost_meanwhile_is_not_waited_for() -> None:
    tale = Tale(nodes=3, spares=1).train(5).decide(actions=DEEP)
    world = Cluster(tale, mute=frozenset({"n3"}))
    world.until(lambda run: any(asked.search for asked in run.examining.values()))
    began = tale.at
    tale.down("n3")
    world.dead |= {"n3"}
    world.until(lambda run: len(run.attempts) == 2, turns=60)
    assert tale.at - began < 30


def test_a_new_supervisor_goes_on_with_the_round_in_which_the_old_one_was() -> None:
    tale = Tale(nodes=4, spares=0).train(5).decide(actions=DEEP)
    Cluster(tale, bad=frozenset({"n2"})).until(lambda run: bool(of(tale, TrialsEnded)))
    tale.epoch()
    after = Cluster(tale, bad=frozenset({"n2"}))  # of what agents have told it knows nothing
    after.until(lambda run: not run.examining, turns=60)
    assert [one.id for one in of(tale, SearchBegan)] == [of(tale, SearchBegan)[0].id]
    assert {key.rpartition("/")[2] for _, key, _ in after.asked} == {"1", "2", "3"}
    assert [node for node, about in tale.run.nodes.items() if about.faults] == ["n2"]


def test_of_two_nodes_nobody_can_say_which_and_nobody_is_left_out() -> None:
    tale = Tale(nodes=2, spares=0).train(5).decide(actions=DEEP)
    Cluster(tale, bad=frozenset({"n1"})).until(lambda run: len(run.attempts) == 2, turns=60)
    assert set(tale.run.attempts[-1].slots) == {"n0", "n1"}
    told = {name: node.findings["collective"] for name, node in tale.run.nodes.items()}
    assert {name: one.verdict for name, one in told.items()} == {"n0": "unknown", "n1": "unknown"}
    assert told["n0"].summary == "fails with n1, and who is at fault cannot be told"


def test_what_it_found_is_forgotten_when_the_node_passes_the_next_time() -> None:
    tale = Tale(nodes=3, spares=1).train(5).decide(actions=DEEP)
    Cluster(tale, bad=frozenset({"n1"})).until(lambda run: len(run.attempts) == 2, turns=60)
    tale.steps(3).decide(actions=DEEP)
    Cluster(tale).until(lambda run: len(run.attempts) == 3, turns=60)
    assert tale.run.nodes["n1"].findings == {}


# ---------------------------------------------------------------- a person's wish


def deep(tale: Tale) -> CommandReceived:
    return CommandReceived(at=tale.at, id="c", verb="examine", author="me", args={"tier": "deep"})


def test_while_it_trains_no_search_is_begun_for_a_person() -> None:
    tale = Tale().train(5)
    refused = checked(deep(tale), tale.run).args["refused"]
    assert refused == "its ranks need the nodes: pause it first, opt-launch pause tale"


def test_the_nodes_of_a_held_run_are_searched_and_the_person_is_answered() -> None:
    tale = Tale(nodes=4, spares=0).train(5).end_attempt().hold()
    assert "refused" not in checked(deep(tale), tale.run).args
    tale.tell(deep(tale))
    Cluster(tale, bad=frozenset({"n3"})).until(lambda run: not run.examining, turns=60)
    (answer,) = of(tale, CommandAnswered)
    assert answer.ok
    assert "n3 failed with n1 and n2" in answer.message
    assert tale.run.state is RunState.HELD


def test_a_run_that_goes_on_meanwhile_ends_the_search() -> None:
    tale = Tale(nodes=4, spares=0).train(5).end_attempt().hold()
    tale.tell(deep(tale))
    world = Cluster(tale, mute=frozenset({"n0"}))
    world.until(lambda run: bool(of(tale, SearchBegan)))
    tale.release()
    world.until(lambda run: not run.examining, turns=60)
    (answer,) = of(tale, CommandAnswered)
    assert answer.message.endswith("no search: ranks need the nodes")


# ---------------------------------------------------------------- a trial


def test_all_nodes_of_a_trial_meet_at_the_first_and_have_ranks_of_their_own() -> None:
    tale = Tale(nodes=4, spares=0).train(5).decide(actions=DEEP)
    world = Cluster(tale)
    world.until(lambda run: not run.examining, turns=60)
    pairs = {node: part for node, key, part in world.asked if key.endswith("/1")}
    assert [(pairs[node]["base"], pairs[node]["world"]) for node in ("n0", "n1", "n2", "n3")] == [(0, 2), (1, 2)] * 2
    assert pairs["n0"]["port"] == pairs["n1"]["port"] != pairs["n2"]["port"] == pairs["n3"]["port"]
    assert all(part["world"] == 0 and part["burn_s"] for _, key, part in world.asked if key.endswith("/0"))


def test_the_processes_of_nodes_with_other_numbers_of_devices_are_counted_through() -> None:
    told = {"a": Report("passed", devices=8, port=1), "b": Report("passed", devices=4, port=2)}
    places = moved({}, {"a": "ha", "b": "hb"}, told)
    assert parts(("b", "a"), places) == {"b": Part(0, 12, "hb", 2), "a": Part(4, 12, "hb", 2)}


@pytest.mark.parametrize(
    ("a", "b", "outcome", "absent"),
    [
        ("passed", "passed", "passed", ()),
        ("passed", "failed", "failed", ()),
        ("timed_out", "failed", "failed", ()),
        ("timed_out", "passed", "timed_out", ()),
        ("failed", "not_started", "timed_out", ("b",)),
        ("failed", None, "timed_out", ("b",)),
    ],
)
def test_what_comes_of_a_trial(a: Any, b: Any, outcome: str, absent: tuple[str, ...]) -> None:
    reports = {node: Report(told) for node, told in (("a", a), ("b", b)) if told}
    result = result_of(("a", "b"), reports)
    assert (result.outcome, result.absent) == (outcome, absent)


def test_the_slowest_of_a_trial_gives_its_bandwidth() -> None:
    reports = {"a": Report("passed", bandwidth=3e9), "b": Report("passed", bandwidth=2e9)}
    assert result_of(("a", "b"), reports).bandwidth == 2e9


def test_a_broken_link_is_told_of_both_its_ends_and_neither_fails() -> None:
    told = findings_of(Diagnosis(good={"a", "b", "c"}, links=[("a", "b")]), ())
    assert {node: one.verdict for node, one in told.items()} == {"a": "warn", "b": "warn", "c": "ok"}
    assert told["a"].summary == "fails with b and passes with others, as b does: it is the link"


def test_a_search_sends_and_journals_nothing_while_its_round_goes_on() -> None:
    tale = Tale(nodes=3, spares=0).train(5).end_attempt().hold()
    tale.tell(deep(tale))
    world = Cluster(tale, mute=frozenset({"n0", "n1", "n2"}))
    world.until(lambda run: bool(of(tale, SearchBegan)))
    assert next_action(tale.run) == "3 nodes are tried with each other, round 1"
    moves = plan(tale.run, world.fleet, world.limits)
    assert {move.node for move in moves if isinstance(move, Send)} == {"n0", "n1", "n2"}
    assert not [move for move in moves if isinstance(move, Emit)]
