"""What a run and the host ledger have to say to each other: what is remembered of events, who is left out. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

from launcher.events import PERSON, AttemptEnded, Decision, Event, NodeAllowed, NodeExamined, NodeExcluded
from launcher.hosts.guard import Suspicion, applied
from launcher.hosts.records import Blamed, Excluded, Found, Seen, Served
from launcher.incidents import why_of
from launcher.run import Attempt, Node, NodeState, Run
from policies.schema import BY_CHECKS

Machines = Mapping[str, tuple[str, tuple[str, ...]]]  # node -> boot id, UUIDs of its GPUs

_NO_FAULT = ("draining",)  # detectors that name a node which works
# What a detector proves of the node it names, if not that a run failed there: nothing but silence, or wrong bits.
_PROOFS: dict[str, Literal["hard", "soft", "lost"]] = {
    "node_lost": "lost", "sdc": "hard", **dict.fromkeys(BY_CHECKS, "hard"),
}  # fmt: skip


def identity(run: Run) -> str:
    """Tells the run from one of the same name before it."""
    return f"{run.name}@{run.submitted_at:.0f}"


def blamed(run: Run, event: Event, by: str) -> list[Blamed]:
    """What an event puts down to hosts; of the same decision always the same."""
    if not isinstance(event, Decision) or event.detector in _NO_FAULT:
        return []
    if event.rule == PERSON and event.detector not in BY_CHECKS:
        return []
    if event.blame not in ("certain", "likely"):
        return []
    return [
        Blamed(
            id=f"{identity(run)}/{event.id}/{node}", at=event.at, by=by, host=node, run=run.name,
            code=str(_found(event, node).get("code", event.detector)), why=why_of(event, node)[:500],
        )
        for node in event.nodes
    ]  # fmt: skip


def suspicions(event: Event, records: list[Blamed]) -> list[Suspicion]:
    """Those of the blamed whom the policy leaves out, if this event is a decision of it to do so."""
    if not isinstance(event, Decision) or event.mode != "act" or event.actions.get("exclude") != "blamed":
        return []
    proof = _PROOFS.get(event.detector, "soft")
    return [_suspicion(event, one, proof) for one in records]


def _suspicion(event: Decision, one: Blamed, proof: Literal["hard", "soft", "lost"]) -> Suspicion:
    found = _found(event, one.host)
    remedy, readings = found.get("remedy", "none"), found.get("readings")
    evidence = {**readings, "limit": found.get("limit")} if isinstance(readings, dict) else {}
    return Suspicion(one.id, one.host, one.code, one.why, proof, remedy, evidence)


def _found(event: Decision, node: str) -> dict[str, Any]:
    """What a check has found on a node, where that is why it is blamed."""
    found = event.evidence.get("findings")
    about = found.get(node) if isinstance(found, dict) else None
    return about if isinstance(about, dict) else {}


def found(run: Run, event: Event, by: str) -> list[Found]:
    """What an examination says of a host that is not ok, and what no longer is otherwise."""
    if not isinstance(event, NodeExamined):
        return []
    return [
        Found(
            id=f"{identity(run)}/{event.node}/{event.incarnation}.{event.number}/{one.key}", at=event.at, by=by,
            host=event.node, code=one.key, verdict=one.verdict, summary=one.summary[:500], evidence=one.evidence,
        )
        for one in event.findings
    ]  # fmt: skip


def served(run: Run, event: Event, by: str) -> list[Served]:
    """What the nodes of an attempt have served when it ends."""
    attempt = run.attempt
    if not isinstance(event, AttemptEnded) or attempt is None or attempt.number != event.attempt:
        return []
    return serving(run, attempt, event.at, by)


def serving(run: Run, attempt: Attempt, at: float, by: str) -> list[Served]:
    """What the nodes of an attempt have served by now: from its first step on."""
    if attempt.first_step_at is None:
        return []
    hours = max(0.0, at - attempt.first_step_at) / 3600
    about = {"id": f"{identity(run)}/a{attempt.number}", "at": at, "by": by, "run": run.name}
    return [Served(hosts=tuple(attempt.slots), hours=hours, **about)]


def seen(machines: Machines, known: Mapping[str, tuple[str, tuple[str, ...]]], at: float, by: str) -> list[Seen]:
    """The machines that the ledger knows otherwise, or not at all."""
    return [
        Seen(id=f"{node}@{at:.3f}", at=at, by=by, host=node, boot_id=boot_id, gpus=gpus)
        for node, (boot_id, gpus) in machines.items()
        if boot_id and known.get(node) != (boot_id, gpus)
    ]


def changes(run: Run, left_out: Mapping[str, Excluded], at: float, *, settled: bool) -> Iterator[Event]:
    """What of the ledger the run does not know yet. Whose agents may still come (not `settled`) count as there."""
    usable = [node.name for node in run.nodes.values() if node.state is not NodeState.LOST and not node.excluded]
    missing = 0 if settled else max(0, run.nodes_wanted + run.spares_wanted - len(run.nodes))
    without = applied(left_out, usable, run.nodes_wanted - missing)
    for name in usable:
        yield from _change(run.nodes[name], without.get(name), at)


def _change(node: Node, one: Excluded | None, at: float) -> Iterator[Event]:
    reason = f"excluded by {one.by}: {one.reason}" if one else ""
    if reason == node.barred:
        return
    yield NodeExcluded(at=at, node=node.name, reason=reason) if reason else NodeAllowed(at=at, node=node.name)
