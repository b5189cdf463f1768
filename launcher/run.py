"""The run as a value: all that follows from the journal so far. Pure; `launcher.advance` makes it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from launcher.events import (
    Branch,
    CheckpointId,
    CommandReceived,
    Decision,
    Json,
    TrainerDone,
    Warned,
)

ENDING = frozenset({"restart", "hold", "stop"})  # actions that end the attempt


def keeps_ranks(decision: Decision) -> bool:
    """Whether it is a hold that leaves the ranks waiting for what they wait for."""
    held = decision.actions.get("hold")
    return isinstance(held, dict) and bool(held.get("keeps_ranks"))


class RunState(StrEnum):
    PENDING = "PENDING"
    STARTING = "STARTING"
    RUNNING = "RUNNING"
    SUSPECT = "SUSPECT"
    RECOVERING = "RECOVERING"
    PAUSED = "PAUSED"
    HELD = "HELD"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    STOPPED = "STOPPED"

    @property
    def is_terminal(self) -> bool:
        return self in (RunState.SUCCEEDED, RunState.FAILED, RunState.STOPPED)


HALTED = frozenset({RunState.PAUSED, RunState.HELD})  # no ranks run until a person says so


class NodeState(StrEnum):
    ALIVE = "ALIVE"
    SUSPECT = "SUSPECT"
    LOST = "LOST"


@dataclass(frozen=True)
class Node:
    """A machine of the allocation, as its agent told."""

    name: str
    index: int
    incarnation: str
    host: str
    port: int
    pid: int
    state: NodeState = NodeState.ALIVE
    silent_since: float | None = None
    excluded: str = ""  # why it takes no part in the next attempt; "" when it may
    barred: str = ""  # why the host ledger leaves it out of every attempt
    draining: str = ""  # why the admin wants it back; others are preferred to it


@dataclass(frozen=True)
class Checkpoint:
    """One committed checkpoint and what has been learned of it since."""

    step: int
    attempt: int
    parent: CheckpointId | None
    manifest_digest: str
    bytes: int
    committed_at: float
    verified: bool = False
    healthy_steps: int = 0  # finite steps of its own line seen after it
    doubted: bool = False  # an incident of the numbers lies between it and its probation
    rejected: str = ""
    removed: bool = False
    path: str = ""  # where a trainer that is not ours has put it
    written_at: float = 0.0

    @property
    def id(self) -> CheckpointId:
        return (self.step, self.attempt)

    @property
    def usable(self) -> bool:
        return not self.rejected and not self.removed


@dataclass(frozen=True)
class Attempt:
    """One set of ranks started together. `last_step`: steps completed, counted from the start of the run.

    `from_step`: those that were done before it, None where its first step has yet to tell. `up_since`: of one that is
    not observed, when its ranks were found to run.
    """

    number: int
    started_at: float
    slots: Mapping[str, tuple[int, ...]]
    incarnations: Mapping[str, str]
    restore: CheckpointId | None
    resumes_itself: bool = False
    observed: bool = True  # else steps need not be told, and are not known until they are
    settings: Mapping[str, Json] = field(default_factory=dict)
    skips: tuple[tuple[int, int], ...] = ()
    told_settings: bool = False  # whether the trainer has said that it began with them
    up_since: float | None = None
    first_step_at: float | None = None
    from_step: int | None = 0
    last_step: int = 0
    last_step_at: float | None = None
    ended_at: float | None = None
    reason: str = ""
    exits: Mapping[int, int] = field(default_factory=dict)  # rank -> code
    done: TrainerDone | None = None
    differs: Mapping[str, object] = field(default_factory=dict)  # what it runs on -> before, now, where not the same

    @property
    def ranks(self) -> int:
        return sum(len(ranks) for ranks in self.slots.values())

    @property
    def has_begun(self) -> bool:
        """Whether it trains, as far as can be known: its first step is done, or its ranks have run for a while."""
        return self.first_step_at is not None or self.up_since is not None


@dataclass(frozen=True)
class Note:
    """What a person has to say about an incident."""

    at: float
    author: str
    text: str


@dataclass(frozen=True)
class Incident:
    """Findings joined into one story with one outcome."""

    number: int
    rule: str
    detector: str
    attempt: int
    opened_at: float
    decided_at: float
    step: int  # steps completed when it was decided
    why: str
    nodes: tuple[str, ...]
    blame: str
    mode: str
    actions: Mapping[str, object]
    decisions: tuple[str, ...]
    evidence: Mapping[str, object]
    recovered_at: float | None = None
    lost_steps: int | None = None
    # OPEN, RECOVERED, HELD, ENDED; NOTED, ADVISED, ASKED or LEFT where training went on; WATCHED where nothing is
    # decided yet, and HEALED or STAYED how that ended
    state: str = "OPEN"
    onset_step: int = -1
    due_at: float = 0.0  # until when a person is asked
    otherwise: str = ""  # what is done if nobody answers: act or nothing
    notes: tuple[Note, ...] = ()
    lasts: bool = False  # numbers are not yet as they were before `onset_step`

    @property
    def judgements(self) -> tuple[str, ...]:
        """The ids of all that was found and decided about it."""
        opened = (f"opened {self.number}",) if self.onset_step >= 0 else ()
        closed = (f"closed {self.number}",) if opened and not self.lasts else ()
        return (*self.decisions, *opened, *closed)


@dataclass(frozen=True)
class Asking:
    """Settings that the ranks are asked to go on with, by the decision of this id."""

    id: str
    at: float
    settings: Mapping[str, Json]


@dataclass(frozen=True)
class Broken:
    """A node that a decision left out of `attempt` for what looks like hardware.

    `is_lost`: it was silent, and may be back.
    """

    decision: str
    attempt: int
    why: str
    is_lost: bool


@dataclass(frozen=True)
class Drained:
    """A node that the scheduler keeps from everybody because we asked: with this reason, since `at`.

    `attempt`: the one that it broke; 0 where that was another allocation's.
    """

    reason: str
    at: float
    attempt: int


@dataclass(frozen=True)
class Run:
    """All that follows from the journal so far, except what only accounting needs."""

    name: str = ""
    state: RunState = RunState.PENDING
    submitted_at: float = 0.0
    updated_at: float = 0.0
    epoch: int = 0
    supervisor_host: str = ""
    supervisor_pid: int = 0
    supervisor_node: str = ""
    job_id: str = ""
    job_epoch: int = 0  # the last one whose supervisor was part of the job
    past_jobs: frozenset[str] = frozenset()  # jobs, and lives of jobs, that another has taken the place of
    nodes_wanted: int = 0
    ranks_per_node: int = 0
    spares_wanted: int = 0
    target_step: int | None = None
    probation: int = 0
    save_every: int | None = None
    branched_from: Branch | None = None
    step: int = 0  # steps completed in the current line of the run
    stride: int = 1  # the most steps between two that were told in a row
    metrics: Mapping[str, float] = field(default_factory=dict)
    nodes: Mapping[str, Node] = field(default_factory=dict)
    attempts: tuple[Attempt, ...] = ()
    checkpoints: Mapping[CheckpointId, Checkpoint] = field(default_factory=dict)
    own_settings: Mapping[str, Json] = field(default_factory=dict)  # as the run was asked for
    settings: Mapping[str, Json] = field(default_factory=dict)  # what a policy has changed them to
    skips: tuple[tuple[int, int], ...] = ()  # ranges of absolute sample indices that are left out
    asking: Asking | None = None  # of the ranks that train
    newest_samples: tuple[int, int, int] | None = None  # (step, first, end) of the newest step
    errands: Mapping[str, Decision] = field(default_factory=dict)  # decisions whose `run` has no outcome yet
    head: CheckpointId | None = None  # newest checkpoint of the current line
    incidents: tuple[Incident, ...] = ()
    pending: Decision | None = None  # a restart, hold or stop that is being carried out
    pending_done: frozenset[str] = frozenset()  # its actions that already are
    replace: Decision | None = None  # its nodes are to be replaced, as soon as a spare is there
    replacing_since: float | None = None  # for that the trainer has been asked to save and end
    steps_stopped: bool = False
    hold_reason: str = ""
    holding: Decision | None = None  # without ending the ranks, and no word of it yet
    keeps_ranks: bool = False  # it is held, and they wait
    stop_requested: str = ""  # who asked
    stop_requested_at: float = 0.0
    stop_now: bool = False  # without a last checkpoint
    job_ending: str = ""  # why
    job_ending_at: float = 0.0
    job_decided: bool = False  # whether it begins anew, the scheduler knows
    job_over: str = ""  # why it does not
    hold_requested: str = ""  # why
    hold_requested_at: float = 0.0
    paused_by: str = ""  # who wants it paused, and why; it is once its state says so
    pause_requested_at: float = 0.0
    pause_now: bool = False  # without a last checkpoint
    save_requested_at: float | None = None
    save_beyond: int = 0  # steps that were done before the save was asked for: it is of a later one
    commands: Mapping[str, CommandReceived] = field(default_factory=dict)  # not yet answered
    broken: Mapping[str, Broken] = field(default_factory=dict)  # nodes that nobody was asked to drain so far
    drained: Mapping[str, Drained] = field(
        default_factory=dict
    )  # nodes that were, for us, and have not been used since
    drain_refused: str = ""  # in this allocation: we may drain no node
    recovering_since: float | None = None  # since when nodes are waited for; in a new allocation: for the others
    restarts: int = 0  # that the policy has decided; what a person asked for is none
    lost_steps: int = 0
    ended_reason: str = ""
    warnings: tuple[Warned, ...] = ()  # the newest, each text once, oldest first

    @property
    def attempt(self) -> Attempt | None:
        """The newest attempt, ended or not."""
        return self.attempts[-1] if self.attempts else None

    @property
    def live_attempt(self) -> Attempt | None:
        """The attempt whose ranks may be alive."""
        return self.attempt if self.attempt and self.attempt.ended_at is None else None

    @property
    def has_told(self) -> bool:
        """Whether a step was told of ever."""
        return any(one.first_step_at is not None for one in self.attempts)

    @property
    def is_unobserved(self) -> bool:
        """Whether ranks ran of whose steps nobody has told, nor need ever tell: then no number of steps is known."""
        return self.attempt is not None and not self.attempt.observed and not self.has_told

    @property
    def sound_until(self) -> float:
        """Checkpoints of this many steps or fewer hold nothing of numbers that are in trouble now.

        It is in the first step that was told to be bad, or in those before it that were not told.
        """
        onset = min((incident.onset_step for incident in self.incidents if incident.lasts), default=math.inf)
        return onset - self.stride + 1

    def lineage(self) -> Iterator[Checkpoint]:
        """The line of checkpoints that led to the present, newest first."""
        at = self.head
        while at is not None and at in self.checkpoints:
            yield self.checkpoints[at]
            parent = self.checkpoints[at].parent
            at = parent if parent is not None and parent[0] < at[0] else None

    def is_good(self, checkpoint: Checkpoint) -> bool:
        """Complete, read back in full, followed by `probation` healthy steps, and from before what is amiss now."""
        tried = checkpoint.healthy_steps >= self.probation and checkpoint.step <= self.sound_until
        return checkpoint.usable and checkpoint.verified and tried and not checkpoint.doubted
