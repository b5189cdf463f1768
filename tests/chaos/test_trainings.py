"""Trainings that go wrong, two of those that benchmarks/trainings.py measures: they end well, and nobody was asked."""

from __future__ import annotations

import pytest
from training_cases import FAULTS, Fault
from trainings import Outcome, train

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

CASES = {fault.name: fault for fault in FAULTS}


def outcomes(fault: Fault) -> tuple[Outcome, Outcome]:
    """As recommended, and with the fault."""
    return train(fault.recommended, 1, "default"), train(fault.training, 1, "default")


def test_after_a_bit_has_flipped_training_ends_as_if_it_had_not() -> None:
    recommended, flipped = outcomes(CASES["flip"])
    (decision,) = flipped.decisions
    assert (decision["rule"], decision["actions"]["restart"]["from"]) == ("non-finite", "last_good")
    assert (flipped.state, flipped.val_loss) == ("SUCCEEDED", recommended.val_loss)
    assert recommended.decisions == []


def test_poisoned_batches_are_left_out_and_cost_next_to_nothing() -> None:
    recommended, poisoned = outcomes(CASES["poison"])
    (decision,) = poisoned.decisions
    assert (decision["rule"], [*decision["actions"]]) == ("loss-spike", ["skip", "restart"])
    assert poisoned.state == "SUCCEEDED"
    assert poisoned.val_loss < 1.02 * recommended.val_loss
