"""Trials of the search for bad nodes: what each node is asked, and what its reports come to. Pure.

`launcher.localize` says which nodes are tried together, `launcher.health.trial` does it on a node.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from launcher.events import CheckFinding, TrialPlace, TrialResult
from launcher.localize import Diagnosis, Result, Round, Trial, localize

START_S = 120.0  # until a node's processes are there: imports, by all nodes at once, from a shared disk
LIMIT_S = 60.0  # from then on: the rendezvous, with those who come later, and the all-reduces
GRACE_S = 15.0  # after both, for what is told to arrive
BURN_S = 2.0  # in which a node computes the same product again and again, before it is tried alone
ROUND_S = START_S + BURN_S + LIMIT_S + GRACE_S  # who has not told by then tells nothing
CODE = "collective"  # of findings
Rounds = tuple[tuple[TrialResult, ...], ...]


@dataclass(frozen=True)
class Part:
    """What one node does in a trial. `base`: the rank of its first process of `world`; with 0 of them it is alone.

    `host`, `port`: where the store of the first node listens. `limit_s`: from when its processes are there.
    """

    base: int = 0
    world: int = 0
    host: str = ""
    port: int = 0
    limit_s: float = LIMIT_S
    burn_s: float = 0.0


@dataclass(frozen=True)
class Report:
    """How a node's part went. `port`: free, for its next trial. `bandwidth`, `copied`: bytes a second.

    `digests`: of the product that each device has computed.
    """

    outcome: Literal["passed", "failed", "timed_out", "not_started"]
    said: str = ""
    bandwidth: float | None = None
    devices: int = 1
    port: int = 0
    digests: tuple[str, ...] = ()
    copied: float | None = None


@lru_cache(maxsize=4)
def present(nodes: tuple[str, ...], rounds: Rounds) -> Round | Diagnosis:
    """The round that is due after these, or what they come to: the search is the same each time it is gone through."""
    search = localize(nodes)
    try:
        trials = next(search)
        for results in rounds:
            trials = search.send({one.nodes: _as_result(one) for one in results})
    except StopIteration as over:
        return over.value
    return trials


def _as_result(one: TrialResult) -> Result:
    return Result(one.outcome, frozenset(one.absent), one.bandwidth)


def parts(trial: Trial, places: Mapping[str, TrialPlace], limit_s: float = LIMIT_S) -> dict[str, Part]:
    """What each node of a trial is asked; the first one's store is where they meet."""
    if len(trial) == 1:
        return {trial[0]: Part(limit_s=limit_s, burn_s=BURN_S)}
    first, asked, base = places[trial[0]], {}, 0
    world = sum(places[node].devices for node in trial)
    for node in trial:
        asked[node] = Part(base, world, first.host, first.port, limit_s)
        base += places[node].devices
    return asked


def result_of(trial: Trial, reports: Mapping[str, Report]) -> TrialResult:
    """What came of a trial. Who did not begin, or tells nothing, says nothing of the others."""
    absent = tuple(node for node in trial if node not in reports or reports[node].outcome == "not_started")
    there = {node: reports[node] for node in trial if node in reports}
    outcomes = {one.outcome for one in there.values()}
    outcome = "timed_out" if absent else "failed" if "failed" in outcomes else "timed_out"
    if outcomes == {"passed"} and not absent:
        outcome = "passed"
    return TrialResult(
        nodes=trial,
        outcome=outcome,
        absent=absent,
        bandwidth=min((one.bandwidth for one in there.values() if one.bandwidth), default=None),
        said={node: one.said for node, one in there.items() if one.said},
    )


def moved(
    places: Mapping[str, TrialPlace], hosts: Mapping[str, str], reports: Mapping[str, Report]
) -> dict[str, TrialPlace]:
    """Where the nodes can be met in the next round. `hosts`: the address of each."""
    told = {
        node: TrialPlace(host=hosts[node], port=one.port, devices=one.devices)
        for node, one in reports.items()
        if one.outcome != "not_started" or node not in places
    }
    return {**places, **told}


# ---------------------------------------------------------------- what is told


def findings_of(found: Diagnosis, rounds: Rounds) -> dict[str, CheckFinding]:
    """Of each node that was tried what the search says of it."""
    said = {node: text for trials in rounds for one in trials for node, text in one.said.items()}
    told = {node: _finding("ok", "all-reduces with others pass") for node in found.good}
    for nodes in found.interactions:
        told |= {node: _finding("warn", f"{_and(nodes)} fail together, and pass in parts") for node in nodes}
    for a, b in found.links:
        for node, other in ((a, b), (b, a)):
            told[node] = _finding("warn", f"fails with {other} and passes with others, as {other} does: it is the link")
    told |= {node: _finding("warn", why) for node, why in found.slow.items()}
    told |= {node: _finding("fail", why + _heard(said, node)) for node, why in found.bad.items()}
    told |= {node: _finding("unknown", f"took no part{_heard(said, node)}") for node in found.absent}
    for nodes in found.undecided:
        for node in nodes:
            others = _and(sorted(nodes - {node}))
            why = (
                f"fails with {others}, and who is at fault cannot be told"
                if others
                else "nobody is left to try it with"
            )
            told[node] = _finding("unknown", why)
    return told


def _finding(verdict: Literal["ok", "warn", "fail", "unknown"], summary: str) -> CheckFinding:
    return CheckFinding(code=CODE, verdict=verdict, summary=summary, remedy="drain" if verdict == "fail" else "none")


def _heard(said: Mapping[str, str], node: str) -> str:
    return f": {said[node][:200]}" if node in said else ""


def outcome_of(found: Diagnosis) -> str:
    """What a search has come to, in a line."""
    return "; ".join(_outcome(found))


def _outcome(found: Diagnosis) -> Iterator[str]:
    if found.good:
        yield f"all-reduces of {len(found.good)} nodes pass"
    yield from (f"{node} {why}" for node, why in sorted(found.bad.items()))
    yield from (f"{node} is {why}" for node, why in sorted(found.slow.items()))
    yield from (f"the link between {_and(link)} is broken" for link in found.links)
    yield from (f"who of {_and(sorted(nodes))} is at fault cannot be told" for nodes in found.undecided)
    yield from (f"{_and(nodes)} fail together, and pass in parts" for nodes in found.interactions)
    if found.absent:
        yield f"{_and(sorted(found.absent))} took no part"


def _and(names: Sequence[str]) -> str:
    shown = [*names[:6], f"{len(names) - 6} more"] if len(names) > 7 else [*names]
    return " and ".join(filter(None, (", ".join(shown[:-1]), *shown[-1:])))
