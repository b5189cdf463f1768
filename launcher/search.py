"""The search for bad nodes in a run, from its journal: which trials are due, and what they come to. Pure.

Which nodes are tried and what came of each round are events, so that a new supervisor goes on where the old one was.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Protocol

from launcher.events import Event, NodeExamined, SearchBegan, TrialsEnded
from launcher.evolve import evolve
from launcher.localize import Diagnosis, Round
from launcher.run import Examining, NodeState, Run, Searching
from launcher.trials import CODE, ROUND_S, Report, findings_of, moved, outcome_of, parts, present, result_of


class Answering(Protocol):
    """What is to be known of an agent that answers."""

    @property
    def incarnation(self) -> str: ...
    @property
    def ranks_alive(self) -> int: ...
    @property
    def tried(self) -> Mapping[str, Report]: ...


@dataclass(frozen=True)
class Due:
    """What to tell agents and to journal now; `outcome` once it `is_over`."""

    messages: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    events: tuple[Event, ...] = ()
    is_over: bool = False
    outcome: str = ""


def told(run: Run) -> str:
    """How far a search that goes on has got; "" where there is none."""
    going_on = [one.search for one in run.examining.values() if one.search]
    if run.state.is_terminal or not going_on:
        return ""
    return f"{len(going_on[0].nodes)} nodes are tried with each other, round {len(going_on[0].rounds) + 1}"


def search_began(run: Run, event: SearchBegan) -> Run:
    return _with_search(run, event.id, Searching(event.nodes, event.at))


def trials_ended(run: Run, event: TrialsEnded) -> Run:
    asked = run.examining.get(event.id)
    if asked is None or asked.search is None:
        return run
    rounds = (*asked.search.rounds, event.trials)
    return _with_search(run, event.id, evolve(asked.search, at=event.at, rounds=rounds, places=event.places))


def _with_search(run: Run, id_: str, search: Searching) -> Run:
    asked = run.examining.get(id_)
    return evolve(run, examining={**run.examining, id_: evolve(asked, search=search)}) if asked else run


def due(run: Run, id_: str, asked: Examining, now: float, answering: Mapping[str, Answering]) -> Due:
    """What is due of the search that this decision or command wants, its nodes having been examined."""
    if run.live_attempt is not None:
        waits = asked.search is None and not asked.is_command and run.pending is not None and run.pending.id == id_
        return Due() if waits else Due(is_over=True, outcome="no search: ranks need the nodes")
    if asked.search is None:
        nodes = tuple(sorted(_idle(run, asked, answering), key=lambda name: run.nodes[name].index))
        if not nodes:
            return Due(is_over=True, outcome="no search: there is no node to be tried")
        return Due(events=(SearchBegan(at=now, id=id_, nodes=nodes),))
    step = present(asked.search.nodes, asked.search.rounds)
    if isinstance(step, Diagnosis):
        return Due(events=(*_examined(run, asked.search, step, now),), is_over=True, outcome=outcome_of(step))
    return _of_round(run, id_, asked.search, step, now, answering)


def _idle(run: Run, asked: Examining, answering: Mapping[str, Answering]) -> Iterator[str]:
    """Nodes to be tried: who has no ranks, and of whom nothing bad is known yet."""
    for name in asked.nodes:
        node, agent = run.nodes.get(name), answering.get(name)
        if node is None or agent is None or agent.incarnation != node.incarnation or agent.ranks_alive:
            continue
        is_known = any(one.code != CODE for one in node.faults)
        if node.state is NodeState.ALIVE and not (is_known or node.excluded or node.barred):
            yield name


def _of_round(
    run: Run, id_: str, search: Searching, trials: Round, now: float, answering: Mapping[str, Answering]
) -> Due:
    key = f"{id_}/{len(search.rounds)}"
    asked = {node: part for trial in trials for node, part in parts(trial, search.places).items()}
    reports = {node: answering[node].tried[key] for node in asked if node in answering and key in answering[node].tried}
    left = {node for node in asked.keys() - reports.keys() if run.nodes[node].state is not NodeState.LOST}
    if left and now < search.at + ROUND_S:
        messages = {
            node: {"type": "trial", "key": key, "part": asdict(asked[node])} for node in left & answering.keys()
        }
        return Due(messages=messages)
    results = tuple(result_of(trial, reports) for trial in trials)
    places = moved(search.places, {node: run.nodes[node].host for node in reports}, reports)
    return Due(events=(TrialsEnded(at=now, id=id_, trials=results, places=places),))


def _examined(run: Run, search: Searching, found: Diagnosis, now: float) -> Iterator[Event]:
    """What the search says of nodes, as an examination of them: of those that are well only where they were not."""
    for name, finding in findings_of(found, search.rounds).items():
        node = run.nodes.get(name)
        if node is None or (finding.verdict == "ok" and CODE not in node.findings):
            continue
        yield NodeExamined(
            at=now, node=name, incarnation=node.incarnation, number=node.examinations, tier="deep",
            verdict=finding.verdict, measured=int(finding.verdict != "unknown"), took_s=now - search.at,
            findings=(finding,),
        )  # fmt: skip
