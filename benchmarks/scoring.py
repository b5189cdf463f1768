"""Labelled curves and how detectors are scored on them, event by event.

A firing from three rows before to five rows after a positive event is a hit; on an `either` it is not scored; what
remains is false, and false firings within 20 rows of an episode's first are one episode (tests/data/curves/README.md).
"""

from __future__ import annotations

import csv
import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from launcher.curves import Row, read_curve

FOLDER = Path(__file__).parent.parent / "tests" / "data" / "curves"
BEFORE, AFTER, EPISODE = 3, 5, 20
UNRATED = "bloom_176b_excerpts"  # 18 quoted lines with gaps: too few to learn from
LANGUAGE = ("gpt2", "wmt")  # in the names of curves of language models

Rule = Callable[[Sequence[Row]], Iterable[int]]  # the rows, by position, at which a rule fires


@dataclass(frozen=True)
class Label:
    """An event of a curve, by position of its first and last row."""

    first: int
    last: int
    is_positive: bool
    is_negative: bool
    kind: str

    def holds(self, at: int) -> bool:
        return self.first - BEFORE <= at <= self.last + AFTER


@dataclass(frozen=True)
class Curve:
    """One run: its rows, its labels, and its source: submission and workload, which curves of one origin share."""

    name: str
    source: str
    rows: tuple[Row, ...]
    labels: tuple[Label, ...]


def curves() -> list[Curve]:
    """All labelled curves that rates are computed on."""
    found = []
    for name in sorted(path.stem for path in FOLDER.glob("*.csv")):
        if name not in ("labels", "sources", UNRATED):
            rows = tuple(read_curve(FOLDER / f"{name}.csv"))
            found.append(Curve(name, _source(name), rows, tuple(_labels(name, rows))))
    return found


def _source(name: str) -> str:
    """A run of study 2, trial 1 and one of study 3 are the same submission on the same workload."""
    head, _, tail = name.rpartition("_")
    return head if tail[:1] == "s" and "t" in tail else name.split("_", maxsplit=1)[0]


def _labels(name: str, rows: Sequence[Row]) -> Iterable[Label]:
    position: dict[int, int] = {}
    for at, row in enumerate(rows):
        position.setdefault(row.step, at)
    with (FOLDER / "labels.csv").open() as lines:
        for line in csv.DictReader(lines):
            if line["curve"] == name:
                first, last = position[int(line["start_step"])], position[int(line["end_step"])]
                yield Label(first, last, line["class"] == "positive", line["class"] == "negative", line["kind"])


@dataclass
class Score:
    """What a rule did on some curves. `delays`: rows from the start of an event to the first firing on it."""

    rows: int = 0
    positives: int = 0
    hits: int = 0
    false: list[str] = field(default_factory=list)  # an episode each: on what it fired
    delays: list[int] = field(default_factory=list)

    @property
    def precision(self) -> float:
        return self.hits / fired if (fired := self.hits + len(self.false)) else math.nan

    @property
    def recall(self) -> float:
        return self.hits / self.positives if self.positives else math.nan

    @property
    def f1(self) -> float:
        return 2 * self.hits / (self.positives + self.hits + len(self.false)) if self.positives else 0.0

    @property
    def delay(self) -> float:
        return statistics.median(self.delays) if self.delays else math.nan

    @property
    def early(self) -> float:
        """The share of hits from before the loss jumped."""
        return sum(delay < 0 for delay in self.delays) / len(self.delays) if self.delays else math.nan

    def __add__(self, other: Score) -> Score:
        return Score(
            self.rows + other.rows,
            self.positives + other.positives,
            self.hits + other.hits,
            self.false + other.false,
            self.delays + other.delays,
        )


def score(curve: Curve, fired: Iterable[int]) -> Score:
    """How the firings on one curve match its labels."""
    positives = [label for label in curve.labels if label.is_positive]
    result, hit, last_false = Score(len(curve.rows), len(positives)), set[int](), -math.inf
    for at in fired:
        held = [label for label in curve.labels if label.holds(at)]
        if event := next((label for label in held if label.is_positive), None):
            if event.first not in hit:
                hit.add(event.first)
                result.delays.append(at - event.first)
        elif (not held or all(label.is_negative for label in held)) and at - last_false > EPISODE:
            result.false.append(held[0].kind if held else "ordinary")
            last_false = at
    result.hits = len(hit)
    return result


def total(scores: Iterable[Score]) -> Score:
    return sum(scores, Score())


# ---------------------------------------------------------------- how sure that is


def wilson(successes: int, trials: int, z: float = 1.96) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson 1927); it holds for few trials and for none or all of them too."""
    if not trials:
        return 0.0, 1.0
    share, extra = successes / trials, z * z / trials
    middle = (share + extra / 2) / (1 + extra)
    half = z * math.sqrt(share * (1 - share) / trials + extra / (4 * trials)) / (1 + extra)
    return max(0.0, middle - half), min(1.0, middle + half)


def poisson_limit(count: int, z: float = 1.96) -> float:
    """The upper end of the 95 % interval of a count, by Byar's formula: within 1 % of the exact one."""
    more = count + 1
    return more * (1 - 1 / (9 * more) + z / (3 * math.sqrt(more))) ** 3
