"""The shipped rules on labelled real curves: thresholds on all of them together, never on a single one."""

from __future__ import annotations

import pytest
from scoring import Curve, Score, curves, score, total

from launcher.events import Decision, IncidentOpened
from launcher.replay import events_of, replayed
from policies.answer import ENDS
from policies.load import load_policy


@pytest.fixture(scope="module")
def found() -> tuple[Score, Score]:
    """(onsets, decisions) on all curves."""
    scores = [_scores(curve) for curve in curves()]
    return total(one for one, _ in scores), total(one for _, one in scores)


def _scores(curve: Curve) -> tuple[Score, Score]:
    replay = replayed(load_policy(["numerics"]), curve.name, events_of(curve.rows, 1.0))
    position = {row.step: at for at, row in enumerate(curve.rows)}
    onsets = [position[replay.step_of(one)] for one in replay.judgements if isinstance(one, IncidentOpened)]
    decisions = [
        position[replay.step_of(one)]
        for one in replay.judgements
        if isinstance(one, Decision) and one.mode == "act" and ENDS & one.actions.keys()
    ]
    return score(curve, onsets), score(curve, decisions)


def test_decisions_on_real_curves_are_right_and_few_are_missed(found: tuple[Score, Score]) -> None:
    _, decisions = found
    assert decisions.rows > 90_000
    assert decisions.precision >= 0.95
    assert decisions.recall >= 0.95
    assert len(decisions.false) <= decisions.rows / 100_000 + 1
    assert not {"blip", "bimodal_noise"} & {*decisions.false}, "a bad batch is nothing to go back for"


def test_onsets_on_real_curves_come_soon_and_are_mostly_right(found: tuple[Score, Score]) -> None:
    onsets, decisions = found
    assert onsets.recall >= 0.95
    assert onsets.precision >= 0.85
    assert onsets.delay <= min(1, decisions.delay)
