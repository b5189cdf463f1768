"""Nodes that we have the scheduler keep from everybody: which, why, and what is known of them. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TypeVar

from launcher.events import Decision, DrainDone, DrainUndone
from launcher.evolve import evolve
from launcher.run import Broken, Drained, NodeState, Run

T = TypeVar("T")

# A breaker, as of all that takes nodes away without asking: what is wrong with more is wrong with something else.
SHARE, PER_S = 0.1, 3600.0
_LONGEST = 200
_UNSAFE = re.compile(r"[^A-Za-z0-9 .,:;()/_+-]+")  # what scontrol prints could be misread


def wanted(decision: Decision) -> dict[str, str]:
    """node -> why, of the nodes that a decision leaves out for what looks like hardware.

    Not those of ranks that ended by themselves: an error on one node only may as well be the script's, which has one
    rank write its logs.
    """
    blamed = (
        decision.actions.get("exclude") == "blamed"
        and decision.blame in ("certain", "likely")
        and decision.detector != "exit"
    )
    if decision.mode != "act" or not (blamed or decision.detector == "node_lost"):
        return {}
    return dict.fromkeys(decision.nodes, decision.why or decision.rule)


def reason_of(run: str, why: str) -> str:
    """What is to stand in the scheduler, so that an admin knows who drained the node, and we know it as ours."""
    return f"{_mark(run)}{' '.join(_UNSAFE.sub(' ', why).split())}"[:_LONGEST].rstrip()


def is_ours(reason: str, run: str) -> bool:
    """Whether the run has written this."""
    return reason.startswith(_mark(run))


def _mark(run: str) -> str:
    return f"opt-launch {run}: "


def is_too_many(run: Run, now: float) -> bool:
    """Whether one more would be, after those drained lately."""
    recent = sum(one.at > now - PER_S for one in run.drained.values())
    return recent >= max(1, int(len(run.nodes) * SHARE))


def to_drain(run: Run) -> dict[str, Broken]:
    """Those of which what was said is still so: a node that was lost may be back by now."""
    if run.drain_refused:
        return {}
    is_lost = {node: known.state is NodeState.LOST for node, known in run.nodes.items()}
    return {node: one for node, one in run.broken.items() if node in is_lost and (not one.is_lost or is_lost[node])}


def to_open(run: Run) -> dict[str, Drained]:
    """Those that take part again. The attempt that a node broke may not have ended when the node is drained."""
    live = run.live_attempt
    if live is None:
        return {}
    return {node: one for node, one in run.drained.items() if node in live.slots and live.number > one.attempt}


# ---------------------------------------------------------------- what becomes of the run


def left_out(run: Run, decision: Decision, nodes: Iterable[str]) -> Run:
    """Those of these nodes that look broken are to be drained, where that is wanted."""
    why, is_lost = wanted(decision), decision.detector == "node_lost"
    found = {node: Broken(decision.id, decision.attempt, why[node], is_lost) for node in nodes if node in why}
    return evolve(run, broken={**run.broken, **found}) if found else run


def drained(run: Run, event: DrainDone) -> Run:
    broken = run.broken.get(event.node)
    run = evolve(run, broken=_without(run.broken, event.node))
    if event.refused:
        return evolve(run, drain_refused=event.detail)
    found = Drained(event.reason, event.at, broken.attempt if broken else 0)
    return evolve(run, drained={**run.drained, event.node: found}) if event.ok else run


def undone(run: Run, event: DrainUndone) -> Run:
    return evolve(run, drained=_without(run.drained, event.node))


def _without(nodes: Mapping[str, T], node: str) -> dict[str, T]:
    return {name: one for name, one in nodes.items() if name != node}
