"""The judge of infrastructure: lost nodes, exits, hangs, draining nodes. Pure."""

from __future__ import annotations

from launcher.events import Decision, Event
from launcher.evolve import evolve
from policies.answer import NO_RULE, Outcome, answer, asked_by, decision_of, hold
from policies.detectors import look
from policies.exits import failed_rank
from policies.finding import Finding
from policies.schema import Policy
from policies.silence import lost_nodes
from policies.state import EngineState
from policies.when import NodeLost

# A lost node explains exits and hangs, an exit explains a hang; a node that is wanted back can wait for all of them.
# A stall of the storage explains that nothing moves, and nothing is to be killed for it.
ORDER = ("node_lost", "exit", "storage_stall", "hang", "draining", "scheduler", "time_left", "disk", "log")


def infrastructure(policy: Policy, state: EngineState, event: Event) -> Outcome:
    """Lost nodes, exits, hangs, draining nodes. What has ended and no rule handles is held: nobody else would."""
    if state.pending:
        return _joined(policy, state, event)
    decisions: tuple[Decision, ...] = ()
    stalled = state.stalled
    for detector in ORDER:
        if detector == "hang" and stalled:
            continue
        unhandled: Finding | None = None
        for rule in policy.rules:
            if rule.when.detector != detector or not (finding := look(rule, state)[0]):
                continue
            unhandled, stalled = finding, stalled or detector == "storage_stall"
            state, more = answer(policy, rule, state, event, finding)
            decisions += more
            if state.pending or asked_by(rule.name, state):
                return state, decisions
        if detector == "node_lost":
            unhandled = unhandled or lost_nodes(state, NodeLost())[0]
        if detector == "exit":
            unhandled = unhandled or failed_rank(state)[0]
        if unhandled and detector in ("node_lost", "exit"):
            state, more = hold(state, event, unhandled, NO_RULE, f"no rule handles this {detector}")
            return state, decisions + more
    return state, decisions


def _joined(policy: Policy, state: EngineState, event: Event) -> Outcome:
    """While an attempt is being ended, a node found lost joins the incident: only who is left out changes."""
    rules = [rule for rule in policy.rules if rule.when.node_lost and rule.mode == "act"]
    detector = (rules[0].when.node_lost if rules else None) or NodeLost()
    finding = lost_nodes(state, detector)[0]
    if finding is None or state.pending is None:
        return state, ()
    incident = state.pending.incident
    pending = evolve(state.pending, lost=state.pending.lost | set(finding.nodes))
    name = rules[0].name if rules else NO_RULE
    decision = decision_of(state, event, finding, name, {"exclude": "blamed"}, incident=incident, counts=False)
    return evolve(state, pending=pending, decisions=state.decisions + 1), (decision,)
