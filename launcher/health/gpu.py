"""Checks of NVIDIA GPUs, through nvidia-ml-py. Only in a child process: the driver may never answer.

What a GPU or a driver does not support is not told; what could not be read is `unknown`. Limits are the device's own.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from launcher.health import gpu_links, gpu_state
from launcher.health.context import Context
from launcher.health.finding import Finding
from launcher.health.nvml import Gpu, Unread, lost, read
from launcher.hosts.records import Remedy

NVIDIA, DISPLAY = "0x10de", "0x03"  # vendor, and the class of display and 3D controllers
RECOVERY_ACTION = 230  # NVML_FI_DEV_GET_GPU_RECOVERY_ACTION, which older nvidia-ml-py does not name
# nvmlDeviceGpuRecoveryAction_t: what the driver itself asks for.
ACTIONS: dict[int, tuple[str, Remedy]] = {
    1: ("a reset of the GPU", "reset_gpu"),
    2: ("a reboot of the node", "reboot_node"),
    3: ("its peers to be drained", "drain"),
    4: ("draining, and a reset of the GPU", "reset_gpu"),
    5: ("IMEX to be recovered", "drain"),
    6: ("a reset of the bus", "reboot_node"),
    7: ("a reboot of the system", "reboot_node"),
}
# Bits of nvmlDeviceGetCurrentClocksEventReasons that are no part of normal work.
HW_SLOWDOWN, SW_THERMAL, HW_THERMAL, POWER_BRAKE = 0x8, 0x20, 0x40, 0x80
REASONS = {
    HW_SLOWDOWN: "hardware slowdown",
    SW_THERMAL: "thermal slowdown by the driver",
    HW_THERMAL: "thermal slowdown by the hardware",
    POWER_BRAKE: "power brake",
}
SLOWDOWN, GPU_SENSOR = 1, 0  # NVML_TEMPERATURE_THRESHOLD_SLOWDOWN, NVML_TEMPERATURE_GPU
UNCORRECTED, VOLATILE = 1, 0  # NVML_MEMORY_ERROR_TYPE_UNCORRECTED, NVML_VOLATILE_ECC: since the driver was loaded
MOST_LINKS = 18


def gpus(at: Context) -> Iterator[Finding]:
    """All GPUs: whether the driver answers, how many there are, and each of them.

    A job may see those that Slurm has given it and no others. If that is none, they are no affair of its.
    """
    there = on_bus(at)
    wanted = given(at) or there
    if not wanted:
        yield Finding(code="gpu", verdict="skipped", summary="there is no NVIDIA GPU, and none is expected")
        return
    is_ours = bool(given(at)) or "SLURM_JOB_ID" not in at.environment
    import pynvml as nvml

    try:
        nvml.nvmlInit()
        count = nvml.nvmlDeviceGetCount()
    except nvml.NVMLError as error:
        summary, remedy = f"the driver cannot be asked: {error}", "reboot_node" if is_ours else "none"
        yield Finding(code="gpu-driver", verdict="fail" if is_ours else "warn", summary=summary, remedy=remedy)
        return
    is_few = count < wanted
    yield Finding(
        code="gpu-count",
        verdict="ok" if not is_few else "fail" if is_ours else "warn",
        summary=f"{count} GPUs of {wanted}",
        evidence={"driver": count, "bus": there},
        limit=wanted,
        limit_source="config" if given(at) else "kernel",
        remedy="reboot_node" if is_few and is_ours else "none",
    )
    links: dict[str, set[int]] = {}
    for index in range(count):
        yield from _gpu(nvml, index, links, at, is_given=given(at) >= count)
    yield from _links(links)
    yield from gpu_state.together(nvml, count)
    nvml.nvmlShutdown()


def users(at: Context) -> Iterator[Finding]:
    """Who is on the GPUs. Where their driver does not answer, `gpus` tells."""
    if not max(on_bus(at), given(at)):
        yield Finding(code="gpu-processes", verdict="skipped", summary="there is no NVIDIA GPU, and none is expected")
        return
    import pynvml as nvml

    nvml.nvmlInit()
    count = nvml.nvmlDeviceGetCount()
    for index in range(count):
        handle = read(nvml, "nvmlDeviceGetHandleByIndex", index)
        if not isinstance(handle, Unread):
            yield from gpu_state.users(Gpu(nvml, handle, _name(nvml, handle, index), at, given(at) >= count))
    nvml.nvmlShutdown()


def on_bus(at: Context) -> int:
    """GPUs that the kernel sees, whether their driver works or not."""
    found = 0
    for device in at.glob("sys/bus/pci/devices/*"):
        place = device.relative_to(at.root)
        try:
            found += at.text(f"{place}/vendor") == NVIDIA and at.text(f"{place}/class").startswith(DISPLAY)
        except OSError:  # taken from the bus meanwhile
            continue
    return found


def given(at: Context) -> int:
    """GPUs that Slurm has given on this node."""
    given = at.environment.get("SLURM_GPUS_ON_NODE", "")
    return int(given) if given.isdigit() else 0


def _gpu(nvml: Any, index: int, links: dict[str, set[int]], at: Context, *, is_given: bool) -> Iterator[Finding]:
    handle = read(nvml, "nvmlDeviceGetHandleByIndex", index)
    if isinstance(handle, Unread):
        yield lost(f"gpu{index}", handle)
        return
    gpu = Gpu(nvml, handle, _name(nvml, handle, index), at, is_given)
    for look in (_recovery, _memory_errors, _rows, _temperature, _clocks, *gpu_state.LOOKS, *gpu_links.LOOKS):
        for finding in look(gpu):
            if finding.code == "gpu-lost":
                yield finding
                return
            yield finding
    states = [gpu.read("GetNvLinkState", link) for link in range(MOST_LINKS)]
    if any(not isinstance(state, Unread) for state in states):
        links[gpu.name] = {link for link, state in enumerate(states) if state == 1}


def _name(nvml: Any, handle: Any, index: int) -> str:
    uuid = read(nvml, "nvmlDeviceGetUUID", handle)
    return f"gpu{index}" if isinstance(uuid, Unread) else str(uuid)


def _recovery(gpu: Gpu) -> Iterator[Finding]:
    """What the driver asks for."""

    def judged(action: int) -> Finding:
        asks, remedy = ACTIONS.get(action, (f"action {action}, which is not known", "drain"))
        if not action:
            return Finding(code="gpu-recovery", verdict="ok", subject=gpu.name, summary="the driver asks for nothing")
        summary = f"the driver asks for {asks}"
        evidence = {"action": action}
        return Finding(
            code="gpu-recovery",
            verdict="fail",
            subject=gpu.name,
            summary=summary,
            remedy=remedy,
            evidence=dict(evidence),
        )

    yield from gpu.judged("gpu-recovery", gpu.field(RECOVERY_ACTION), judged)


def _memory_errors(gpu: Gpu) -> Iterator[Finding]:
    def judged(count: int) -> Finding:
        return Finding(
            code="gpu-ecc",
            verdict="fail" if count else "ok",
            subject=gpu.name,
            summary=f"{count} memory errors not corrected since boot",
            evidence={"uncorrected": count},
            limit=0,
            limit_source="table",
            remedy="reset_gpu" if count else "none",
        )

    yield from gpu.judged("gpu-ecc", gpu.read("GetTotalEccErrors", UNCORRECTED, VOLATILE), judged)


def _rows(gpu: Gpu) -> Iterator[Finding]:
    """Broken rows of memory: taken out of use at the next reset, or not to be replaced any more."""

    def judged(rows: tuple[int, int, int, int]) -> Finding:
        corrected, uncorrected, pending, failed = rows
        verdict = "fail" if failed else "warn" if pending else "ok"
        what = "no spare row is left" if failed else "rows wait for a reset" if pending else "no row waits"
        return Finding(
            code="gpu-rows",
            verdict=verdict,
            subject=gpu.name,
            summary=f"{corrected + uncorrected} rows of memory replaced, {what}",
            evidence={"corrected": corrected, "uncorrected": uncorrected, "pending": pending, "failed": failed},
            remedy="service" if failed else "reset_gpu" if pending else "none",
        )

    yield from gpu.judged("gpu-rows", gpu.read("GetRemappedRows"), judged)


def _temperature(gpu: Gpu) -> Iterator[Finding]:
    """Against the limit at which the device itself slows down; that it does, `_clocks` tells.

    Newer ones tell how far that is away instead. Of no distance, and nothing slowed down, nobody knows what it means
    (H100s have said so).
    """
    limit, margin = gpu.read("GetTemperatureThreshold", SLOWDOWN), gpu.read("GetMarginTemperature")

    def judged(degrees: int) -> Finding:
        known = limit if isinstance(limit, int) and limit > 0 else None
        if known is None and isinstance(margin, int) and margin > 0:
            known = degrees + margin
        return gpu_state.heat("gpu-temperature", gpu, f"{degrees} C", degrees, known)

    yield from gpu.judged("gpu-temperature", _degrees(gpu), judged)


def _degrees(gpu: Gpu) -> Any:
    """By the call of today's drivers, or that of older ones."""
    degrees = gpu.read("GetTemperatureV", GPU_SENSOR)
    if isinstance(degrees, Unread) and not degrees.supported:
        return gpu.read("GetTemperature", GPU_SENSOR)
    return degrees


def _clocks(gpu: Gpu) -> Iterator[Finding]:
    """Why the clocks are lower than they might be, as far as that is no part of normal work; one look proves little."""

    def judged(bits: int) -> Finding:
        found = [text for bit, text in REASONS.items() if bits & bit]
        return Finding(
            code="gpu-clocks",
            verdict="warn" if found else "ok",
            subject=gpu.name,
            summary=", ".join(found) or "nothing slows it down",
            evidence={"reasons": f"0x{bits:x}"},
        )

    yield from gpu.judged("gpu-clocks", gpu.read("GetCurrentClocksEventReasons"), judged)


def _links(active: dict[str, set[int]]) -> Iterator[Finding]:
    """Links that are down on one GPU and up on another. Where all are down there may be none to begin with."""
    usual = set().union(*active.values()) if active else set()
    for name, links in active.items() if usual else ():
        down = sorted(usual - links)
        yield Finding(
            code="gpu-links",
            verdict="fail" if down else "ok",
            subject=name,
            summary=f"NVLink {', '.join(map(str, down))} is down" if down else f"{len(links)} links are up",
            evidence={"up": len(links)},
            limit=len(usual),
            limit_source="device",
            remedy="reset_gpu" if down else "none",
        )
