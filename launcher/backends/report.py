"""What a backend says of its nodes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from launcher.events import Event, NodeDraining, NodeUndrained
from launcher.run import Node


@dataclass(frozen=True)
class NodeReport:
    """`down`: why the node is gone, "" while it is not. `agent_pid`: of which agent that is certain; None if hearsay.

    Hearsay (a scheduler that has not heard from its own daemon) counts only of nodes that are silent towards us too.
    `draining`: why the admin wants the node back, "" when nobody does.
    """

    down: str
    agent_pid: int | None = None
    draining: str = ""


def drain_changes(nodes: Mapping[str, Node], reports: Mapping[str, NodeReport], at: float) -> Iterator[Event]:
    """What the reports say that the run does not know yet: nodes wanted back, and no longer. Pure."""
    for name, report in reports.items():
        if name not in nodes or report.down or bool(report.draining) == bool(nodes[name].draining):
            continue
        if report.draining:
            yield NodeDraining(at=at, node=name, reason=report.draining)
        else:
            yield NodeUndrained(at=at, node=name)
