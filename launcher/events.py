"""Every fact of a run as a frozen dataclass with a JSON form.

An event is what the journal holds and the only thing `advance` and `decide` ever see. Times are Unix
seconds (`at`); durations end in `_s`. `epoch` and `seq` are given by the journal when it is appended.
Imports nothing of ours.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field, fields
from functools import cache
from typing import Any, ClassVar, Literal, TypeAlias

SCHEMA = 1

# Rules of decisions that no policy makes.
PERSON = "person"
RETRY = "hold-retry"

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"
CheckpointId: TypeAlias = tuple[int, int]  # (step, attempt that wrote it)


class UnknownEvent(ValueError):
    """A journal line names a type that this version does not know."""


@dataclass(frozen=True, kw_only=True)
class Event:
    """Base of all events: when it happened, and its place in the journal."""

    at: float
    epoch: int = 0
    seq: int = 0
    type: ClassVar[str]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.type = _snake(cls.__name__)
        EVENT_TYPES[cls.type] = cls


EVENT_TYPES: dict[str, type[Event]] = {}


def _snake(name: str) -> str:
    return "".join("_" + c.lower() if c.isupper() else c for c in name).lstrip("_")


# ---------------------------------------------------------------- the run and its supervisors


@dataclass(frozen=True, kw_only=True)
class Branch:
    """The checkpoint of another run that a run began from: the one of `step`, written by that run's `attempt`."""

    run: str
    step: int
    attempt: int


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What a person asked for, as far as the state machine needs it. `ranks_per_node` ranks on `nodes` nodes.

    `slots_per_node` of them a node has, where a rank stands for several. `settings`: what a policy may change, where
    its value is known: lr (the peak), clip.
    """

    nodes: int
    ranks_per_node: int
    spares: int
    target_step: int | None
    probation: int
    save_every: int | None
    slots_per_node: int | None = None
    settings: dict[str, Json] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class RunSubmitted(Asked, Event):
    """The run exists."""

    run: str
    first_sample: int = 0
    branched_from: Branch | None = None


@dataclass(frozen=True, kw_only=True)
class RunAmended(Asked, Event):
    """A person asks for something else from here on. `changes`: a key of the spec -> what it was, and what it is."""

    author: str
    changes: dict[str, Json] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Sealed:
    """Length in bytes and digest at which a superseded file counts; what follows is void."""

    file: str
    length: int
    digest: str


@dataclass(frozen=True, kw_only=True)
class EpochStarted(Event):
    """A supervisor took over; always the first event of its epoch."""

    host: str
    pid: int
    node: str
    job_id: str
    sealed: tuple[Sealed, ...] = ()


@dataclass(frozen=True, kw_only=True)
class RunHeld(Event):
    """The run needs a person; the allocation is kept. `keeps_ranks`: the ranks are left as they are, waiting."""

    reason: str
    keeps_ranks: bool = False


@dataclass(frozen=True, kw_only=True)
class RunReleased(Event):
    """A person let a held run go on; budgets count anew from here."""

    author: str


@dataclass(frozen=True, kw_only=True)
class RunPaused(Event):
    """No rank runs, because a person wants it so; the allocation is kept. `reason`: who, and why."""

    reason: str


@dataclass(frozen=True, kw_only=True)
class RunUnpaused(Event):
    """A person let a paused run go on. Nothing was wrong with it: budgets count as before."""

    author: str


@dataclass(frozen=True, kw_only=True)
class RunEnded(Event):
    """The last event of a run, until it is resumed."""

    state: Literal["SUCCEEDED", "FAILED", "STOPPED"]
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class RunResumed(Event):
    """There is a new allocation: a person started one, or the scheduler has begun the job anew."""

    author: str


@dataclass(frozen=True, kw_only=True)
class JobEnding(Event):
    """The scheduler will end the job soon. What is trained is saved, and goes on when the job begins anew.

    `decided`: the scheduler knows already whether it will; else it is up to us.
    """

    reason: str
    decided: bool = False


@dataclass(frozen=True, kw_only=True)
class JobOver(Event):
    """The job that is being ended will not begin again."""

    reason: str


@dataclass(frozen=True, kw_only=True)
class JobTold(Event):
    """What the scheduler says of the job, when it has changed. `ends_at`: Unix seconds, None without a limit."""

    state: str
    ends_at: float | None = None


@dataclass(frozen=True, kw_only=True)
class DiskTold(Event):
    """The space of the file system with the run folder, in bytes, when it has changed by more than a fiftieth."""

    free: int
    total: int


# ---------------------------------------------------------------- nodes


@dataclass(frozen=True, kw_only=True)
class AgentJoined(Event):
    """An agent answered. `incarnation` tells a restarted agent of the same node from the old one."""

    node: str
    index: int
    incarnation: str
    host: str
    port: int
    pid: int


@dataclass(frozen=True, kw_only=True)
class NodeSilent(Event):
    """Nothing heard from the agent since `since`; `reset` when its connection broke and stayed away."""

    node: str
    since: float
    cause: Literal["reset", "silence"]


@dataclass(frozen=True, kw_only=True)
class NodeBack(Event):
    """A silent agent answers again (the same incarnation)."""

    node: str


@dataclass(frozen=True, kw_only=True)
class NodeDown(Event):
    """The backend says the node, or the agent on it, is gone. `since`: its last sign of life, 0 if unknown."""

    node: str
    reason: str
    since: float = 0.0


@dataclass(frozen=True, kw_only=True)
class NodeDraining(Event):
    """The backend says that its admin wants the node back once our work on it is done. It works as before."""

    node: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class NodeUndrained(Event):
    """Nobody wants the node back any more."""

    node: str


@dataclass(frozen=True, kw_only=True)
class StorageSilent(Event):
    """A look at the run folder from the node, begun at `since`, has not come back."""

    node: str
    since: float


@dataclass(frozen=True, kw_only=True)
class StorageBack(Event):
    """It has."""

    node: str


@dataclass(frozen=True, kw_only=True)
class LineMatched(Event):
    """A rank printed a line that a rule of the policy looks for; of many such lines only some are told."""

    attempt: int
    node: str
    rank: int
    rule: str
    line: str


@dataclass(frozen=True, kw_only=True)
class DrainDone(Event):
    """What came of having the scheduler keep a node that we left out from everybody: `reason` stands there if `ok`.

    `refused`: we may not; else another's hand is on the node, or there are limits.
    """

    node: str
    decision: str
    ok: bool
    reason: str
    detail: str
    refused: bool = False


@dataclass(frozen=True, kw_only=True)
class DrainUndone(Event):
    """The node takes part again: what came of having the scheduler open it, if the reason there was still ours."""

    node: str
    ok: bool
    detail: str


@dataclass(frozen=True, kw_only=True)
class NodeExcluded(Event):
    """The host ledger has the node left out, from the next start on: a person, or what other runs met with on it."""

    node: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class NodeAllowed(Event):
    """The host ledger leaves the node out no longer."""

    node: str


@dataclass(frozen=True, kw_only=True)
class RankProgress:
    """One rank's place at a moment; `os_state` is the kernel's letter (T = stopped, Z = dead)."""

    node: str
    step: int
    section: int
    phase: str
    os_state: str = ""


@dataclass(frozen=True, kw_only=True)
class StepsStopped(Event):
    """No rank on an answering node moved its step or section counter since `since`.

    `proof` is False in a declared phase and before the first step, where standing still is normal, and where steps
    are read from what is printed. `usual_s`: the 99th percentile of the time between two movements, 0 if unknown.
    `ranks` holds the answering nodes' ranks only, keyed by rank.
    """

    attempt: int
    since: float
    proof: bool
    usual_s: float = 0.0
    ranks: dict[int, RankProgress] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class StepsMoving(Event):
    """A counter moved again after `steps_stopped`."""

    attempt: int


# ---------------------------------------------------------------- attempts


@dataclass(frozen=True, kw_only=True)
class AttemptStarted(Event):
    """A set of ranks is about to be started together; journaled before the deed.

    `resumes_itself`: where it begins only the trainer knows, and its first step will tell. `observed`: else nothing is
    declared of how its steps are told, and as long as none is they are not known. `settings`: those that are
    to be other than the run was asked for; `skips`: half-open ranges of absolute sample indices that are left out.
    """

    attempt: int
    slots: dict[str, tuple[int, ...]]  # node -> its ranks
    incarnations: dict[str, str]  # node -> incarnation of the agent that is to start them
    restore: CheckpointId | None
    why: str
    resumes_itself: bool = False
    observed: bool = True
    settings: dict[str, Json] = field(default_factory=dict)
    skips: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True, kw_only=True)
class RanksUp(Event):
    """All ranks of an attempt that is not observed have run for a while, the last of them since `since`.

    Of a trainer that tells no steps no more can be known of a start.
    """

    attempt: int
    since: float


@dataclass(frozen=True, kw_only=True)
class RankExited(Event):
    """A rank ended. `code` is its exit status, negative for a signal. `error`: the first error it told."""

    attempt: int
    node: str
    rank: int
    code: int
    step: int = -1
    error_type: str = ""
    error: str = ""


@dataclass(frozen=True, kw_only=True)
class AttemptEnded(Event):
    """All ranks of the attempt are dead, or their nodes lost. `early`: all ended well, but before the goal."""

    attempt: int
    reason: str
    early: bool = False


@dataclass(frozen=True, kw_only=True)
class StepDone(Event):
    """One optimizer step, as reported by the trainer: a line of the metrics file.

    `metrics` holds the trainer's numbers (loss, grad_norm, lr, ...; not-a-number and infinities as
    such). `samples` is the half-open range of absolute sample indices consumed. `blocked_s` is the part
    of `step_s` spent blocked by a save. `compute_s`: of each rank, in their order, the seconds in which it computed and
    did not wait for others. `checksums`: what ranks must hold the same bits of -> rank -> its checksum.
    """

    attempt: int
    step: int
    metrics: dict[str, float] = field(default_factory=dict)
    samples: tuple[int, int] | None = None
    step_s: float = 0.0
    blocked_s: float = 0.0
    compute_s: tuple[float, ...] = ()
    checksums: dict[str, dict[int, int]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class SettingsApplied(Event):
    """The trainer says with which settings it goes on from `step`. `id`: of the decision; "" at the attempt's start.

    `asked`: a number, "x0.5" (of a value that only the trainer knows) or "reset". `problem`: why nothing was changed.
    """

    attempt: int
    id: str
    step: int
    asked: dict[str, Json] = field(default_factory=dict)
    effective: dict[str, Json] = field(default_factory=dict)
    problem: str = ""

    @property
    def differing(self) -> tuple[str, ...]:
        """The settings that are not what was asked for, as far as that can be told."""
        return tuple(name for name, value in self.asked.items() if not _is_met(value, self.effective.get(name)))


def _is_met(asked: Json, effective: Json) -> bool:
    if isinstance(effective, bool) or not isinstance(effective, (int, float)) or not math.isfinite(effective):
        return False
    return isinstance(asked, str) or math.isclose(asked, effective, rel_tol=1e-6)  # type: ignore[arg-type]


@dataclass(frozen=True, kw_only=True)
class TrainerDone(Event):
    """The trainer reached its goal. `final_digest`: over name-sorted full tensors, if it computes one."""

    attempt: int
    step: int
    final_digest: str | None = None
    result: dict[str, float] = field(default_factory=dict)


# ---------------------------------------------------------------- checkpoints


@dataclass(frozen=True, kw_only=True)
class CheckpointCommitted(Event):
    """The checkpoint exists: all parts are on disk and its manifest has this digest.

    One of a trainer that is not ours has a `path`, a digest of what lies there, and the time it was last written to by
    the clock of its file system.
    """

    step: int
    attempt: int
    parent: CheckpointId | None
    manifest_digest: str
    bytes: int
    path: str = ""
    written_at: float = 0.0


@dataclass(frozen=True, kw_only=True)
class CheckpointFailed(Event):
    """A save came to nothing; training goes on and older checkpoints stay."""

    step: int
    attempt: int
    reason: str


@dataclass(frozen=True, kw_only=True)
class CheckpointVerified(Event):
    """Every byte was read back and matched its digest."""

    step: int
    attempt: int


@dataclass(frozen=True, kw_only=True)
class CheckpointRejected(Event):
    """The checkpoint is damaged and will not be used again."""

    step: int
    attempt: int
    reason: str


@dataclass(frozen=True, kw_only=True)
class CheckpointRemoved(Event):
    """Deleted by retention; or, of a trainer that is not ours, no longer there."""

    step: int
    attempt: int


@dataclass(frozen=True, kw_only=True)
class CheckpointSetAside(Event):
    """What a trainer that resumes from its newest checkpoint must not find was moved away."""

    path: str
    moved_to: str


# ---------------------------------------------------------------- decisions


@dataclass(frozen=True, kw_only=True)
class Decision(Event):
    """What a rule (or a person, or the engine itself) decided about a finding; journaled before the deed.

    `id` is unique in the run. `actions` maps action names to their parameters, in the fixed order of
    the grammar; with mode `advise` nothing of it is done, and with mode `ask` not before a person says so or, where
    `otherwise` is act, it is `due_at`. Without actions it closes what was asked. `nodes` are those the finding is
    about; `blame` says how sure that is. `delay_s`: wait so long before the restart (back-off).
    """

    id: str
    incident: int
    attempt: int
    rule: str
    detector: str
    mode: Literal["act", "advise", "ask"] = "act"
    rung: int = 0
    counts: bool = True
    actions: dict[str, Json] = field(default_factory=dict)
    why: str = ""
    evidence: dict[str, Json] = field(default_factory=dict)
    nodes: tuple[str, ...] = ()
    ranks: tuple[int, ...] = ()
    blame: Literal["certain", "likely", "undecidable", "none"] = "none"
    onset_at: float = 0.0
    onset_step: int = -1
    delay_s: float = 0.0
    due_at: float = 0.0
    otherwise: str = ""


@dataclass(frozen=True, kw_only=True)
class IncidentOpened(Event):
    """Numbers are not as usual since `onset_step`. Nothing is decided yet: most such trouble heals by itself.

    Until it has, checkpoints from before it are kept, and later ones are not good.
    """

    incident: int
    attempt: int
    rule: str
    detector: str
    why: str
    evidence: dict[str, Json] = field(default_factory=dict)
    onset_at: float
    onset_step: int

    @property
    def id(self) -> str:
        """Unique in the run."""
        return f"opened {self.incident}"


@dataclass(frozen=True, kw_only=True)
class IncidentClosed(Event):
    """The trouble is over: it *healed*, it *stayed* until it was the usual, or it was *left* by going back."""

    incident: int
    attempt: int
    outcome: Literal["healed", "stayed", "left"]
    why: str

    @property
    def id(self) -> str:
        """Unique in the run."""
        return f"closed {self.incident}"


Judgement: TypeAlias = Decision | IncidentOpened | IncidentClosed  # what `decide` answers
JUDGEMENTS = (Decision, IncidentOpened, IncidentClosed)


@dataclass(frozen=True, kw_only=True)
class ActionDone(Event):
    """The outcome of one action of a decision."""

    decision: str
    action: str
    ok: bool
    detail: str = ""


@dataclass(frozen=True, kw_only=True)
class Notified(Event):
    """A message for a person, addressed to a channel of the spec."""

    channel: str
    text: str


@dataclass(frozen=True, kw_only=True)
class CommandReceived(Event):
    """A person asked for something through the control path."""

    id: str
    verb: str
    author: str
    args: dict[str, Json] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class CommandAnswered(Event):
    """What came of a command."""

    id: str
    ok: bool
    message: str = ""


# ---------------------------------------------------------------- time and trouble of our own


@dataclass(frozen=True, kw_only=True)
class Tick(Event):
    """A deadline that `decide` had asked for has come."""


@dataclass(frozen=True, kw_only=True)
class Warned(Event):
    """Something a person should know that changes no decision: a repaired line, a full disk, a cold start."""

    text: str


@dataclass(frozen=True, kw_only=True)
class EnvironmentChanged(Event):
    """An attempt runs on something else than the one before. `changes`: what -> what it was, and what it is."""

    attempt: int
    changes: dict[str, Json] = field(default_factory=dict)


# ---------------------------------------------------------------- JSON

_NON_FINITE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


def to_json(event: Event) -> str:
    """One line of JSON. Floats that JSON lacks become the strings "nan", "inf", "-inf"."""
    body = {"type": event.type, **{name: _plain(value) for name, value in vars(event).items()}}
    return json.dumps(body, separators=(",", ":"), allow_nan=False)


def from_json(line: str | bytes) -> Event:
    """The event of a line. Fields unknown to this version are ignored, so newer journals can be read.

    Raises UnknownEvent for an unknown type, ValueError or TypeError for anything malformed.
    """
    body = json.loads(line)
    cls = EVENT_TYPES.get(body.get("type", "")) if isinstance(body, dict) else None
    if cls is None:
        raise UnknownEvent(f"not an event of schema {SCHEMA}: {line[:80]!r}")
    known = _names(cls)
    # Only lists and mappings can stand for something richer.
    return cls(
        **{
            key: _rich(cls, key, value) if type(value) in (list, dict) else value
            for key, value in body.items()
            if key in known
        }
    )


@cache
def _names(cls: type[Event]) -> frozenset[str]:
    return frozenset(f.name for f in fields(cls))


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return "nan" if math.isnan(value) else ("inf" if value > 0 else "-inf")
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, (Sealed, RankProgress, Branch)):
        return {f.name: getattr(value, f.name) for f in fields(value)}
    return value


def _number(value: Any) -> Any:
    return _NON_FINITE.get(value, value) if isinstance(value, str) else value


def _rich(cls: type[Event], name: str, value: Any) -> Any:
    """Undo `_plain` where the field's type is richer than JSON's."""
    if name == "sealed":
        return tuple(Sealed(**item) for item in value)
    if name == "branched_from":
        return Branch(**value)
    if cls is StepsStopped and name == "ranks":
        return {int(rank): RankProgress(**item) for rank, item in value.items()}
    if name == "slots":
        return {node: tuple(ranks) for node, ranks in value.items()}
    if name in ("metrics", "result"):
        return {key: _number(item) for key, item in value.items()}
    if name == "skips":
        return tuple((first, end) for first, end in value)
    if name == "checksums":
        return {what: {int(rank): number for rank, number in of.items()} for what, of in value.items()}
    if name in ("nodes", "ranks", "restore", "parent", "samples", "compute_s") and isinstance(value, list):
        return tuple(value)
    return value
