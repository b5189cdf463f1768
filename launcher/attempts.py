"""What events make of the attempts of a run: ranks that come, step and go. Pure."""

from __future__ import annotations

from launcher.events import (
    AttemptEnded,
    AttemptStarted,
    EnvironmentChanged,
    RankExited,
    RanksUp,
    StepDone,
    StepsMoving,
    StepsStopped,
    TrainerDone,
)
from launcher.evolve import evolve
from launcher.incidents import no_more_asked, recovered
from launcher.lineage import healthy_step
from launcher.nodes import looked_at
from launcher.run import HALTED, Attempt, Run, RunState


def started(run: Run, event: AttemptStarted) -> Run:
    run = no_more_asked(end_attempt(run, event.at, "superseded"))
    base = event.restore[0] if event.restore else 0
    attempt = Attempt(
        event.attempt, event.at, event.slots, event.incarnations, event.restore, event.resumes_itself, event.observed,
        event.settings, event.skips, from_step=None if event.resumes_itself else base, last_step=base,
    )  # fmt: skip
    if run.is_unobserved:
        run = evolve(run, step=base)  # what is lost nobody knows
    elif not event.resumes_itself:
        run = _set_back(run, base)
    nodes = {name: evolve(node, excluded="", avoided="") for name, node in run.nodes.items()}  # it held for this choice
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


def environment_changed(run: Run, event: EnvironmentChanged) -> Run:
    """It is told when it is known: that may be after the attempt."""
    attempts = (evolve(one, differs=event.changes) if one.number == event.attempt else one for one in run.attempts)
    return evolve(run, attempts=tuple(attempts))


def ranks_up(run: Run, event: RanksUp) -> Run:
    if not _is_current(run, event.attempt) or run.state is not RunState.STARTING or not run.is_unobserved:
        return run
    run = _with_attempt(run, evolve(run.attempts[-1], up_since=event.since))
    return evolve(recovered(run, event.since), state=RunState.RUNNING)


def rank_exited(run: Run, event: RankExited) -> Run:
    if not _is_current(run, event.attempt):
        return run
    attempt = run.attempts[-1]
    return _with_attempt(run, evolve(attempt, exits={**attempt.exits, event.rank: event.code}))


def ended(run: Run, event: AttemptEnded) -> Run:
    if not _is_current(run, event.attempt):
        return run
    run = end_attempt(run, event.at, event.reason)
    if run.state in HALTED:
        return run
    if run.job_ending:
        return evolve(run, state=RunState.PENDING, pending=None)
    if run.replacing_since is not None and run.pending is None:
        return evolve(run, state=RunState.RECOVERING, recovering_since=event.at)
    return run


def end_attempt(run: Run, at: float, reason: str) -> Run:
    if run.live_attempt is None:
        return run
    return _with_attempt(run, evolve(run.live_attempt, ended_at=at, reason=reason))


def _with_attempt(run: Run, attempt: Attempt) -> Run:
    return evolve(run, attempts=(*run.attempts[:-1], attempt))


def step_done(run: Run, event: StepDone) -> Run:
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


def trainer_done(run: Run, event: TrainerDone) -> Run:
    if not _is_current(run, event.attempt):
        return run
    return _with_attempt(run, evolve(run.attempts[-1], done=event))


def steps_stopped(run: Run, event: StepsStopped) -> Run:
    if not _is_current(run, event.attempt):
        return run
    return looked_at(evolve(run, steps_stopped=event.proof))


def steps_moving(run: Run, event: StepsMoving) -> Run:
    if not _is_current(run, event.attempt):
        return run
    return looked_at(evolve(_gone_on(run, event.at), steps_stopped=False))


def _gone_on(run: Run, at: float) -> Run:
    """What ranks had waited for is there again: nobody need do anything."""
    if not run.keeps_ranks:
        return evolve(run, holding=None) if run.holding else run
    return recovered(evolve(run, state=RunState.RUNNING, keeps_ranks=False, hold_reason=""), at)


def _is_current(run: Run, attempt: int) -> bool:
    return run.live_attempt is not None and run.live_attempt.number == attempt
