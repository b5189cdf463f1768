"""Checks of NVIDIA GPUs, through nvidia-ml-py. Only in a child process: the driver may never answer.

What a GPU or a driver does not support is not told; what could not be read is `unknown`. Limits are the device's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from launcher.health.context import Context
from launcher.health.finding import Finding
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


@dataclass(frozen=True)
class Unread:
    """A value that there is not: not supported here, or not to be read."""

    why: str
    supported: bool = True
    lost: bool = False


def gpus(at: Context) -> Iterator[Finding]:
    """All GPUs: whether the driver answers, how many there are, and each of them."""
    on_bus = _on_bus(at)
    wanted = max(on_bus, _wanted(at))
    if not wanted:
        yield Finding(code="gpu", verdict="skipped", summary="there is no NVIDIA GPU, and none is expected")
        return
    try:
        import pynvml as nvml

        nvml.nvmlInit()
        count = nvml.nvmlDeviceGetCount()
    except Exception as error:  # the library's, or its absence: this is a node with GPUs
        summary = f"the driver cannot be asked: {error}"
        yield Finding(code="gpu-driver", verdict="fail", summary=summary, remedy="reboot_node")
        return
    yield Finding(
        code="gpu-count",
        verdict="ok" if count >= wanted else "fail",
        summary=f"{count} GPUs of {wanted}",
        evidence={"driver": count, "bus": on_bus},
        limit=wanted,
        limit_source="config" if wanted > on_bus else "kernel",
        remedy="none" if count >= wanted else "reboot_node",
    )
    links: dict[str, set[int]] = {}
    for index in range(count):
        yield from _gpu(nvml, index, links)
    yield from _links(links)
    nvml.nvmlShutdown()


def _on_bus(at: Context) -> int:
    """GPUs that the kernel sees, whether their driver works or not."""
    found = 0
    for device in at.glob("sys/bus/pci/devices/*"):
        place = device.relative_to(at.root)
        try:
            found += at.text(f"{place}/vendor") == NVIDIA and at.text(f"{place}/class").startswith(DISPLAY)
        except OSError:  # taken from the bus meanwhile
            continue
    return found


def _wanted(at: Context) -> int:
    """GPUs that Slurm has given on this node."""
    given = at.environment.get("SLURM_GPUS_ON_NODE", "")
    return int(given) if given.isdigit() else 0


def _gpu(nvml: Any, index: int, links: dict[str, set[int]]) -> Iterator[Finding]:
    handle = _read(nvml, nvml.nvmlDeviceGetHandleByIndex, index)
    if isinstance(handle, Unread):
        yield _lost(f"gpu{index}", handle)
        return
    uuid = _read(nvml, nvml.nvmlDeviceGetUUID, handle)
    name = f"gpu{index}" if isinstance(uuid, Unread) else str(uuid)
    for look in (_recovery, _memory_errors, _rows, _temperature, _clocks):
        for finding in look(nvml, handle, name):
            if finding.code == "gpu-lost":
                yield finding
                return
            yield finding
    states = [_read(nvml, nvml.nvmlDeviceGetNvLinkState, handle, link) for link in range(MOST_LINKS)]
    if any(not isinstance(state, Unread) for state in states):
        links[name] = {link for link, state in enumerate(states) if state == 1}


def _recovery(nvml: Any, handle: Any, name: str) -> Iterator[Finding]:
    """What the driver asks for. The value says nothing unless the field's own return code is good."""
    fields = _read(nvml, nvml.nvmlDeviceGetFieldValues, handle, [RECOVERY_ACTION])
    if not isinstance(fields, Unread) and fields[0].nvmlReturn != nvml.NVML_SUCCESS:
        fields = _unread(nvml, nvml.NVMLError(fields[0].nvmlReturn))
    action = fields if isinstance(fields, Unread) else fields[0].value.uiVal

    def judged(action: int) -> Finding:
        asks, remedy = ACTIONS.get(action, (f"action {action}, which is not known", "drain"))
        if not action:
            return Finding(code="gpu-recovery", verdict="ok", subject=name, summary="the driver asks for nothing")
        summary = f"the driver asks for {asks}"
        evidence = {"action": action}
        return Finding(
            code="gpu-recovery", verdict="fail", subject=name, summary=summary, remedy=remedy, evidence=dict(evidence)
        )

    yield from _judged("gpu-recovery", name, action, judged)


def _memory_errors(nvml: Any, handle: Any, name: str) -> Iterator[Finding]:
    def judged(count: int) -> Finding:
        return Finding(
            code="gpu-ecc",
            verdict="fail" if count else "ok",
            subject=name,
            summary=f"{count} memory errors not corrected since boot",
            evidence={"uncorrected": count},
            limit=0,
            limit_source="table",
            remedy="reset_gpu" if count else "none",
        )

    yield from _judged(
        "gpu-ecc", name, _read(nvml, nvml.nvmlDeviceGetTotalEccErrors, handle, UNCORRECTED, VOLATILE), judged
    )


def _rows(nvml: Any, handle: Any, name: str) -> Iterator[Finding]:
    """Broken rows of memory: taken out of use at the next reset, or not to be replaced any more."""

    def judged(rows: tuple[int, int, int, int]) -> Finding:
        corrected, uncorrected, pending, failed = rows
        verdict = "fail" if failed else "warn" if pending else "ok"
        what = "no spare row is left" if failed else "rows wait for a reset" if pending else "no row waits"
        return Finding(
            code="gpu-rows",
            verdict=verdict,
            subject=name,
            summary=f"{corrected + uncorrected} rows of memory replaced, {what}",
            evidence={"corrected": corrected, "uncorrected": uncorrected, "pending": pending, "failed": failed},
            remedy="service" if failed else "reset_gpu" if pending else "none",
        )

    yield from _judged("gpu-rows", name, _read(nvml, nvml.nvmlDeviceGetRemappedRows, handle), judged)


def _temperature(nvml: Any, handle: Any, name: str) -> Iterator[Finding]:
    """Against the limit at which the device itself slows down; that it does, `_clocks` tells."""
    limit = _read(nvml, nvml.nvmlDeviceGetTemperatureThreshold, handle, SLOWDOWN)

    def judged(degrees: int) -> Finding:
        known = limit if isinstance(limit, int) and limit > 0 else None
        is_hot = known is not None and degrees >= known
        return Finding(
            code="gpu-temperature",
            verdict="warn" if is_hot else "ok" if known is not None else "unknown",
            subject=name,
            summary=f"{degrees} C" + ("" if known is not None else ", and its limit is not told"),
            evidence={"celsius": degrees},
            limit=known,
            limit_source="device" if known is not None else "",
        )

    yield from _judged("gpu-temperature", name, _degrees(nvml, handle), judged)


def _degrees(nvml: Any, handle: Any) -> Any:
    """By the call of today's drivers, or that of older ones."""
    degrees = _read(nvml, nvml.nvmlDeviceGetTemperatureV, handle, GPU_SENSOR)
    if isinstance(degrees, Unread) and not degrees.supported:
        return _read(nvml, nvml.nvmlDeviceGetTemperature, handle, GPU_SENSOR)
    return degrees


def _clocks(nvml: Any, handle: Any, name: str) -> Iterator[Finding]:
    """Why the clocks are lower than they might be, as far as that is no part of normal work; one look proves little."""

    def judged(bits: int) -> Finding:
        found = [text for bit, text in REASONS.items() if bits & bit]
        return Finding(
            code="gpu-clocks",
            verdict="warn" if found else "ok",
            subject=name,
            summary=", ".join(found) or "nothing slows it down",
            evidence={"reasons": f"0x{bits:x}"},
        )

    yield from _judged("gpu-clocks", name, _read(nvml, nvml.nvmlDeviceGetCurrentClocksEventReasons, handle), judged)


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


def _judged(code: str, name: str, value: Any, judged: Callable[[Any], Finding]) -> Iterator[Finding]:
    """What is made of a value; nothing of one that is not supported."""
    if not isinstance(value, Unread):
        yield judged(value)
    elif value.lost:
        yield _lost(name, value)
    elif value.supported:
        yield Finding(code=code, verdict="unknown", subject=name, summary=f"cannot be read: {value.why}")


def _lost(name: str, unread: Unread) -> Finding:
    if not unread.lost:
        return Finding(code="gpu-lost", verdict="unknown", subject=name, summary=f"cannot be opened: {unread.why}")
    summary = "it has fallen off the bus"
    return Finding(code="gpu-lost", verdict="fail", subject=name, summary=summary, remedy="reboot_node")


def _read(nvml: Any, function: Callable[..., Any], *arguments: Any) -> Any:
    """What a call of NVML returns, or why it returns nothing."""
    try:
        return function(*arguments)
    except nvml.NVMLError as error:
        return _unread(nvml, error)


def _unread(nvml: Any, error: Any) -> Unread:
    unsupported: Sequence[int] = (
        nvml.NVML_ERROR_NOT_SUPPORTED,
        nvml.NVML_ERROR_FUNCTION_NOT_FOUND,
        nvml.NVML_ERROR_INVALID_ARGUMENT,
    )
    return Unread(str(error), error.value not in unsupported, error.value == nvml.NVML_ERROR_GPU_IS_LOST)
