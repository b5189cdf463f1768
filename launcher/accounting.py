"""Where the time of a run went, and which of its steps are kept. Pure; `launcher.ledger` makes it of the events.

Every moment since the run was submitted belongs to exactly one part, counted in whole microseconds, so that
the parts sum to the whole without rounding:

useful       steps that are still part of the run's line
rolled_back  steps that a restart threw away, and what was begun after them
checkpoint   steps blocked by a save (of kept and thrown away steps alike)
hang         from the last step to the decision that something is lost or stuck: nothing moved
starting     from the first attempt of an allocation to its first step
restarting   from a decision to go back, or the end of an attempt, to the first new step
unobserved   a command ran and told of no step, in the whole run: how much of it is kept is not known
queue        from submit (or resume) to the first attempt: no ranks yet
paused       a person wanted no ranks for a while
held         waiting for a person
stopped      winding down after the last step, and between an end and a resume
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from launcher.run import Incident

Part = Literal[
    "useful", "rolled_back", "checkpoint", "hang", "starting", "restarting", "unobserved", "queue", "paused", "held",
    "stopped",
]  # fmt: skip
PARTS: tuple[Part, ...] = (
    "useful", "rolled_back", "checkpoint", "hang", "starting", "restarting", "unobserved", "queue", "paused", "held",
    "stopped",
)  # fmt: skip


@dataclass(frozen=True)
class Step:
    """One step as it was told. `us`: what it took, without the part blocked by a save.

    `steps`: how many it speaks for, itself and those before it that were not told. All of them took `us`.
    """

    step: int
    attempt: int
    at: float
    us: int
    loss: float | None
    samples: tuple[int, int] | None
    slots: int
    steps: int = 1

    @property
    def first(self) -> int:
        """The first step that it speaks for."""
        return self.step - self.steps + 1

    def split(self, base: int) -> tuple[Step, Step]:
        """The steps before `base`, which it speaks for too, and the rest."""
        before = base - self.first
        us = self.us * before // self.steps
        rest = replace(self, steps=self.steps - before, us=self.us - us)
        return replace(self, step=base - 1, steps=before, us=us), rest

    def joined(self, after: Step) -> Step:
        """One for both, in place of this step and the one right after it."""
        samples = (self.samples[0], after.samples[1]) if self.samples and after.samples else None
        return replace(after, us=self.us + after.us, steps=self.steps + after.steps, samples=samples)


@dataclass(frozen=True)
class Account:
    """The parts of the time since submit, and the steps that are kept.

    `slots`: places for ranks that are allocated, spares included. `slots_us`: each part times those that were.
    `speeds`: microseconds per step -> how often, in three digits, the first of each attempt aside (it compiles).
    """

    parts_us: Mapping[Part, int]
    slots: int
    kept: tuple[Step, ...]
    speeds: Mapping[int, int]
    lost_steps: int = 0
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
        """The share of the time since submit that went into kept steps; None where that cannot be known."""
        is_known = self.total_us and not self.parts_us["unobserved"]
        return self.parts_us["useful"] / self.total_us if is_known else None

    @property
    def median_step_s(self) -> float | None:
        """The median duration of steps, the first of each attempt aside if there are others."""
        if self.speeds:
            return median_us(self.speeds) / 1e6
        return statistics.median(step.us / step.steps for step in self.kept) / 1e6 if self.kept else None

    @property
    def goodput(self) -> float | None:
        """Kept steps / steps that the time since the first attempt could have held at the median speed."""
        elapsed = (self.total_us - self.parts_us["queue"]) / 1e6
        median = self.median_step_s
        if not median or elapsed <= 0:
            return None
        return min(1.0, sum(step.steps for step in self.kept) * median / elapsed)

    @property
    def loss_curve(self) -> list[tuple[int, int, float | None]]:
        """(step, attempt, loss) of every kept step: what the run would look like without its failures."""
        return [(step.step, step.attempt, step.loss) for step in self.kept]

    @property
    def kept_samples(self) -> list[tuple[int, int]]:
        """Half-open ranges of sample indices that went into the present weights, in order of steps."""
        return [step.samples for step in self.kept if step.samples is not None]


def median_us(speeds: Mapping[int, int]) -> float:
    """The median of durations that are told with how often they were seen; 0 if none was."""
    middle = (sum(speeds.values()) + 1) / 2  # counted from one; between two of them it is their mean
    below = upto = 0
    found: list[int] = []
    for us in sorted(speeds):
        below, upto = upto, upto + speeds[us]
        found += [us for place in {math.floor(middle), math.ceil(middle)} if below < place <= upto]
    return statistics.mean(found) if found else 0.0


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
