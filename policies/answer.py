"""From a finding to a decision: the rung of the rule's ladder, what it costs, and the incident it opens. Pure."""

from __future__ import annotations

from typing import Any

from launcher.events import Decision, Event, Json
from launcher.evolve import evolve
from policies.finding import Finding
from policies.ladder import charged, chosen_rung, used
from policies.schema import Policy, Rule, Rung
from policies.state import EngineState, Pending, RuleState, is_within

ENDS = frozenset({"restart", "hold", "stop"})
BUILT_IN = "engine"  # the rule of decisions that no policy has to make

Outcome = tuple[EngineState, tuple[Decision, ...]]


def answer(policy: Policy, rule: Rule, state: EngineState, event: Event, finding: Finding) -> Outcome:
    """What one rule does about a finding: nothing while it is silent, else its rung, advised or done."""
    if _is_silent(rule, state, finding):
        return state, ()
    index, why_not = chosen_rung(policy, rule, state, finding)
    actions: dict[str, Json] = {"hold": {"reason": why_not}}
    if index is not None:
        actions = _actions(rule.do[index], rule, index, finding)
    if rule.mode == "advise":
        did = evolve(state.rules.get(rule.name, RuleState()), last=state.moment, key=finding.key)
        state = evolve(state, rules={**state.rules, rule.name: did})
        rung = 0 if index is None else index + 1
        return decided(state, event, finding, rule.name, actions, rung=rung, counts=False, mode="advise")
    if index is None:
        # A ladder that only tells people something never holds the run.
        ends = any(ENDS & rung.actions.keys() for rung in rule.do)
        return hold(state, event, finding, rule.name, why_not) if ends else (state, ())
    delay_s = 0.0
    if "restart" in actions:
        charge = charged(policy, rule, state, finding)
        if charge.exhausted:
            return hold(state, event, finding, rule.name, charge.exhausted)
        state, delay_s = charge.state, charge.delay_s
        finding = evolve(finding, evidence={**finding.evidence, "budget": charge.budget})
    state = used(policy, rule, state, index, finding)
    return decided(state, event, finding, rule.name, actions, rung=index + 1, counts=rule.counts, delay_s=delay_s)


def _is_silent(rule: Rule, state: EngineState, finding: Finding) -> bool:
    """Whether a rule has nothing to say: in its cooldown, or it spoke about this finding already."""
    did = state.rules.get(rule.name, RuleState())
    if did.last and rule.cooldown:
        return is_within(did.last, state.moment, rule.cooldown)
    return did.key == finding.key


def hold(state: EngineState, event: Event, finding: Finding, rule: str, reason: str) -> Outcome:
    actions: dict[str, Json] = {"hold": {"reason": reason}}
    return decided(state, event, finding, rule, actions, counts=False)


def decided(
    state: EngineState, event: Event, finding: Finding, rule: str, actions: dict[str, Json], **how: Any
) -> Outcome:
    """Open an incident with this decision. What ends the attempt is pending until another begins."""
    incident = state.incidents + 1
    decision = decision_of(state, event, finding, rule, actions, incident=incident, **how)
    pending = state.pending
    if ENDS & actions.keys() and decision.mode == "act":
        lost = frozenset(finding.nodes) if finding.detector == "node_lost" else frozenset()
        lost |= pending.lost if pending else frozenset()
        pending = Pending(incident, state.now, "restart" in actions, lost)
    return evolve(state, incidents=incident, decisions=state.decisions + 1, pending=pending), (decision,)


def decision_of(
    state: EngineState, event: Event, finding: Finding, rule: str, actions: dict[str, Json], **how: Any
) -> Decision:
    return Decision(
        at=event.at,
        id=f"d{state.decisions + 1:04d}",
        attempt=state.attempt.number if state.attempt else 0,
        rule=rule,
        detector=finding.detector,
        actions=actions,
        why=finding.why,
        evidence=finding.evidence,
        nodes=finding.nodes,
        ranks=finding.ranks,
        blame=finding.blame,
        onset_at=finding.onset_at,
        onset_step=finding.onset_step,
        **how,
    )


def _actions(rung: Rung, rule: Rule, index: int, finding: Finding) -> dict[str, Json]:
    """The actions of a rung as plain values, in their fixed order."""
    plain = rung.plain(f"rule '{rule.name}': {finding.why}")
    if not _is_blamed(finding, index):
        plain = {name: value for name, value in plain.items() if name not in ("exclude", "replace")}
    return plain


def _is_blamed(finding: Finding, index: int) -> bool:
    """Whether a node is to be left out: never on a guess, and after a first hang only when blame is certain."""
    if finding.detector == "hang" and index == 0:
        return finding.blame == "certain" and bool(finding.nodes)
    return finding.blame in ("certain", "likely") and bool(finding.nodes)
