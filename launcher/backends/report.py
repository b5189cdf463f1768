"""What a backend says of its nodes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from launcher.drain import is_ours
from launcher.events import Event, NodeDraining, NodeUndrained
from launcher.run import Run


@dataclass(frozen=True)
class NodeReport:
    """`down`: why the node is gone, "" while it is not. `agent_pid`: of which agent that is certain; None if hearsay.

    Hearsay (a scheduler that has not heard from its own daemon) counts only of nodes that are silent towards us too.
    `draining`: why its admin wants the node back, "" when nobody does; `drain_reason`: the same in the drainer's words.
    """

    down: str
    agent_pid: int | None = None
    draining: str = ""
    drain_reason: str = ""


def drain_changes(run: Run, reports: Mapping[str, NodeReport], at: float) -> Iterator[Event]:
    """What the reports say that the run does not know yet: nodes wanted back, and no longer. Pure.

    That a node is drained because we asked for it is no news: we have left it out before.
    """
    for name, report in reports.items():
        draining = "" if is_ours(report.drain_reason, run.name) else report.draining
        if name not in run.nodes or report.down or bool(draining) == bool(run.nodes[name].draining):
            continue
        if draining:
            yield NodeDraining(at=at, node=name, reason=draining)
        else:
            yield NodeUndrained(at=at, node=name)
