"""What is decided without any rule: there is only one thing to do. Pure."""

from __future__ import annotations

from launcher.events import RETRY, AttemptEnded, Event, Json, SettingsApplied
from launcher.evolve import evolve
from policies.answer import Outcome, decided, hold
from policies.finding import Finding
from policies.ladder import without_progress
from policies.schema import Policy
from policies.state import EngineState

SETTINGS_DIFFER = "settings-differ"
EARLY_END = "early-end"


def rejected_checkpoint(_policy: Policy, state: EngineState, event: Event) -> Outcome:
    """A rank refused its checkpoint: the next one by lineage, at nobody's cost."""
    attempt = state.judged
    if attempt is None or state.pending or attempt.rejected_at is None:
        return state, ()
    finding = Finding(
        "exit",
        key=str(attempt.number),
        why="a rank refused its checkpoint",
        onset_at=attempt.rejected_at,
        onset_step=attempt.step,
    )
    actions: dict[str, Json] = {"restart": {"from": "latest", "save_first": False}}
    return decided(state, event, finding, "checkpoint-rejected", actions, counts=False)


def early_end(policy: Policy, state: EngineState, event: Event) -> Outcome:
    """All ranks ended well before the goal: no fault, and on it goes, as long as something comes of it."""
    attempt = state.judged
    if attempt is None or state.pending or not isinstance(event, AttemptEnded) or not event.early:
        return state, ()
    finding = Finding(
        "early_end", key=str(attempt.number), why=event.reason, onset_at=state.now, onset_step=attempt.step
    )
    state, exhausted = without_progress(policy, state)
    if exhausted:
        return hold(state, event, finding, EARLY_END, exhausted)
    actions: dict[str, Json] = {"restart": {"from": "latest", "save_first": False}}
    return decided(state, event, finding, EARLY_END, actions, counts=False)


def settings_differ(_policy: Policy, state: EngineState, event: Event) -> Outcome:
    """The ranks train with other settings than they were asked to: that is not what anybody wants trained."""
    attempt = state.judged
    if attempt is None or state.pending or not isinstance(event, SettingsApplied) or event.attempt != attempt.number:
        return state, ()
    if not event.differing and not event.problem:
        return state, ()
    differing = ", ".join(
        f"{name}: asked {event.asked[name]}, effective {event.effective.get(name)}" for name in event.differing
    )
    finding = Finding(
        "settings",
        key=str(attempt.number),
        why=event.problem or differing,
        evidence={"asked": event.asked, "effective": event.effective},
        onset_at=state.now,
        onset_step=event.step,
    )
    return hold(state, event, finding, SETTINGS_DIFFER, "the trainer did not take the settings it was asked to")


def hold_retry(_policy: Policy, state: EngineState, event: Event) -> Outcome:
    """A held run whose rule has it tried again every so often."""
    retry = state.retry
    if retry is None or not state.is_held or state.is_over or state.pending or state.commands:
        return state, ()
    if retry.due is None or state.now < retry.due:
        return state, ()
    held_s = state.now - retry.began.at
    finding = Finding("hold", key=str(retry.due), why=f"tried again after {held_s:.0f}s", onset_at=retry.began.at)
    actions: dict[str, Json] = {"restart": {"from": "latest", "save_first": False}}
    state = evolve(state, retry=evolve(retry, due=None))
    return decided(state, event, finding, RETRY, actions, retry.incident, counts=False)
