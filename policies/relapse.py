"""Going back that has not helped: a run that does worse than the checkpoint it began from. Pure, of constant size.

A rate that is still too high need not throw the loss off its level again: it can also keep it from coming back there.
So a run that went back because of a spike is watched until it is beyond where that began, and well. It is to be acted
upon when, `heal_within` steps or more after the restart, the median of the loss is worse than the level it had at the
step the run went back to, and does not fall fast enough (half of what is too much, in as many steps). A run in which
nothing was done about a spike is not watched.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from launcher.events import Json, StepDone
from launcher.evolve import evolve
from policies.baseline import LEVEL_OF, NOISE_OF
from policies.finding import Word
from policies.when import Spike

# Of the limits for a row that is far above. What is compared are medians: of LEVEL_OF rows, a third as noisy as one.
WORSE, WORSE_SHARE = 1.0 / 8.0, 1.0 / 3.0


@dataclass(frozen=True)
class Return:
    """A run that went back to `step`, where its loss was at `level`, for trouble that began at step `trouble`.

    `noise`: of a row, before that; `rows`: (step, loss) of those since then, but for the first, whose loss is that of
    the checkpoint's own weights; `begun`: step and time of the first of them.
    """

    step: int
    level: float
    noise: float
    trouble: int
    has_begun: bool = False
    begun: tuple[int, float] | None = None
    rows: tuple[tuple[int, float], ...] = ()
    is_due: bool = False

    @property
    def median(self) -> float:
        """The loss of its rows."""
        return sorted(loss for _, loss in self.rows)[len(self.rows) // 2]

    def limit(self, detector: Spike) -> float:
        """A median above it is worse than the level was."""
        noise, share = detector.above * self.noise, detector.at_least * abs(self.level)
        return self.level + max(WORSE * noise, WORSE_SHARE * share)


def followed(detector: Spike, back: Return, event: StepDone, loss: float) -> Return | None:
    """The return with one row more; None once the run does as well as it did."""
    if not back.has_begun:
        return evolve(back, has_begun=True)
    rows = (*back.rows[1 - NOISE_OF :], (event.step, loss))
    back = evolve(back, rows=rows, begun=back.begun or (event.step, event.at))
    if event.step - back.step < detector.heal_within or len(rows) < LEVEL_OF:
        return back
    if back.median <= back.limit(detector):
        return None if event.step >= back.trouble + detector.heal_within else evolve(back, is_due=False)
    above = [(step, loss - back.level) for step, loss in rows]
    return evolve(back, is_due=back.is_due or not is_healing(above, detector.heal_within))


def relapse(detector: Spike, back: Return, event: StepDone) -> Word:
    """What is said of a return that has not helped."""
    assert back.begun is not None
    step, at = back.begun
    now, limit = back.median, back.limit(detector)
    why = f"{now:.4g} at step {event.step}, after the run went back to step {back.step}, where it was {back.level:.4g}"
    evidence: dict[str, Json] = {"step": event.step, "level": back.level, "limit": limit, "median": now}
    return Word("finding", step, at, f"{why}, limit {limit:.4g}", evidence)


def is_healing(above: Sequence[tuple[int, float]], within: int) -> bool:
    """Whether (step, how much too high) falls so fast that half of it is gone `within` steps later."""
    half = len(above) // 2
    if half == 0:
        return False
    (began, rose), (now, left) = (_mean(above[:half]), _mean(above[-half:]))
    return now > began and left < rose and (left <= 0 or math.log2(rose / left) * within > now - began)


def _mean(rows: Sequence[tuple[int, float]]) -> tuple[float, float]:
    return sum(step for step, _ in rows) / len(rows), sum(value for _, value in rows) / len(rows)
