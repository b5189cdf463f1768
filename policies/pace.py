"""Steps that have become slower, for all ranks or for a few. Pure; its size grows with the number of ranks only."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from launcher.events import Json, StepDone
from launcher.evolve import evolve
from policies.finding import Word
from policies.when import Slow, Straggler

FEWEST_ROWS = 10  # a window is at least so many told steps
USUAL_OF = 20  # windows that the usual pace is learned from
ENOUGH = 3  # so many say something
MOST = 0.8  # a straggler is one in so many of the steps of a window
FEW = 0.25  # more of the ranks cannot all be exceptions


@dataclass(frozen=True)
class PaceMemory:
    """The pace of usual windows, in seconds a step, of so many ranks; and the window being filled."""

    usual: tuple[float, ...] = ()
    window: tuple[float, ...] = ()
    first_step: int = -1
    begun: tuple[int, float] | None = None
    ranks: int = 0


def slow(detector: Slow, memory: PaceMemory, event: StepDone, *, learning: bool) -> tuple[PaceMemory, Word | None]:
    """What the detector says of a step. The time blocked by a save does not count."""
    memory = PaceMemory(ranks=memory.ranks) if learning else memory
    pace = event.step_s - event.blocked_s
    if not 0 < pace < math.inf:
        return memory, None
    if not memory.window:
        memory = evolve(memory, first_step=event.step)
    # Of a window of many steps every so-manieth is enough: the median of some hundred moves little.
    if len(memory.window) < 10 * FEWEST_ROWS or event.step % (1 + detector.window // (10 * FEWEST_ROWS)) == 0:
        memory = evolve(memory, window=(*memory.window[1 - 10 * FEWEST_ROWS :], pace))
    if event.step - memory.first_step + 1 < detector.window or len(memory.window) < FEWEST_ROWS:
        return memory, None
    now, memory = quantile(memory.window, 50), evolve(memory, window=())
    usual = quantile(memory.usual, detector.slower_than.percentile) if len(memory.usual) >= ENOUGH else math.inf
    if now <= detector.slower_than.factor * usual:
        memory = evolve(memory, usual=(*memory.usual[1 - USUAL_OF :], now))
        word = Word("healed", *memory.begun, f"a step takes {now:.3g} s again") if memory.begun else None
        return evolve(memory, begun=None), word
    step, at = begun = memory.begun or (memory.first_step, event.at)
    why = f"a step takes {now:.3g} s since step {step}, before {usual:.3g} s"
    evidence: dict[str, Json] = {"step": event.step, "step_s": now, "usual_s": usual, "times": now / usual}
    return evolve(memory, begun=begun), Word("finding", step, at, why, evidence)


@dataclass(frozen=True)
class PeersMemory:
    """In how many steps of the window each rank was behind its peers, and by how much altogether."""

    rows: int = 0
    first_step: int = -1
    behind: tuple[int, ...] = ()
    ratios: tuple[float, ...] = ()
    begun: tuple[int, float] | None = None


def straggler(
    detector: Straggler, memory: PeersMemory, event: StepDone, *, learning: bool
) -> tuple[PeersMemory, Word | None]:
    """What the detector says of a step, from the time each rank computed in it."""
    times = event.compute_s
    if learning or len(times) < 3 or not all(0 <= time < math.inf for time in times):  # of two, who is slow?
        return (PeersMemory() if learning else memory), None
    limit = detector.slower_than.factor
    usual = quantile(times, detector.slower_than.percentile)
    if usual <= 0:
        return memory, None
    if len(memory.behind) != len(times):
        memory = PeersMemory(first_step=event.step, behind=(0,) * len(times), ratios=(0.0,) * len(times))
    memory = evolve(
        memory,
        rows=memory.rows + 1,
        behind=tuple(n + (time > limit * usual) for n, time in zip(memory.behind, times, strict=True)),
        ratios=tuple(total + time / usual for total, time in zip(memory.ratios, times, strict=True)),
    )
    if event.step - memory.first_step + 1 < detector.window or memory.rows < FEWEST_ROWS:
        return memory, None
    ranks = tuple(rank for rank, steps in enumerate(memory.behind) if steps >= MOST * memory.rows)
    fresh = PeersMemory(begun=memory.begun)
    if not ranks or len(ranks) > max(1, FEW * len(times)):
        word = Word("healed", *memory.begun, "all ranks are as fast as their peers") if memory.begun else None
        return evolve(fresh, begun=None), word
    step, at = begun = memory.begun or (memory.first_step, event.at)
    by = {rank: memory.ratios[rank] / memory.rows for rank in ranks}
    shown = ", ".join(f"rank {rank} takes {ratio:.2f} times as long as its peers" for rank, ratio in by.items())
    evidence: dict[str, Json] = {"step": event.step, **{f"rank {rank}": round(ratio, 3) for rank, ratio in by.items()}}
    return evolve(fresh, begun=begun), Word("finding", step, at, shown, evidence, ranks)


def quantile(values: Sequence[float], percent: int) -> float:
    """The nearest-rank percentile of at least one value."""
    return sorted(values)[max(0, math.ceil(percent / 100 * len(values)) - 1)]
