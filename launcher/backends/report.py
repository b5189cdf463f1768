"""What a backend says of a node."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class NodeReport:
    """`down`: why the node is gone, "" while it is not. `agent_pid`: of which agent that is certain; None if hearsay.

    Hearsay (a scheduler that has not heard from its own daemon) counts only of nodes that are silent towards us too.
    """

    down: str
    agent_pid: int | None = None
