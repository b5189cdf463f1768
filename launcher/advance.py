"""`advance(run, event) -> run`: the state machine. Pure.

state       event                                              becomes
----------  -------------------------------------------------  ----------
PENDING     attempt_started                                    STARTING
STARTING    step_done of the attempt, or ranks_up              RUNNING
RUNNING     node_silent (active node), steps_stopped           SUSPECT
SUSPECT     node_back, steps_moving, when nothing else is amiss RUNNING
STARTING, RUNNING, SUSPECT, PENDING
            decision (act) with restart, hold or stop          RECOVERING
RUNNING, SUSPECT
            attempt_ended, so that a node can be replaced      RECOVERING
RECOVERING  attempt_started                                    STARTING
any live    run_held                                           HELD
HELD        run_released, a person's decision with one of these RECOVERING
HELD, with its ranks left waiting
            step_done, steps_moving                            RUNNING
any live    run_paused                                         PAUSED
PAUSED      run_unpaused                                       RECOVERING
any live    run_ended                                          SUCCEEDED, FAILED, STOPPED
any         run_resumed                                        PENDING
"""

from __future__ import annotations

from collections.abc import Iterable

from launcher.drain import drained, undone
from launcher.events import (
    ActionDone,
    AgentJoined,
    Asked,
    AttemptEnded,
    AttemptStarted,
    CheckpointCommitted,
    CheckpointFailed,
    CheckpointRejected,
    CheckpointRemoved,
    CheckpointSetAside,
    CheckpointVerified,
    CommandAnswered,
    CommandReceived,
    Decision,
    DrainDone,
    DrainUndone,
    EnvironmentChanged,
    EpochStarted,
    Event,
    IncidentClosed,
    IncidentOpened,
    JobEnding,
    JobOver,
    NodeAllowed,
    NodeBack,
    NodeDown,
    NodeDraining,
    NodeExcluded,
    NodeSilent,
    NodeUndrained,
    RankExited,
    RanksUp,
    RunAmended,
    RunEnded,
    RunHeld,
    RunPaused,
    RunReleased,
    RunResumed,
    RunSubmitted,
    RunUnpaused,
    SettingsApplied,
    StepDone,
    StepsMoving,
    StepsStopped,
    TrainerDone,
    Warned,
)
from launcher.evolve import evolve
from launcher.incidents import (
    action_done,
    close_incidents,
    closed,
    decided,
    no_more_asked,
    noted,
    opened,
    recovered,
    spared,
)
from launcher.lineage import committed, healthy_step, rejected, removed, save_failed, set_aside, verified
from launcher.run import HALTED, Attempt, Node, NodeState, Note, Run, RunState
from launcher.settings import applied

_WARNINGS = 20  # that are kept


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


def _submitted(run: Run, event: RunSubmitted) -> Run:
    branch = event.branched_from
    run = evolve(run, name=event.run, submitted_at=event.at, branched_from=branch, step=branch.step if branch else 0)
    return _asked(run, event)


def _asked(run: Run, event: Asked) -> Run:
    """What a person asks for anew is what they want: a policy's change of it is forgotten."""
    own = run.own_settings
    return evolve(
        run,
        nodes_wanted=event.nodes,
        ranks_per_node=event.ranks_per_node,
        spares_wanted=event.spares,
        target_step=event.target_step,
        probation=event.probation,
        save_every=event.save_every,
        own_settings=event.settings,
        settings={name: value for name, value in run.settings.items() if own.get(name) == event.settings.get(name)},
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
        job_epoch=event.epoch,
        past_jobs=(run.past_jobs | {run.job_id}) - {event.job_id, ""},
    )


def _job_ending(run: Run, event: JobEnding) -> Run:
    if run.state.is_terminal:
        return run
    return evolve(run, job_ending=event.reason, job_ending_at=event.at, job_decided=event.decided)


def _job_over(run: Run, event: JobOver) -> Run:
    return evolve(run, job_over=event.reason) if run.job_ending else run


def _held(run: Run, event: RunHeld) -> Run:
    if run.state.is_terminal:
        return run
    if event.keeps_ranks:
        run = evolve(run, state=RunState.HELD, hold_reason=event.reason, holding=None, keeps_ranks=True)
        return close_incidents(run, "HELD")
    run = evolve(
        run,
        holding=None,
        keeps_ranks=False,
        state=RunState.HELD,
        hold_reason=event.reason,
        hold_requested="",
        paused_by="",
        pending=None,
        replace=None,
        replacing_since=None,
        recovering_since=None,
    )
    return close_incidents(run, "HELD")


def _released(run: Run, event: RunReleased) -> Run:
    if run.state is not RunState.HELD:
        return run
    return evolve(
        run, state=RunState.RECOVERING, hold_reason="", keeps_ranks=False, pending=None, recovering_since=event.at
    )


def _paused(run: Run, event: RunPaused) -> Run:
    """What is pending waits, as does the wish to replace a node: nothing is forgotten by a pause."""
    if run.state.is_terminal:
        return run
    return evolve(
        run,
        state=RunState.PAUSED,
        paused_by=event.reason,
        replacing_since=None,
        steps_stopped=False,
        save_requested_at=None,
        recovering_since=None,
    )


def _unpaused(run: Run, event: RunUnpaused) -> Run:
    if run.state is not RunState.PAUSED:
        return run
    return evolve(run, state=RunState.RECOVERING, paused_by="", recovering_since=event.at)


def _ended(run: Run, event: RunEnded) -> Run:
    run = close_incidents(run, "ENDED")
    return evolve(
        run,
        state=RunState(event.state),
        ended_reason=event.reason,
        pending=None,
        replace=None,
        replacing_since=None,
        stop_requested="",
        stop_now=False,
        hold_requested="",
        hold_reason="",
        keeps_ranks=False,
        holding=None,
        paused_by="",
        steps_stopped=False,
        recovering_since=None,
    )


def _resumed(run: Run, event: RunResumed) -> Run:
    """All processes of the former allocation are gone; so is everything known about its nodes."""
    run = _end_attempt(run, event.at, "resumed in a new allocation")
    if event.epoch != run.job_epoch:  # by a person, before the new job has begun
        run = evolve(run, past_jobs=run.past_jobs | {run.job_id})
    return evolve(
        run,
        state=RunState.PENDING,
        nodes={},
        broken={},
        drain_refused="",
        pending=None,
        pending_done=frozenset(),
        replace=None,
        replacing_since=None,
        hold_reason="",
        keeps_ranks=False,
        holding=None,
        hold_requested="",
        paused_by="",
        stop_requested="",
        stop_now=False,
        ended_reason="",
        job_ending="",
        job_over="",
        steps_stopped=False,
        recovering_since=None,
    )


def _agent_joined(run: Run, event: AgentJoined) -> Run:
    node = Node(event.node, event.index, event.incarnation, event.host, event.port, event.pid)
    known = run.nodes.get(event.node)
    if known and known.incarnation == event.incarnation:
        node = evolve(node, excluded=known.excluded)
    if known:
        node = evolve(node, draining=known.draining, barred=known.barred)
    if run.state is RunState.PENDING and run.recovering_since is None:
        run = evolve(run, recovering_since=event.at)
    return _with_node(run, node)


def _node_silent(run: Run, event: NodeSilent) -> Run:
    node = run.nodes.get(event.node)
    if node is None or node.state is NodeState.LOST or run.state.is_terminal:
        return run
    return _look(_with_node(run, evolve(node, state=NodeState.SUSPECT, silent_since=event.since)))


def _node_back(run: Run, event: NodeBack) -> Run:
    node = run.nodes.get(event.node)
    if node is None:
        return run
    return _look(_with_node(run, evolve(node, state=NodeState.ALIVE, silent_since=None)))


def _node_down(run: Run, event: NodeDown) -> Run:
    """A node that leaves because the run is over is not lost."""
    node = run.nodes.get(event.node)
    if node is None or run.state.is_terminal:
        return run
    return _look(_with_node(run, evolve(node, state=NodeState.LOST)))


def _node_draining(run: Run, event: NodeDraining) -> Run:
    node = run.nodes.get(event.node)
    return run if node is None else _with_node(run, evolve(node, draining=event.reason))


def _node_undrained(run: Run, event: NodeUndrained) -> Run:
    node = run.nodes.get(event.node)
    return run if node is None else spared(_with_node(run, evolve(node, draining="")), event.node)


def _node_excluded(run: Run, event: NodeExcluded) -> Run:
    node = run.nodes.get(event.node)
    return run if node is None else _with_node(run, evolve(node, barred=event.reason))


def _node_allowed(run: Run, event: NodeAllowed) -> Run:
    node = run.nodes.get(event.node)
    return run if node is None else _with_node(run, evolve(node, barred=""))


def _steps_stopped(run: Run, event: StepsStopped) -> Run:
    if not _is_current(run, event.attempt):
        return run
    return _look(evolve(run, steps_stopped=event.proof))


def _steps_moving(run: Run, event: StepsMoving) -> Run:
    if not _is_current(run, event.attempt):
        return run
    return _look(evolve(_gone_on(run, event.at), steps_stopped=False))


def _gone_on(run: Run, at: float) -> Run:
    """What ranks had waited for is there again: nobody need do anything."""
    if not run.keeps_ranks:
        return evolve(run, holding=None) if run.holding else run
    return recovered(evolve(run, state=RunState.RUNNING, keeps_ranks=False, hold_reason=""), at)


def _with_node(run: Run, node: Node) -> Run:
    return evolve(run, nodes={**run.nodes, node.name: node})


def _look(run: Run) -> Run:
    """RUNNING or SUSPECT, by what is amiss now."""
    if run.state not in (RunState.RUNNING, RunState.SUSPECT) or run.attempt is None:
        return run
    silent = any(run.nodes[name].state is not NodeState.ALIVE for name in run.attempt.slots if name in run.nodes)
    return evolve(run, state=RunState.SUSPECT if silent or run.steps_stopped else RunState.RUNNING)


def _is_current(run: Run, attempt: int) -> bool:
    return run.live_attempt is not None and run.live_attempt.number == attempt


def _attempt_started(run: Run, event: AttemptStarted) -> Run:
    run = no_more_asked(_end_attempt(run, event.at, "superseded"))
    base = event.restore[0] if event.restore else 0
    attempt = Attempt(
        event.attempt, event.at, event.slots, event.incarnations, event.restore, event.resumes_itself, event.observed,
        event.settings, event.skips, from_step=None if event.resumes_itself else base, last_step=base,
    )  # fmt: skip
    if run.is_unobserved:
        run = evolve(run, step=base)  # what is lost nobody knows
    elif not event.resumes_itself:
        run = _set_back(run, base)
    nodes = {name: evolve(node, excluded="") for name, node in run.nodes.items()}  # it held for this choice
    return evolve(
        run,
        # A halt or an end that came in between stands: these ranks will not be started.
        state=run.state if run.state in HALTED or run.state.is_terminal else RunState.STARTING,
        attempts=(*run.attempts, attempt),
        head=event.restore,
        nodes=nodes,
        pending=None,
        pending_done=frozenset(),
        replace=None,
        replacing_since=None,
        steps_stopped=False,
        asking=None,  # it begins with all of it
        holding=None,
        save_requested_at=None,
        save_beyond=0,
        recovering_since=None,
    )


def _set_back(run: Run, base: int) -> Run:
    """What was done beyond `base` steps is lost."""
    lost = max(0, run.step - base)
    incidents = tuple(
        evolve(i, lost_steps=lost) if i.state == "OPEN" and i.lost_steps is None else i for i in run.incidents
    )
    metrics = {} if lost else run.metrics  # they were of a step that is no more
    return evolve(run, step=base, lost_steps=run.lost_steps + lost, incidents=incidents, metrics=metrics)


def _environment_changed(run: Run, event: EnvironmentChanged) -> Run:
    """It is told when it is known: that may be after the attempt."""
    attempts = (evolve(one, differs=event.changes) if one.number == event.attempt else one for one in run.attempts)
    return evolve(run, attempts=tuple(attempts))


def _warned(run: Run, event: Warned) -> Run:
    others = tuple(one for one in run.warnings if one.text != event.text)
    return evolve(run, warnings=(*others[1 - _WARNINGS :], event))


def _ranks_up(run: Run, event: RanksUp) -> Run:
    if not _is_current(run, event.attempt) or run.state is not RunState.STARTING or not run.is_unobserved:
        return run
    run = _with_attempt(run, evolve(run.attempts[-1], up_since=event.since))
    return evolve(recovered(run, event.since), state=RunState.RUNNING)


def _rank_exited(run: Run, event: RankExited) -> Run:
    if not _is_current(run, event.attempt):
        return run
    attempt = run.attempts[-1]
    return _with_attempt(run, evolve(attempt, exits={**attempt.exits, event.rank: event.code}))


def _attempt_ended(run: Run, event: AttemptEnded) -> Run:
    if not _is_current(run, event.attempt):
        return run
    run = _end_attempt(run, event.at, event.reason)
    if run.state in HALTED:
        return run
    if run.job_ending:
        return evolve(run, state=RunState.PENDING, pending=None)
    if run.replacing_since is not None and run.pending is None:
        return evolve(run, state=RunState.RECOVERING, recovering_since=event.at)
    return run


def _end_attempt(run: Run, at: float, reason: str) -> Run:
    if run.live_attempt is None:
        return run
    return _with_attempt(run, evolve(run.live_attempt, ended_at=at, reason=reason))


def _with_attempt(run: Run, attempt: Attempt) -> Run:
    return evolve(run, attempts=(*run.attempts[:-1], attempt))


def _step_done(run: Run, event: StepDone) -> Run:
    if not _is_current(run, event.attempt):
        return run
    run = _gone_on(run, event.at)
    attempt, completed = run.attempts[-1], event.step + 1
    first = attempt.first_step_at is None
    if first and attempt.resumes_itself:
        run = _set_back(run, min(run.step, event.step))
    if event.step < run.step:
        return run
    before, stride = run.step, run.stride if first else max(run.stride, completed - run.step)
    attempt = evolve(
        attempt,
        first_step_at=event.at if first else attempt.first_step_at,
        from_step=event.step if first and attempt.resumes_itself else attempt.from_step,
        last_step=completed,
        last_step_at=event.at,
    )
    run = evolve(_with_attempt(run, attempt), step=completed, stride=stride, metrics=event.metrics)
    if event.samples is not None:
        run = evolve(run, newest_samples=(event.step, *event.samples))
    if run.save_requested_at is not None and event.at <= run.save_requested_at:
        run = evolve(run, save_beyond=completed)
    if first:
        run = recovered(run, event.at)
    run = healthy_step(run, event, before)
    if run.state is RunState.STARTING:
        run = evolve(run, state=RunState.RUNNING)
    return run


def _trainer_done(run: Run, event: TrainerDone) -> Run:
    if not _is_current(run, event.attempt):
        return run
    return _with_attempt(run, evolve(run.attempts[-1], done=event))


def _command(run: Run, event: CommandReceived) -> Run:
    run = evolve(run, commands={**run.commands, event.id: event})
    if event.verb == "stop" and not run.state.is_terminal:
        now = run.stop_now or event.args.get("now") is True
        run = evolve(run, stop_requested=event.author, stop_requested_at=event.at, stop_now=now)
    if event.verb == "note":
        note = Note(event.at, event.author, str(event.args.get("text", "")))
        run = noted(run, event.args.get("incident"), note)
    may_be_held = not run.state.is_terminal and run.state is not RunState.HELD
    if event.verb == "hold" and "incident" not in event.args and may_be_held:
        reason = f"{event.author}: {event.args.get('reason') or 'no reason given'}"
        run = evolve(run, hold_requested=reason, hold_requested_at=event.at)
    if event.verb == "pause" and "refused" not in event.args and run.state is not RunState.HELD:
        now, since = event.args.get("now") is True, run.pause_requested_at if run.paused_by else event.at
        run = evolve(run, paused_by=str(event.args.get("reason")), pause_requested_at=since, pause_now=now)
    if event.verb == "save" and "refused" not in event.args:
        run = evolve(run, save_requested_at=event.at, save_beyond=run.step)
    return run


def _answered(run: Run, event: CommandAnswered) -> Run:
    return evolve(run, commands={id_: command for id_, command in run.commands.items() if id_ != event.id})


_HANDLERS = {
    RunSubmitted: _submitted,
    RunAmended: _asked,
    EpochStarted: _epoch_started,
    RunHeld: _held,
    RunReleased: _released,
    RunPaused: _paused,
    RunUnpaused: _unpaused,
    RunEnded: _ended,
    RunResumed: _resumed,
    JobEnding: _job_ending,
    JobOver: _job_over,
    AgentJoined: _agent_joined,
    NodeSilent: _node_silent,
    NodeBack: _node_back,
    NodeDown: _node_down,
    NodeDraining: _node_draining,
    NodeUndrained: _node_undrained,
    DrainDone: drained,
    DrainUndone: undone,
    NodeExcluded: _node_excluded,
    NodeAllowed: _node_allowed,
    StepsStopped: _steps_stopped,
    StepsMoving: _steps_moving,
    AttemptStarted: _attempt_started,
    EnvironmentChanged: _environment_changed,
    RanksUp: _ranks_up,
    RankExited: _rank_exited,
    AttemptEnded: _attempt_ended,
    StepDone: _step_done,
    TrainerDone: _trainer_done,
    SettingsApplied: applied,
    CheckpointCommitted: committed,
    CheckpointFailed: save_failed,
    CheckpointVerified: verified,
    CheckpointRejected: rejected,
    CheckpointRemoved: removed,
    CheckpointSetAside: set_aside,
    Decision: decided,
    IncidentOpened: opened,
    IncidentClosed: closed,
    ActionDone: action_done,
    CommandReceived: _command,
    CommandAnswered: _answered,
    Warned: _warned,
}
