"""What a GPU is set to and how it fares: power, memory temperature, MIG, ECC, who uses it, versions."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from launcher.health.finding import Finding
from launcher.health.nvml import Gpu, Unread, read

MEMORY_TEMPERATURE, MEMORY_LIMIT = 82, 2  # NVML_FI_DEV_MEMORY_TEMP, NVML_TEMPERATURE_THRESHOLD_MEM_MAX
CORRECTED, VOLATILE = 0, 0
CORRECTED_A_SECOND = 10.0  # more slows a GPU down while it still counts as healthy (NVSentinel#1748)
LOST_MEMORY = 1 << 30  # bytes in use that nobody owns up to


def memory_temperature(gpu: Gpu) -> Iterator[Finding]:
    """Against the device's own limit for its memory; 0 is said where there is no sensor."""
    limit = gpu.read("GetTemperatureThreshold", MEMORY_LIMIT)
    known = limit if isinstance(limit, int) and limit > 0 else None

    def judged(degrees: int) -> Finding:
        return heat("gpu-memory-temperature", gpu, f"memory at {degrees} C", degrees, known)

    degrees = gpu.field(MEMORY_TEMPERATURE)
    if degrees != 0:
        yield from gpu.judged("gpu-memory-temperature", degrees, judged)


def heat(code: str, gpu: Gpu, told: str, degrees: int, limit: int | None) -> Finding:
    """A temperature against the device's own limit for it; without one nobody knows what it means."""
    return Finding(
        code=code,
        verdict="unknown" if limit is None else "warn" if degrees >= limit else "ok",
        subject=gpu.name,
        summary=told + (", and its limit is not told" if limit is None else ""),
        evidence={"celsius": degrees},
        limit=limit,
        limit_source="" if limit is None else "device",
    )


def power(gpu: Gpu) -> Iterator[Finding]:
    """Whether what it draws can be read: a GPU that supports it and does not tell is in trouble."""
    drawn = gpu.read("GetPowerUsage")
    if isinstance(drawn, Unread) and drawn.supported and not drawn.lost:
        summary = f"what it draws cannot be read: {drawn.why}"
        yield Finding(code="gpu-power", verdict="warn", subject=gpu.name, summary=summary)
        return

    def judged(milliwatts: int) -> Finding:
        watts = round(milliwatts / 1000)
        return Finding(
            code="gpu-power", verdict="ok", subject=gpu.name, summary=f"{watts} W", evidence={"watts": watts}
        )

    yield from gpu.judged("gpu-power", drawn, judged)


def modes(gpu: Gpu) -> Iterator[Finding]:
    """Settings that a training run does not want. They are only told: what is set is the admins' affair."""
    mig, ecc, persistent = gpu.read("GetMigMode"), gpu.read("GetEccMode"), gpu.read("GetPersistenceMode")
    if isinstance(mig, list) and mig[0]:
        summary = "it is divided (MIG), and ranks want whole GPUs"
        verdict, remedy = ("fail", "drain") if gpu.is_given else ("warn", "none")
        yield Finding(code="gpu-mig", verdict=verdict, subject=gpu.name, summary=summary, remedy=remedy)
    if isinstance(ecc, list) and not ecc[0]:
        summary = "errors of its memory are not looked for (ECC is off)"
        yield Finding(code="gpu-ecc-mode", verdict="warn", subject=gpu.name, summary=summary)
    if persistent == 0:
        summary = "persistence mode is off: each first use takes seconds"
        yield Finding(code="gpu-persistence", verdict="warn", subject=gpu.name, summary=summary)


def corrected(gpu: Gpu) -> Iterator[Finding]:
    """The rate of memory errors that were corrected, since the last check; totals say nothing."""
    since_s = gpu.since_last("corrected")

    def judged(count: int) -> Finding:
        rate = gpu.at.grown(f"{gpu.name}/corrected", count) / max(since_s, 1.0)
        return Finding(
            code="gpu-ecc-corrected",
            verdict="warn" if rate >= CORRECTED_A_SECOND else "ok",
            subject=gpu.name,
            summary=f"{rate:.1f} memory errors a second corrected since the last check",
            evidence={"total": count, "a_second": round(rate, 2)},
            limit=CORRECTED_A_SECOND,
            limit_source="table",
        )

    yield from gpu.judged("gpu-ecc-corrected", gpu.read("GetTotalEccErrors", CORRECTED, VOLATILE), judged)


LOOKS: tuple[Callable[[Gpu], Iterator[Finding]], ...] = (memory_temperature, power, modes, corrected)


def users(gpu: Gpu) -> Iterator[Finding]:
    """Who is on it before a start: processes of others, and memory that nobody owns up to.

    Where Slurm has not given the GPU to us, others may be on it; and root's are the machine's own.
    """
    running, memory = gpu.read("GetComputeRunningProcesses"), gpu.read("GetMemoryInfo", gpu.nvml.nvmlMemory_v2)
    if isinstance(running, Unread):
        yield from gpu.judged("gpu-processes", running, lambda _: Finding(code="", verdict="ok", summary=""))
        return
    others = [one.pid for one in running if _owner(gpu.at.root, one.pid) not in (None, os.getuid(), 0)]
    is_wrong = bool(others) and gpu.is_given
    evidence = {"processes": len(running), "of_others": len(others)}
    yield Finding(
        code="gpu-processes",
        verdict="fail" if is_wrong else "ok",
        subject=gpu.name,
        summary=f"{len(running)} processes" + (f", {len(others)} of somebody else" if others else ""),
        evidence=dict(evidence),
        remedy="drain" if is_wrong else "none",
    )
    used = None if isinstance(memory, Unread) else int(memory.used)
    if used is not None and not running and used > LOST_MEMORY:
        summary = f"{used / 2**30:.1f} GiB are in use, and no process tells of them"
        evidence = {"bytes": used}
        yield Finding(
            code="gpu-memory",
            verdict="warn",
            subject=gpu.name,
            summary=summary,
            evidence=dict(evidence),
            limit=LOST_MEMORY,
            limit_source="table",
            remedy="reset_gpu",
        )


def together(nvml: Any, count: int) -> Iterator[Finding]:
    """What all GPUs of a node have in common: versions, and the limit of their power."""
    found = {index: read(nvml, "nvmlDeviceGetHandleByIndex", index) for index in range(count)}
    handles = {index: handle for index, handle in found.items() if not _is_unread(handle)}
    yield from _versions(nvml, [*handles.values()])
    read_limits = {index: read(nvml, "nvmlDeviceGetEnforcedPowerLimit", handle) for index, handle in handles.items()}
    limits = {index: int(value) // 1000 for index, value in read_limits.items() if not _is_unread(value)}
    usual, many = Counter(limits.values()).most_common(1)[0] if limits else (0, 0)
    for index, watts in limits.items():
        if watts != usual and many * 2 > len(limits):
            yield Finding(
                code="gpu-power-limit",
                verdict="warn",
                subject=f"gpu{index}",
                summary=f"it may draw {watts} W, and others here {usual} W",
                evidence={"watts": watts},
                limit=usual,
                limit_source="peers",
            )


def _versions(nvml: Any, handles: list[Any]) -> Iterator[Finding]:
    driver, cuda = read(nvml, "nvmlSystemGetDriverVersion"), read(nvml, "nvmlSystemGetCudaDriverVersion_v2")
    if _is_unread(driver):
        return
    read_bios = [read(nvml, "nvmlDeviceGetVbiosVersion", handle) for handle in handles]
    bios = sorted({str(value) for value in read_bios if not _is_unread(value)})
    yield Finding(
        code="gpu-versions",
        verdict="warn" if len(bios) > 1 else "ok",
        summary=f"driver {driver}" + (f", and VBIOS {', '.join(bios)} on one machine" if len(bios) > 1 else ""),
        evidence={"driver": str(driver), "cuda": None if _is_unread(cuda) else int(cuda), "vbios": " ".join(bios)},
    )


def _is_unread(value: Any) -> bool:
    return isinstance(value, Unread)


def _owner(root: Path, pid: int) -> int | None:
    try:
        return (root / "proc" / str(pid)).stat().st_uid
    except OSError:  # gone, or of another pid namespace
        return None
