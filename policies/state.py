"""What the engine remembers between events: facts only, no judgement.

Everything is frozen and bounded: by the number of nodes, or by a constant. Times are Unix seconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from launcher.events import DiskTold, JobTold, Json, LineMatched, RankExited, StepsStopped
from policies.finding import Finding
from policies.pace import PaceMemory, PeersMemory
from policies.scale import ScaleMemory
from policies.schema import Span
from policies.spike import SpikeMemory
from policies.trend import TrendMemory

STEP_TIMES = 256  # times between steps that are remembered
FEW_TIMES = 16

Watched: TypeAlias = SpikeMemory | ScaleMemory | TrendMemory | PaceMemory | PeersMemory


@dataclass(frozen=True)
class Agent:
    """The agent of a node. `silent_at`: when its silence, which began at `silent_since`, was noticed.

    `down_since`: the last sign of life of one that is `down`, for that reason.
    """

    incarnation: str = ""
    silent_since: float | None = None
    silent_at: float = 0.0
    down: str = ""
    down_since: float | None = None


@dataclass(frozen=True)
class Attempt:
    """The current attempt. `exits` are its first failures by arrival; `exit_kinds` all (node, error) pairs.

    `is_up`: its ranks run, and nobody need ever tell a step of them.
    """

    number: int
    slots: Mapping[str, tuple[int, ...]]
    incarnations: Mapping[str, str]
    started_at: float
    best_before: int
    committed_before: int
    step: int = -1
    has_stepped: bool = False
    is_up: bool = False
    committed: int = -1
    exits: tuple[RankExited, ...] = ()
    exit_kinds: frozenset[tuple[str, str]] = frozenset()
    exit_count: int = 0
    replaced: frozenset[str] = frozenset()
    rejected_at: float | None = None
    leaving: bool = False  # the trainer was asked to save and end: how its ranks end is no finding
    done: bool = False
    ended: bool = False
    restored: int = -1  # the step it began from

    @property
    def world_size(self) -> int:
        """Ranks of the attempt."""
        return sum(map(len, self.slots.values()))

    @property
    def has_begun(self) -> bool:
        """Whether it is past what may go wrong at a start."""
        return self.has_stepped or self.is_up


@dataclass(frozen=True)
class Pending:
    """What has been decided about the current attempt and is being done: nothing else is judged meanwhile."""

    incident: int
    at: float
    restart: bool
    lost: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Moment:
    """A moment on both clocks: time, and steps done in the whole run, repeated ones included."""

    at: float
    steps: int


@dataclass(frozen=True)
class RuleState:
    """What a rule has done. `uses`: when each rung was used; `key`: the finding it spoke about last."""

    uses: tuple[tuple[Moment, ...], ...] = ()
    last: Moment | None = None
    key: str = ""
    error: tuple[str, str, int] | None = None
    rung: int = 0


@dataclass(frozen=True)
class Streak:
    """A condition that has held in each step since `onset`: so many steps."""

    steps: int
    onset_at: float
    onset_step: int


@dataclass(frozen=True)
class Trouble:
    """Trouble with the numbers that is not over. `rules`: those whose detectors still see it."""

    incident: int
    step: int
    at: float
    rules: frozenset[str]


@dataclass(frozen=True)
class Question:
    """What a person is asked: whether this rung of a rule is to be used. `acts`: it is, if nobody answers."""

    rule: str
    finding: Finding
    rung: int
    due: float
    acts: bool


@dataclass(frozen=True)
class Retry:
    """A held run is begun again by itself. `due`: when next; None while it is being tried, or no more."""

    rule: str
    incident: int
    began: Moment
    every_s: float
    at_most_s: float | None
    due: float | None = None


@dataclass(frozen=True)
class Amendment:
    """A value of the policy that a person has changed, until then (Unix seconds) or for good."""

    path: tuple[str, ...]
    value: Json
    until: float | None = None


@dataclass(frozen=True)
class Loss:
    """What a restart has cost: seconds of training, known once a step is done again."""

    at: float
    seconds: float


@dataclass(frozen=True)
class EngineState:
    """All that `decide` remembers between events."""

    now: float = 0.0
    agents: Mapping[str, Agent] = field(default_factory=dict)
    troubled: frozenset[str] = frozenset()  # nodes that are silent or down
    draining: Mapping[str, str] = field(default_factory=dict)  # node -> why its admin wants it back
    disk: DiskTold | None = None
    job: JobTold | None = None
    storage: Mapping[str, float] = field(default_factory=dict)  # node -> since when the run folder does not answer
    lines: Mapping[str, LineMatched] = field(default_factory=dict)  # rule -> the newest line it looks for
    stalled: bool = False  # the run is held, and its ranks are left waiting
    attempt: Attempt | None = None
    stopped: StepsStopped | None = None
    older_times: tuple[float, ...] = ()  # of `step_times` all but the last few: so that a step moves few of them
    newest_times: tuple[float, ...] = ()
    told_every: int = 1  # steps from the told step before the last one to the last one
    steps_done: int = 0
    best_step: int = -1
    best_committed: int = -1
    streaks: Mapping[str, Streak] = field(default_factory=dict)
    memories: Mapping[str, Watched] = field(default_factory=dict)  # by rule, what its detector of numbers remembers
    trouble: Trouble | None = None
    changes: Mapping[str, Moment] = field(default_factory=dict)  # when each kind of declared change was last made
    rules: Mapping[str, RuleState] = field(default_factory=dict)
    restarts: tuple[Moment, ...] = ()
    losses: tuple[Loss, ...] = ()
    last_step_at: float | None = None  # in this allocation, and since the run was last held
    fruitless: int = 0
    first_step_failures: int = 0
    failed_early: tuple[RankExited, ...] = ()  # why attempts since the last step never made their first
    incidents: int = 0
    decisions: int = 0
    pending: Pending | None = None
    amendments: tuple[Amendment, ...] = ()
    questions: Mapping[int, Question] = field(default_factory=dict)  # by incident
    retry: Retry | None = None
    story: int = 0  # the incident that the present event has opened: what else it shows is part of it
    is_held: bool = False
    is_over: bool = False
    unwatched_since: float | None = None  # the last word before a new supervisor, while no step was told to it
    commands: Mapping[str, str] = field(default_factory=dict)  # stop and pause commands in force, by id

    @property
    def moment(self) -> Moment:
        """Now, on both clocks."""
        return Moment(self.now, self.steps_done)

    @property
    def step_times(self) -> tuple[float, ...]:
        """Seconds from one told step to the next, which need not be the very next: of the last STEP_TIMES."""
        return (*self.older_times, *self.newest_times)[-STEP_TIMES:]

    @property
    def is_sound(self) -> bool:
        """Whether nothing is amiss with nodes and ranks, and nothing is being done: then only numbers are judged."""
        attempt = self.attempt
        if attempt is None or not attempt.has_stepped or self.troubled or self.stopped or self.draining or self.pending:
            return False
        if self.job or self.disk or self.storage or self.lines or self.amendments or self.questions or self.retry:
            return False
        return not (attempt.exits or attempt.replaced or attempt.ended or attempt.rejected_at is not None)

    @property
    def judged(self) -> Attempt | None:
        """The attempt to be judged; None while there is none, or what happens to it is meant to happen."""
        attempt = self.attempt
        if attempt is None or attempt.done or self.is_held or self.is_over or self.commands:
            return None
        return attempt


def is_within(then: Moment, now: Moment, span: Span | None) -> bool:
    """Whether a moment lies in the window that ends now; without a window everything does."""
    if span is None:
        return True
    if span.steps is not None:
        return now.steps - then.steps < span.steps
    return now.at - then.at < (span.seconds or 0.0)
