"""Slow changes: norms that drift upwards under a calm loss, a loss that has stopped to fall. Pure, of constant size.

A window is cut into blocks, and of each its mean is kept. A trend is a matter of order, not of size: Kendall's test
(Mann 1945) asks how many of all pairs of blocks stand in rising order.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from launcher.events import Json, StepDone
from launcher.evolve import evolve
from policies.finding import Word
from policies.when import Drift, Plateau

BLOCKS = 8
RISING_PAIRS = 24  # of the 28 pairs of 8 blocks: by chance in 0.7 % of windows without a trend (Kendall's table)
FEWEST_ROWS = 8  # in a block
CALM_RISE, CALM_FALL = 0.01, 0.05  # shares of the loss; norms also grow while a model learns fast, and that is no drift
CERTAIN = 2.0  # standard errors


@dataclass(frozen=True)
class Blocks:
    """Means of the last full blocks of a window, oldest first, and the block being filled."""

    means: tuple[float, ...] = ()
    total: float = 0.0
    rows: int = 0
    block: int = -1


NO_BLOCKS = Blocks()


def filled(blocks: Blocks, block: int, value: float) -> Blocks:
    """The blocks with the value of a step of this block. One that goes back, or a hole of a window, begins anew."""
    if not math.isfinite(value):
        return blocks
    if block == blocks.block:
        return evolve(blocks, total=blocks.total + value, rows=blocks.rows + 1)
    if block < blocks.block or block > blocks.block + BLOCKS:
        return Blocks(total=value, rows=1, block=block)
    if blocks.rows < FEWEST_ROWS:  # told too seldom: a block then spans more steps
        return evolve(blocks, total=blocks.total + value, rows=blocks.rows + 1, block=block)
    means = (*blocks.means[1 - BLOCKS :], blocks.total / blocks.rows)
    return Blocks(means, value, 1, block)


@dataclass(frozen=True)
class TrendMemory:
    """Blocks by metric; `begun`: where the trend was first seen."""

    blocks: Mapping[str, Blocks] = field(default_factory=dict)
    begun: tuple[int, float] | None = None


def drift(detector: Drift, memory: TrendMemory, event: StepDone, *, learning: bool) -> tuple[TrendMemory, Word | None]:
    """What the detector says of a step: means are of logarithms, so that single wild norms count little."""
    blocks, is_new = {} if learning else dict(memory.blocks), False
    block = event.step * BLOCKS // detector.window
    for name in ("loss", *detector.metrics):
        value = event.metrics.get(name)
        if value is None:
            continue
        if name != "loss":
            value = math.log(value) if 0 < value < math.inf else math.nan
        old = blocks.get(name, NO_BLOCKS)
        blocks[name] = new = filled(old, block, value)
        is_new = is_new or new.means is not old.means
    memory = evolve(memory, blocks=blocks)
    if not is_new:
        return memory, None  # nothing to be said anew
    risen = {name: rise for name in detector.metrics if (rise := _rise(memory.blocks.get(name))) >= detector.above}
    if not risen or not _is_calm(memory.blocks.get("loss")):
        return _ended(memory, event, "the norms no longer rise")
    shown = ", ".join(f"{name} up by {rise:.0%}" for name, rise in risen.items())
    evidence: dict[str, Json] = {"step": event.step, **{name: round(rise, 4) for name, rise in risen.items()}}
    return _found(memory, event, f"{shown} over {detector.window} steps while the loss is calm", evidence)


def plateau(
    detector: Plateau, memory: TrendMemory, event: StepDone, *, learning: bool
) -> tuple[TrendMemory, Word | None]:
    """What the detector says of a step. Where the noise would hide an improvement it says nothing."""
    memory = evolve(memory, blocks={}) if learning else memory
    before = memory.blocks.get(detector.metric, NO_BLOCKS)
    block = event.step * BLOCKS // detector.window
    after = filled(before, block, event.metrics.get(detector.metric, math.nan))
    memory = evolve(memory, blocks={detector.metric: after})
    if after.means is before.means or len(after.means) < BLOCKS:
        return memory, None
    first, last = after.means[: BLOCKS // 2], after.means[BLOCKS // 2 :]
    gained = (math.fsum(first) - math.fsum(last)) / len(last)
    # Half the variance of differences of neighbours: a trend inflates it hardly.
    variance = math.fsum((a - b) ** 2 for a, b in zip(after.means, after.means[1:], strict=False)) / (2 * (BLOCKS - 1))
    at_most = gained + CERTAIN * math.sqrt(variance * 2 / len(last))
    level = abs(math.fsum(first) / len(first))
    if not at_most < detector.less_than * level:
        return _ended(memory, event, f"{detector.metric} falls again")
    why = f"{detector.metric} fell by {gained / level:.2%} over {detector.window} steps, to {last[-1]:.4g}"
    return _found(memory, event, why, {"step": event.step, "gained": gained, "at_most": at_most, "level": level})


def _rise(blocks: Blocks | None) -> float:
    """The share by which a norm rose over the window; 0 where it did not do so steadily."""
    if blocks is None or len(blocks.means) < BLOCKS:
        return 0.0
    means = blocks.means
    rising = sum(a < b for at, a in enumerate(means) for b in means[at + 1 :])
    return math.expm1(min(700.0, means[-1] - means[0])) if rising >= RISING_PAIRS else 0.0


def _is_calm(blocks: Blocks | None) -> bool:
    """Whether the loss of the last block is about that of the first. Without a loss nothing speaks against."""
    if blocks is None or not blocks.means:
        return True
    first, last = blocks.means[0], blocks.means[-1]
    return -CALM_FALL * abs(first) <= last - first <= CALM_RISE * abs(first)


def _found(
    memory: TrendMemory, event: StepDone, why: str, evidence: dict[str, Json]
) -> tuple[TrendMemory, Word | None]:
    step, at = begun = memory.begun or (event.step, event.at)
    return evolve(memory, begun=begun), Word("finding", step, at, why, evidence)


def _ended(memory: TrendMemory, event: StepDone, why: str) -> tuple[TrendMemory, Word | None]:
    if memory.begun is None:
        return memory, None
    return evolve(memory, begun=None), Word("healed", *memory.begun, f"{why} at step {event.step}")
