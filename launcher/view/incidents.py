"""The incidents of a run with the reasons for every decision."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from launcher.errors import LaunchError
from launcher.events import CommandReceived, Decision, Event, RunAmended
from launcher.evolve import evolve
from launcher.journal import read_journal
from launcher.paths import RunPaths
from launcher.view.snapshot import snapshot
from launcher.view.words import changed, clock, cost, duration
from policies.amended import policy_now, with_amendments
from policies.explain import explain
from policies.load import read_policy
from policies.schema import Policy
from policies.state import EngineState


def incidents_of(paths: RunPaths) -> list[dict[str, Any]]:
    """As in the snapshot, with `explain`: the story of each decision; `then`: in what the next attempt was different.

    Raises ConfigError for a broken policy.
    """
    policy = read_policy(paths.policy) if paths.policy.exists() else Policy(version=1, name="unknown", rules=())
    decisions = [*_with_policy(policy, read_journal(paths, steps=False).events)]
    snap = snapshot(paths)
    return [
        incident
        | {"explain": [explain(of, one) for of, one in decisions if one.incident == incident["id"]]}
        | {"then": changed(snap, incident["attempt"] + 1)}
        for incident in snap["incidents"]
    ]


def incident_of(paths: RunPaths, number: int) -> dict[str, Any]:
    """One of them. Raises LaunchError if there is none of this number."""
    found = incidents_of(paths)
    for incident in found:
        if incident["id"] == number:
            return incident
    known = f"1 to {len(found)}" if found else "none so far"
    raise LaunchError(f"there is no incident {number}: {known}", f"incidents {paths.name}")


def _with_policy(policy: Policy, events: Iterable[Event]) -> Iterator[tuple[Policy, Decision]]:
    """Every decision with the policy as it was then: people change it while the run goes on."""
    state = EngineState()
    for event in events:
        if isinstance(event, (CommandReceived, RunAmended, Decision)):
            state = with_amendments(evolve(state, now=max(state.now, event.at)), event)
        if isinstance(event, Decision):
            yield policy_now(policy, state), event


def incidents_text(incidents: list[dict[str, Any]]) -> str:
    """The incidents for a person, the oldest first."""
    return "\n\n".join(map(_story, incidents)) or "no incidents"


def _story(incident: dict[str, Any]) -> str:
    head = f"#{incident['id']} {clock(incident['opened_at'])} {incident['rule']}  {incident['state']}"
    seen = f"decided after {duration(incident['detected_s'])}"
    notes = [f"  note:    {one['author']}, {clock(one['at'])}: {one['text']}" for one in incident["notes"]]
    story = f"{head}  {', '.join(part for part in (seen, cost(incident)) if part)}"
    return "\n".join(filter(None, [story, *incident["explain"], incident["then"], *notes]))
