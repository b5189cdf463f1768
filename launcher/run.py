"""The run as a value: `advance(run, event) -> run`, the state machine. Pure.

state       event                                              becomes
----------  -------------------------------------------------  ----------
PENDING     attempt_started                                    STARTING
STARTING    step_done of the attempt                           RUNNING
RUNNING     node_silent (active node), steps_stopped           SUSPECT
SUSPECT     node_back, steps_moving, when nothing else is amiss RUNNING
STARTING, RUNNING, SUSPECT, PENDING
            decision (act) with restart, hold or stop          RECOVERING
RECOVERING  attempt_started                                    STARTING
any live    run_held                                           HELD
HELD        run_released                                       RECOVERING
any live    run_ended                                          SUCCEEDED, FAILED, STOPPED
any         run_resumed                                        PENDING
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from launcher.events import (
    ActionDone,
    AgentJoined,
    AttemptEnded,
    AttemptStarted,
    CheckpointCommitted,
    CheckpointFailed,
    CheckpointId,
    CheckpointRejected,
    CheckpointRemoved,
    CheckpointVerified,
    CommandAnswered,
    CommandReceived,
    Decision,
    EpochStarted,
    Event,
    NodeBack,
    NodeDown,
    NodeSilent,
    RankExited,
    RunEnded,
    RunHeld,
    RunReleased,
    RunResumed,
    RunSubmitted,
    StepDone,
    StepsMoving,
    StepsStopped,
    TrainerDone,
)
from launcher.evolve import evolve

ENDING = frozenset({"restart", "hold", "stop"})  # actions that end the attempt


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
    excluded: str = ""  # why it takes no part; "" when it may


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

    @property
    def id(self) -> CheckpointId:
        return (self.step, self.attempt)

    @property
    def usable(self) -> bool:
        return not self.rejected and not self.removed


@dataclass(frozen=True)
class Attempt:
    """One set of ranks started together. `last_step`: steps completed, counted from the start of the run."""

    number: int
    started_at: float
    slots: Mapping[str, tuple[int, ...]]
    incarnations: Mapping[str, str]
    restore: CheckpointId | None
    first_step_at: float | None = None
    last_step: int = 0
    last_step_at: float | None = None
    ended_at: float | None = None
    reason: str = ""
    exits: Mapping[int, int] = field(default_factory=dict)  # rank -> code
    done: TrainerDone | None = None

    @property
    def ranks(self) -> int:
        return sum(len(ranks) for ranks in self.slots.values())


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
    state: str = "OPEN"  # OPEN, RECOVERED, HELD, ENDED; NOTED or ADVISED where training went on


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
    nodes_wanted: int = 0
    ranks_per_node: int = 0
    spares_wanted: int = 0
    target_step: int | None = None
    probation: int = 0
    save_every: int | None = None
    step: int = 0  # steps completed in the current line of the run
    metrics: Mapping[str, float] = field(default_factory=dict)
    nodes: Mapping[str, Node] = field(default_factory=dict)
    attempts: tuple[Attempt, ...] = ()
    checkpoints: Mapping[CheckpointId, Checkpoint] = field(default_factory=dict)
    head: CheckpointId | None = None  # newest checkpoint of the current line
    incidents: tuple[Incident, ...] = ()
    pending: Decision | None = None  # a restart, hold or stop that is being carried out
    pending_done: frozenset[str] = frozenset()  # its actions that already are
    steps_stopped: bool = False
    hold_reason: str = ""
    stop_requested: str = ""  # who asked
    stop_requested_at: float = 0.0
    save_requested: bool = False
    commands: Mapping[str, CommandReceived] = field(default_factory=dict)  # not yet answered
    recovering_since: float | None = None
    restarts: int = 0
    lost_steps: int = 0
    ended_reason: str = ""

    @property
    def attempt(self) -> Attempt | None:
        """The newest attempt, ended or not."""
        return self.attempts[-1] if self.attempts else None

    @property
    def live_attempt(self) -> Attempt | None:
        """The attempt whose ranks may be alive."""
        return self.attempt if self.attempt and self.attempt.ended_at is None else None

    def lineage(self) -> Iterator[Checkpoint]:
        """The line of checkpoints that led to the present, newest first."""
        at = self.head
        while at is not None and at in self.checkpoints:
            yield self.checkpoints[at]
            parent = self.checkpoints[at].parent
            at = parent if parent is not None and parent[0] < at[0] else None

    def is_good(self, checkpoint: Checkpoint) -> bool:
        """Complete, read back in full, and followed by `probation` healthy steps."""
        tried = checkpoint.healthy_steps >= self.probation
        return checkpoint.usable and checkpoint.verified and tried and not checkpoint.doubted


def fold(events: Iterable[Event], run: Run | None = None) -> Run:
    """The run after all these events."""
    run = Run() if run is None else run
    for event in events:
        run = advance(run, event)
    return run


def advance(run: Run, event: Event) -> Run:
    """The run after one event. Never raises: an event that does not fit the state changes nothing but the clock."""
    handler = _HANDLERS.get(type(event))
    run = handler(run, event) if handler else run
    return evolve(run, updated_at=max(run.updated_at, event.at))


# ---------------------------------------------------------------- the run


def _submitted(run: Run, event: RunSubmitted) -> Run:
    return evolve(
        run,
        name=event.run,
        submitted_at=event.at,
        nodes_wanted=event.nodes,
        ranks_per_node=event.ranks_per_node,
        spares_wanted=event.spares,
        target_step=event.target_step,
        probation=event.probation,
        save_every=event.save_every,
    )


def _epoch_started(run: Run, event: EpochStarted) -> Run:
    if not event.node:  # written by a command, not by a supervisor
        return evolve(run, epoch=event.epoch)
    return evolve(
        run,
        epoch=event.epoch,
        supervisor_host=event.host,
        supervisor_pid=event.pid,
        supervisor_node=event.node,
        job_id=event.job_id,
    )


def _held(run: Run, event: RunHeld) -> Run:
    if run.state.is_terminal:
        return run
    run = evolve(run, state=RunState.HELD, hold_reason=event.reason, pending=None, recovering_since=None)
    return _close_incidents(run, "HELD")


def _released(run: Run, event: RunReleased) -> Run:
    if run.state is not RunState.HELD:
        return run
    return evolve(run, state=RunState.RECOVERING, hold_reason="", pending=None, recovering_since=event.at)


def _ended(run: Run, event: RunEnded) -> Run:
    run = _close_incidents(run, "ENDED")
    return evolve(
        run,
        state=RunState(event.state),
        ended_reason=event.reason,
        pending=None,
        stop_requested="",
        hold_reason="",
        steps_stopped=False,
        recovering_since=None,
    )


def _resumed(run: Run, event: RunResumed) -> Run:
    """All processes of the former allocation are gone; so is everything known about its nodes."""
    run = _end_attempt(run, event.at, "resumed in a new allocation")
    return evolve(
        run,
        state=RunState.PENDING,
        nodes={},
        pending=None,
        pending_done=frozenset(),
        hold_reason="",
        stop_requested="",
        ended_reason="",
        steps_stopped=False,
        recovering_since=None,
    )


def _close_incidents(run: Run, state: str) -> Run:
    incidents = tuple(evolve(i, state=state) if i.state == "OPEN" else i for i in run.incidents)
    return evolve(run, incidents=incidents)


# ---------------------------------------------------------------- nodes


def _agent_joined(run: Run, event: AgentJoined) -> Run:
    node = Node(event.node, event.index, event.incarnation, event.host, event.port, event.pid)
    known = run.nodes.get(event.node)
    if known and known.incarnation == event.incarnation:
        node = evolve(node, excluded=known.excluded)
    return _with_node(run, node)


def _node_silent(run: Run, event: NodeSilent) -> Run:
    node = run.nodes.get(event.node)
    if node is None or node.state is NodeState.LOST:
        return run
    return _look(_with_node(run, evolve(node, state=NodeState.SUSPECT, silent_since=event.since)))


def _node_back(run: Run, event: NodeBack) -> Run:
    node = run.nodes.get(event.node)
    if node is None:
        return run
    return _look(_with_node(run, evolve(node, state=NodeState.ALIVE, silent_since=None)))


def _node_down(run: Run, event: NodeDown) -> Run:
    node = run.nodes.get(event.node)
    if node is None:
        return run
    return _look(_with_node(run, evolve(node, state=NodeState.LOST)))


def _steps_stopped(run: Run, event: StepsStopped) -> Run:
    if not _is_current(run, event.attempt):
        return run
    return _look(evolve(run, steps_stopped=event.proof))


def _steps_moving(run: Run, event: StepsMoving) -> Run:
    return _look(evolve(run, steps_stopped=False)) if _is_current(run, event.attempt) else run


def _with_node(run: Run, node: Node) -> Run:
    return evolve(run, nodes={**run.nodes, node.name: node})


def _look(run: Run) -> Run:
    """RUNNING or SUSPECT, by what is amiss now."""
    if run.state not in (RunState.RUNNING, RunState.SUSPECT) or run.attempt is None:
        return run
    silent = any(run.nodes[name].state is not NodeState.ALIVE for name in run.attempt.slots if name in run.nodes)
    return evolve(run, state=RunState.SUSPECT if silent or run.steps_stopped else RunState.RUNNING)


# ---------------------------------------------------------------- attempts


def _is_current(run: Run, attempt: int) -> bool:
    return run.live_attempt is not None and run.live_attempt.number == attempt


def _attempt_started(run: Run, event: AttemptStarted) -> Run:
    run = _end_attempt(run, event.at, "superseded")
    base = event.restore[0] if event.restore else 0
    lost = max(0, run.step - base)
    attempt = Attempt(event.attempt, event.at, event.slots, event.incarnations, event.restore, last_step=base)
    incidents = tuple(
        evolve(i, lost_steps=lost) if i.state == "OPEN" and i.lost_steps is None else i for i in run.incidents
    )
    nodes = {name: evolve(node, excluded="") for name, node in run.nodes.items()}  # it held for this choice
    return evolve(
        run,
        # A hold or an end that came in between stands: these ranks will not be started.
        state=run.state if run.state is RunState.HELD or run.state.is_terminal else RunState.STARTING,
        attempts=(*run.attempts, attempt),
        head=event.restore,
        step=base,
        lost_steps=run.lost_steps + lost,
        restarts=run.restarts + (1 if run.attempts else 0),
        incidents=incidents,
        nodes=nodes,
        pending=None,
        pending_done=frozenset(),
        steps_stopped=False,
        save_requested=False,
        recovering_since=None,
    )


def _rank_exited(run: Run, event: RankExited) -> Run:
    if not _is_current(run, event.attempt):
        return run
    attempt = run.attempts[-1]
    return _with_attempt(run, evolve(attempt, exits={**attempt.exits, event.rank: event.code}))


def _attempt_ended(run: Run, event: AttemptEnded) -> Run:
    if not _is_current(run, event.attempt):
        return run
    return _end_attempt(run, event.at, event.reason)


def _end_attempt(run: Run, at: float, reason: str) -> Run:
    if run.live_attempt is None:
        return run
    return _with_attempt(run, evolve(run.live_attempt, ended_at=at, reason=reason))


def _with_attempt(run: Run, attempt: Attempt) -> Run:
    return evolve(run, attempts=(*run.attempts[:-1], attempt))


def _step_done(run: Run, event: StepDone) -> Run:
    if not _is_current(run, event.attempt) or event.step < run.step:
        return run
    attempt, completed = run.attempts[-1], event.step + 1
    first = attempt.first_step_at is None
    attempt = evolve(
        attempt,
        first_step_at=event.at if first else attempt.first_step_at,
        last_step=completed,
        last_step_at=event.at,
    )
    run = evolve(_with_attempt(run, attempt), step=completed, metrics=event.metrics)
    if first:
        run = _recovered(run, event.at)
    run = _healthy_step(run, event)
    if run.state is RunState.STARTING:
        run = evolve(run, state=RunState.RUNNING)
    return run


def _recovered(run: Run, at: float) -> Run:
    incidents = tuple(
        evolve(i, state="RECOVERED", recovered_at=at) if i.state in ("OPEN", "HELD") else i for i in run.incidents
    )
    return evolve(run, incidents=incidents)


def _healthy_step(run: Run, event: StepDone) -> Run:
    """Count the step for every checkpoint of the line that is still on probation, or cast doubt on it."""
    healthy = all(math.isfinite(value) for value in event.metrics.values())
    changed: dict[CheckpointId, Checkpoint] = {}
    for checkpoint in run.lineage():
        if checkpoint.healthy_steps >= run.probation:
            break  # older ones have passed as well
        if event.step < checkpoint.step:
            continue
        changed[checkpoint.id] = (
            evolve(checkpoint, healthy_steps=checkpoint.healthy_steps + 1)
            if healthy
            else evolve(checkpoint, doubted=True)
        )
    return evolve(run, checkpoints={**run.checkpoints, **changed}) if changed else run


def _trainer_done(run: Run, event: TrainerDone) -> Run:
    if not _is_current(run, event.attempt):
        return run
    return _with_attempt(run, evolve(run.attempts[-1], done=event))


# ---------------------------------------------------------------- checkpoints


def _committed(run: Run, event: CheckpointCommitted) -> Run:
    """A late commit of an ended attempt exists too, but is not the head of another attempt's line.

    Steps done while it was being written count for its probation already. One told twice changes nothing.
    """
    if (event.step, event.attempt) in run.checkpoints:
        return run
    current = run.attempt is not None and run.attempt.number == event.attempt
    already = max(0, run.step - event.step) if current else 0
    finite = all(math.isfinite(value) for value in run.metrics.values()) if current else True
    checkpoint = Checkpoint(
        event.step, event.attempt, event.parent, event.manifest_digest, event.bytes, event.at,
        healthy_steps=already if finite else 0, doubted=not finite,
    )  # fmt: skip
    run = evolve(run, checkpoints={**run.checkpoints, checkpoint.id: checkpoint})
    if current:
        run = evolve(run, head=checkpoint.id, save_requested=False)
    return run


def _save_failed(run: Run, _event: CheckpointFailed) -> Run:
    return evolve(run, save_requested=False)


def _verified(run: Run, event: CheckpointVerified) -> Run:
    return _with_checkpoint(run, (event.step, event.attempt), verified=True)


def _rejected(run: Run, event: CheckpointRejected) -> Run:
    return _with_checkpoint(run, (event.step, event.attempt), rejected=event.reason)


def _removed(run: Run, event: CheckpointRemoved) -> Run:
    return _with_checkpoint(run, (event.step, event.attempt), removed=True)


def _with_checkpoint(run: Run, id_: CheckpointId, **changes: object) -> Run:
    known = run.checkpoints.get(id_)
    if known is None:
        return run
    return evolve(run, checkpoints={**run.checkpoints, id_: evolve(known, **changes)})  # type: ignore[arg-type]


# ---------------------------------------------------------------- decisions and commands


def _decision(run: Run, event: Decision) -> Run:
    run = _tell_incident(run, event)
    if event.mode != "act" or run.state.is_terminal:
        return run
    nodes = dict(run.nodes)
    for name in event.nodes:
        if name not in nodes or (event.detector == "node_lost" and _came_back(run, nodes[name])):
            continue
        if event.detector == "node_lost":
            nodes[name] = evolve(nodes[name], state=NodeState.LOST)
        if "exclude" in event.actions:
            nodes[name] = evolve(nodes[name], excluded=event.why or event.rule)
    run = evolve(run, nodes=nodes)
    if "save" in event.actions and not event.actions.keys() & ENDING:
        run = evolve(run, save_requested=True)
    if not event.actions.keys() & ENDING or run.state is RunState.HELD:
        return run
    return evolve(run, state=RunState.RECOVERING, pending=event, pending_done=frozenset(), recovering_since=event.at)


def _came_back(run: Run, node: Node) -> bool:
    """Whether an agent was started anew since the attempt began: what is lost is the old one, not this."""
    return run.attempt is not None and run.attempt.incarnations.get(node.name, node.incarnation) != node.incarnation


def _tell_incident(run: Run, event: Decision) -> Run:
    for position, incident in enumerate(run.incidents):
        if incident.number == event.incident:
            longer = evolve(
                incident,
                decisions=(*incident.decisions, event.id),
                nodes=tuple(dict.fromkeys((*incident.nodes, *event.nodes))),
                actions={**incident.actions, **event.actions},
            )
            return evolve(run, incidents=(*run.incidents[:position], longer, *run.incidents[position + 1 :]))
    incident = Incident(
        event.incident, event.rule, event.detector, event.attempt, event.onset_at or event.at, event.at, run.step,
        event.why, event.nodes, event.blame, event.mode, event.actions, (event.id,), event.evidence,
        state=_state_of(event),
    )  # fmt: skip
    return evolve(run, incidents=(*run.incidents, incident))


def _state_of(decision: Decision) -> str:
    if decision.mode != "act":
        return "ADVISED"
    return "OPEN" if decision.actions.keys() & ENDING else "NOTED"


def _action_done(run: Run, event: ActionDone) -> Run:
    if run.pending is None or event.decision != run.pending.id:
        return run
    return evolve(run, pending_done=run.pending_done | {event.action})


def _command(run: Run, event: CommandReceived) -> Run:
    run = evolve(run, commands={**run.commands, event.id: event})
    if event.verb == "stop" and not run.state.is_terminal:
        run = evolve(run, stop_requested=event.author, stop_requested_at=event.at)
    if event.verb == "save":
        run = evolve(run, save_requested=True)
    return run


def _answered(run: Run, event: CommandAnswered) -> Run:
    return evolve(run, commands={id_: command for id_, command in run.commands.items() if id_ != event.id})


_HANDLERS = {
    RunSubmitted: _submitted,
    EpochStarted: _epoch_started,
    RunHeld: _held,
    RunReleased: _released,
    RunEnded: _ended,
    RunResumed: _resumed,
    AgentJoined: _agent_joined,
    NodeSilent: _node_silent,
    NodeBack: _node_back,
    NodeDown: _node_down,
    StepsStopped: _steps_stopped,
    StepsMoving: _steps_moving,
    AttemptStarted: _attempt_started,
    RankExited: _rank_exited,
    AttemptEnded: _attempt_ended,
    StepDone: _step_done,
    TrainerDone: _trainer_done,
    CheckpointCommitted: _committed,
    CheckpointFailed: _save_failed,
    CheckpointVerified: _verified,
    CheckpointRejected: _rejected,
    CheckpointRemoved: _removed,
    Decision: _decision,
    ActionDone: _action_done,
    CommandReceived: _command,
    CommandAnswered: _answered,
}
