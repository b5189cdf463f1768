"""What a decision makes of the run: its incident, and the replacement, restart, hold or stop that is due. Pure."""

from __future__ import annotations

from typing import Any

from launcher.drain import left_out
from launcher.events import PERSON, RETRY, ActionDone, Decision, IncidentClosed, IncidentOpened
from launcher.evolve import evolve
from launcher.run import ENDING, Incident, Node, NodeState, Note, Run, RunState, keeps_ranks
from launcher.settings import asked_to_set, asked_to_skip


def decided(run: Run, event: Decision) -> Run:
    run = _tell_incident(run, event)
    if event.mode != "act" or run.state.is_terminal:
        return run
    nodes, out = dict(run.nodes), []
    for name in event.nodes:
        if name not in nodes or (event.detector == "node_lost" and _came_back(run, nodes[name])):
            continue
        if event.detector == "node_lost":
            nodes[name] = evolve(nodes[name], state=NodeState.LOST)
        if "exclude" in event.actions:
            nodes[name] = evolve(nodes[name], excluded=event.why or event.rule)
        out.append(name)
    run = left_out(evolve(run, nodes=nodes), event, out)
    if "save" in event.actions and not event.actions.keys() & ENDING:
        run = evolve(run, save_requested_at=event.at, save_beyond=run.step)
    if "replace" in event.actions:
        before = run.replace.nodes if run.replace else ()
        run = evolve(run, replace=evolve(event, nodes=tuple(dict.fromkeys((*before, *event.nodes)))))
    if "set" in event.actions:
        run = asked_to_set(run, event)
    if "skip" in event.actions:
        run = asked_to_skip(run, event)
    if "run" in event.actions:
        run = evolve(run, errands={**run.errands, event.id: event})
    if keeps_ranks(event):
        return evolve(run, holding=event)
    is_held = run.state is RunState.HELD and not run.keeps_ranks and event.rule not in (PERSON, RETRY)
    if not event.actions.keys() & ENDING or is_held:
        return run
    return evolve(
        run,
        state=run.state if run.state is RunState.PAUSED else RunState.RECOVERING,
        pending=event,
        pending_done=frozenset(),
        hold_reason="",
        keeps_ranks=False,
        holding=None,
        recovering_since=event.at,
        restarts=run.restarts + ("restart" in event.actions and event.rule != PERSON),
    )


def opened(run: Run, event: IncidentOpened) -> Run:
    """Trouble has begun, and nothing is decided: it is watched."""
    incident = Incident(
        event.incident, event.rule, event.detector, event.attempt, event.onset_at, event.at, run.step, event.why, (),
        "none", "act", {}, (), event.evidence, state="WATCHED", onset_step=event.onset_step, lasts=True,
    )  # fmt: skip
    return evolve(run, incidents=(*run.incidents, incident))


def closed(run: Run, event: IncidentClosed) -> Run:
    """Trouble is over. What has been decided about it goes on."""
    state = {"healed": "HEALED", "stayed": "STAYED", "left": "ENDED"}[event.outcome]
    return evolve(run, incidents=tuple(_closed(i, event, state) for i in run.incidents))


def _closed(incident: Incident, event: IncidentClosed, state: str) -> Incident:
    if incident.number != event.incident:
        return incident
    if incident.state not in ("WATCHED", "ADVISED", "ASKED", "LEFT", "NOTED"):
        return evolve(incident, lasts=False)
    recovered_at = event.at if event.outcome == "healed" else None
    return evolve(incident, lasts=False, state=state, recovered_at=recovered_at)


def action_done(run: Run, event: ActionDone) -> Run:
    if event.action == "replace":
        return _replacement_begun(run, event)
    if event.action == "run":
        return evolve(run, errands={id_: one for id_, one in run.errands.items() if id_ != event.decision})
    if event.action == "set":
        return evolve(run, asking=None) if run.asking and run.asking.id == event.decision else run
    if run.pending is None or event.decision != run.pending.id:
        return run
    return evolve(run, pending_done=run.pending_done | {event.action})


def _replacement_begun(run: Run, event: ActionDone) -> Run:
    """Only now does the incident cost anything: until a spare was there, training went on."""
    if run.replace is None or event.decision != run.replace.id:
        return run
    incidents = tuple(
        evolve(i, state="OPEN", opened_at=event.at) if event.decision in i.decisions else i for i in run.incidents
    )
    restarts = run.restarts + (run.replace.rule != PERSON)
    return evolve(run, replacing_since=event.at, incidents=incidents, restarts=restarts)


def spared(run: Run, node: str) -> Run:
    """The node need not be replaced after all. If that has begun, the trainer saves and ends all the same."""
    if run.replace is None:
        return run
    nodes = tuple(name for name in run.replace.nodes if name != node)
    return evolve(run, replace=evolve(run.replace, nodes=nodes) if nodes else None)


def recovered(run: Run, at: float) -> Run:
    incidents = tuple(
        evolve(i, state="RECOVERED", recovered_at=at) if i.state in ("OPEN", "HELD") else i for i in run.incidents
    )
    return evolve(run, incidents=incidents)


def close_incidents(run: Run, state: str) -> Run:
    """Those that are open, and what was asked."""
    incidents = tuple(evolve(i, state=state) if i.state in ("OPEN", "ASKED") else i for i in run.incidents)
    return evolve(run, incidents=incidents)


def no_more_asked(run: Run) -> Run:
    """What was asked about an attempt is idle when there is another."""
    if not any(i.state == "ASKED" for i in run.incidents):
        return run
    return evolve(run, incidents=tuple(evolve(i, state="LEFT") if i.state == "ASKED" else i for i in run.incidents))


def _came_back(run: Run, node: Node) -> bool:
    """Whether an agent was started anew since the attempt began: what is lost is the old one, not this."""
    return run.attempt is not None and run.attempt.incarnations.get(node.name, node.incarnation) != node.incarnation


def _tell_incident(run: Run, event: Decision) -> Run:
    for position, incident in enumerate(run.incidents):
        if incident.number == event.incident:
            longer = evolve(
                incident,
                decisions=(*incident.decisions, event.id),
                nodes=tuple(dict.fromkeys((*incident.nodes, *event.nodes))),
                actions={**incident.actions, **event.actions},
                state=_state_after(incident, event),
                **_as_decided(incident, event),
            )
            return evolve(run, incidents=(*run.incidents[:position], longer, *run.incidents[position + 1 :]))
    incident = Incident(
        event.incident, event.rule, event.detector, event.attempt, event.onset_at or event.at, event.at, run.step,
        event.why, event.nodes, event.blame, event.mode, event.actions, (event.id,), event.evidence,
        state=_state_of(event), onset_step=event.onset_step, due_at=event.due_at, otherwise=event.otherwise,
    )  # fmt: skip
    return evolve(run, incidents=(*run.incidents, incident))


def _as_decided(incident: Incident, event: Decision) -> dict[str, Any]:
    """What a decision changes of how the incident is told: the first about what was only watched tells all."""
    if incident.state == "WATCHED":
        asked = {"due_at": event.due_at, "otherwise": event.otherwise}
        return {"mode": event.mode, "decided_at": event.at, "why": event.why, **asked}
    return {"mode": "act", "decided_at": event.at} if event.mode == "act" and event.actions else {}


def _state_after(incident: Incident, decision: Decision) -> str:
    if incident.state == "WATCHED":
        return _state_of(decision)
    if incident.state == "ASKED":
        return _state_of(decision) if decision.actions else "LEFT"
    goes_on = (
        incident.state in ("NOTED", "ADVISED", "HELD") and decision.mode == "act" and decision.actions.keys() & ENDING
    )
    return "OPEN" if goes_on else incident.state


def noted(run: Run, number: object, note: Note) -> Run:
    incidents = tuple(evolve(i, notes=(*i.notes, note)) if i.number == number else i for i in run.incidents)
    return evolve(run, incidents=incidents)


def _state_of(decision: Decision) -> str:
    if decision.mode != "act":
        return "ADVISED" if decision.mode == "advise" else "ASKED"
    return "OPEN" if decision.actions.keys() & ENDING else "NOTED"
