"""What people are asked, and how it ends: with their answer, without one in time, or as it has become idle. Pure."""

from __future__ import annotations

from launcher.events import PERSON, CommandReceived, Decision, Event
from launcher.evolve import evolve
from policies.answer import Outcome, act, decision_of, hold
from policies.detectors import look
from policies.examined import failing_nodes
from policies.finding import Finding
from policies.schema import BY_CHECKS, FACTS, Policy, Rule
from policies.state import EngineState, Question
from policies.watch import SEES_ONSETS

DEAD = ("exit", "node_lost")  # the attempt has ended: to do nothing is to hold the run


def answered(policy: Policy, state: EngineState, event: Event) -> Outcome:
    """What comes of open questions now."""
    decisions: tuple[Decision, ...] = ()
    for incident, question in state.questions.items():
        if state.pending:
            break
        rule = next((rule for rule in policy.rules if rule.name == question.rule), None)
        state, more = _settled(policy, rule, state, event, incident, question)
        decisions += more
    return state, decisions


def _settled(
    policy: Policy, rule: Rule | None, state: EngineState, event: Event, incident: int, question: Question
) -> Outcome:
    verb, author = _said(event, incident)
    if verb == "approve" and rule is not None:
        return act(policy, rule, _closed(state, incident), event, question.finding, question.rung, incident)
    if verb == "hold":
        return _left(state, event, incident, question, f"{author} wants it left")
    if rule is None or not _stands(rule, state, question.finding):
        return _left(state, event, incident, question, "it has gone by itself")
    if state.now < question.due:
        return state, ()
    if question.acts:
        return act(policy, rule, _closed(state, incident), event, question.finding, question.rung, incident)
    return _left(state, event, incident, question, "nobody answered in time")


def overtaken(_policy: Policy, state: EngineState, event: Event) -> Outcome:
    """What was asked about an attempt that is being ended for another reason is answered by that."""
    decisions: tuple[Decision, ...] = ()
    while state.pending and state.questions:
        incident, question = next(iter(state.questions.items()))
        why = f"incident {state.pending.incident} has the attempt ended"
        state, more = _nothing(state, event, incident, question, why)
        decisions += more
    return state, decisions


def vetoed(_policy: Policy, state: EngineState, event: Event) -> Outcome:
    """A person holds what is being done about an incident, or lets its rule speak of it again."""
    if not isinstance(event, CommandReceived) or not isinstance(incident := event.args.get("incident"), int):
        return state, ()
    rule = str(event.args.get("rule"))
    if event.verb == "release" and rule in state.rules:
        did = evolve(state.rules[rule], key="", last=None)
        return evolve(state, rules={**state.rules, rule: did}), ()
    pending = state.pending
    if event.verb == "hold" and pending and pending.restart and pending.incident == incident:
        finding = Finding(PERSON, key=event.id, why=f"held by {event.author}", onset_at=event.at)
        return hold(state, event, finding, PERSON, f"{event.author} does not want the restart", incident)
    return state, ()


def _said(event: Event, incident: int) -> tuple[str, str]:
    """(verb, author) of what a person says about an incident."""
    if isinstance(event, CommandReceived) and event.args.get("incident") == incident:
        return event.verb, event.author
    return "", ""


def _stands(rule: Rule, state: EngineState, finding: Finding) -> bool:
    """Whether the rule's detector, where that can be asked, still finds what the question is about."""
    if rule.when.detector in BY_CHECKS:  # of what is decided upon, as this is, it says nothing more
        return not {*finding.nodes}.isdisjoint(failing_nodes(rule.when, state))
    if rule.when.detector in FACTS:
        return look(rule, state)[0] is not None
    if rule.when.detector in ("non_finite", "threshold", *SEES_ONSETS):  # these say so in every step
        return rule.name in state.streaks
    return True


def _left(state: EngineState, event: Event, incident: int, question: Question, why: str) -> Outcome:
    if question.finding.detector in DEAD:
        return hold(_closed(state, incident), event, question.finding, question.rule, why, incident)
    return _nothing(state, event, incident, question, why)


def _nothing(state: EngineState, event: Event, incident: int, question: Question, why: str) -> Outcome:
    finding = evolve(question.finding, why=why)
    decision = decision_of(state, event, finding, question.rule, {}, incident=incident, counts=False)
    return evolve(_closed(state, incident), decisions=state.decisions + 1), (decision,)


def _closed(state: EngineState, incident: int) -> EngineState:
    return evolve(state, questions={key: one for key, one in state.questions.items() if key != incident})
