"""Which CPUs a rank may use: tables of machines, and what this one tells of itself."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from launcher.binding import Binding, Cpu, bind, ranges
from launcher.machine import cpus, gpu_nodes


def machine(nodes: int, cores: int, threads: int = 1) -> list[Cpu]:
    """`cores` on each NUMA node, numbered as Linux does: first threads of all cores, then their second threads."""
    count = nodes * cores
    return [Cpu(core + thread * count, core // cores, core) for thread in range(threads) for core in range(count)]


TABLE = [
    # machine, ranks, mode, near: the CPUs of each rank
    (machine(1, 8), 2, "auto", (), ["0-3", "4-7"]),
    (machine(1, 8), 3, "auto", (), ["0-1", "2-4", "5-7"]),
    (machine(2, 4), 4, "auto", (), ["0-1", "2-3", "4-5", "6-7"]),
    (machine(1, 4), 3, "auto", (), []),
    (machine(1, 4), 3, "cores", (), ["0", "1", "2-3"]),
    (machine(1, 4), 5, "cores", (), []),
    (machine(1, 2), 4, "auto", (), []),
    (machine(1, 64), 8, "none", (), []),
    # Both threads of a core go to the same rank, unless there are more ranks than cores.
    (machine(1, 4, threads=2), 4, "auto", (), ["0,4", "1,5", "2,6", "3,7"]),
    (machine(2, 4, threads=2), 2, "auto", (), ["0-3,8-11", "4-7,12-15"]),
    (machine(1, 2, threads=2), 4, "auto", (), []),
    (machine(1, 2, threads=2), 4, "cores", (), ["0", "2", "1", "3"]),
    (machine(1, 4, threads=2), 3, "auto", (), ["0,4", "1,5", "2-3,6-7"]),
    # A rank whose GPU is on the other NUMA node takes its CPUs there.
    (machine(2, 4), 4, "auto", (1, 1, 0, 0), ["4-5", "6-7", "0-1", "2-3"]),
    (machine(2, 4), 4, "auto", (1, 0, 1, 0), ["4-5", "0-1", "6-7", "2-3"]),
    (machine(2, 4), 4, "auto", (1, 0), ["0-1", "2-3", "4-5", "6-7"]),
    # What a scheduler left us of a machine need not begin at 0.
    ([Cpu(n, n // 8, n) for n in (6, 7, 8, 9)], 2, "auto", (), ["6-7", "8-9"]),
]  # fmt: skip


@pytest.mark.parametrize(("cpus", "ranks", "mode", "near", "expected"), TABLE)
def test_shares(cpus: list[Cpu], ranks: int, mode: str, near: tuple[int, ...], expected: list[str]) -> None:
    binding = bind(cpus, ranks, mode, near)

    assert [ranges(share) for share in binding.shares] == expected
    assert bool(binding.why) is not bool(expected)
    assert binding.is_lacking is (mode == "cores" and not expected)


@pytest.mark.parametrize(("_cpus", "ranks", "mode", "near", "expected"), TABLE)
def test_shares_are_disjoint_and_use_every_cpu(
    _cpus: list[Cpu], ranks: int, mode: str, near: tuple[int, ...], expected: list[str]
) -> None:
    shares = bind(_cpus, ranks, mode, near).shares

    if expected:
        assert sorted(number for share in shares for number in share) == sorted(cpu.number for cpu in _cpus)


def test_a_node_that_has_the_ranks_four_to_seven_begins_with_the_first_share() -> None:
    binding = bind(machine(1, 8), 4, "auto")

    assert [binding.of(rank) for rank in (4, 5, 6, 7)] == [(0, 1), (2, 3), (4, 5), (6, 7)]
    assert Binding(why="x").of(4) == ()


def test_what_is_bound_is_told_and_why_nothing_is() -> None:
    assert bind(machine(1, 4), 2, "auto").told() == ["0-1", "2-3"]
    assert bind(machine(1, 2), 4, "auto").told() == ["not bound: 2 CPUs for 4 ranks"]


def test_this_machine_tells_the_cpus_that_we_may_use() -> None:
    assert {cpu.number for cpu in cpus()} == os.sched_getaffinity(0)
    assert all(cpu.core <= cpu.number for cpu in cpus())


def test_the_numa_nodes_of_gpus_are_read_in_the_order_of_their_addresses(tmp_path: Path) -> None:
    def device(address: str, vendor: str, kind: str, node: int) -> None:
        folder = tmp_path / "bus/pci/devices" / address
        folder.mkdir(parents=True)
        for name, text in (("vendor", vendor), ("class", kind), ("numa_node", str(node))):
            (folder / name).write_text(text + "\n")

    assert gpu_nodes(tmp_path) == []
    device("0000:4f:00.0", "0x10de", "0x030200", 1)
    device("0000:07:00.0", "0x10de", "0x030200", 3)
    device("0000:08:00.0", "0x10de", "0x068000", 3)  # a switch of theirs
    device("0000:09:00.0", "0x8086", "0x030000", 0)
    assert gpu_nodes(tmp_path) == [3, 1]
    device("0000:50:00.0", "0x10de", "0x030200", -1)
    assert gpu_nodes(tmp_path) == []
