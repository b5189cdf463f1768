"""Detectors of loss spikes as others publish them, with their own defaults, written anew from their sources."""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Iterator, Sequence

from launcher.curves import Row


def llm_foundry(rows: Sequence[Row], times: float = 2.0, patience: int = 4) -> Iterator[int]:
    """More than `patience` losses in a row above `times` the mean of a window of 100 or 5 % of all rows.

    github.com/mosaicml/llm-foundry, llmfoundry/callbacks/kill_loss_spike_callback.py
    """
    size = max(100, round(0.05 * len(rows)))
    window: deque[float] = deque(maxlen=size)
    above = 0
    for at, loss in enumerate(_losses(rows)):
        if len(window) == size:
            above = above + 1 if loss >= times * statistics.fmean(window) else 0
            if above > patience:
                yield at
        window.append(loss)


def megatron(rows: Sequence[Row], *, non_finite: bool = False) -> Iterator[int]:
    """A loss at 10 times the largest of the first 100; with `non_finite`, NaN and infinities too.

    github.com/NVIDIA/Megatron-LM, megatron/core/rerun_state_machine.py: is_unexpectedly_large
    """
    largest = 0.0
    for at, loss in enumerate(_losses(rows)):
        if at < 100 and math.isfinite(loss):
            largest = max(largest, loss)
        elif at >= 100 and loss >= 10 * largest:
            yield at
        if non_finite and not math.isfinite(loss + rows[at].metrics.get("grad_norm", 0.0)):
            yield at


def metaseq(rows: Sequence[Row], ratio: float) -> Iterator[int]:
    """A loss above `ratio` times its moving average of span 9, which stands still on a spike.

    github.com/facebookresearch/metaseq, metaseq/trainer.py: skip_spike, --ewm-ratio-to-skip-batch
    """
    average = math.nan
    for at, loss in enumerate(_losses(rows)):
        if not math.isfinite(loss):
            continue
        if loss / average > ratio if average else False:
            yield at
        else:
            average = loss if math.isnan(average) else 0.2 * loss + 0.8 * average


def olmo_core(rows: Sequence[Row], sigma: float = 6.0, size: int = 128) -> Iterator[int]:
    """Loss or gradient norm above the mean by 6 standard deviations of the last 128; 64 are needed.

    github.com/allenai/OLMo-core, src/olmo_core/optim/skip_step_optimizer.py
    """
    windows: dict[str, deque[float]] = {"loss": deque(maxlen=size), "grad_norm": deque(maxlen=size)}
    for at, row in enumerate(rows):
        fires = False
        for name, window in windows.items():
            value = row.metrics.get(name, math.nan)
            if len(window) >= size // 2 and math.isfinite(value):
                fires |= value > statistics.fmean(window) + sigma * statistics.stdev(window)
            if math.isfinite(value):
                window.append(value)
        if fires:
            yield at


def zclip(rows: Sequence[Row], z_most: float = 2.5, alpha: float = 0.97, warmup: int = 25) -> Iterator[int]:
    """A gradient norm 2.5 standard deviations above its moving average; what would be clipped enters it clipped.

    github.com/bluorion-com/ZClip, zclip.py.
    """
    first: list[float] = []
    mean = variance = 0.0
    for at, row in enumerate(rows):
        value = row.metrics.get("grad_norm", math.nan)
        if not math.isfinite(value):
            if len(first) >= warmup and "grad_norm" in row.metrics:
                yield at
            continue
        if len(first) < warmup:
            first.append(value)
            mean, variance = statistics.fmean(first), statistics.pvariance(first)
            continue
        deviation = math.sqrt(variance) + 1e-6
        z = (value - mean) / deviation
        if z > z_most:
            yield at
            value = mean + z_most * z_most / z * deviation
        mean, variance = alpha * mean + (1 - alpha) * value, alpha * variance + (1 - alpha) * (value - mean) ** 2


def _losses(rows: Sequence[Row]) -> Iterator[float]:
    return (row.metrics.get("loss", math.nan) for row in rows)
