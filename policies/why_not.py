"""Why a rule has not fired, or is silent: what its detector sees now, and what its ladder has left. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from launcher.events import Decision
from policies.baseline import ENOUGH
from policies.detectors import look
from policies.examined import failing_nodes, faulty_nodes
from policies.finding import percentile
from policies.ladder import afresh, lost_s, uses_left
from policies.pace import PaceMemory
from policies.relapse import Return
from policies.scale import ScaleMemory
from policies.schema import Policy, Rule
from policies.silence import suspects
from policies.spike import SpikeMemory, Trouble, limits
from policies.state import EngineState, is_within
from policies.units import format_duration
from policies.watch import WATCHERS
from policies.when import Hang, When

SHOWN = 8


def explain_rule(
    policy: Policy, rule: Rule, state: EngineState, metrics: Mapping[str, float], fired: list[Decision]
) -> str:
    """The present of a rule, for a person. `metrics`: of the newest step; `fired`: what it has decided so far."""
    place = f" ({rule.place})" if rule.place else ""
    lines = [f"{rule.name}{place}: {rule.when.detector}, {rule.mode or 'act'}"]
    incidents = ", ".join(str(one) for one in dict.fromkeys(decision.incident for decision in fired))
    lines.append(f"  fired:   {f'incident {incidents}' if fired else 'never'}")
    lines.append(f"  now:     {_silence(rule, state) or _seen(rule, state, metrics)}")
    lines += [f"  ladder:  {text}" for text in _ladder(policy, rule, state)]
    return "\n".join(lines)


def explain_budget(policy: Policy, state: EngineState) -> str:
    """What is left of the budgets."""
    budget = policy.budget
    spent = sum(is_within(use, state.moment, budget.restarts.per) for use in state.restarts)
    told = [f"restarts {spent} of {budget.restarts}", f"without progress {state.fruitless} of {budget.no_progress}"]
    told.append(f"before a first step {state.first_step_failures} of {budget.first_step}")
    if budget.lost_time:
        told.append(f"lost {lost_s(state, budget.lost_time.per_s):.0f}s of {budget.lost_time}")
    return f"budget: {'; '.join(told)}"


def _silence(rule: Rule, state: EngineState) -> str:
    """Why the rule would say nothing, whatever its detector sees."""
    if question := next((one for one in state.questions.values() if one.rule == rule.name), None):
        return f"a person is asked, for {format_duration(max(0.0, round(question.due - state.now)))} more"
    if state.attempt is None:
        return "nothing is judged: no attempt has begun"
    if state.judged is None or state.pending:
        return f"nothing is judged: {_why_unjudged(state)}"
    did = state.rules.get(rule.name)
    if did and did.last and rule.cooldown and is_within(did.last, state.moment, rule.cooldown):
        return f"in its cooldown of {rule.cooldown}"
    return ""


def _why_unjudged(state: EngineState) -> str:
    if state.is_over:
        return "the run has ended"
    if state.is_held:
        return "the run is held"
    if state.pending:
        return f"incident {state.pending.incident} is being dealt with"
    return f"{', '.join(state.commands.values())} was asked for" if state.commands else "the trainer is done"


def _seen(rule: Rule, state: EngineState, metrics: Mapping[str, float]) -> str:
    """What the detector sees, beside what it looks for."""
    when, attempt = rule.when, state.judged
    assert attempt is not None
    if when.threshold or when.non_finite:
        return _numbers(rule, state, metrics)
    if rule.when.detector in WATCHERS:
        return _watched(rule, state, metrics)
    if finding := look(rule, state)[0]:
        return f"it would fire: {finding.why}"
    if when.exit:
        return f"no rank has failed in attempt {attempt.number}"
    if when.node_lost:
        silent = suspects(state, attempt)
        return f"{', '.join(silent)} silent, and nothing else says that it is lost" if silent else "every node is heard"
    if when.hang:
        return _hang(when.hang, state)
    if when.draining:
        return "no node is wanted back"
    if when.gpu_fault or when.check:
        return _checks(when, state)
    return "its detector finds nothing"


def _checks(when: When, state: EngineState) -> str:
    if due := faulty_nodes(when, state)[1]:
        return f"something fails, and for {due - state.now:.0f}s it is seen whether it lasts and who else has it"
    if failing := failing_nodes(when, state):
        return f"decided upon already: {', '.join(failing)}"
    examined = len(state.examined)
    return f"nothing has failed on the {examined} nodes that were examined" if examined else "no node was examined"


def _hang(detector: Hang, state: EngineState) -> str:
    usual = percentile(state.step_times, detector.no_step.percentile)
    limit = f"{detector.no_step} is {detector.no_step.factor * usual:.1f}s" if usual else "there are few steps so far"
    stood = f"nothing has moved for {state.now - state.stopped.since:.1f}s" if state.stopped else "steps move"
    least = format_duration(detector.at_least)
    return f"{stood}; {limit}, and at least {least} without a step are a hang"


def _watched(rule: Rule, state: EngineState, metrics: Mapping[str, float]) -> str:
    """What a detector that watches step by step remembers."""
    match state.memories.get(rule.name):
        case SpikeMemory(trouble=Trouble() as trouble):
            return f"above its level of {trouble.level:.4g} since step {trouble.step}, for {trouble.count} rows"
        case SpikeMemory(back=Return() as back) if rule.when.spike and back.rows:
            limit = f"above {back.limit(rule.when.spike):.4g} is worse than it was there"
            return f"since the run went back to step {back.step} it is at {back.median:.4g}; {limit}"
        case SpikeMemory(loss=loss) if rule.when.spike and loss.is_learned:
            far, _ = limits(rule.when.spike, loss)
            value = metrics.get(rule.when.spike.metric, math.nan)
            limit = f"above {loss.level + far:.4g} is far from its {loss.level:.4g}"
            return f"{rule.when.spike.metric} is {value:.4g}; {limit}"
        case SpikeMemory(loss=loss):
            return f"it learns what is usual: {len(loss.differences)} of {ENOUGH} values"
        case ScaleMemory() as scale if scale.seen:
            return f"the scale is {scale.scale:g}, {scale.skipped} updates in a row are skipped, of {scale.seen}"
        case PaceMemory(usual=usual) if usual:
            return f"a step takes {sorted(usual)[len(usual) // 2]:.3g} s as a rule"
    return "its detector finds nothing"


def _numbers(rule: Rule, state: EngineState, metrics: Mapping[str, float]) -> str:
    if streak := state.streaks.get(rule.name):
        lasts = f", and is to last {rule.for_}" if rule.for_ else ""
        return f"since step {streak.onset_step}, for {streak.steps} steps{lasts}"
    limit, numbers = rule.when.threshold, rule.when.non_finite
    if limit:
        wanted = f"above {limit.above:g}" if limit.above is not None else f"below {limit.below:g}"
        value = metrics.get(limit.metric, math.nan)
        return f"no {limit.metric} has been told" if math.isnan(value) else f"{limit.metric} is {value:g}, not {wanted}"
    told = [f"{name} {metrics[name]:g}" for name in (numbers.metrics if numbers else ()) if name in metrics]
    return f"{', '.join(told)} at step {state.best_step}" if told else "none of its metrics has been told"


def _ladder(policy: Policy, rule: Rule, state: EngineState) -> Iterator[str]:
    did = afresh(policy, state, rule.name)
    for index, rung in enumerate(rule.do[:SHOWN]):
        left = uses_left(did, index, rung, state.moment)
        often = "as often as need be" if left is None else f"{left} of {rung.times} left per {rung.per or 'run'}"
        yield f"{index + 1}. {', '.join(rung.actions)}: {often}"
