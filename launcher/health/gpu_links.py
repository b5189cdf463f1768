"""How a GPU is joined to the rest: PCIe, NVLink, the fabric of NVSwitches."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator

from launcher.health.finding import Finding
from launcher.health.nvml import Gpu, Unread

IDLE = 0x1  # of the clock event reasons
# Replays per minute and lane that each generation of PCIe may have: DCGM's numbers.
REPLAYS = {1: 0.15, 2: 0.3, 3: 0.48, 4: 0.96, 5: 1.92, 6: 3.84}
# NVML_FI_DEV_NVLINK_*_ERROR_COUNT_TOTAL.
LINK_ERRORS = {"replays": 52, "recoveries": 59, "crc": 38}
CRC_A_SECOND = 100.0  # DCGM's limit
# NVRx calls a link bad when errors grew in more than half of thirty one-minute windows: single bursts are no harm.
WINDOWS, BAD_WINDOWS, WINDOW_S = 30, 15, 50.0
FABRIC_STATES = {1: "not started", 2: "in progress", 3: "completed"}
COMPLETED = 3


def pcie(gpu: Gpu) -> Iterator[Finding]:
    """Lanes that are gone. The speed is lowered while nothing is to be done, so it is judged of a busy GPU only."""
    width, most = gpu.read("GetCurrPcieLinkWidth"), gpu.read("GetMaxPcieLinkWidth")
    speed, best = gpu.read("GetCurrPcieLinkGeneration"), gpu.read("GetMaxPcieLinkGeneration")
    reasons = gpu.read("GetCurrentClocksEventReasons")
    is_busy = isinstance(reasons, int) and not reasons & IDLE

    def judged(lanes: int) -> Finding:
        narrow = isinstance(most, int) and lanes < most
        slow = is_busy and isinstance(speed, int) and isinstance(best, int) and speed < best
        told = f" of {most}" if isinstance(most, int) else ""
        return Finding(
            code="gpu-pcie",
            verdict="fail" if narrow else "warn" if slow else "ok",
            subject=gpu.name,
            summary=f"{lanes}{told} lanes" + (f", at generation {speed} of {best} while busy" if slow else ""),
            evidence={"lanes": lanes, "generation": speed if isinstance(speed, int) else None},
            limit=best if slow and not narrow else most if isinstance(most, int) else None,
            limit_source="device",
            remedy="reboot_node" if narrow else "none",
        )

    yield from gpu.judged("gpu-pcie", width, judged)


def replays(gpu: Gpu) -> Iterator[Finding]:
    """What had to be sent again over PCIe since the last check."""
    generation, lanes = gpu.read("GetCurrPcieLinkGeneration"), gpu.read("GetCurrPcieLinkWidth")
    elapsed_s = gpu.since_last("pcie")

    def judged(count: int) -> Finding:
        grown = gpu.at.grown(f"{gpu.name}/replays", count)
        allowed = REPLAYS.get(generation, 0.0) * lanes if isinstance(lanes, int) else 0.0
        a_minute = grown * 60 / max(elapsed_s, 60.0)
        is_much = allowed > 0 and a_minute > allowed
        return Finding(
            code="gpu-replays",
            verdict="warn" if is_much else "ok",
            subject=gpu.name,
            summary=f"{grown} PCIe replays since the last check",
            evidence={"total": count, "a_minute": round(a_minute, 2)},
            limit=round(allowed, 2) or None,
            limit_source="table" if allowed else "",
        )

    yield from gpu.judged("gpu-replays", gpu.read("GetPcieReplayCounter"), judged)


def link_errors(gpu: Gpu) -> Iterator[Finding]:
    """Errors of its NVLinks since the last check; what grows again and again is trouble, a single burst is not."""
    counts = {what: gpu.field(number, "ullVal") for what, number in LINK_ERRORS.items()}
    known = {what: value for what, value in counts.items() if isinstance(value, int)}
    if not known:
        return
    elapsed_s = gpu.since_last("links")
    grown = {what: gpu.at.grown(f"{gpu.name}/{what}", value) for what, value in known.items()}
    windows = _windows(gpu, any(grown.values()), elapsed_s)
    bad, crc = windows.count("1"), grown.get("crc", 0) / max(elapsed_s, 1.0)
    is_bad = bad > BAD_WINDOWS or crc >= CRC_A_SECOND
    told = ", ".join(f"{what} +{more}" for what, more in grown.items() if more) or "none"
    yield Finding(
        code="gpu-link-errors",
        verdict="warn" if is_bad else "ok",
        subject=gpu.name,
        summary=f"NVLink errors since the last check: {told}; in {bad} of the last {len(windows)} checks",
        evidence={**known, "checks_with_errors": bad},
        limit=BAD_WINDOWS,
        limit_source="table",
        remedy="reset_gpu" if is_bad else "none",
    )


def fabric(gpu: Gpu) -> Iterator[Finding]:
    """Whether it is part of the fabric: that this is completed says nothing unless it was a success."""
    kind = getattr(gpu.nvml, "c_nvmlGpuFabricInfoV_t", None)
    if kind is None:
        return
    info = kind()
    info.version = getattr(gpu.nvml, "nvmlGpuFabricInfo_v2", 0)
    answer = gpu.read("GetGpuFabricInfoV", ctypes.byref(info))
    state = answer if isinstance(answer, Unread) else info.state
    if state == 0:  # it has none
        return

    def judged(state: int) -> Finding:
        is_well = state == COMPLETED and info.status == 0
        word = FABRIC_STATES.get(state, f"state {state}")
        why = "" if info.status == 0 else f", with error {info.status} ({gpu.nvml.NVMLError(info.status)})"
        return Finding(
            code="gpu-fabric",
            verdict="ok" if is_well else "fail",
            subject=gpu.name,
            summary=f"joining the fabric of NVSwitches: {word}{why}",
            evidence={"state": state, "status": info.status, "clique": info.cliqueId, "health": info.healthMask},
            remedy="none" if is_well else "reset_gpu",
        )

    yield from gpu.judged("gpu-fabric", state, judged)


LOOKS: tuple[Callable[[Gpu], Iterator[Finding]], ...] = (pcie, replays, link_errors, fabric)


def _windows(gpu: Gpu, has_grown: bool, elapsed_s: float) -> str:
    """A 1 for each of the last checks that found more errors; checks close together count as one."""
    key = f"{gpu.name}/windows"
    before = str(gpu.at.before.get(key, ""))
    mark = "1" if has_grown else "0"
    is_new = elapsed_s >= WINDOW_S or not before
    marks = before + mark if is_new else before[:-1] + max(before[-1], mark)
    gpu.at.after[key] = marks[-WINDOWS:]
    return marks[-WINDOWS:]
