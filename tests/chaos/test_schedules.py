"""Whatever comes, a run ends as if nothing had happened.

OPT_LAUNCH_CHAOS=N runs N schedules instead of a dozen; OPT_LAUNCH_CHAOS_SEED=S begins with the S-th.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
from live_run import LiveRun
from schedule import Schedule

FIRST = int(os.environ.get("OPT_LAUNCH_CHAOS_SEED", "1"))
SEEDS = range(FIRST, FIRST + int(os.environ.get("OPT_LAUNCH_CHAOS", "12")))

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


@pytest.mark.parametrize("seed", SEEDS)
def test_whatever_comes_the_run_ends_as_if_nothing_had_happened(seed: int, launch: Callable[..., LiveRun]) -> None:
    schedule = Schedule(seed, launch(name=f"seed{seed}", steps=140, save_s=0.2))

    schedule.play()

    print(f"seed {seed}: {'; '.join(schedule.hit)}; held {schedule.held} times")
    end = schedule.run.ends()
    restores = [attempt.restore for attempt in end.attempts[1:]]
    first = min((one.committed_at for one in end.checkpoints.values()), default=float("inf"))
    for attempt, restore in zip(end.attempts[1:], restores, strict=True):
        assert restore is not None or attempt.started_at < first, "a run with history began at step 0"
