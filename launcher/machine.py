"""The CPUs and GPUs of this machine, as far as the kernel tells."""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path

from launcher.binding import Binding, Cpu, bind
from launcher.sections import RunSpec

SYS, PROC = Path("/sys"), Path("/proc")
_UUID = re.compile(r"^GPU UUID:\s*(GPU-[0-9a-f-]+)\s*$", re.MULTILINE)  # "GPU-????..." until the driver has looked
_NVIDIA, _DISPLAY = "0x10de", "0x03"  # vendor, and the class of display and 3D controllers


def cpus(sys: Path = SYS) -> list[Cpu]:
    """The CPUs that this process may use."""
    return [_cpu(sys / "devices/system/cpu" / f"cpu{number}", number) for number in sorted(os.sched_getaffinity(0))]


def _cpu(folder: Path, number: int) -> Cpu:
    nodes = [int(one.name.removeprefix("node")) for one in folder.glob("node[0-9]*")]
    core = number
    with contextlib.suppress(OSError, ValueError):
        siblings = (folder / "topology/thread_siblings_list").read_text()
        core = int(siblings.replace("-", ",").split(",")[0])
    return Cpu(number, nodes[0] if nodes else 0, core)


def gpu_nodes(sys: Path = SYS) -> list[int]:
    """The NUMA node of each NVIDIA GPU, in the order of their addresses; empty where one is not known."""
    nodes: list[int] = []
    for device in sorted((sys / "bus/pci/devices").glob("*")):
        try:
            about = [(device / name).read_text().strip() for name in ("vendor", "class", "numa_node")]
        except OSError:
            continue
        if about[0] == _NVIDIA and about[1].startswith(_DISPLAY):
            nodes.append(int(about[2]))
    return nodes if all(node >= 0 for node in nodes) else []


def boot_id(proc: Path = PROC) -> str:
    """What tells this boot of the machine from others; "" where the kernel does not say."""
    try:
        return (proc / "sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def gpu_uuids(proc: Path = PROC) -> list[str]:
    """The UUIDs of the NVIDIA GPUs, as the driver's files tell them; empty where there are none."""
    uuids: list[str] = []
    for file in sorted((proc / "driver/nvidia/gpus").glob("*/information")):
        with contextlib.suppress(OSError):
            uuids += _UUID.findall(file.read_text())
    return uuids


def binding_of(spec: RunSpec) -> Binding:
    """The CPUs of the ranks of this machine: of all that the run has when its nodes are virtual, else of one node's."""
    if spec.launch.mode == "per_node":
        return Binding(why="launch.mode: per_node")
    usable, asked = cpus(), spec.launch.bind
    given = os.environ.get("SLURM_CPUS_ON_NODE", "")
    if given.isdigit() and int(given) < len(usable):  # which of them are ours, nobody knows
        why = f"Slurm gave {given} CPUs of {len(usable)} and confines nobody to his own"
        return Binding(why=why, is_lacking=asked == "cores")
    ranks = spec.world_size if spec.cluster.backend == "local" else spec.cluster.ranks_per_node
    return bind(usable, ranks, asked, gpu_nodes())
