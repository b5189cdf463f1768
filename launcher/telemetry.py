"""What a trainer prints, read as steps and metrics. Pure: lines in, facts out.

Every pattern is looked for in every line, and what is found in one line belongs together. A named group is `step`
(the index of the step just done, from 0), `steps_done` (how many steps are done) or a metric.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

STEP, STEPS_DONE = "step", "steps_done"
GOAL = "GOAL"  # in a preset's pattern: the steps of the whole run
SETTLE_S = 0.2  # what is printed within so long of a step's line belongs to it
LONGEST_LINE = 4096  # characters that are looked at
_MOST_STEPS = 2**53
_ANSI = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]")
_LINE_END = re.compile(rb"[\r\n]+")

Speaker = Literal["first_rank", "last_rank"]
Patterns = tuple[re.Pattern[str], ...]


@dataclass(frozen=True)
class Preset:
    """How a known trainer prints, and which rank does."""

    patterns: tuple[str, ...]
    speaker: Speaker

    @property
    def needs_goal(self) -> bool:
        return any(GOAL in pattern for pattern in self.patterns)

    def for_goal(self, steps: int | None) -> tuple[str, ...]:
        """The patterns for a run of so many steps."""
        return tuple(pattern.replace(GOAL, str(steps)) for pattern in self.patterns)


_NUMBER = r"[-+]?(?:(?:\d[\d,]*\.?\d*|\.\d+)(?:[eE][-+]?\d+)?|nan|NaN|inf)"


def _metric(name: str, before: str, after: str = "") -> str:
    return f"{before}(?P<{name}>{_NUMBER}){after}"


PRESETS: Mapping[str, Preset] = {
    "nanogpt": Preset(
        (
            _metric("loss", r"^iter (?P<step>\d+): loss "),
            _metric("time_ms", r"^iter \d+: .*time ", "ms"),
            _metric("mfu", r"^iter \d+: .*mfu ", "%"),
            _metric("val_loss", r"^step (?P<steps_done>\d+): .*val loss "),
        ),
        "first_rank",
    ),
    "megatron": Preset(
        (
            r"\biteration +(?P<steps_done>\d+)/ *\d+ \|",
            _metric("loss", r"\| lm loss: "),
            _metric("grad_norm", r"\| grad norm: "),
            _metric("lr", r"\| learning rate: "),
            _metric("loss_scale", r"\| loss scale: "),
            _metric("skipped", r"\| number of skipped iterations: +"),
            _metric("val_loss", r"validation loss at iteration (?P<steps_done>\d+)[^|]*\| lm loss value: "),
        ),
        "last_rank",
    ),
    "hf_trainer": Preset(
        (
            # Its evaluation has a bar of its own, with another total.
            rf"\| *(?P<steps_done>\d+)/{GOAL} \[",
            _metric("loss", r"^\{.*'loss': '?"),
            _metric("grad_norm", r"^\{.*'grad_norm': '?"),
            _metric("lr", r"^\{.*'learning_rate': '?"),
            _metric("val_loss", r"^\{.*'eval_loss': '?"),
        ),
        "first_rank",
    ),
    "torchtitan": Preset(
        (
            _metric("loss", r"(?<!validate )\bstep: +(?P<steps_done>\d+) +loss: +"),
            _metric("grad_norm", r"\bgrad_norm: +"),
            _metric("tokens_per_s", r"\btps: +"),
            _metric("mfu", r"\bmfu: +", "%"),
            _metric("val_loss", r"\bvalidate step: +(?P<steps_done>\d+) +loss: +"),
        ),
        "first_rank",
    ),
}


def compiled(patterns: Iterable[str]) -> Patterns:
    """The patterns, ready to be looked for. Raises re.error."""
    return tuple(re.compile(pattern) for pattern in patterns)


def metrics_of(patterns: Patterns) -> frozenset[str]:
    """The names of the metrics that these patterns can give."""
    return frozenset(name for pattern in patterns for name in pattern.groupindex) - {STEP, STEPS_DONE}


def flaw(pattern: str) -> str:
    """What is wrong with a pattern a person wrote; "" if nothing is."""
    try:
        groups = re.compile(pattern).groupindex.keys()
    except re.error as error:
        place = "" if error.pos is None else f" at character {error.pos + 1}"
        return f"not a regular expression: {error.msg}{place}"
    if not groups:
        return "names no group: write (?P<step>...) or (?P<loss>...) around what is to be read"
    if {STEP, STEPS_DONE} <= groups:
        return "'step' (counted from 0) and 'steps_done' are the same count: keep one of them"
    return ""


def tells_steps(pattern: str) -> bool:
    """Whether a pattern without a flaw has a group for the step."""
    return bool({STEP, STEPS_DONE} & re.compile(pattern).groupindex.keys())


# ---------------------------------------------------------------- reading


def read_line(patterns: Patterns, line: str) -> tuple[int | None, dict[str, float]]:
    """(index of the step a line speaks of, if it does; its metrics)."""
    line = _ANSI.sub("", line)[:LONGEST_LINE]
    step: int | None = None
    metrics: dict[str, float] = {}
    for pattern in patterns:
        found = pattern.search(line)
        for name, text in (found.groupdict() if found else {}).items():
            if (value := _number(text)) is None:
                continue
            if name not in (STEP, STEPS_DONE):
                metrics[name] = value
            elif abs(value) < _MOST_STEPS and value.is_integer():
                step = int(value) - (name == STEPS_DONE)
    return step, metrics


def _number(text: str | None) -> float | None:
    try:
        return None if text is None else float(text.replace(",", ""))
    except ValueError:
        return None


@dataclass
class Told:
    """A step that was read at `at` (monotonic seconds). `step_s`: for each step since the last one told."""

    step: int
    at: float
    metrics: dict[str, float]
    step_s: float = 0.0


@dataclass
class Telemetry:
    """Reads what one rank prints: bytes come in as they arrive, steps go out a moment after their line.

    Metrics that come later still go with the next step.
    """

    rank: int
    patterns: Patterns
    moves: int = 0  # lines so far that named another step than the one before
    moved_at: float = 0.0  # when the newest of them came
    _rests: dict[str, bytes] = field(default_factory=dict)
    _named: int | None = None
    _waiting: list[Told] = field(default_factory=list)
    _late: dict[str, float] = field(default_factory=dict)
    _last: Told | None = None

    def take(self, stream: str, data: bytes, now: float) -> None:
        """Bytes of a stream, at `now` (monotonic seconds). A progress bar ends its lines with a carriage return."""
        *lines, rest = _LINE_END.split(self._rests.get(stream, b"") + data)
        self._rests[stream] = rest[-LONGEST_LINE:]
        for line in lines:
            self._read(line.decode("utf-8", "replace"), now)

    def _read(self, line: str, now: float) -> None:
        step, metrics = read_line(self.patterns, line)
        if step is not None and step != self._named:
            self._named = step
            self.moves += 1
            self.moved_at = now
        newest = self._waiting[-1] if self._waiting else self._last
        if step is not None and step > (newest.step if newest else -1):
            self._waiting.append(Told(step, now, self._late | metrics))
            self._late = {}
        elif self._waiting:
            self._waiting[-1].metrics.update(metrics)
        else:
            self._late.update(metrics)

    def look(self, now: float) -> list[Told]:
        """The steps that nothing can be added to any more; `now` may be infinite when no more will come."""
        ripe = len(self._waiting)
        if ripe and now - self._waiting[-1].at < SETTLE_S:
            ripe -= 1
        told, self._waiting = self._waiting[:ripe], self._waiting[ripe:]
        if told:
            if (before := self._last) is not None:
                each_s = (told[-1].at - before.at) / (told[-1].step - before.step)
                told = [replace(one, step_s=each_s) for one in told]
            self._last = told[-1]
        return told


def to_wire(value: float) -> float | str:
    """A metric as agents say it: what JSON lacks as a word."""
    if math.isfinite(value):
        return value
    return "nan" if math.isnan(value) else "inf" if value > 0 else "-inf"
