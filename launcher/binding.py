"""Which CPUs each rank of a machine may use. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, groupby, pairwise

LEAST = {"auto": 2, "cores": 1}  # CPUs that a rank must get for itself


@dataclass(frozen=True)
class Cpu:
    """A CPU of the machine, its NUMA node, and the first CPU of its core."""

    number: int
    node: int
    core: int


@dataclass(frozen=True)
class Binding:
    """The CPUs of each rank of the machine; none when ranks may use all, and then `why`.

    `is_lacking`: it was asked for, and cannot be.
    """

    shares: tuple[tuple[int, ...], ...] = ()
    why: str = ""
    is_lacking: bool = False

    def of(self, rank: int) -> tuple[int, ...]:
        """The CPUs of a rank of the run; empty when it may use all. Each machine has ranks that follow each other."""
        return self.shares[rank % len(self.shares)] if self.shares else ()

    def told(self) -> list[str]:
        """For a person: the CPUs of each rank as ranges, or why there are none."""
        return [ranges(share) for share in self.shares] or [f"not bound: {self.why}"]


def bind(cpus: Sequence[Cpu], ranks: int, mode: str, near: Sequence[int] = ()) -> Binding:
    """Contiguous shares in the order of NUMA nodes and cores, if there is enough for every rank.

    A core is not shared as long as there is one for each rank. `near`: the NUMA node of each rank's GPU, where known;
    ranks then take their shares in the order of those.
    """
    if mode == "none":
        return Binding(why="launch.bind: none")
    cpus = sorted(cpus, key=lambda cpu: (cpu.node, cpu.core, cpu.number))
    cores = [[cpu.number for cpu in one] for _, one in groupby(cpus, key=lambda cpu: (cpu.node, cpu.core))]
    units = cores if len(cores) >= ranks else [[cpu.number] for cpu in cpus]
    cuts = [rank * len(units) // ranks for rank in range(ranks + 1)]
    shares = [tuple(sorted(chain.from_iterable(units[first:last]))) for first, last in pairwise(cuts)]
    if min(map(len, shares)) < LEAST[mode]:
        return Binding(why=f"{len(cpus)} CPUs for {ranks} ranks", is_lacking=mode == "cores")
    order = sorted(range(ranks), key=lambda rank: near[rank]) if len(near) == ranks else range(ranks)
    of_rank = dict(zip(order, shares, strict=True))
    return Binding(tuple(of_rank[rank] for rank in range(ranks)))


def ranges(numbers: Sequence[int]) -> str:
    """Ascending numbers as 0-3,8,10-11."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][-1] + 1:
            parts[-1] = [parts[-1][0], number]
        else:
            parts.append([number])
    return ",".join("-".join(map(str, part)) for part in parts)
