"""Steps that have become slower, for all ranks or for a few. Pure; its size grows with the number of ranks only."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from launcher.events import Json, StepDone
from launcher.evolve import evolve
from policies.finding import Word
from policies.when import Slow, Straggler

FEWEST_ROWS, MOST_ROWS = 10, 100  # told steps of a window that are looked at
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
        memory = evolve(memory, window=(pace,), first_step=event.step)
    elif _is_kept(event.step, detector.window):
        memory = evolve(memory, window=(*memory.window[1 - MOST_ROWS :], pace))
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
    """The window being filled: what each rank needed in each of its steps."""

    window: tuple[tuple[float, ...], ...] = ()
    first_step: int = -1
    begun: tuple[int, float] | None = None


def straggler(
    detector: Straggler, memory: PeersMemory, event: StepDone, *, learning: bool
) -> tuple[PeersMemory, Word | None]:
    """What the detector says of a step, from the time each rank computed in it."""
    times = event.compute_s
    if learning or len(times) < 3:  # of two, who is slow?
        return (PeersMemory() if learning else memory), None
    if not memory.window or len(memory.window[0]) != len(times):
        memory = evolve(memory, window=(times,), first_step=event.step)
    elif _is_kept(event.step, detector.window):
        memory = evolve(memory, window=(*memory.window[1 - MOST_ROWS :], times))
    if event.step - memory.first_step + 1 < detector.window or len(memory.window) < FEWEST_ROWS:
        return memory, None
    behind = _behind(detector, memory.window)
    if not behind or len(behind) > max(1, FEW * len(times)):
        word = Word("healed", *memory.begun, "all ranks are as fast as their peers") if memory.begun else None
        return PeersMemory(), word
    step, at = begun = memory.begun or (memory.first_step, event.at)
    why = ", ".join(f"rank {rank} takes {ratio:.2f} times as long as its peers" for rank, ratio in behind.items())
    evidence: dict[str, Json] = {f"rank {rank}": round(ratio, 3) for rank, ratio in behind.items()}
    word = Word("finding", step, at, why, {"step": event.step, **evidence}, tuple(behind))
    return PeersMemory(begun=begun), word


def _behind(detector: Straggler, window: tuple[tuple[float, ...], ...]) -> dict[int, float]:
    """The ranks that were behind in most steps of a window, and how many times as long as their peers they needed."""
    known: list[tuple[tuple[float, ...], float]] = []
    late = [0] * len(window[0])
    for times in window:
        usual = quantile(times, detector.slower_than.percentile)
        if not usual > 0 or min(times) < 0 or not math.isfinite(sum(times)):
            continue
        known.append((times, usual))
        limit = detector.slower_than.factor * usual
        if max(times) > limit:
            for rank, time in enumerate(times):
                late[rank] += time > limit
    behind = [rank for rank, steps in enumerate(late) if known and steps >= MOST * len(known)]
    return {rank: math.fsum(times[rank] / usual for times, usual in known) / len(known) for rank in behind}


def _is_kept(step: int, window: int) -> bool:
    """Whether a step is looked at: of a window of many, every so-manieth is enough."""
    return step % (1 + window // MOST_ROWS) == 0


def quantile(values: Sequence[float], percent: int) -> float:
    """The nearest-rank percentile of at least one value."""
    return sorted(values)[max(0, math.ceil(percent / 100 * len(values)) - 1)]
