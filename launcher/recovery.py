"""What has to be done next, from what is decided and what the agents say: `plan(run, fleet, limits)`. Pure.

The supervisor has no memory of its own of what it is in the middle of: after every event the next moves follow from
the run and the fleet alone. So a new supervisor that takes over goes on where the old one was, and a
move made twice is harmless.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from launcher import search
from launcher.abilities import Abilities
from launcher.crew import is_to_leave
from launcher.endings import clear, end_gently, saved_since, stray_ranks, to_first_rank, wish
from launcher.events import (
    PERSON,
    ActionDone,
    AttemptEnded,
    CheckpointFailed,
    CommandAnswered,
    Decision,
    RunEnded,
    RunHeld,
    RunPaused,
)
from launcher.examined import outcome
from launcher.moves import Emit, Errand, Fleet, Limits, Move, Requeue, Search, Send
from launcher.reporter import SAVE
from launcher.run import Asking, Attempt, NodeState, Run, RunState
from launcher.starts import available, begin, start

COLLECT_LIMIT_S = 10.0
EXAMINE_LIMIT_S = 45.0  # each check has a deadline of its own
SET_LIMIT_S = 1800.0  # a step, or a phase between two, may take so long
GENTLE_LIMIT_S = 1800.0  # nothing is wrong and nobody waits: as long as any save may take


def plan(run: Run, fleet: Fleet, limits: Limits) -> list[Move]:
    """The moves that are due now."""
    limits = replace(limits, trainer=limits.trainer.known(has_told=run.has_told))
    if run.state.is_terminal:
        return [*_errands(run), *(Send(node, {"type": "leave", "state": run.state.value}) for node in fleet.answering)]
    return [*_errands(run), *_examinations(run, fleet), *stray_ranks(run, fleet), *_next(run, fleet, limits)]


def _errands(run: Run) -> list[Errand]:
    """Commands to be run: after the restart of their rung has begun, before a hold or a stop is through."""
    restarting = run.pending.id if run.pending and "restart" in run.pending.actions else ""
    return [Errand(decision) for id_, decision in run.errands.items() if id_ != restarting]


def _examinations(run: Run, fleet: Fleet) -> Iterator[Move]:
    """Nodes that are to be examined, and what came of it; whoever asked is not kept waiting for ever."""
    for id_, asked in run.examining.items():
        alive = [
            name for name in sorted(asked.left) if name in run.nodes and run.nodes[name].state is not NodeState.LOST
        ]
        if alive and fleet.now < asked.at + EXAMINE_LIMIT_S:
            # What deep adds to standard is the search: ranks may still be there.
            message = {"type": "examine", "id": id_, "tier": "standard" if asked.tier == "deep" else asked.tier}
            yield from (Send(name, message) for name in alive if name in fleet.answering)
            continue
        ok, told = not asked.left, outcome(run, asked)
        if asked.tier == "deep":
            due = search.due(run, id_, asked, fleet.now, fleet.answering)
            yield from (Send(node, message) for node, message in due.messages.items())
            yield from map(Emit, due.events)
            if not due.is_over:
                continue
            told = "; ".join(filter(None, (told, due.outcome)))
        if asked.is_command:
            yield Emit(CommandAnswered(at=fleet.now, id=id_, ok=ok, message=told))
        else:
            yield Emit(ActionDone(at=fleet.now, decision=id_, action="check", ok=ok, detail=told))


def _next(run: Run, fleet: Fleet, limits: Limits) -> list[Move]:
    if run.stop_requested:
        return _stop(run, fleet, limits)
    if run.hold_requested:
        return _hold(run, fleet, limits)
    if run.state is RunState.HELD and not run.keeps_ranks:
        return clear(run, fleet, "held") if run.live_attempt else []
    if run.paused_by:
        return _pause(run, fleet, limits)
    if run.job_ending:
        return _hand_over(run, fleet, limits)
    if run.pending is not None:
        return _carry_out(run, fleet, limits, run.pending)
    if run.live_attempt is None or run.state in (RunState.RECOVERING, RunState.PENDING):
        return clear(run, fleet, "released") if run.live_attempt else start(run, fleet, limits)
    if run.replacing_since is not None and run.live_attempt.done is None:
        return _make_way(run, run.live_attempt, fleet, limits.trainer, run.replacing_since)
    return _keep_running(run, run.live_attempt, fleet, limits.trainer)


# ---------------------------------------------------------------- ending ranks


def _stop(run: Run, fleet: Fleet, limits: Limits) -> list[Move]:
    """A person asked to stop."""
    reason = f"stopped by {run.stop_requested}"
    if run.live_attempt is None and not fleet.searched:
        return [Search()]
    if run.live_attempt is None:
        return [Emit(RunEnded(at=fleet.now, state="STOPPED", reason=reason))]
    if run.stop_now:
        return clear(run, fleet, reason)
    return end_gently(run, run.live_attempt, fleet, limits.trainer, run.stop_requested_at, reason)


def _hold(run: Run, fleet: Fleet, limits: Limits) -> list[Move]:
    """A person asked for a halt."""
    if run.live_attempt is None:
        return [Emit(RunHeld(at=fleet.now, reason=run.hold_requested))]
    reason = f"held by {run.hold_requested}"
    return end_gently(run, run.live_attempt, fleet, limits.trainer, run.hold_requested_at, reason)


def _pause(run: Run, fleet: Fleet, limits: Limits) -> list[Move]:
    """A person wants no ranks for a while. What is being done about a failure comes first, but for its new attempt."""
    if run.pending is not None and (run.live_attempt or "restart" not in run.pending.actions):
        return _carry_out(run, fleet, limits, run.pending)
    if run.live_attempt is None:
        return _stay_paused(run, fleet)
    if run.live_attempt.done is not None:
        return _keep_running(run, run.live_attempt, fleet, limits.trainer)  # it came to its end meanwhile
    if run.pause_now:
        return clear(run, fleet, f"paused by {run.paused_by}")
    trainer, nodes = limits.trainer, (run.nodes.get(name) for name in run.live_attempt.slots)
    doubtful = trainer.signal or any(node is None or node.state is not NodeState.ALIVE for node in nodes)
    limit_s = trainer.save_s if doubtful else GENTLE_LIMIT_S
    reason = f"paused by {run.paused_by}"
    return end_gently(run, run.live_attempt, fleet, trainer, run.pause_requested_at, reason, limit_s)


def _stay_paused(run: Run, fleet: Fleet) -> list[Move]:
    """No job is begun anew for a run that would do nothing in it: at the time limit of this one the run ends."""
    if run.state is not RunState.PAUSED:
        return [Emit(RunPaused(at=fleet.now, reason=run.paused_by))]
    if run.job_over:
        return [Emit(RunEnded(at=fleet.now, state="STOPPED", reason=run.job_over))]
    if run.job_ending and not run.job_decided:
        reason = f"paused by {run.paused_by}, until {run.job_ending}"
        return [Emit(RunEnded(at=fleet.now, state="STOPPED", reason=reason))]
    return []


def _hand_over(run: Run, fleet: Fleet, limits: Limits) -> list[Move]:
    """The job ends: save, and have another go on. What the scheduler has decided already is not asked of it."""
    if run.live_attempt is not None:
        return end_gently(run, run.live_attempt, fleet, limits.trainer, run.job_ending_at, run.job_ending)
    if run.job_over:
        return [Emit(RunEnded(at=fleet.now, state="STOPPED", reason=run.job_over))]
    if run.job_decided:
        return []
    if limits.continue_by == "none":
        return [Emit(RunEnded(at=fleet.now, state="STOPPED", reason=run.job_ending))]
    if limits.continue_by == "chain":
        return [Send(node, {"type": "leave", "state": run.state.value}) for node in fleet.answering]
    return [Requeue(lost_nodes(run))]


def lost_nodes(run: Run) -> tuple[str, ...]:
    """The nodes of this job that a next one should do without."""
    return tuple(sorted(node.name for node in run.nodes.values() if node.state is NodeState.LOST))


def _make_way(run: Run, attempt: Attempt, fleet: Fleet, trainer: Abilities, since: float) -> list[Move]:
    """A spare is to take the place of a node that still works: have the trainer save and end."""
    why = _told(run.replace) if run.replace else "a node was to be replaced"
    limit_s = trainer.save_s if trainer.signal else GENTLE_LIMIT_S
    return end_gently(run, attempt, fleet, trainer, since, why, limit_s)


# ---------------------------------------------------------------- decisions


def _carry_out(run: Run, fleet: Fleet, limits: Limits, decision: Decision) -> list[Move]:
    """The actions of the pending decision, in the order of the grammar."""
    live = run.live_attempt
    if "collect" in decision.actions and "collect" not in run.pending_done and live:
        return _collect(live, fleet, decision)
    restart = decision.actions.get("restart")
    save_first = isinstance(restart, dict) and bool(restart.get("save_first"))
    if (save_first or "save" in decision.actions) and "save" not in run.pending_done and live:
        return _save_first(run, live, fleet, limits.trainer, decision)
    if live:
        return clear(run, fleet, _told(decision))
    if "check" in decision.actions and "check" not in run.pending_done:
        return []
    if "hold" in decision.actions:
        return [Emit(RunHeld(at=fleet.now, reason=_reason(decision, "hold")))]
    if "stop" in decision.actions:
        return [Emit(RunEnded(at=fleet.now, state="FAILED", reason=_reason(decision, "stop")))]
    if fleet.now < decision.at + decision.delay_s:
        return []
    return start(run, fleet, limits)


def _told(decision: Decision) -> str:
    """Why an attempt ends; of what a person had done, what that was."""
    who = f"{', '.join(decision.actions)} by" if decision.rule == PERSON else f"{decision.rule}:"
    return f"{who} {decision.why}"[:500]


def _reason(decision: Decision, action: str) -> str:
    value = decision.actions[action]
    said = value.get("reason", "") if isinstance(value, dict) else value
    return ": ".join(str(part) for part in (said, decision.why) if part) or decision.rule


def _collect(attempt: Attempt, fleet: Fleet, decision: Decision) -> list[Move]:
    waiting = [
        node for node in attempt.slots if node in fleet.answering and decision.id not in fleet.answering[node].collected
    ]
    if waiting and fleet.now < decision.at + COLLECT_LIMIT_S:
        message = {"type": "collect", "decision": decision.id, "incident": decision.incident}
        return [Send(node, message) for node in waiting]
    done = [node for node in attempt.slots if node not in waiting and node in fleet.answering]
    detail = f"from {', '.join(done) or 'no node'}" + (f"; not from {', '.join(waiting)}" if waiting else "")
    return [Emit(ActionDone(at=fleet.now, decision=decision.id, action="collect", ok=not waiting, detail=detail))]


def _save_first(run: Run, attempt: Attempt, fleet: Fleet, trainer: Abilities, decision: Decision) -> list[Move]:
    saved = saved_since(run, decision.at)
    broken = any(code != 0 for code in attempt.exits.values())
    if saved or broken or fleet.now > decision.at + trainer.save_s:
        detail = f"step {run.head[0]}" if saved and run.head else "the trainer could not save in time"
        return [Emit(ActionDone(at=fleet.now, decision=decision.id, action="save", ok=saved, detail=detail))]
    return wish(attempt, trainer, SAVE, decision.at)


# ---------------------------------------------------------------- attempts


def _keep_running(run: Run, attempt: Attempt, fleet: Fleet, trainer: Abilities) -> list[Move]:
    codes = list(attempt.exits.values())
    if len(codes) == attempt.ranks and not any(codes):
        return _all_ended(run, attempt, fleet, trainer)
    if run.holding is not None:
        return [Emit(RunHeld(at=fleet.now, reason=_reason(run.holding, "hold"), keeps_ranks=True))]
    moves = begin(run, attempt, fleet, trainer) or _replacement(run, attempt, fleet, trainer)
    if run.save_requested_at is not None and not moves:
        moves += _save(run, attempt, fleet, trainer, run.save_requested_at)
    if run.asking is not None and not moves:
        moves += _ask_to_set(attempt, fleet, run.asking)
    return moves


def _ask_to_set(attempt: Attempt, fleet: Fleet, asking: Asking) -> list[Move]:
    """Settings that the ranks are to go on with, told to the rank that speaks for all; asked until it has answered."""
    if fleet.now > asking.at + SET_LIMIT_S:
        detail = f"no word of it within {SET_LIMIT_S:.0f}s: it is for the next attempt"
        return [Emit(ActionDone(at=fleet.now, decision=asking.id, action="set", ok=False, detail=detail))]
    message = {"type": "set", "id": asking.id, "settings": dict(asking.settings)}
    return [to_first_rank(attempt, message)]


def _all_ended(run: Run, attempt: Attempt, fleet: Fleet, trainer: Abilities) -> list[Move]:
    """All ranks have ended well: at the goal, or before it. What was done since the last step told is not known."""
    if not fleet.searched:
        return [Search()]
    at_most = max(run.step + run.stride - 1, run.head[0] if run.head else 0)
    if trainer.done_step is not None and at_most < trainer.done_step:
        reason = f"all ranks ended at step {run.step}, before {trainer.done_step}"
        return [Emit(AttemptEnded(at=fleet.now, attempt=attempt.number, reason=reason, early=True))]
    ended = AttemptEnded(at=fleet.now, attempt=attempt.number, reason="done")
    return [Emit(ended), Emit(RunEnded(at=fleet.now, state="SUCCEEDED"))]


def _save(run: Run, attempt: Attempt, fleet: Fleet, trainer: Abilities, asked_at: float) -> list[Move]:
    """A checkpoint was asked for, and training goes on. A signal that nothing comes of is forgotten."""
    if trainer.saves != "goes_on" or (trainer.signal and not attempt.has_begun):
        return []  # before its first step, a process may not be ready for the signal
    if trainer.signal and fleet.now > asked_at + trainer.save_s:
        reason = f"no checkpoint within {trainer.save_s:.0f}s of {trainer.signal}"
        return [Emit(CheckpointFailed(at=fleet.now, step=run.step, attempt=attempt.number, reason=reason))]
    return wish(attempt, trainer, SAVE, asked_at)


def _replacement(run: Run, attempt: Attempt, fleet: Fleet, trainer: Abilities) -> list[Move]:
    """A node is to be replaced, and a spare is there. Journaled before the trainer is told: it cannot be undone."""
    if (
        run.replace is None
        or run.state is not RunState.RUNNING
        or attempt.exits
        or attempt.done
        or trainer.saves == "never"
    ):
        return []
    spares = (one for one in available(run, fleet) if one.name not in attempt.slots and not is_to_leave(run, one))
    if (spare := next(spares, None)) is None:
        return []
    detail = f"{spare.name} is there to take the place of {', '.join(run.replace.nodes)}"
    return [Emit(ActionDone(at=fleet.now, decision=run.replace.id, action="replace", ok=True, detail=detail))]
