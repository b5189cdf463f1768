"""Settings that change while a run goes on: what may be asked, and the configuration that it makes. Pure.

Asked are {"lr": the peak of the learning rate, or "x0.5", so much of the configured one; "clip": a number;
"loss_scale": a number, or "reset"}. All is absolute, so asking twice changes nothing, and any checkpoint can be gone on
from.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import xxhash

from model.config import TrainerConfig
from model.scaler import LossScale

KEYS = ("lr", "clip", "loss_scale")
RESET = "reset"
_FACTOR = re.compile(r"x\s*([0-9.]+(?:[eE][-+]?[0-9]+)?)")


def lasting(before: Mapping[str, Any], asked: Mapping[str, Any]) -> dict[str, Any]:
    """What stays asked for: the loss scale is set once and then goes its own way."""
    return {key: value for key, value in {**before, **asked}.items() if key != "loss_scale"}


def changed(config: TrainerConfig, asked: Mapping[str, Any]) -> TrainerConfig:
    """The configuration with the changes. Raises ValueError that names everything wrong with them."""
    problems = [f"{key!r} cannot be set; {', '.join(KEYS)} can" for key in asked if key not in KEYS]
    values: dict[str, float] = {}
    for key, of in (("lr", config.lr), ("clip", None)):
        if key in asked:
            try:
                values[key] = _number(asked[key], of)
            except ValueError as error:
                problems.append(f"{key}: {error}")
    if "loss_scale" in asked:
        problems += _scale_problems(config, asked["loss_scale"])
    if problems:
        raise ValueError("settings: " + "; ".join(problems))
    return replace(config, **values)


def rescaled(scale: LossScale | None, config: TrainerConfig, asked: Mapping[str, Any]) -> LossScale | None:
    """The loss scale that was asked for, with the first window; else the one there is."""
    if scale is None or "loss_scale" not in asked:
        return scale
    first = LossScale.of(config)
    return first if asked["loss_scale"] == RESET else replace(first, scale=float(asked["loss_scale"]))


def digest(effective: Mapping[str, Any], skip: Sequence[Sequence[int]]) -> int:
    """A number below 2^63 that stands for settings and skipped samples, to be compared with that of other ranks."""
    return xxhash.xxh3_64_intdigest(repr((sorted(effective.items()), skip)).encode()) >> 1


def _scale_problems(config: TrainerConfig, asked: Any) -> list[str]:
    if config.dtype != "fp16":
        return [f"loss_scale: there is none with dtype {config.dtype}"]
    if asked == RESET:
        return []
    try:
        value = _number(asked, None)
    except ValueError as error:
        return [f"loss_scale: {error}, nor 'reset'"]
    least = config.loss_scale_min
    return [] if value >= least else [f"loss_scale: {asked} is below loss_scale.min = {least:g}"]


def _number(asked: Any, of: float | None) -> float:
    """The number asked for; "x0.5" is half `of`, where that is given."""
    factor = _FACTOR.fullmatch(asked) if isinstance(asked, str) and of is not None else None
    try:
        value = float(factor[1]) * (of or 1.0) if factor else float(asked)
    except (TypeError, ValueError):
        value = math.nan
    if isinstance(asked, bool) or not (math.isfinite(value) and value > 0):
        raise ValueError(f"{asked!r} is no number above 0" + (", nor a factor such as 'x0.5'" if of else ""))
    return value
