"""What is usual for a number: its level and its noise, learned from its last values. Pure, of constant size.

Level and noise are a median and quantiles, so that a few wild values move neither. Counted in told values, not in
steps: the same for a log of every step and of every 500th.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from dataclasses import dataclass
from typing import Any

from launcher.evolve import evolve

LEVEL_OF = 15  # the level is the median of so many values: short, so that it follows a loss that falls
NOISE_OF = 50  # the noise is measured on so many differences from the level
ENOUGH = 20  # so few differences say something
# A standard deviation in terms of quantiles of the absolute difference, were the noise normal.
_MEDIAN, _P90 = 1.4826, 1.6449


@dataclass(frozen=True)
class Baseline:
    """The last values by age, their differences from the level by age and by size, and what follows from them."""

    values: tuple[float, ...] = ()
    differences: tuple[float, ...] = ()
    by_size: tuple[float, ...] = ()
    level: float = 0.0
    noise: float = 0.0

    @property
    def is_learned(self) -> bool:
        """Whether enough is known to judge by."""
        return len(self.differences) >= ENOUGH


def learned(baseline: Baseline, value: float) -> Baseline:
    """The baseline with one more usual value. What is not finite teaches nothing."""
    if not math.isfinite(value):
        return baseline
    values = (*baseline.values[1 - LEVEL_OF :], value)
    level = sorted(values)[len(values) // 2]
    noise = _noise_with(baseline, value) if baseline.values else {}
    return evolve(baseline, values=values, level=level, **noise)


def noted(baseline: Baseline, value: float) -> Baseline:
    """The baseline with a value that counts for the noise, but does not move the level."""
    return evolve(baseline, **_noise_with(baseline, value))


def _noise_with(baseline: Baseline, value: float) -> dict[str, Any]:
    size = abs(value - baseline.level)
    if not math.isfinite(size):
        return {}
    by_size, differences = list(baseline.by_size), baseline.differences
    if len(differences) >= NOISE_OF:
        del by_size[bisect_left(by_size, differences[0])]
        differences = differences[1:]
    insort(by_size, size)
    count = len(by_size)
    # The second quantile sees what the first is blind to: a batch loss of two levels, a third of it on the upper one.
    half, most = by_size[count // 2] * _MEDIAN, by_size[min(count - 1, count * 9 // 10)] / _P90
    noise = half if half > most else most
    return {"differences": (*differences, size), "by_size": tuple(by_size), "noise": noise}


UNKNOWN = Baseline()
