"""How often something may be done: the rungs of a rule's ladder, and the budgets of the run."""

from __future__ import annotations

from dataclasses import dataclass

from launcher.evolve import evolve
from policies.finding import Finding
from policies.observe import PROGRESS_STEPS
from policies.schema import Policy, Rule, Rung
from policies.state import EngineState, Moment, RuleState, is_within

# Seconds before the next attempt after the first, second, third and later failure before a first step.
BACK_OFF_S = (0.0, 30.0, 120.0, 600.0)


@dataclass(frozen=True)
class Charge:
    """What a restart costs: the wait before it, the budget it is taken from, and whether that is empty."""

    state: EngineState
    delay_s: float = 0.0
    budget: str = ""
    exhausted: str = ""


def chosen_rung(policy: Policy, rule: Rule, state: EngineState, finding: Finding) -> tuple[int | None, str]:
    """The position of the rung to use now; without one, why there is none."""
    did = afresh(policy, state, rule.name)
    again = finding.error is not None and finding.error == did.error
    # The same error at the same step is not cured by doing the same again.
    for index in range(did.rung + 1 if again else 0, len(rule.do)):
        if len(_uses(did, index, rule.do[index], state.moment)) < (rule.do[index].times or float("inf")):
            return index, ""
    if again:
        return None, f"the same error at step {finding.onset_step} again, and rule '{rule.name}' has no further rung"
    return None, f"rule '{rule.name}' has used up its {len(rule.do)} rung{'s' * (len(rule.do) > 1)}"


def afresh(policy: Policy, state: EngineState, name: str) -> RuleState:
    """What a rule has done so far; its ladder begins anew when enough steps went well since."""
    did = state.rules.get(name, RuleState())
    if did.last and state.steps_done - did.last.steps >= policy.reset_after:
        return RuleState(last=did.last, key=did.key)
    return did


def used(policy: Policy, rule: Rule, state: EngineState, index: int, finding: Finding) -> EngineState:
    """The state after a rung was used."""
    did = afresh(policy, state, rule.name)
    uses = list(did.uses) + [()] * (len(rule.do) - len(did.uses))
    if rule.do[index].times:
        uses[index] = (*_uses(did, index, rule.do[index], state.moment), state.moment)
    rule_state = RuleState(tuple(uses), state.moment, finding.key, finding.error, index)
    return evolve(state, rules={**state.rules, rule.name: rule_state})


def _uses(did: RuleState, index: int, rung: Rung, now: Moment) -> tuple[Moment, ...]:
    """The uses of a rung that still count."""
    used_at = did.uses[index] if index < len(did.uses) else ()
    return tuple(use for use in used_at if is_within(use, now, rung.per))


def charged(policy: Policy, rule: Rule, state: EngineState, finding: Finding) -> Charge:
    """What a restart costs now."""
    if finding.is_first_step:
        return _first_step(policy, rule, state)
    if not rule.counts:
        return Charge(state, budget="not counted")
    rate = policy.budget.restarts
    spent = tuple(use for use in state.restarts if is_within(use, state.moment, rate.per))
    if len(spent) >= rate.times:
        return Charge(state, exhausted=f"budget 'restarts' ({rate}) is used up (rule '{rule.name}')")
    if (share := policy.budget.lost_time) and (lost := lost_s(state, share.per_s)) >= share.seconds:
        told = f"{lost:.0f}s were lost to restarts: budget 'lost_time' ({share}) is used up (rule '{rule.name}')"
        return Charge(state, exhausted=told)
    state, exhausted = without_progress(policy, state)
    if exhausted:
        return Charge(state, exhausted=f"{exhausted} (rule '{rule.name}')")
    state = evolve(state, restarts=(*spent, state.moment))
    return Charge(state, budget=f"restarts {len(spent) + 1} of {rate}; without progress {state.fruitless}")


def uses_left(did: RuleState, index: int, rung: Rung, now: Moment) -> int | None:
    """How often a rung may still be used now; None where nothing limits it."""
    return None if rung.times is None else rung.times - len(_uses(did, index, rung, now))


def lost_s(state: EngineState, per_s: float) -> float:
    """Seconds that restarts have cost in a window of this length."""
    return sum(loss.seconds for loss in state.losses if state.now - loss.at < per_s)


def without_progress(policy: Policy, state: EngineState) -> tuple[EngineState, str]:
    """Count the attempt if nothing came of it, as far as is known; what is used up if that was once too often."""
    attempt = state.attempt
    progressed = attempt is not None and (
        attempt.committed > attempt.committed_before
        or attempt.step >= attempt.best_before + PROGRESS_STEPS
        or (attempt.is_up and not attempt.has_stepped)
    )
    fruitless = 0 if progressed else state.fruitless + 1
    if fruitless > policy.budget.no_progress:
        return state, f"budget 'no_progress' ({policy.budget.no_progress} in a row) is used up"
    return evolve(state, fruitless=fruitless), ""


def _first_step(policy: Policy, rule: Rule, state: EngineState) -> Charge:
    failures, most = state.first_step_failures, policy.budget.first_step
    if rule.counts and failures >= most:
        return Charge(state, exhausted=f"budget 'first_step' ({most} in a row) is used up (rule '{rule.name}')")
    delay_s = BACK_OFF_S[min(failures, len(BACK_OFF_S) - 1)]
    budget = f"failures before the first step {failures + 1} of {most}" if rule.counts else "not counted"
    return Charge(evolve(state, first_step_failures=failures + 1), delay_s, budget)
