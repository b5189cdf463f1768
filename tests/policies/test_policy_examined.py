"""What checks of nodes have found, answered by the shipped rules: who is left out, who is replaced, who never is."""

from __future__ import annotations

from pathlib import Path

import pytest
from story import Story, policy_of, reason

from launcher.events import (
    ActionDone,
    CheckFinding,
    Decision,
    NodeExamined,
    RunSubmitted,
)
from launcher.terms import Verdict
from policies.examined import SETTLE_S
from policies.load import load_policy
from policies.meaning import RunFacts
from policies.schema import Policy
from policies.why_not import explain_rule

HOT = CheckFinding(
    code="gpu-clocks", subject="GPU-1", verdict="fail", summary="91 C, thermal slowdown by the hardware",
    limit=87, limit_source="device", evidence={"celsius": 91}, remedy="drain",
)  # fmt: skip
FULL = CheckFinding(code="space", subject="/data", verdict="fail", summary="no such file or directory", remedy="drain")


class Examined(Story):
    """A story of nodes that are examined: `finds` is what an examination of a node has told."""

    def __init__(self, policy: Policy | None = None, nodes: int = 2, spares: int = 1) -> None:
        super().__init__(policy or load_policy(["infra"]), nodes, spares)
        self.tell(RunSubmitted(
            at=self.at, run="r", nodes=nodes, ranks_per_node=2, spares=spares, target_step=None, probation=0,
            save_every=None,
        ))  # fmt: skip

    def finds(self, node: str, *findings: CheckFinding, id_: str = "", incarnation: str = "1") -> list[Decision]:
        self.at += 1
        verdict: Verdict = "fail" if findings else "ok"
        return self.tell(NodeExamined(
            at=self.at, node=node, incarnation=incarnation, number=1, tier="fast", verdict=verdict, measured=9,
            took_s=0.3, id=id_, findings=findings,
        ))  # fmt: skip

    def settled(self, node: str, *findings: CheckFinding) -> list[Decision]:
        """What comes of it when the others have had time to tell of the same."""
        return [*self.finds(node, *findings), *self.wait(SETTLE_S + 1)]

    def all_well(self) -> Examined:
        for node in self.state.agents:
            self.finds(node)
        return self


def well(one: CheckFinding) -> CheckFinding:
    return CheckFinding(code=one.code, subject=one.subject, verdict="ok", summary="is gone")


# ---------------------------------------------------------------- before the first start


def test_who_fails_before_the_first_start_is_left_out_once_all_have_been_examined() -> None:
    story = Examined()
    assert story.finds("n1", HOT) == story.finds("n0") == []
    (out,) = story.finds("n2")
    assert (out.rule, out.nodes, out.actions, out.blame) == ("gpu-fault", ("n1",), {"exclude": "blamed"}, "certain")
    told = "n1: gpu-clocks GPU-1: 91 C, thermal slowdown by the hardware (limit 87, from the device)"
    assert out.why == told
    story.active = ["n0", "n2"]
    story.start()
    assert story.decisions == [out]  # and nothing more is said of it


def test_who_fails_and_is_needed_is_told_of_and_kept() -> None:
    story = Examined(nodes=2, spares=0)
    story.finds("n0")
    (told,) = story.finds("n1", FULL)
    assert (told.rule, told.nodes, told.actions) == ("node-fault", ("n1",), {})
    assert told.why.endswith("it is needed: no other node is there")
    story.start()
    story.wait(SETTLE_S)
    assert story.last.actions == {"replace": "blamed"}  # as soon as there is another


def test_a_start_that_did_not_wait_for_an_examination_hears_of_it_later() -> None:
    story = Examined()
    story.finds("n0")
    story.finds("n2")
    story.training(5)
    (late,) = story.settled("n1", HOT)
    assert late.actions == {"exclude": "blamed", "replace": "blamed"}


# ---------------------------------------------------------------- while ranks train


def test_a_node_that_fails_while_it_trains_is_replaced_and_left_out() -> None:
    story = Examined().all_well()
    story.training(5)
    (out,) = story.settled("n0", HOT)
    assert (out.nodes, out.ranks, out.counts) == (("n0",), (0, 1), False)
    assert [*out.actions] == ["exclude", "replace"]
    assert out.evidence["findings"] == {
        "n0": {
            "code": "gpu-clocks", "remedy": "drain", "told": HOT.told, "limit": 87, "readings": {"celsius": 91},
            "keys": ["gpu-clocks GPU-1"],
        }
    }  # fmt: skip


def test_the_same_is_not_said_twice_and_what_comes_back_is() -> None:
    story = Examined().all_well()
    story.training(5)
    assert len(story.settled("n0", HOT)) == 1
    assert story.settled("n0", HOT) == []
    assert story.finds("n0", well(HOT)) == []
    assert len(story.settled("n0", HOT)) == 1


def test_without_a_spare_a_node_waits_to_be_replaced_and_is_not_left_out() -> None:
    story = Examined(spares=0).all_well()
    story.training(5)
    (out,) = story.settled("n0", HOT)
    assert [*out.actions] == ["replace"]


def test_a_spare_that_fails_loses_its_place_and_nobody_stops_for_it() -> None:
    story = Examined().all_well()
    story.training(5)
    (out,) = story.settled("n2", HOT)
    assert (out.nodes, out.actions) == (("n2",), {"exclude": "blamed"})
    (needed,) = story.settled("n0", HOT)  # and now there is no spare that is well
    assert [*needed.actions] == ["replace"]


def test_unknown_and_warnings_are_nobodys_fault() -> None:
    story = Examined().all_well()
    story.training(5)
    for verdict in ("unknown", "warn"):
        assert story.settled("n0", CheckFinding(code="gpu-clocks", verdict=verdict, summary="?")) == []


def test_what_three_nodes_and_a_third_have_at_once_is_a_common_cause() -> None:
    story = Examined(nodes=4, spares=1)
    for node in ("n0", "n1", "n2", "n3"):
        assert story.finds(node, FULL) == []
    (told,) = story.finds("n4")
    assert (told.actions, told.blame) == ({}, "none")
    assert told.why.startswith("4 of 5 nodes have space, a common cause, so none is left out: ")
    story.training(3)
    assert story.decisions == [told]  # each attempt has it again


def test_a_common_cause_of_which_the_nodes_tell_one_after_the_other_is_one() -> None:
    story = Examined(nodes=4, spares=2).all_well()
    story.training(5)
    for node in ("n0", "n1", "n2", "n3"):
        assert story.finds(node, FULL) == story.wait(SETTLE_S / 5) == []
    (told,) = story.wait(SETTLE_S)
    assert (told.actions, told.blame, set(told.nodes)) == ({}, "none", {"n0", "n1", "n2", "n3"})
    (told,) = story.settled("n5", FULL)  # and who comes late to it is no more at fault
    assert (told.actions, told.blame) == ({}, "none")


def test_what_is_over_before_it_is_decided_upon_was_no_fault() -> None:
    story = Examined().all_well()
    story.training(5)
    assert story.finds("n0", HOT) == story.wait(SETTLE_S / 2) == story.finds("n0", well(HOT)) == []
    assert story.wait(10 * SETTLE_S) == []
    assert story.finds("n0", HOT) == story.wait(SETTLE_S - 1) == []  # that it was seen before counts for nothing


def test_a_common_cause_does_not_keep_a_broken_node() -> None:
    story = Examined(nodes=3, spares=1)
    for node in ("n0", "n1", "n2"):
        story.finds(node, FULL)
    (told,) = story.finds("n3", FULL)
    assert told.blame == "none"
    story.training(5)
    (out,) = story.settled("n0", HOT, FULL)
    assert (out.nodes, [*out.actions]) == (("n0",), ["exclude", "replace"])


def test_three_of_many_nodes_are_no_common_cause() -> None:
    story = Examined(nodes=11, spares=4).all_well()
    story.training(5)
    for node in ("n0", "n1", "n2"):
        (out,) = story.settled(node, FULL)
        assert out.nodes == (node,)
        assert "exclude" in out.actions


def test_another_agent_of_a_node_looks_for_itself() -> None:
    story = Examined().all_well()
    story.finds("n2", HOT)
    story.joined("n2", "2")
    assert story.state.faults == {}
    story.finds("n2", HOT, incarnation="1")  # the word of the one before
    assert story.state.faults == {}


# ---------------------------------------------------------------- after failures


def test_a_restart_waits_for_no_examination_and_what_it_finds_is_judged_afterwards() -> None:
    story = Examined().all_well()
    story.training(5)
    (restart,) = story.exits(0, -9)
    assert "check" not in restart.actions
    assert story.finds("n0", HOT) == []  # it is being restarted
    story.active = ["n1", "n2"]
    story.start()
    story.wait(SETTLE_S)
    assert story.last.rule == "gpu-fault"
    assert (story.last.nodes, story.last.actions) == (("n0",), {"exclude": "blamed"})


CHECKED = """
rules:
  - name: ends
    when: {exit: {}}
    do:
      - {check: standard, exclude: failed, restart: {from: latest}}
"""


def checked(folder: Path, *faulty: str, spares: int = 1) -> tuple[Story, list[Decision]]:
    """A run whose rung has its nodes examined after a rank has failed, and what is decided when they have been."""
    story = Examined(policy_of(folder, CHECKED), spares=spares).all_well()
    story.training(5)
    (first,) = story.exits(0, -9)
    assert first.actions["exclude"] == "failed"
    for node in faulty:
        story.finds(node, HOT, id_=first.id)
    return story, story.tell(ActionDone(at=story.at, decision=first.id, action="check", ok=True))


def test_who_fails_the_examination_of_a_rung_is_left_out_in_the_same_incident(tmp_path: Path) -> None:
    story, (out,) = checked(tmp_path, "n1")
    assert (out.nodes, out.actions, out.incident, out.rule) == (("n1",), {"exclude": "blamed"}, 1, "ends")
    assert story.tell(ActionDone(at=story.at, decision="d0001", action="check", ok=True)) == []  # said again


def test_where_nobody_fails_it_nobody_is_left_out(tmp_path: Path) -> None:
    assert checked(tmp_path)[1] == []


def test_nobody_is_left_out_that_the_run_cannot_do_without(tmp_path: Path) -> None:
    _, (told,) = checked(tmp_path, "n1", spares=0)
    assert (told.actions, told.nodes) == ({}, ("n1",))
    assert told.why.endswith("without them nodes are lacking: none is left out")


def test_a_second_hang_has_the_nodes_examined_and_a_third_one_has_them_tried_with_each_other() -> None:
    policy = load_policy(["infra"])
    (hang,) = [rule for rule in policy.rules if rule.name == "hang"]
    assert [rung.check for rung in hang.do] == [None, "standard", "deep", None]


SEARCHED = """
rules:
  - name: gone
    when: {node_lost: {}}
    do:
      - {check: deep, exclude: failed, restart: {from: latest}}
  - name: ends
    when: {exit: {}}
    do:
      - {check: deep, exclude: failed, restart: {from: latest}}
"""


def test_a_restart_waits_for_no_search_where_it_is_known_who_is_at_fault(tmp_path: Path) -> None:
    story = Examined(policy_of(tmp_path, SEARCHED)).all_well()
    story.training(5)
    story.silent("n1")
    (lost,) = story.down("n1")
    assert (lost.blame, [*lost.actions]) == ("certain", ["exclude", "restart"])
    assert lost.actions["exclude"] == "blamed"


def test_where_it_is_not_known_the_nodes_are_searched(tmp_path: Path) -> None:
    story = Examined(policy_of(tmp_path, SEARCHED)).all_well()
    story.training(5)
    (ended,) = story.exits(0, -9)
    assert (ended.blame, ended.actions["check"], ended.actions["exclude"]) == ("none", "deep", "failed")


# ---------------------------------------------------------------- what a rule may ask for


def fault(code: str, **evidence: int) -> CheckFinding:
    return CheckFinding(code=code, verdict="fail", summary="bad", evidence={**evidence})


@pytest.mark.parametrize(
    ("when", "finding", "fires"),
    [
        ("gpu_fault: {}", fault("gpu-links"), True),
        ("gpu_fault: {}", fault("space"), False),
        ("gpu_fault: {ecc_uncorrected: 2}", fault("gpu-ecc", uncorrected=2), True),
        ("gpu_fault: {ecc_uncorrected: 2}", fault("gpu-ecc", uncorrected=1), False),
        ("gpu_fault: {ecc_uncorrected: 2}", fault("gpu-links"), False),
        ("gpu_fault: {xid: [48, 62-64]}", fault("gpu-xid", xid=63), True),
        ("gpu_fault: {xid: [48, 62-64]}", fault("gpu-xid", xid=79), False),
        ("gpu_fault: {xid: [48], ecc_uncorrected: 1}", fault("gpu-ecc", uncorrected=3), True),
        ("check: {}", fault("space"), True),
        ("check: {}", fault("gpu-links"), False),
        ("check: {}", fault("burn-in"), True),
        ("check: {}", fault("collective"), True),
        ("check: {codes: [site-scratch]}", fault("site-scratch"), True),
        ("check: {codes: [site-scratch]}", fault("space"), False),
        ("check: {codes: [gpu-links]}", fault("gpu-links"), True),
    ],
)
def test_a_rule_hears_of_what_it_asks_for(tmp_path: Path, when: str, finding: CheckFinding, fires: bool) -> None:
    rules = f"rules:\n  - {{name: r, when: {{{when}}}, do: [{{exclude: blamed}}]}}\n"
    story = Examined(policy_of(tmp_path, rules)).all_well()
    story.training(5)
    assert bool(story.settled("n0", finding)) is fires


def test_a_command_that_cannot_be_told_to_save_keeps_its_node_until_the_next_start() -> None:
    policy = load_policy(["infra"], RunFacts(own_trainer=False))
    rules = {rule.name: rule for rule in policy.rules}
    assert [[*rung.actions] for rung in rules["gpu-fault"].do] == [["exclude"]]


def test_an_exhausted_ladder_of_faults_never_holds_the_run(tmp_path: Path) -> None:
    rules = "rules:\n  - {name: r, when: {check: {}}, do: [{exclude: blamed, times: 1}]}\n"
    story = Examined(policy_of(tmp_path, rules), spares=3).all_well()
    story.training(5)
    assert len(story.settled("n2", FULL)) == 1
    assert story.settled("n3", FULL) == []


@pytest.mark.parametrize("otherwise", ["act", "nothing"])
def test_a_person_may_be_asked_first(tmp_path: Path, otherwise: str) -> None:
    mode = f"{{ask: 30m, else: {otherwise}}}"
    rules = f"rules:\n  - {{name: r, when: {{check: {{}}}}, mode: {mode}, do: [{{exclude: blamed}}]}}\n"
    story = Examined(policy_of(tmp_path, rules)).all_well()
    story.training(5)
    (asked,) = story.settled("n2", FULL)
    assert (asked.mode, asked.actions) == ("ask", {"exclude": "blamed"})
    (done,) = story.wait(3600)
    assert done.actions == ({"exclude": "blamed"} if otherwise == "act" else {})


def test_a_question_about_what_is_over_is_idle(tmp_path: Path) -> None:
    rules = "rules:\n  - {name: r, when: {check: {}}, mode: {ask: 30m, else: act}, do: [{exclude: blamed}]}\n"
    story = Examined(policy_of(tmp_path, rules)).all_well()
    story.training(5)
    story.settled("n2", FULL)
    (idle,) = story.finds("n2", well(FULL))
    assert (idle.actions, idle.why) == ({}, "it has gone by itself")
    assert story.wait(3600) == []


def test_a_rule_may_hold_the_run_for_a_fault(tmp_path: Path) -> None:
    rules = "rules:\n  - {name: r, when: {gpu_fault: {}}, do: [{hold: {reason: look at it}}]}\n"
    story = Examined(policy_of(tmp_path, rules)).all_well()
    story.training(5)
    (held,) = story.settled("n0", HOT)
    assert reason(held) == "look at it"


def test_why_a_rule_about_checks_is_silent_is_told() -> None:
    story = Examined().all_well()
    story.training(5)
    rule = next(one for one in story.policy.rules if one.name == "gpu-fault")
    told = [explain_rule(story.policy, rule, story.state, {}, [])]
    story.finds("n0", HOT)
    for seconds in (5, SETTLE_S):
        story.steps(1, seconds)
        told.append(explain_rule(story.policy, rule, story.state, {}, []))
    assert "nothing has failed on the 3 nodes that were examined" in told[0]
    assert "something fails, and for 40s it is seen whether it lasts and who else has it" in told[1]
    assert "decided upon already: n0" in told[2]
