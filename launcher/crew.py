"""Which nodes an attempt gets: how many, whom first, and who holds which ranks. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from launcher.run import Node, Run


def by_preference(run: Run, nodes: Iterable[Node]) -> list[Node]:
    """Those of the last attempt, then spares, then those lost that came back; last of all who is wanted elsewhere."""
    before = run.attempt.incarnations if run.attempt else {}

    def rank(node: Node) -> int:
        if node.name not in before:
            return 1
        return 0 if before[node.name] == node.incarnation else 2

    return sorted(nodes, key=lambda node: (is_to_leave(run, node), rank(node), node.index))


def is_to_leave(run: Run, node: Node) -> bool:
    """Whether others are preferred to a node: a check of it fails, it is drained, or a spare is to take its place."""
    wanted_back = bool(node.draining) or node.name in run.drained
    return (
        bool(node.faults or node.avoided) or wanted_back or (run.replace is not None and node.name in run.replace.nodes)
    )


def size_of(run: Run, there: int, smaller: Sequence[int], *, may_shrink: bool) -> int | None:
    """The number of nodes to begin with; None: wait for more.

    A run that has gone on smaller needs no second leave to: it takes all that are there, if they are no fewer.
    `smaller`: the numbers below the wanted one that fit, largest first.
    """
    if there >= run.nodes_wanted:
        return run.nodes_wanted
    size = next((size for size in smaller if size <= there), None)
    enough = 1 if may_shrink else len(run.attempt.slots) if run.attempt else run.nodes_wanted
    return size if size is not None and size >= enough else None


def assign(run: Run, nodes: Sequence[Node]) -> dict[str, tuple[int, ...]]:
    """Rank slots: a node keeps those it had; a newcomer takes exactly the slots of a node that is gone."""
    per_node = run.ranks_per_node
    groups = [tuple(range(i * per_node, (i + 1) * per_node)) for i in range(len(nodes))]
    before = dict(run.attempt.slots) if run.attempt else {}
    names = {node.name for node in nodes}
    kept = {name: ranks for name, ranks in before.items() if name in names and ranks in groups}
    free = [ranks for ranks in groups if ranks not in kept.values()]
    fresh = [node.name for node in nodes if node.name not in kept]
    slots = {**kept, **dict(zip(fresh, free, strict=True))}
    return dict(sorted(slots.items(), key=lambda item: item[1]))
