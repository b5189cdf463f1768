"""`decide`: what the policy says to each event. A pure fold: no clock, no files; time is `event.at`.

The same policy and events always give the same decisions, live, in a replay or in a simulation. The
shell journals what is returned, feeds that back like any event, and sends a Tick when the deadline has
come. Infrastructure is judged before numerics, rules in order; of those that act, the first match decides.
"""

from __future__ import annotations

from launcher.events import Decision, Event, Json, StepDone
from launcher.evolve import evolve
from policies.amended import policy_now, with_amendments
from policies.answer import Outcome, answer
from policies.built_in import early_end, hold_retry, rejected_checkpoint, settings_differ
from policies.corruption import corrupted
from policies.detectors import bad_metrics, look
from policies.exits import failed_rank
from policies.finding import Finding
from policies.infrastructure import ORDER, infrastructure
from policies.observe import observe
from policies.person import person
from policies.questions import answered, overtaken, vetoed
from policies.schema import Policy, Rule
from policies.silence import lost_nodes
from policies.state import EngineState, RuleState, Streak
from policies.when import NodeLost


def initial(policy: Policy) -> EngineState:
    """The state before the first event of a run."""
    return EngineState(rules={rule.name: RuleState() for rule in policy.rules})


def decide(policy: Policy, state: EngineState, event: Event) -> tuple[EngineState, tuple[Decision, ...], float | None]:
    """The new state, what is decided, and the time (Unix seconds) by which a Tick is wanted at the latest."""
    state = with_amendments(observe(state, event), event)
    policy = policy_now(policy, state)
    state = _with_streaks(policy, state, event)
    decisions: list[Decision] = []
    for judge in JUDGES:
        state, more = judge(policy, state, event)
        decisions += more
    if state.story:
        state = evolve(state, story=0)
    return state, tuple(decisions), next_deadline(policy, state)


def next_deadline(policy: Policy, state: EngineState) -> float | None:
    """When an answer may change though no event comes; always later than now."""
    policy = policy_now(policy, state)
    answers = [look(rule, state)[1] for rule in policy.rules if rule.when.detector in ORDER]
    answers += [lost_nodes(state, NodeLost())[1], failed_rank(state)[1]]
    answers += [question.due for question in state.questions.values()]
    answers += [state.retry.due] if state.retry else []
    answers += [one.until for one in state.amendments]
    return min((time for time in answers if time is not None and time > state.now), default=None)


# ---------------------------------------------------------------- numerics


def _numerics(policy: Policy, state: EngineState, event: Event) -> Outcome:
    """Metrics of a step that was just done."""
    attempt = state.judged
    if not isinstance(event, StepDone) or attempt is None or event.attempt != attempt.number:
        return state, ()
    decisions: tuple[Decision, ...] = ()
    for rule in policy.rules:
        # Failed ranks that are still being sorted out come first.
        if state.pending or attempt.ended or attempt.exits:
            break
        if finding := _numerics_finding(rule, state, event):
            state, more = answer(policy, rule, state, event, finding)
            decisions += more
    return state, decisions


def _numerics_finding(rule: Rule, state: EngineState, event: StepDone) -> Finding | None:
    if rule.when.sdc and state.attempt:
        return corrupted(rule.when.sdc, event, state.attempt.slots)
    detector = rule.when.non_finite or rule.when.threshold
    streak = state.streaks.get(rule.name)
    if detector is None or streak is None or not _lasted(rule, state, streak):
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


def _with_streaks(policy: Policy, state: EngineState, event: Event) -> EngineState:
    """For each rule about numbers, how long its condition has held without a break."""
    if not isinstance(event, StepDone) or state.attempt is None or event.attempt != state.attempt.number:
        return state
    streaks: dict[str, Streak] = {}
    for rule in policy.rules:
        detector = rule.when.non_finite or rule.when.threshold
        if detector and bad_metrics(detector, event):
            before = state.streaks.get(rule.name, Streak(0, state.now, event.step))
            streaks[rule.name] = evolve(before, steps=before.steps + 1)
    return evolve(state, streaks=streaks)


# In this order: what people say, what no rule need decide, what was asked, infrastructure before numerics.
JUDGES = (
    *(person, vetoed, rejected_checkpoint, settings_differ, early_end, hold_retry),
    *(answered, infrastructure, _numerics, overtaken),
)
