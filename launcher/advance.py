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

from launcher import attempts, nodes
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
    NodeExamined,
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
    SearchBegan,
    SettingsApplied,
    StepDone,
    StepsMoving,
    StepsStopped,
    TrainerDone,
    TrialsEnded,
    Warned,
)
from launcher.evolve import evolve
from launcher.examined import no_longer, tier_of, to_examine
from launcher.incidents import (
    action_done,
    close_incidents,
    closed,
    decided,
    noted,
    opened,
)
from launcher.lineage import committed, rejected, removed, save_failed, set_aside, verified
from launcher.run import Note, Run, RunState
from launcher.search import search_began, trials_ended
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
    run = attempts.end_attempt(run, event.at, "resumed in a new allocation")
    if event.epoch != run.job_epoch:  # by a person, before the new job has begun
        run = evolve(run, past_jobs=run.past_jobs | {run.job_id})
    return evolve(
        run,
        state=RunState.PENDING,
        nodes={},
        examining={},
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


def _warned(run: Run, event: Warned) -> Run:
    others = tuple(one for one in run.warnings if one.text != event.text)
    return evolve(run, warnings=(*others[1 - _WARNINGS :], event))


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
    if event.verb == "examine" and "refused" not in event.args:
        named, tier = event.args.get("nodes"), tier_of(event.args.get("tier"))
        chosen = map(str, named) if isinstance(named, list) else ()
        run = to_examine(run, event.id, tier, event.at, chosen, is_command=True)
    return run


def _answered(run: Run, event: CommandAnswered) -> Run:
    run = no_longer(run, event.id)
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
    AgentJoined: nodes.joined,
    NodeSilent: nodes.silent,
    NodeBack: nodes.back,
    NodeDown: nodes.down,
    NodeDraining: nodes.draining,
    NodeExamined: nodes.examined,
    SearchBegan: search_began,
    TrialsEnded: trials_ended,
    NodeUndrained: nodes.undrained,
    DrainDone: drained,
    DrainUndone: undone,
    NodeExcluded: nodes.excluded,
    NodeAllowed: nodes.allowed,
    StepsStopped: attempts.steps_stopped,
    StepsMoving: attempts.steps_moving,
    AttemptStarted: attempts.started,
    EnvironmentChanged: attempts.environment_changed,
    RanksUp: attempts.ranks_up,
    RankExited: attempts.rank_exited,
    AttemptEnded: attempts.ended,
    StepDone: attempts.step_done,
    TrainerDone: attempts.trainer_done,
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
