"""Rules about numbers: how long their conditions have held, and what is found. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from launcher.events import Event, Json, StepDone
from launcher.evolve import evolve
from policies.corruption import corrupted
from policies.detectors import bad_metrics
from policies.finding import Finding, Word
from policies.schema import Policy, Rule
from policies.state import EngineState, Streak
from policies.watch import found, is_quiet, number_rules


def finding_of(rule: Rule, state: EngineState, event: StepDone, word: Word | None) -> Finding | None:
    """What a rule about numbers has found in a step, if it has lasted as long as the rule wants."""
    if rule.when.sdc and state.attempt:
        return corrupted(rule.when.sdc, event, state.attempt.slots)
    detector = rule.when.non_finite or rule.when.threshold
    streak = state.streaks.get(rule.name)
    if streak is None or not _lasted(rule, state, streak):
        return None
    if word:
        return found(rule, state, word)
    if detector is None:
        return None
    bad = bad_metrics(detector, event)
    shown = ", ".join(f"{name} is {value:g}" for name, value in bad.items())
    since = f" since step {streak.onset_step}" if streak.onset_step != event.step else ""
    evidence: dict[str, Json] = {"step": event.step, "steps": streak.steps}
    evidence |= {name: f"{value:g}" for name, value in bad.items()}
    return Finding(
        rule.when.detector,
        key=f"{event.attempt}:{streak.onset_step}:{streak.onset_at}",
        why=f"{shown} at step {event.step}{since}",
        evidence=evidence,
        onset_at=streak.onset_at,
        onset_step=streak.onset_step,
    )


def _lasted(rule: Rule, state: EngineState, streak: Streak) -> bool:
    if rule.for_ is None:
        return True
    if rule.for_.steps is not None:
        return streak.steps >= rule.for_.steps
    return state.now - streak.onset_at >= (rule.for_.seconds or 0.0)


def with_streaks(policy: Policy, state: EngineState, event: Event, words: Mapping[str, Word]) -> EngineState:
    """For each rule about numbers, how long its condition has held without a break."""
    if not isinstance(event, StepDone) or state.attempt is None or event.attempt != state.attempt.number:
        return state
    hold = [name for name, word in words.items() if word.kind == "finding"]
    for rule in number_rules(policy).single:
        detector = rule.when.non_finite or (None if is_quiet(policy, state) else rule.when.threshold)
        if detector is not None and bad_metrics(detector, event):
            hold.append(rule.name)
    if not hold and not state.streaks:
        return state
    new = Streak(0, state.now, event.step)
    before = {name: state.streaks.get(name, new) for name in hold}
    return evolve(state, streaks={name: evolve(one, steps=one.steps + 1) for name, one in before.items()})
