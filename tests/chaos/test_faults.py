"""Every fault, on real processes: what the run does about it, and that it ends as if nothing had happened."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from live_run import LiveRun

pytestmark = pytest.mark.timeout(180)
Launch = Callable[..., LiveRun]


def test_undisturbed_a_run_decides_nothing_and_ends(launch: Launch) -> None:
    run = launch(steps=40)

    end = run.ends()

    assert run.decisions() == []
    assert (end.restarts, end.lost_steps) == (0, 0)
    assert [one[0] for one in run.line()] == [40, 30, 20, 10]
