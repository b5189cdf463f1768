"""From a finding to a decision: the rung of the rule's ladder, what it costs, and the incident it opens. Pure."""

from __future__ import annotations

from typing import Any

from launcher.events import PERSON, RETRY, Decision, Event, Json
from launcher.evolve import evolve
from policies.finding import Finding
from policies.ladder import charged, chosen_rung, used
from policies.schema import Ask, Policy, Rule, Rung
from policies.state import EngineState, Pending, Question, Retry, RuleState, is_within
from policies.watch import NUMERICS

ENDS = frozenset({"restart", "hold", "stop"})
KEEPS_RANKS = "keeps_ranks"  # of a hold that leaves the ranks waiting
NO_RULE = "no-rule"  # the name in decisions about failures that no rule handles

Outcome = tuple[EngineState, tuple[Decision, ...]]


def answer(policy: Policy, rule: Rule, state: EngineState, event: Event, finding: Finding) -> Outcome:
    """What one rule does about a finding: nothing while it is silent, else its rung, advised or done."""
    if _is_silent(rule, state, finding) or asked_by(rule.name, state):
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
    if isinstance(rule.mode, Ask):
        return _ask(rule, rule.mode, state, event, finding, index)
    return act(policy, rule, state, event, finding, index)


def act(
    policy: Policy, rule: Rule, state: EngineState, event: Event, finding: Finding, index: int, incident: int = 0
) -> Outcome:
    """Use a rung of a rule, as far as the budgets go. `incident`: that is open already, 0 for a new one."""
    actions = _actions(rule.do[index], rule, index, finding)
    delay_s = 0.0
    if "restart" in actions:
        charge = charged(policy, rule, state, finding)
        if charge.exhausted:
            return hold(state, event, finding, rule.name, charge.exhausted, incident)
        state, delay_s = charge.state, charge.delay_s
        finding = evolve(finding, evidence={**finding.evidence, "budget": charge.budget})
    state = used(policy, rule, state, index, finding)
    how: dict[str, Any] = {"rung": index + 1, "counts": rule.counts, "delay_s": delay_s, "incident": incident}
    return decided(state, event, finding, rule.name, actions, **how)


def _ask(rule: Rule, mode: Ask, state: EngineState, event: Event, finding: Finding, index: int) -> Outcome:
    """Ask a person first; the rule has nothing more to say until there is an answer."""
    due = state.now + mode.ask
    did = evolve(state.rules.get(rule.name, RuleState()), last=state.moment, key=finding.key)
    actions = _actions(rule.do[index], rule, index, finding)
    how: dict[str, Any] = {"rung": index + 1, "counts": rule.counts, "due_at": due, "otherwise": mode.else_}
    state, decisions = decided(state, event, finding, rule.name, actions, mode="ask", **how)
    question = Question(rule.name, finding, index, due, mode.else_ == "act")
    questions = {**state.questions, decisions[0].incident: question}
    return evolve(state, rules={**state.rules, rule.name: did}, questions=questions), decisions


def asked_by(name: str, state: EngineState) -> bool:
    """Whether a person has been asked by this rule, and has not answered yet."""
    return any(question.rule == name for question in state.questions.values())


def _is_silent(rule: Rule, state: EngineState, finding: Finding) -> bool:
    """Whether a rule has nothing to say: in its cooldown, or it spoke about this finding already."""
    did = state.rules.get(rule.name, RuleState())
    if did.last and rule.cooldown:
        return is_within(did.last, state.moment, rule.cooldown)
    return did.key == finding.key


def hold(state: EngineState, event: Event, finding: Finding, rule: str, reason: str, incident: int = 0) -> Outcome:
    """Call a person."""
    actions: dict[str, Json] = {"hold": {"reason": reason}}
    return decided(state, event, finding, rule, actions, counts=False, incident=incident)


def decided(
    state: EngineState,
    event: Event,
    finding: Finding,
    rule: str,
    actions: dict[str, Json],
    incident: int = 0,
    **how: Any,
) -> Outcome:
    """A decision that opens an incident, or goes on with one. What ends the attempt is pending until another begins.

    What one event shows is one story, and so is what is found in the numbers while they are in trouble.
    """
    acts = how.get("mode", "act") == "act"
    joined = incident or (state.story if acts and rule != PERSON else 0)
    if state.trouble and finding.detector in NUMERICS:  # what goes back goes back to before all of it
        joined = joined or state.trouble.incident
        onset_at, onset_step = min((state.trouble.step, state.trouble.at), (finding.onset_step, finding.onset_at))[::-1]
        finding = evolve(finding, onset_at=onset_at, onset_step=onset_step)
    number = joined or state.incidents + 1
    decision = decision_of(state, event, finding, rule, actions, incident=number, **how)
    pending, retry = state.pending, state.retry
    if ends_attempt(actions) and acts:
        lost = frozenset(finding.nodes) if finding.detector == "node_lost" else frozenset()
        lost |= pending.lost if pending else frozenset()
        pending = Pending(number, state.now, "restart" in actions, lost)
        retry = _retry(state, rule, number, actions)
    state = evolve(
        state,
        incidents=max(state.incidents, number),
        decisions=state.decisions + 1,
        pending=pending,
        retry=retry,
        story=number if acts else state.story,
    )
    return state, (decision,)


def ends_attempt(actions: dict[str, Json]) -> bool:
    """Whether these actions end the ranks."""
    held = actions.get("hold")
    return bool(ENDS & actions.keys()) and not (isinstance(held, dict) and held.get(KEEPS_RANKS))


def _retry(state: EngineState, rule: str, incident: int, actions: dict[str, Json]) -> Retry | None:
    """Whether a hold is to be tried again: a rule that holds anew goes on counting from its first time."""
    hold = actions.get("hold")
    if not isinstance(hold, dict) or "every_s" not in hold:
        return state.retry if rule == RETRY or "restart" in actions else None
    at_most = hold.get("at_most_s")
    before = state.retry if state.retry and state.retry.rule == rule else None
    return Retry(
        rule,
        incident,
        before.began if before else state.moment,
        float(str(hold["every_s"])),
        None if at_most is None else float(str(at_most)),
    )


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
    held = plain.get("hold")
    if finding.detector == "storage_stall" and isinstance(held, dict):
        plain["hold"] = {**held, KEEPS_RANKS: True}
    if not _is_blamed(finding, index):
        plain = {name: value for name, value in plain.items() if name not in ("exclude", "replace")}
    return plain


def _is_blamed(finding: Finding, index: int) -> bool:
    """Whether a node is to be left out: never on a guess, and after a first hang only when blame is certain."""
    if finding.detector == "hang" and index == 0:
        return finding.blame == "certain" and bool(finding.nodes)
    return finding.blame in ("certain", "likely") and bool(finding.nodes)
