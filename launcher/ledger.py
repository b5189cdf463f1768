"""The walk over the events that assigns every moment of a run to a part, and knows which steps are kept. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from copy import copy
from dataclasses import dataclass, field

from launcher.accounting import PARTS, Account, Part, Step, median_us
from launcher.events import (
    Asked,
    AttemptEnded,
    AttemptStarted,
    CheckpointCommitted,
    CheckpointId,
    CheckpointRemoved,
    Decision,
    Event,
    RunAmended,
    RunEnded,
    RunHeld,
    RunPaused,
    RunReleased,
    RunResumed,
    RunSubmitted,
    RunUnpaused,
    StepDone,
)
from launcher.run import keeps_ranks

RECENT = 256  # steps that are kept one by one

_NUMERICS = frozenset({"spike", "non_finite", "scale_collapse", "drift", "plateau", "sdc"})
_BEGINNING = ("starting", "restarting")
_HALTED = ("paused", "held")
_STEPPING = "useful"  # the part of an open interval in which ranks train
_STILL_MEDIANS = 3  # a last step older than so many median steps means that nothing moves
_STILL_LEAST_US = 1_000_000


def account(events: Iterable[Event], now: float | None = None) -> Account:
    """The account of a run's events. `now` (Unix seconds) closes the books of a run that has not ended."""
    ledger = Ledger(whole=True)
    for event in events:
        ledger.take(event)
    return ledger.account(now)


@dataclass
class Ledger:
    """The books while they are being written: all that lies before `mark_us` has been assigned.

    Unless they are to tell of the `whole` history, they do not grow with it: of the steps before the newest RECENT,
    those between two places to which the run can go back become one.
    """

    whole: bool = False
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
    observed: bool = True  # else its steps need not be told
    first: bool = True  # of the attempts in this allocation
    ended: bool = False
    completed: int = 0
    kept: list[Step] = field(default_factory=list)
    speeds: dict[int, int] = field(default_factory=dict)  # of single steps
    gaps: dict[int, int] = field(default_factory=dict)  # between steps that were told, likewise
    lost: int = 0  # steps
    restorable: set[CheckpointId] = field(default_factory=set)
    join_at: int = 2 * RECENT  # so many kept steps, and old ones are joined

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
            self.resumes_itself, self.observed = event.resumes_itself, event.observed
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
        elif isinstance(event, CheckpointCommitted):
            self.restorable.add((event.step, event.attempt))
        elif isinstance(event, CheckpointRemoved):
            self.restorable.discard((event.step, event.attempt))
        elif isinstance(event, RunAmended):
            self.asked = event  # told when the former allocation is gone
        elif isinstance(event, RunHeld):
            self._turn("held", was="hang" if self._stands_still() else "rolled_back")
        elif isinstance(event, RunPaused):
            self._turn("paused", was="stopped")
        elif isinstance(event, (RunReleased, RunUnpaused)) and self.phase in _HALTED:
            self._turn("restarting")
        elif isinstance(event, (RunEnded, RunResumed)):
            self._turn("stopped" if isinstance(event, RunEnded) else "queue", was="stopped")
            self.attempt, self.first, self.ended = None, True, isinstance(event, RunEnded)

    def _turn(self, phase: Part, was: Part = "hang") -> None:
        """Assign the time up to now to the present phase, or to `was` where ranks had been training."""
        part = was if self.phase == _STEPPING else "unobserved" if self._is_unobserved() else self.phase
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
        if not self._has_told():
            self._start_was_all()
        if self.phase == _STEPPING or (self.phase in _BEGINNING and self.fresh):
            elapsed = self._elapsed()
            took = min(elapsed, max(0, _us(event.step_s))) if self.fresh else elapsed
            if self.phase != _STEPPING:
                self._count(self.phase, elapsed - took)
            blocked = min(took, max(0, _us(event.blocked_s)))
            self._count("checkpoint", blocked)
            us = took - blocked
            self.phase = _STEPPING
        elif self.phase == "held":  # its ranks were left waiting, and have gone on
            self._count("held", self._elapsed())
            self.phase, us = _STEPPING, 0
        else:  # done while ranks were already being ended: it counts as a step, its time is the phase's
            us = 0
        loss = event.metrics.get("loss")
        steps = 1 if self.fresh and self.resumes_itself else event.step + 1 - self.completed
        self.kept.append(Step(event.step, event.attempt, event.at, us, loss, event.samples, self.slots, steps))
        if not self.fresh:
            _tally(self.speeds, us / steps)
            _tally(self.gaps, us)
        self.fresh, self.completed = False, event.step + 1
        if len(self.kept) >= self.join_at and not self.whole:
            self._join()

    def _join(self) -> None:
        """Make one of all old steps between places to go back to."""
        places = {step for step, _ in self.restorable}
        joined: list[Step] = []
        for step in self.kept[:-RECENT]:
            before = joined[-1] if joined else None
            if before and before.step + 1 == step.first not in places and before.slots == step.slots:
                joined[-1] = before.joined(step)
            else:
                joined.append(step)
        self.kept[:-RECENT] = joined
        self.join_at = max(2 * RECENT, len(self.kept) + RECENT)

    def _roll_back(self, base: int) -> None:
        while self.kept and self.kept[-1].step >= base:
            last = self.kept.pop()
            if last.first < base:
                kept, last = last.split(base)
                self.kept.append(kept)
            self.lost += last.steps
            self.parts["rolled_back"] += last.us
            self.slots_us["rolled_back"] += last.us * last.slots
        self.completed = base

    def _decided(self, event: Decision) -> None:
        ends_ranks = event.actions.keys() & {"restart", "hold", "stop"} and not keeps_ranks(event)
        if event.mode == "act" and ends_ranks and not self.ended and self.phase not in (*_HALTED, "queue"):
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

    def _has_told(self) -> bool:
        return bool(self.kept or self.lost)

    def _is_unobserved(self) -> bool:
        """Whether ranks may have trained all the while since they were started."""
        begun = self.attempt is not None and self.phase in _BEGINNING and self.fresh
        return begun and not self.observed and not self._has_told()

    def _tells_nothing(self) -> bool:
        """Whether an attempt is under way, or has just ended by itself, in a run that has told of no step ever."""
        has_goal = self.submitted is not None and self.submitted.target_step is not None
        return self.fresh and not self._has_told() and not (has_goal and self.observed)

    def _start_was_all(self) -> None:
        """It does tell of steps: what went before the first one was no training."""
        for books in (self.parts, self.slots_us):
            books["starting"] += books["unobserved"]
            books["unobserved"] = 0

    def copied(self) -> Ledger:
        """The same, to be written on by another."""
        copies = {name: copy(value) for name, value in vars(self).items()}
        return Ledger(**copies)

    def account(self, now: float | None = None) -> Account:
        """What the books say if they are closed `now` (Unix seconds), or at the last event."""
        closed = self.copied()
        closed._close(now)
        return closed._account()

    def _close(self, now: float | None) -> None:
        if self.ended or self.submitted is None:
            return
        self.seen_us = max(self.seen_us, _us(now) if now is not None else 0)
        if self.phase in _BEGINNING and self._tells_nothing():
            self.phase = "unobserved"
        self._turn(self.phase, was="hang" if self._stands_still() else "useful")

    def _stands_still(self) -> bool:
        """Whether the last step is so long ago that no step can be under way."""
        return self.seen_us - self.mark_us > max(_STILL_LEAST_US, _STILL_MEDIANS * median_us(self.gaps))

    def _account(self) -> Account:
        for step in self.kept:
            self.parts["useful"] += step.us
            self.slots_us["useful"] += step.us * step.slots
        return Account(
            parts_us=self.parts,
            slots=self.slots,
            kept=tuple(self.kept),
            speeds=self.speeds,
            lost_steps=self.lost,
            target_step=self.asked.target_step if self.asked else None,
            first_sample=self.submitted.first_sample if self.submitted else 0,
            slots_us=self.slots_us,
        )


def _tally(seen: dict[int, int], us: float) -> None:
    """Count a duration, in three digits: there are not many of these, however long the run."""
    rounded = int(float(f"{us:.2e}"))
    seen[rounded] = seen.get(rounded, 0) + 1


def _us(seconds: float) -> int:
    return round(seconds * 1e6)
