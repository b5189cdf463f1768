"""Where the time of a run went, and which of its steps are kept: `account(events, now)`. Pure.

Every moment since the run was submitted belongs to exactly one part, counted in whole microseconds, so that
the parts sum to the whole without rounding:

useful       steps that are still part of the run's line
rolled_back  steps that a restart threw away, and what was begun after them
checkpoint   steps blocked by a save (of kept and thrown away steps alike)
hang         from the last step to the decision that something is lost or stuck: nothing moved
starting     from the first attempt of an allocation to its first step
restarting   from a decision to go back, or the end of an attempt, to the first new step
unobserved   a command ran and told of no step, in the whole run
queue        from submit (or resume) to the first attempt: no ranks yet
held         waiting for a person
stopped      winding down after the last step, and between an end and a resume
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from launcher.events import (
    Asked,
    AttemptEnded,
    AttemptStarted,
    Decision,
    Event,
    RunAmended,
    RunEnded,
    RunHeld,
    RunReleased,
    RunResumed,
    RunSubmitted,
    StepDone,
)
from launcher.run import Incident

Part = Literal[
    "useful", "rolled_back", "checkpoint", "hang", "starting", "restarting", "unobserved", "queue", "held", "stopped"
]
PARTS: tuple[Part, ...] = (
    "useful", "rolled_back", "checkpoint", "hang", "starting", "restarting", "unobserved", "queue", "held", "stopped",
)  # fmt: skip

_NUMERICS = frozenset({"spike", "non_finite", "scale_collapse", "drift", "plateau", "sdc"})
_BEGINNING = ("starting", "restarting")
_STEPPING = "useful"  # the part of an open interval in which ranks train
_STILL_MEDIANS = 3  # a last step older than so many median steps means that nothing moves
_STILL_LEAST_US = 1_000_000


@dataclass(frozen=True)
class Step:
    """One step as it was told, kept or not. `us`: what it took, without the part blocked by a save.

    `steps`: how many it speaks for, itself and those before it that were not told. All of them took `us`.
    """

    step: int
    attempt: int
    at: float
    us: int
    loss: float | None
    samples: tuple[int, int] | None
    slots: int
    is_first: bool  # of its attempt: compiling and warming up, no measure of speed
    steps: int = 1

    def split(self, base: int) -> tuple[Step, Step]:
        """The steps before `base`, which it speaks for too, and the rest."""
        before = base - (self.step - self.steps + 1)
        us = self.us * before // self.steps
        rest = replace(self, steps=self.steps - before, us=self.us - us)
        return replace(self, step=base - 1, steps=before, us=us), rest


@dataclass(frozen=True)
class Account:
    """The parts of the time since submit, and the steps that are kept.

    `slots`: places for ranks that are allocated, spares included. `slots_us`: each part times those that were.
    """

    parts_us: Mapping[Part, int]
    slots: int
    kept: tuple[Step, ...]
    rolled_back: tuple[Step, ...]
    target_step: int | None = None
    first_sample: int = 0
    slots_us: Mapping[Part, int] = field(default_factory=dict)

    @property
    def total_us(self) -> int:
        return sum(self.parts_us.values())

    @property
    def seconds(self) -> dict[str, float]:
        return {part: us / 1e6 for part, us in self.parts_us.items()}

    @property
    def gpu_hours(self) -> dict[str, float]:
        """Every part times the slots that were allocated, also where they only waited."""
        return {part: us / 3.6e9 for part, us in self.slots_us.items()}

    @property
    def ettr(self) -> float | None:
        """The share of the time since submit that went into kept steps; None before any time has passed."""
        return self.parts_us["useful"] / self.total_us if self.total_us else None

    @property
    def median_step_s(self) -> float | None:
        """The median duration of kept steps, the first of each attempt aside."""
        speeds = [(step.us / step.steps, step.is_first) for step in self.kept]
        return _median_us([us for us, is_first in speeds if not is_first] or [us for us, _ in speeds])

    @property
    def goodput(self) -> float | None:
        """Kept steps / steps that the time since the first attempt could have held at the median speed."""
        elapsed = (self.total_us - self.parts_us["queue"]) / 1e6
        median = self.median_step_s
        if not median or elapsed <= 0:
            return None
        return min(1.0, sum(step.steps for step in self.kept) * median / elapsed)

    @property
    def lost_steps(self) -> int:
        return sum(step.steps for step in self.rolled_back)

    @property
    def loss_curve(self) -> list[tuple[int, int, float | None]]:
        """(step, attempt, loss) of every kept step: what the run would look like without its failures."""
        return [(step.step, step.attempt, step.loss) for step in self.kept]

    @property
    def kept_samples(self) -> list[tuple[int, int]]:
        """Half-open ranges of sample indices that went into the present weights, in order of steps."""
        return [step.samples for step in self.kept if step.samples is not None]


def _median_us(durations: Sequence[float]) -> float | None:
    return statistics.median(durations) / 1e6 if durations else None


def sample_faults(ranges: Sequence[tuple[int, int]], first: int = 0) -> list[str]:
    """What keeps these ranges from using every sample from `first` on exactly once, in order."""
    faults: list[str] = []
    expected = first
    for start, end in ranges:
        if start < expected:
            faults.append(f"samples {start} to {min(expected, end)} were used twice")
        elif start > expected:
            faults.append(f"samples {expected} to {start} were left out")
        expected = max(expected, end)
    return faults


def detected_s(incident: Incident) -> float:
    """From the onset of an incident to the decision about it."""
    return max(0.0, incident.decided_at - incident.opened_at)


def recovered_s(incident: Incident) -> float | None:
    """From the onset of an incident to the first step after it; None while that has not come."""
    return None if incident.recovered_at is None else max(0.0, incident.recovered_at - incident.opened_at)


# ---------------------------------------------------------------- the walk over the events


def account(events: Iterable[Event], now: float | None = None) -> Account:
    """The account of a run's events. `now` (Unix seconds) closes the books of a run that has not ended."""
    ledger = _Ledger()
    for event in events:
        ledger.take(event)
    ledger.close(now)
    return ledger.account()


@dataclass
class _Ledger:
    """The books while they are being written: all that lies before `mark_us` has been assigned."""

    parts: dict[Part, int] = field(default_factory=lambda: dict.fromkeys(PARTS, 0))
    slots_us: dict[Part, int] = field(default_factory=lambda: dict.fromkeys(PARTS, 0))  # times places for ranks
    submitted: RunSubmitted | None = None
    asked: Asked | None = None  # what was submitted, or amended since
    mark_us: int = 0
    seen_us: int = 0
    phase: Part = "queue"
    attempt: int | None = None  # whose ranks may be alive
    fresh: bool = False  # no step of the attempt yet
    resumes_itself: bool = False  # from where, its first step will tell
    first: bool = True  # of the attempts in this allocation
    ended: bool = False
    completed: int = 0
    kept: list[Step] = field(default_factory=list)
    rolled_back: list[Step] = field(default_factory=list)

    def take(self, event: Event) -> None:
        if isinstance(event, RunSubmitted) and self.submitted is None:
            self.submitted = self.asked = event
            self.mark_us = self.seen_us = _us(event.at)
        if self.submitted is None:
            return
        self.seen_us = max(self.seen_us, _us(event.at))
        if isinstance(event, StepDone):
            self._step(event)
        elif isinstance(event, AttemptStarted):
            self.resumes_itself = event.resumes_itself
            if not self.resumes_itself:
                self._roll_back(event.restore[0] if event.restore else 0)
            if self.phase == "stopped" and not self.ended:
                self.phase = "restarting"  # the attempt before was not the last one after all
            self._turn("starting" if self.first else "restarting")
            self.attempt, self.fresh, self.first, self.ended = event.attempt, True, False, False
        elif isinstance(event, AttemptEnded) and event.attempt == self.attempt:
            self._end_of_ranks()
        elif isinstance(event, Decision):
            self._decided(event)
        elif isinstance(event, RunAmended):
            self.asked = event  # told when the former allocation is gone
        elif isinstance(event, RunHeld):
            self._turn("held", was="hang" if self._stands_still() else "rolled_back")
        elif isinstance(event, RunReleased) and self.phase == "held":
            self._turn("restarting")
        elif isinstance(event, (RunEnded, RunResumed)):
            self._turn("stopped" if isinstance(event, RunEnded) else "queue", was="stopped")
            self.attempt, self.first, self.ended = None, True, isinstance(event, RunEnded)

    def _turn(self, phase: Part, was: Part = "hang") -> None:
        """Assign the time up to now to the present phase, or to `was` where ranks had been training."""
        part = was if self.phase == _STEPPING else self.phase
        self._count(part, self._elapsed())
        self.phase = phase

    def _elapsed(self) -> int:
        elapsed, self.mark_us = self.seen_us - self.mark_us, self.seen_us
        return elapsed

    @property
    def slots(self) -> int:
        if self.asked is None:
            return 0
        return (self.asked.nodes + self.asked.spares) * (self.asked.slots_per_node or self.asked.ranks_per_node)

    def _count(self, part: Part, us: int) -> None:
        """Assign time to a part. In the queue and after the end nothing is allocated."""
        self.parts[part] += us
        self.slots_us[part] += 0 if self.ended or part == "queue" else us * self.slots

    def _step(self, event: StepDone) -> None:
        if event.attempt != self.attempt:
            return
        if self.fresh and self.resumes_itself:
            self._roll_back(min(self.completed, event.step))
        if event.step < self.completed:
            return
        if self.phase == _STEPPING or (self.phase in _BEGINNING and self.fresh):
            elapsed = self._elapsed()
            took = min(elapsed, max(0, _us(event.step_s))) if self.fresh else elapsed
            if self.phase != _STEPPING:
                self._count(self.phase, elapsed - took)
            blocked = min(took, max(0, _us(event.blocked_s)))
            self._count("checkpoint", blocked)
            us = took - blocked
            self.phase = _STEPPING
        else:  # done while ranks were already being ended: it counts as a step, its time is the phase's
            us = 0
        loss = event.metrics.get("loss")
        steps = 1 if self.fresh and self.resumes_itself else event.step + 1 - self.completed
        step = Step(event.step, event.attempt, event.at, us, loss, event.samples, self.slots, self.fresh, steps)
        self.kept.append(step)
        self.fresh, self.completed = False, event.step + 1

    def _roll_back(self, base: int) -> None:
        while self.kept and self.kept[-1].step >= base:
            last = self.kept.pop()
            if last.step - last.steps + 1 < base:
                kept, last = last.split(base)
                self.kept.append(kept)
            self.rolled_back.append(last)
        self.completed = base

    def _decided(self, event: Decision) -> None:
        ends_ranks = event.actions.keys() & {"restart", "hold", "stop"}
        if event.mode == "act" and ends_ranks and not self.ended and self.phase not in ("held", "queue"):
            self._turn("restarting", was="rolled_back" if event.detector in _NUMERICS else "hang")
            self.fresh = False

    def _end_of_ranks(self) -> None:
        """Without a decision before it, an attempt ends because its work is done or a person ended it."""
        self.attempt = None
        if self.phase == _STEPPING:
            self._turn("stopped", was="stopped")
        elif self._tells_nothing():
            self.phase = "unobserved"
            self._turn("stopped")

    def _tells_nothing(self) -> bool:
        """Whether an attempt is under way, or has just ended by itself, in a run that has told of no step ever."""
        told = bool(self.kept or self.rolled_back)
        return self.fresh and not told and self.submitted is not None and self.submitted.target_step is None

    def close(self, now: float | None) -> None:
        if self.ended or self.submitted is None:
            return
        self.seen_us = max(self.seen_us, _us(now) if now is not None else 0)
        if self.phase in _BEGINNING and self._tells_nothing():
            self.phase = "unobserved"
        self._turn(self.phase, was="hang" if self._stands_still() else "useful")

    def _stands_still(self) -> bool:
        """Whether the last step is so long ago that no step can be under way."""
        usual = _median_us([step.us for step in self.kept if not step.is_first]) or 0.0
        return self.seen_us - self.mark_us > max(_STILL_LEAST_US, _STILL_MEDIANS * usual * 1e6)

    def account(self) -> Account:
        for step in self.kept:
            self.parts["useful"] += step.us
            self.slots_us["useful"] += step.us * step.slots
        for step in self.rolled_back:
            self.parts["rolled_back"] += step.us
            self.slots_us["rolled_back"] += step.us * step.slots
        return Account(
            parts_us=self.parts,
            slots=self.slots,
            kept=tuple(self.kept),
            rolled_back=tuple(sorted(self.rolled_back, key=lambda step: (step.attempt, step.step))),
            target_step=self.asked.target_step if self.asked else None,
            first_sample=self.submitted.first_sample if self.submitted else 0,
            slots_us=self.slots_us,
        )


def _us(seconds: float) -> int:
    return round(seconds * 1e6)
