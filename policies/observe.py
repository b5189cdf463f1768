"""How each event changes what the engine remembers."""

from __future__ import annotations

from functools import singledispatch
from typing import Any

from launcher.events import (
    ActionDone,
    AgentJoined,
    AttemptEnded,
    AttemptStarted,
    CheckpointCommitted,
    CommandAnswered,
    CommandReceived,
    DiskTold,
    EpochStarted,
    Event,
    JobEnding,
    JobTold,
    LineMatched,
    NodeBack,
    NodeDown,
    NodeDraining,
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
    RunUnpaused,
    StepDone,
    StepsMoving,
    StepsStopped,
    StorageBack,
    StorageSilent,
    TrainerDone,
)
from launcher.evolve import evolve
from policies.finding import percentile
from policies.meaning import REJECTED_CHECKPOINT
from policies.silence import is_broken_link, kind_of_exit
from policies.state import FEW_TIMES, Agent, Attempt, EngineState, Loss

LOSSES = 256  # restarts whose cost is remembered
PROGRESS_STEPS = 20  # so many steps beyond the best so far are progress, even without a checkpoint
# Keys of the spec whose change explains what numbers do then.
DECLARED = {"lr_change": (".lr",), "batch_change": (".batch_tokens", ".seq_len"), "data_stage": (".data",)}
FIRST_EXITS = 64  # failed ranks of an attempt that are remembered one by one


def observe(state: EngineState, event: Event) -> EngineState:
    """The state with the facts of an event taken in. Events it has no use for change only the time."""
    if isinstance(event, StepDone):
        return _with_step(state, event)  # of all events most are steps
    # Buffered events may carry times older than what is already known; time never goes back.
    if isinstance(event, EpochStarted) and state.unwatched_since is None and state.attempt:
        state = evolve(state, unwatched_since=state.now)
    return _observe(event, evolve(state, now=max(state.now, event.at)))


def begun_afresh(state: EngineState) -> EngineState:
    """A person has looked: ladders and budgets begin anew."""
    return evolve(state, rules={}, restarts=(), losses=(), fruitless=0, first_step_failures=0, retry=None)


@singledispatch
def _observe(_event: Event, state: EngineState) -> EngineState:
    return state


# ---------------------------------------------------------------- the run


@_observe.register
def _(event: EpochStarted, state: EngineState) -> EngineState:
    # The new supervisor has watched nothing yet: silence counts anew, and what stands still it will see itself.
    agents = {
        name: agent if agent.silent_since is None else evolve(agent, silent_since=event.at, silent_at=event.at)
        for name, agent in state.agents.items()
    }
    return evolve(state, agents=agents, stopped=None)


@_observe.register
def _(event: RunHeld, state: EngineState) -> EngineState:
    if event.keeps_ranks:
        return evolve(state, stalled=True)
    retry = state.retry
    if retry is not None:
        due = state.now + retry.every_s
        over = retry.at_most_s is not None and due > retry.began.at + retry.at_most_s
        retry = evolve(retry, due=None if over else due)
    return evolve(state, is_held=True, pending=None, questions={}, retry=retry, last_step_at=None)


@_observe.register
def _(event: RunPaused, state: EngineState) -> EngineState:
    return evolve(state, commands={**state.commands, f"{event.at}": "pause"})


@_observe.register
def _(_event: RunUnpaused, state: EngineState) -> EngineState:
    """Nothing was wrong: ladders, budgets and what is pending stand."""
    commands = {key: verb for key, verb in state.commands.items() if verb != "pause"}
    return evolve(state, commands=commands, attempt=None, stopped=None, streaks={})


@_observe.register(RunReleased)
@_observe.register(RunResumed)
def _(event: Event, state: EngineState) -> EngineState:
    if isinstance(event, RunResumed):  # its nodes are others
        state = evolve(state, draining={}, storage={}, job=None)
    afresh = evolve(begun_afresh(state), commands={})
    return evolve(
        afresh, is_held=False, is_over=False, pending=None, attempt=None, stopped=None, streaks={}, questions={},
        last_step_at=None, stalled=False,
    )  # fmt: skip


@_observe.register
def _(_event: RunEnded, state: EngineState) -> EngineState:
    return evolve(state, is_over=True, questions={})


@_observe.register
def _(event: JobEnding, state: EngineState) -> EngineState:
    return evolve(state, commands={**state.commands, f"{event.at}": "stop"})


@_observe.register
def _(event: CommandReceived, state: EngineState) -> EngineState:
    if event.verb in ("stop", "pause", "hold") and "incident" not in event.args:
        return evolve(state, commands={**state.commands, event.id: event.verb})
    return state


@_observe.register
def _(event: CommandAnswered, state: EngineState) -> EngineState:
    if event.ok or event.id not in state.commands:
        return state
    return evolve(state, commands={key: verb for key, verb in state.commands.items() if key != event.id})


# ---------------------------------------------------------------- nodes


def _with_agent(state: EngineState, node: str, **changes: Any) -> EngineState:
    agent = evolve(state.agents.get(node, Agent()), **changes)
    is_well = agent.silent_since is None and not agent.down
    troubled = state.troubled - {node} if is_well else state.troubled | {node}
    return evolve(state, agents={**state.agents, node: agent}, troubled=troubled)


@_observe.register
def _(event: AgentJoined, state: EngineState) -> EngineState:
    attempt = state.attempt
    if attempt and event.node in attempt.slots:
        known = attempt.incarnations.get(event.node) or state.agents.get(event.node, Agent()).incarnation
        if known and known != event.incarnation:
            attempt = evolve(attempt, replaced=attempt.replaced | {event.node})
    joined = _with_agent(state, event.node, incarnation=event.incarnation, silent_since=None, down="", down_since=None)
    return evolve(joined, attempt=attempt)


@_observe.register
def _(event: NodeSilent, state: EngineState) -> EngineState:
    return _with_agent(state, event.node, silent_since=event.since, silent_at=state.now)


@_observe.register
def _(event: NodeBack, state: EngineState) -> EngineState:
    return _with_agent(state, event.node, silent_since=None)


@_observe.register
def _(event: NodeDown, state: EngineState) -> EngineState:
    return _with_agent(state, event.node, down=event.reason or "gone", down_since=event.since or event.at)


@_observe.register
def _(event: NodeDraining, state: EngineState) -> EngineState:
    return evolve(state, draining={**state.draining, event.node: event.reason})


@_observe.register
def _(event: NodeUndrained, state: EngineState) -> EngineState:
    return evolve(state, draining={node: why for node, why in state.draining.items() if node != event.node})


@_observe.register
def _(event: JobTold, state: EngineState) -> EngineState:
    return evolve(state, job=event)


@_observe.register
def _(event: DiskTold, state: EngineState) -> EngineState:
    return evolve(state, disk=event)


@_observe.register
def _(event: StorageSilent, state: EngineState) -> EngineState:
    return evolve(state, storage={**state.storage, event.node: event.since})


@_observe.register
def _(event: StorageBack, state: EngineState) -> EngineState:
    return evolve(state, storage={node: since for node, since in state.storage.items() if node != event.node})


@_observe.register
def _(event: LineMatched, state: EngineState) -> EngineState:
    current = state.attempt and state.attempt.number == event.attempt
    return evolve(state, lines={**state.lines, event.rule: event}) if current else state


@_observe.register
def _(event: StepsStopped, state: EngineState) -> EngineState:
    current = state.attempt and state.attempt.number == event.attempt
    return evolve(state, stopped=event) if current else state


@_observe.register
def _(event: StepsMoving, state: EngineState) -> EngineState:
    current = state.stopped and state.stopped.attempt == event.attempt
    return evolve(state, stopped=None, stalled=False) if current else state


# ---------------------------------------------------------------- attempts


@_observe.register
def _(event: AttemptStarted, state: EngineState) -> EngineState:
    restored = event.restore[0] if event.restore else -1
    attempt = Attempt(
        event.attempt,
        event.slots,
        event.incarnations,
        state.now,
        best_before=max(state.best_step, restored),
        committed_before=max(state.best_committed, restored),
        restored=restored,
    )
    before = state.attempt
    if before is not None and not before.has_begun:
        own = (one for one in before.exits if not is_broken_link(one))
        state = evolve(state, failed_early=(*state.failed_early, *own)[-FIRST_EXITS:])
    if event.restore is not None or event.resumes_itself:
        state = _changed(state, "resume")
    retry = evolve(state.retry, due=None) if state.retry else None
    return evolve(
        state, attempt=attempt, pending=None, is_held=False, stopped=None, streaks={}, questions={}, retry=retry,
        lines={}, stalled=False,
    )  # fmt: skip


@_observe.register
def _(event: RankExited, state: EngineState) -> EngineState:
    attempt = state.attempt
    if attempt is None or attempt.number != event.attempt or event.code == 0 or not state.judged or state.pending:
        return state
    if attempt.leaving:
        return state
    if event.code == REJECTED_CHECKPOINT:
        return evolve(state, attempt=evolve(attempt, rejected_at=attempt.rejected_at or state.now))
    kind = (event.node, kind_of_exit(event))
    attempt = evolve(
        attempt,
        exits=attempt.exits if len(attempt.exits) >= FIRST_EXITS else (*attempt.exits, evolve(event, at=state.now)),
        exit_kinds=attempt.exit_kinds if kind in attempt.exit_kinds else attempt.exit_kinds | {kind},
        exit_count=attempt.exit_count + 1,
        # Another node may tell of the first step a moment later than this one of its rank's end.
        has_stepped=attempt.has_stepped or event.step >= 0,
    )
    return evolve(state, attempt=attempt)


def _changed(state: EngineState, *kinds: str) -> EngineState:
    return evolve(state, changes={**state.changes, **dict.fromkeys(kinds, state.moment)}) if kinds else state


@_observe.register
def _(event: RunAmended, state: EngineState) -> EngineState:
    changed = [kind for kind, words in DECLARED.items() if any(word in key for key in event.changes for word in words)]
    return _changed(state, *changed)


@_observe.register
def _(event: ActionDone, state: EngineState) -> EngineState:
    if event.action == "set" and event.ok:
        return _changed(state, "lr_change")
    if event.action != "replace" or state.attempt is None:
        return state
    return evolve(state, attempt=evolve(state.attempt, leaving=True))


@_observe.register
def _(event: AttemptEnded, state: EngineState) -> EngineState:
    attempt = state.attempt
    if attempt is None or attempt.number != event.attempt:
        return state
    return evolve(state, attempt=evolve(attempt, ended=True), stopped=None)


@_observe.register
def _(event: RanksUp, state: EngineState) -> EngineState:
    attempt = state.attempt
    if attempt is None or attempt.number != event.attempt:
        return state
    return evolve(state, attempt=evolve(attempt, is_up=True), first_step_failures=0, failed_early=())


def _with_step(state: EngineState, event: StepDone) -> EngineState:
    attempt, now = state.attempt, max(state.now, event.at)
    if attempt is None or attempt.number != event.attempt:
        return evolve(state, now=now)
    steps = max(1, event.step - attempt.step) if attempt.has_stepped else 1
    if not attempt.has_stepped:
        state = _with_loss(state, attempt, now)
    if state.retry and state.steps_done >= state.retry.began.steps + PROGRESS_STEPS:
        state = evolve(state, retry=None)  # it goes on: what may come next is another story
    return evolve(
        state,
        now=now,
        attempt=evolve(attempt, step=event.step, has_stepped=True),
        unwatched_since=None,
        **_times_with(state, steps * event.step_s),
        told_every=steps,
        steps_done=state.steps_done + steps,
        best_step=max(state.best_step, event.step),
        first_step_failures=0,
        failed_early=(),
        stalled=False,
        last_step_at=now,
    )


def _times_with(state: EngineState, step_s: float) -> dict[str, tuple[float, ...]]:
    if len(state.newest_times) < FEW_TIMES:
        return {"newest_times": (*state.newest_times, step_s)}
    return {"older_times": state.step_times, "newest_times": (step_s,)}


def _with_loss(state: EngineState, attempt: Attempt, now: float) -> EngineState:
    """The first step after a restart: what was lost is the time since the last one, and the steps to be done again."""
    if state.last_step_at is None:
        return state
    again = max(0, state.best_step - max(attempt.restored, 0))
    usual = (percentile(state.step_times, 50) or 0.0) / state.told_every
    loss = Loss(now, now - state.last_step_at + again * usual)
    return evolve(state, losses=(*state.losses[1 - LOSSES :], loss))


@_observe.register
def _(event: TrainerDone, state: EngineState) -> EngineState:
    attempt = state.attempt
    if attempt is None or attempt.number != event.attempt:
        return state
    return evolve(state, attempt=evolve(attempt, done=True))


@_observe.register
def _(event: CheckpointCommitted, state: EngineState) -> EngineState:
    attempt = state.attempt
    if attempt and attempt.number == event.attempt:
        attempt = evolve(attempt, committed=max(attempt.committed, event.step))
    return evolve(state, attempt=attempt, best_committed=max(state.best_committed, event.step))
