"""How often a run jumps up without being in trouble, and how unlikely it makes what is seen. Pure, of constant size."""

from __future__ import annotations

import math
from dataclasses import dataclass

HABIT_OF = 200  # rows that a habit is learned from; before that one jump in a hundred rows is assumed, weighing 50 rows
PRIOR_JUMPS, PRIOR_ROWS = 0.5, 50.0


@dataclass(frozen=True)
class Habit:
    """How many of the last rows were far, or clearly, above without being trouble; older ones count less."""

    rows: float = 0.0
    far: float = 0.0
    clear: float = 0.0

    def plus(self, rows: int, far: int = 0, clear: int = 0) -> Habit:
        left = (1 - 1 / HABIT_OF) ** rows
        return Habit(self.rows * left + HABIT_OF * (1 - left), self.far * left + far, self.clear * left + clear)

    def rate(self, jumps: float) -> float:
        return (jumps + PRIOR_JUMPS) / (self.rows + PRIOR_ROWS)


NO_HABIT = Habit()


def surprise(rows: int, jumps: int, rate: float) -> float:
    """How unlikely so many jumps are, were each row drawn by itself at this rate.

    The negative logarithm of the probability's upper bound: Chernoff's, of the binomial tail.
    """
    share = jumps / rows
    if share <= rate or rate >= 1:
        return 0.0
    rest = (1 - share) * math.log((1 - share) / (1 - rate)) if share < 1 else 0.0
    return rows * (share * math.log(share / rate) + rest)
