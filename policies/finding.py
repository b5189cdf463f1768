"""What a detector answers: a finding with its numbers, or the time to look again."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from launcher.events import Json

FEWEST_STEPS = 20  # a percentile of fewer durations means nothing


@dataclass(frozen=True)
class Finding:
    """A detector's yes. `key` tells one finding from the next; `error` is (type, first line, step).

    `needed`: the run has not enough other nodes, so those that it blames are not left out.
    """

    detector: str
    key: str
    why: str
    evidence: dict[str, Json] = field(default_factory=dict)
    nodes: tuple[str, ...] = ()
    ranks: tuple[int, ...] = ()
    blame: Literal["certain", "likely", "undecidable", "none"] = "none"
    onset_at: float = 0.0
    onset_step: int = -1
    error: tuple[str, str, int] | None = None
    is_first_step: bool = False
    needed: bool = False


@dataclass(frozen=True)
class Word:
    """What a detector that watches numbers says of a step, about trouble that began at `step`.

    *onset*: it has begun; *finding*: it is to be acted upon; *healed*, *stayed*: it is over, or has become the usual.
    """

    kind: Literal["onset", "finding", "healed", "stayed"]
    step: int
    at: float
    why: str
    evidence: dict[str, Json] = field(default_factory=dict)
    ranks: tuple[int, ...] = ()


Answer = tuple[Finding | None, float | None]  # the finding, or else the deadline of the next look
NOTHING: Answer = (None, None)


def percentile(values: tuple[float, ...], percent: int) -> float | None:
    """The nearest-rank percentile; None of too few values."""
    if len(values) < FEWEST_STEPS:
        return None
    return sorted(values)[max(0, math.ceil(percent / 100 * len(values)) - 1)]
