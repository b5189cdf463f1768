"""Loss scales that do not find their size. Pure, of constant size."""

from __future__ import annotations

import math
from dataclasses import dataclass

from launcher.events import Json, StepDone
from launcher.evolve import evolve
from policies.finding import Word
from policies.when import ScaleCollapse

BUCKETS = 10  # of a window: halvings are counted in tenths of it
CLEAN = 100  # updates in a row that were applied, and the trouble is over


@dataclass(frozen=True)
class ScaleMemory:
    """`seen` updates of the attempt; `skipped` and `applied` ones in a row; halvings less doublings, by bucket.

    `stuck`: skipped updates in a row that did not change the scale; `since`: step and time of the first skipped one;
    `size`: the last scale that was right for a while, in the attempts before too.
    """

    seen: int = 0
    last_step: int = -1
    scale: float = 0.0
    skipped: int = 0
    stuck: int = 0
    since: tuple[int, float] | None = None
    applied: int = 0
    halved: tuple[float, ...] = ()
    bucket: int = 0
    below: int = 0  # steps in a row with a scale that is too small, and too large
    above: int = 0
    begun: tuple[int, float] | None = None  # step and time of the first sign
    is_told: bool = False
    size: float = 0.0


def begun_anew(memory: ScaleMemory) -> ScaleMemory:
    """What is remembered in another attempt: a scale that goes on as it was need not find its size again."""
    return ScaleMemory(size=memory.size)


def scale_collapse(
    detector: ScaleCollapse, memory: ScaleMemory, event: StepDone, *, learning: bool
) -> tuple[ScaleMemory, Word | None]:
    """What the detector says of a step."""
    metrics = event.metrics
    if "loss_scale" not in metrics and "skipped" not in metrics:
        return memory, None
    memory = _counted(detector, memory, event)
    if learning or memory.seen <= detector.warmup:
        memory = evolve(memory, skipped=0, halved=(), below=0, above=0)
        # A scale that finds its size comes down with each skipped update, or every other one; at its floor it is stuck.
        if learning or memory.stuck < detector.skipped / 2:
            return evolve(memory, begun=None, is_told=False), None
    net = math.fsum(memory.halved)
    most = max(
        memory.skipped / detector.skipped,
        memory.stuck / detector.skipped,
        net / detector.halvings,
        memory.below / detector.window,
        memory.above / detector.window,
    )
    if most < 0.5 and (memory.begun is None or memory.applied >= CLEAN):
        return _over(memory)
    signs: dict[str, tuple[float, float]] = {
        "updates skipped in a row": (memory.skipped, detector.skipped),
        "updates skipped at this scale": (memory.stuck, detector.skipped),
        f"halvings within {detector.window} steps": (net, detector.halvings),
        f"steps below {detector.below or 0:g}": (memory.below, detector.window),
        f"steps above {detector.above or 0:g}": (memory.above, detector.window),
    }
    worst, (value, limit) = max(signs.items(), key=lambda sign: sign[1][0] / sign[1][1])
    begun = memory.begun or memory.since or (event.step, event.at)
    memory = evolve(memory, begun=begun, is_told=memory.is_told or value >= limit / 2)
    step, at = begun
    why = f"loss scale {memory.scale:g} at step {event.step}: {value:g} {worst}, limit {limit:g}"
    evidence: dict[str, Json] = {
        "step": event.step,
        "loss_scale": memory.scale,
        **{k: v for k, (v, _) in signs.items()},
    }
    return memory, Word("finding" if value >= limit else "onset", step, at, why, evidence)


def _over(memory: ScaleMemory) -> tuple[ScaleMemory, Word | None]:
    if memory.begun is None:
        return memory, None
    word = Word("healed", *memory.begun, f"the loss scale holds at {memory.scale:g}")
    return evolve(memory, begun=None, is_told=False), word


def _counted(detector: ScaleCollapse, memory: ScaleMemory, event: StepDone) -> ScaleMemory:
    """One told step more. It may stand for several: then they count as skipped only if all were."""
    gap = event.step - memory.last_step if 0 <= memory.last_step < event.step else 1
    scale = event.metrics.get("loss_scale", memory.scale)
    scale = scale if 0 < scale < math.inf else memory.scale
    halvings = math.log2(memory.scale) - math.log2(scale) if scale and memory.scale not in (0.0, scale) else 0.0
    told = event.metrics.get("skipped")
    was_skipped = halvings > 0 if told is None else told >= gap
    bucket = event.step * BUCKETS // detector.window
    passed = bucket - memory.bucket
    halved = memory.halved if 0 <= passed < BUCKETS and memory.halved else (0.0,) * BUCKETS
    halved = (*halved[passed:], *(0.0,) * passed) if 0 < passed < BUCKETS else halved
    applied = 0 if was_skipped else memory.applied + gap
    found_its_size = not memory.seen and 0 < scale <= 2 * memory.size
    return evolve(
        memory,
        seen=(detector.warmup if found_its_size else memory.seen) + gap,
        last_step=event.step,
        scale=scale,
        skipped=memory.skipped + gap if was_skipped else 0,
        stuck=memory.stuck + gap if was_skipped and not halvings and "loss_scale" in event.metrics else 0,
        since=memory.since or (event.step, event.at) if was_skipped else None,
        applied=applied,
        size=scale if applied >= detector.skipped else memory.size,
        halved=(*halved[:-1], halved[-1] + halvings) if halvings else halved,
        bucket=bucket,
        below=memory.below + gap if detector.below and 0 < scale < detector.below else 0,
        above=memory.above + gap if detector.above and scale > detector.above else 0,
    )
