"""Lines of the ranks' output that rules of the policy look for: found here, and told, not too often."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

from policies.patterns import compiled
from policies.schema import Policy

LONGEST_LINE = 1000  # characters that are looked at, and at most told
PAUSE_S = 10.0  # between two lines that are told of a rule

Watched = tuple[str, Any, str | None]  # a rule, its pattern, and whom it is about


def watched_by(policy: Policy) -> tuple[Watched, ...]:
    """The rules that look for lines."""
    rules = [(rule.name, rule.when.log) for rule in policy.rules if rule.when.log]
    return tuple((name, compiled(log.match), log.from_) for name, log in rules)


class LineWatch:
    """Looks at the lines of the ranks of one attempt. `say` takes messages for the supervisor."""

    def __init__(self, watched: tuple[Watched, ...], say: Callable[[dict[str, Any]], None]) -> None:
        self._watched, self._say = watched, say
        self._told_at: dict[str, float] = {}

    def take(self, attempt: int, rank: int, ranks: int, lines: Iterable[str]) -> None:
        """Whole lines that a rank has printed, of `ranks` in the attempt."""
        for name, pattern, speaker in self._watched:
            if speaker is not None and rank != (0 if speaker == "first_rank" else ranks - 1):
                continue
            if time.monotonic() - self._told_at.get(name, -PAUSE_S) < PAUSE_S:
                continue
            found = next((line for line in lines if pattern.search(line[:LONGEST_LINE])), None)
            if found is not None:
                self._told_at[name] = time.monotonic()
                message = {"type": "line_matched", "attempt": attempt, "rank": rank, "rule": name}
                self._say({**message, "line": found[:LONGEST_LINE]})
