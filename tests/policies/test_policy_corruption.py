"""Checksums of ranks that must hold the same bits: who is odd, if that can be known."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from story import NAN, Story, ending, policy_of, reason

from launcher.events import Decision, StepDone
from policies.corruption import corrupted, odd_ranks
from policies.load import RunFacts, load_policy
from policies.when import Sdc

SLOTS = {"n0": (0, 1), "n1": (2, 3), "n2": (4, 5)}
WELL = {"tensor 0": {0: 7, 2: 7, 4: 7}, "tensor 1": {1: 8, 3: 8, 5: 8}, "gathered": dict.fromkeys(range(6), 9)}
WELL |= {"fsdp 0": {0: 1, 1: 1}, "fsdp 1": {2: 2, 3: 2}, "fsdp 2": {4: 3, 5: 3}}


def step(changes: dict[str, dict[int, int]], number: int = 200) -> StepDone:
    sums = {what: {**of, **changes.get(what, {})} for what, of in WELL.items()}
    return StepDone(at=5.0, attempt=1, step=number, checksums=sums)


@pytest.mark.parametrize(
    ("changes", "blame", "ranks", "nodes"),
    [
        ({"tensor 1": {3: 99}}, "certain", (3,), ("n1",)),
        ({"tensor 1": {3: 99}, "gathered": {3: 98}}, "certain", (3,), ("n1",)),
        ({"gathered": {4: 1, 5: 1}}, "certain", (4, 5), ("n2",)),
        ({"fsdp 1": {3: 99}}, "undecidable", (2, 3), ("n1",)),
        # The shard of rank 3 is wrong, and so is what all ranks of its tensor rank gather.
        ({"fsdp 1": {3: 99}, "gathered": {1: 5, 3: 5, 5: 5}}, "undecidable", (2, 3), ("n1",)),
        ({"tensor 0": {0: 1, 2: 2}}, "undecidable", (0, 2, 4), ("n0", "n1", "n2")),
        ({"fsdp 0": {0: 99}, "tensor 0": {4: 99}}, "certain", (4,), ("n2",)),
    ],
)
def test_the_odd_rank_is_named_where_most_agree_and_nobody_else(changes, blame, ranks, nodes):
    finding = corrupted(Sdc(), step(changes), SLOTS)
    assert finding is not None
    assert (finding.blame, finding.ranks, finding.nodes) == (blame, ranks, nodes)
    assert finding.onset_step == 100


def test_nothing_is_found_where_all_agree_or_it_is_not_the_time():
    assert corrupted(Sdc(), step({}), SLOTS) is None
    assert corrupted(Sdc(every=300), step({"tensor 0": {0: 1}}), SLOTS) is None
    assert corrupted(Sdc(), StepDone(at=5.0, attempt=1, step=200), SLOTS) is None


@given(st.dictionaries(st.integers(0, 40), st.integers(0, 2), min_size=1))
def test_the_odd_ranks_are_less_than_half_and_all_others_agree(checksums: dict[int, int]) -> None:
    odd = odd_ranks(checksums)
    assert 2 * len(odd) < len(checksums)
    others = {number for rank, number in checksums.items() if rank not in odd}
    if odd:
        assert len(others) == 1
        assert not others & {checksums[rank] for rank in odd}


def test_a_rank_that_holds_other_bits_is_left_out_once_and_the_run_goes_back(tmp_path: Path) -> None:
    do = "{exclude: blamed, restart: {from: before_incident}}"
    rule = f"rules:\n  - name: sdc\n    when: {{sdc: {{every: 2}}}}\n    do: [{do}]"
    story = Story(policy_of(tmp_path, rule), nodes=3)
    story.start()
    sums = {"tensor 0": {0: 7, 2: 7, 4: 7}}
    story.tell(StepDone(at=story.at, attempt=1, step=2, checksums=sums))
    assert not story.decisions
    sums = {"tensor 0": {0: 7, 2: 6, 4: 7}}
    story.tell(StepDone(at=story.at, attempt=1, step=4, checksums=sums))
    story.tell(StepDone(at=story.at, attempt=1, step=6, checksums=sums))
    (decision,) = story.decisions
    assert (decision.rule, decision.blame, decision.nodes, decision.ranks) == ("sdc", "certain", ("n1",), (2,))
    assert decision.actions.keys() == {"exclude", "restart"}
    assert "rank 2 on n1 differ, of 3 that must hold the same bits" in decision.why


# ---------------------------------------------------------------- the shipped rule

AGREED = {0: 7, 2: 7, 4: 7}
ODD = {0: 7, 2: 6, 4: 7}  # two of three agree
SPLIT = {0: 7, 2: 6}  # of two nobody knows


class Compared(Story):
    """A run under a shipped policy whose ranks compare checksums every hundredth step."""

    def __init__(self, name: str = "default") -> None:
        super().__init__(load_policy([name]), nodes=3)
        self.start()

    def compares(self, checksums: dict[int, int], step: int, **metrics: float) -> list[Decision]:
        self.steps(5)
        self.step = step
        told = {"loss": 2.0, "grad_norm": 1.0} | metrics
        sums = {"tensor 0": checksums}
        return self.tell(StepDone(at=self.at, attempt=self.attempt, step=step, metrics=told, checksums=sums))


@pytest.mark.parametrize("name", ["numerics", "default", "opt175b"])
def test_who_is_wrong_for_certain_is_left_out_and_nothing_it_touched_is_kept(name: str) -> None:
    story = Compared(name)
    assert story.compares(AGREED, 100) == []
    (decision,) = story.compares(ODD, 200)
    assert decision.rule == "corrupt-weights"
    assert (decision.nodes, decision.blame, decision.onset_step) == (("n1",), "certain", 100)
    assert [*decision.actions] == ["exclude", "shrink", "restart"]
    assert decision.actions["restart"] == {"from": "before_incident", "save_first": False}


def test_where_nobody_knows_who_is_wrong_no_node_is_left_out_and_the_second_time_a_person_is_called() -> None:
    story = Compared()
    (first,) = story.compares(SPLIT, 200)
    assert (first.blame, [*first.actions]) == ("undecidable", ["shrink", "restart"])
    story.start(restore=100)
    (second,) = story.compares(SPLIT, 200)
    assert (ending(second), "exclude" in second.actions) == ("hold", False)
    assert "may be damaged" in reason(second)


def test_wrong_bits_explain_a_loss_that_is_no_number() -> None:
    story = Compared()
    story.compares(AGREED, 100)
    (decision,) = story.compares(ODD, 200, loss=NAN)
    assert decision.rule == "corrupt-weights"


def test_a_careful_policy_only_tells_of_wrong_bits() -> None:
    (decision,) = Compared("cautious").compares(ODD, 200)
    assert (decision.rule, decision.mode) == ("corrupt-weights", "advise")


@pytest.mark.parametrize("name", ["default", "cautious", "opt175b"])
@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        (RunFacts(checksum_every=100), 100),
        (RunFacts(checksum_every=30), 30),
        (RunFacts(checksum_every=0), None),
        (RunFacts(own_trainer=False), 100),  # through the reporter any trainer may tell them
        (RunFacts(own_trainer=False, metrics=frozenset({"loss"})), None),
    ],
)
def test_the_shipped_rule_fits_what_the_trainer_compares_and_refuses_none(
    name: str, facts: RunFacts, expected: int | None
) -> None:
    rules = [rule for rule in load_policy([name], facts).rules if rule.when.sdc]
    assert [rule.when.sdc.every for rule in rules if rule.when.sdc] == ([] if expected is None else [expected])
    assert facts.own_trainer or all(rule.mode == "advise" for rule in rules)
