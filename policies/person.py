"""What people do to a run through its policy. Pure."""

from __future__ import annotations

from launcher.events import PERSON, CommandReceived, Event
from launcher.evolve import evolve
from policies.answer import Outcome, decided
from policies.finding import Finding
from policies.observe import begun_afresh
from policies.schema import Policy
from policies.state import EngineState


def person(_policy: Policy, state: EngineState, event: Event) -> Outcome:
    """What a person has done by `do` or `replace`: checked before it was journaled, before what is being done."""
    if not isinstance(event, CommandReceived) or event.verb not in ("do", "replace") or "actions" not in event.args:
        return state, ()
    if state.is_over or "stop" in state.commands.values() or (state.commands and not state.is_held):
        return state, ()
    actions = event.args["actions"]
    assert isinstance(actions, dict)
    if state.is_held and "restart" in actions:
        state = evolve(begun_afresh(state), commands={})
    slots = state.attempt.slots if state.attempt else {}
    named = event.args.get("nodes")
    nodes = tuple(str(node) for node in named) if isinstance(named, list) else ()
    finding = Finding(
        PERSON,
        key=event.id,
        why=f"{event.author}: {event.args['why']}",
        nodes=nodes,
        ranks=tuple(rank for node in nodes for rank in slots.get(node, ())),
        onset_at=event.at,
    )
    return decided(state, event, finding, PERSON, actions, counts=False)
