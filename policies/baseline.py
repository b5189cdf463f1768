"""What is usual for a number: its level and its noise, learned from its last values. Pure, of constant size.

Level and noise are a median and quantiles, so that a few wild values move neither. Counted in told values, not in
steps: the same for a log of every step and of every 500th.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from launcher.evolve import evolve

LEVEL_OF = 15  # the level is the median of so many values: short, so that it follows a loss that falls
NOISE_OF = 50  # the noise is measured on so many differences from the level
ENOUGH = 20  # so few differences say something
# A standard deviation in terms of quantiles of the absolute difference, were the noise normal.
_MEDIAN, _P90 = 1.4826, 1.6449


@dataclass(frozen=True)
class Baseline:
    """The last values, and how far each of the last was from the level at its time; both by age."""

    values: tuple[float, ...] = ()
    differences: tuple[float, ...] = ()
    level: float = 0.0

    @property
    def is_learned(self) -> bool:
        """Whether enough is known to judge by."""
        return len(self.differences) >= ENOUGH

    @property
    def noise(self) -> float:
        """What a value usually differs by, as a standard deviation. It is worked out anew each time it is asked for."""
        count, by_size = len(self.differences), sorted(self.differences)
        if not count:
            return 0.0
        # The second quantile sees what the first is blind to: a batch loss of two levels, a third on the upper one.
        return max(by_size[count // 2] * _MEDIAN, by_size[min(count - 1, count * 9 // 10)] / _P90)


def learned(baseline: Baseline, value: float) -> Baseline:
    """The baseline with one more usual value. What is not finite teaches nothing."""
    if not math.isfinite(value):
        return baseline
    values = (*baseline.values[1 - LEVEL_OF :], value)
    level = sorted(values)[len(values) // 2]
    differences = _differences_with(baseline, value) if baseline.values else ()
    return evolve(baseline, values=values, level=level, differences=differences)


def noted(baseline: Baseline, value: float) -> Baseline:
    """The baseline with a value that counts for the noise, but does not move the level."""
    return evolve(baseline, differences=_differences_with(baseline, value))


def raised(baseline: Baseline, level: float) -> Baseline:
    """The baseline at a level, as noisy as it is, unless it is higher already."""
    if not baseline.values or level <= baseline.level:
        return baseline
    return evolve(baseline, values=(level,) * len(baseline.values), level=level)


def _differences_with(baseline: Baseline, value: float) -> tuple[float, ...]:
    size = abs(value - baseline.level)
    return (*baseline.differences[1 - NOISE_OF :], size) if math.isfinite(size) else baseline.differences


UNKNOWN = Baseline()
