"""Checksums of ranks that must hold the same bits: who is odd, if that can be known."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from story import Story, policy_of

from launcher.events import StepDone
from policies.corruption import corrupted, odd_ranks
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
