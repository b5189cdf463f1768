"""Checks of the machine: memory, processors, limits, processes."""

from __future__ import annotations

import contextlib
import os
import resource
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

from launcher.doctor.checks import OPEN_FILES
from launcher.health.context import Context
from launcher.health.finding import Finding

LEAST_AVAILABLE = 0.05  # of the memory, before anything of ours runs
CORRECTED_PER_CHECK = 100
LEAST_SHM_BYTES = 1 << 30  # NCCL and data loaders share memory there
MOST_ZOMBIES = 1000  # gpud's limit
WAITED_S, CHECKS_APART_S = 300, 150  # gcm's limit; checks come once a minute


def memory(at: Context) -> Iterator[Finding]:
    """Whether enough of it is free, and whether any of it is known to be broken."""
    lines = (line.split() for line in at.text("proc/meminfo").splitlines())
    kib = {words[0].rstrip(":"): int(words[1]) for words in lines if len(words) > 1}
    total, available = kib["MemTotal"], kib["MemAvailable"]
    evidence = {"total_kib": total, "available_kib": available}
    is_low = available < LEAST_AVAILABLE * total
    yield Finding(
        code="memory-available",
        verdict="warn" if is_low else "ok",
        summary=f"{available / total:.0%} of {total / 2**20:.0f} GiB are available",
        evidence=dict(evidence),
        limit=f"{LEAST_AVAILABLE:.0%}",
        limit_source="table",
    )
    if broken := kib.get("HardwareCorrupted", 0):
        summary = f"the kernel has taken {broken} KiB of broken memory out of use"
        yield Finding(
            code="memory-corrupted", verdict="warn", summary=summary, evidence={"kib": broken}, remedy="service"
        )


def memory_errors(at: Context) -> Iterator[Finding]:
    """What the memory controllers count. Errors that could not be corrected have spoilt something."""
    controllers = [*at.glob("sys/devices/system/edac/mc/mc[0-9]*")]
    if not controllers:
        yield Finding(code="memory-errors", verdict="skipped", summary="the kernel counts no memory errors here")
    for folder in controllers:
        place = str(folder.relative_to(at.root))
        lost, corrected = at.number(f"{place}/ue_count"), at.number(f"{place}/ce_count")
        more = at.grown(f"edac/{folder.name}", corrected)
        evidence = {"uncorrected": lost, "corrected": corrected, "corrected_since_last_check": more}
        verdict = "fail" if lost else "warn" if more > CORRECTED_PER_CHECK else "ok"
        yield Finding(
            code="memory-errors",
            verdict=verdict,
            subject=folder.name,
            summary=f"{lost} errors not corrected since boot, {more} corrected since the last check",
            evidence=dict(evidence),
            limit=0 if lost else CORRECTED_PER_CHECK,
            limit_source="table",
            remedy="service" if lost else "none",
        )


def processors(at: Context) -> Iterator[Finding]:
    """Whether all that Slurm counts are there."""
    there = sum(line.startswith("processor") for line in at.text("proc/cpuinfo").splitlines())
    given = at.environment.get("SLURM_CPUS_ON_NODE", "")
    if not given.isdigit():
        yield Finding(code="cpu-count", verdict="ok", summary=f"{there} CPUs", evidence={"cpus": there})
        return
    yield Finding(
        code="cpu-count",
        verdict="ok" if there >= int(given) else "fail",
        summary=f"{there} CPUs, and Slurm gives {given}",
        evidence={"cpus": there},
        limit=int(given),
        limit_source="config",
        remedy="none" if there >= int(given) else "drain",
    )


def shared_memory(at: Context) -> Iterator[Finding]:
    """/dev/shm must hold what ranks of a node tell each other."""
    about = os.statvfs(at.root / "dev/shm")
    size = about.f_blocks * about.f_frsize
    yield Finding(
        code="shared-memory",
        verdict="ok" if size >= LEAST_SHM_BYTES else "warn",
        summary=f"/dev/shm has {size / 2**30:.1f} GiB",
        evidence={"bytes": size},
        limit=LEAST_SHM_BYTES,
        limit_source="table",
    )


def limits(at: Context) -> Iterator[Finding]:
    """What a process may have, by its soft limits: locked memory for InfiniBand, open files as in the doctor."""
    files, locked = (resource.getrlimit(kind)[0] for kind in (resource.RLIMIT_NOFILE, resource.RLIMIT_MEMLOCK))
    unlimited = resource.RLIM_INFINITY
    enough = files in (unlimited, -1) or files >= OPEN_FILES
    yield Finding(
        code="open-files",
        verdict="ok" if enough else "warn",
        summary=f"a process may open {'any number of' if files in (unlimited, -1) else files} files",
        evidence={"files": files},
        limit=OPEN_FILES,
        limit_source="table",
        remedy="none" if enough else "raise_limit",
    )
    if any(at.glob("sys/class/infiniband/*")):
        yield Finding(
            code="locked-memory",
            verdict="ok" if locked == unlimited else "fail",
            summary="locked memory is " + ("unlimited" if locked == unlimited else f"limited to {locked} bytes"),
            evidence={"bytes": locked},
            limit="unlimited, as there is InfiniBand",
            limit_source="table",
        )


def processes(at: Context) -> Iterator[Finding]:
    """Processes that have ended and that nobody has asked after: something on the node has gone wrong."""
    states = Counter(one.state for one in _processes(at))
    yield Finding(
        code="zombies",
        verdict="ok" if states["Z"] < MOST_ZOMBIES else "warn",
        summary=f"{states['Z']} zombies, {states['D']} processes wait for a device",
        evidence={"zombies": states["Z"], "waiting": states["D"]},
        limit=MOST_ZOMBIES,
        limit_source="table",
        remedy="none" if states["Z"] < MOST_ZOMBIES else "reboot_node",
    )


def waiting(at: Context) -> Iterator[Finding]:
    """Processes of ours that have waited for a device at every check for minutes: not even SIGKILL ends them.

    They keep what they have of GPUs and memory.
    """
    now = int(float(at.text("proc/uptime").split()[0]))
    last, *marks = str(at.before.get("waiting", "")).split() or ["0"]
    # Who waited at two checks that lie far apart need not have waited in between.
    since = dict(mark.split("=") for mark in marks) if now - int(last) <= CHECKS_APART_S else {}
    ours = {f"{one.pid}.{one.started}": one for one in _processes(at) if one.state == "D" and one.uid == os.getuid()}
    begun = {key: int(since.get(key, now)) for key in ours}
    at.after["waiting"] = " ".join([str(now), *(f"{key}={moment}" for key, moment in begun.items())])
    stuck = {ours[key].pid: now - moment for key, moment in begun.items() if now - moment >= WAITED_S}
    told = ", ".join(f"pid {pid} for {seconds / 60:.0f} min" for pid, seconds in stuck.items())
    yield Finding(
        code="waiting",
        verdict="fail" if stuck else "ok",
        summary=f"waits for a device: {told}" if stuck else f"{len(ours)} of our processes wait for a device",
        evidence={"pids": " ".join(map(str, stuck))} if stuck else {},
        limit=WAITED_S,
        limit_source="table",
        remedy="reboot_node" if stuck else "none",
    )


class _Process(NamedTuple):
    pid: int
    state: str
    started: str
    uid: int


def _processes(at: Context) -> Iterator[_Process]:
    """All that can be seen; those that end meanwhile are not told."""
    for stat in at.glob("proc/[0-9]*/stat"):
        with contextlib.suppress(OSError, IndexError):
            words = stat.read_text(errors="replace").rpartition(")")[2].split()
            yield _Process(int(stat.parent.name), words[0], words[19] if len(words) > 19 else "", stat.stat().st_uid)
