"""Lists of nodes as Slurm writes them: "gpu-[01-04,07],login1"."""

from __future__ import annotations

import re
from collections.abc import Iterable

from launcher.errors import WrongUse

MOST = 100_000  # names in one list
_LIST = re.compile(r"[A-Za-z0-9._,\[\]-]+")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,252}")
_BRACKETS = re.compile(r"\[([^\]]*)\]")
_RANGE = re.compile(r"(\d+)-(\d+)")


def unfolded(texts: Iterable[str]) -> list[str]:
    """The names of lists such as "gpu-[01-04]", sorted and each once. Raises WrongUse with every list that is none."""
    from ClusterShell.NodeSet import NodeSet, NodeSetException

    names: set[str] = set()
    wrong: list[str] = []
    for text in texts:
        try:
            # What else the library reads (groups, which may run commands, and set operations) is not for us.
            if not _LIST.fullmatch(text) or _count(text) > MOST:
                raise ValueError(text)
            found = set(NodeSet(text, resolver=None))
            if not found or not all(map(_NAME.fullmatch, found)):
                raise ValueError(text)
            names |= found
        except (ValueError, NodeSetException):
            wrong.append(text)
    if wrong:
        told = ", ".join(repr(text[:80]) for text in wrong)
        raise WrongUse(
            f"not a list of at most {MOST:,} nodes: {told}", hint="write it as Slurm does: gpu-[01-04],gpu-07"
        )
    return sorted(names)


def folded(names: Iterable[str]) -> str:
    """The list of these names, as short as it goes."""
    from ClusterShell.NodeSet import NodeSet

    return str(NodeSet.fromlist([*names], resolver=None))


def _count(text: str) -> int:
    """At least as many names as a list has, told without making them."""
    count = 1
    for inside in _BRACKETS.findall(text):
        count *= sum(max(1, int(high[:12]) - int(low[:12]) + 1) for low, high in _RANGE.findall(inside)) or 1
    return count
