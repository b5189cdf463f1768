"""What proves little when it is seen once, and is a fault of the node when it lasts. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import replace

from launcher.health.finding import Finding

# Warnings of these codes are faults in `TIMES` of the last `OF` examinations: a GPU that its temperature or its power
# slows down may do so for a moment (a change of the power state), and a hot one does for long.
CODES = ("gpu-clocks",)
TIMES, OF = 3, 5
# Of nvmlClocksEventReasons: hardware slowdown, its thermal one, power brake. What the driver does stays a warning.
HARD = 0x8 | 0x40 | 0x80


class Lasting:
    """Follows the examinations of one node."""

    def __init__(self) -> None:
        self._seen: dict[str, deque[bool]] = {}

    def judged(self, findings: Sequence[Finding]) -> list[Finding]:
        """The findings of an examination, with those that have lasted as the faults they are."""
        by_key = {one.key: one for one in findings}
        for one in findings:
            if one.code in CODES and one.verdict in ("ok", "warn"):
                seen = self._seen.setdefault(one.key, deque(maxlen=OF))
                seen.append(_is_hard(one))
        return [self._judged(one, by_key) for one in findings]

    def is_in_doubt(self) -> bool:
        """Whether something was seen last time and has not lasted yet: the sooner it is looked at again, the better."""
        return any(seen[-1] and sum(seen) < TIMES for seen in self._seen.values())

    def _judged(self, one: Finding, by_key: dict[str, Finding]) -> Finding:
        times = sum(self._seen.get(one.key, ()))
        if one.code not in CODES or not _is_hard(one) or times < TIMES:
            return one
        heat = by_key.get(f"gpu-temperature {one.subject}")
        is_hot = heat is not None and heat.verdict == "warn"
        return replace(
            one,
            verdict="fail",
            summary=f"{f'{heat.summary}, ' if heat else ''}{one.summary} at {times} of the last {OF} looks",
            evidence={**one.evidence, **(heat.evidence if heat else {}), "times": times},
            limit=heat.limit if heat and is_hot else TIMES,
            limit_source=heat.limit_source if heat and is_hot else "table",
            remedy="drain",
        )


def _is_hard(one: Finding) -> bool:
    return one.verdict == "warn" and bool(int(str(one.evidence.get("reasons", "0")), 16) & HARD)
