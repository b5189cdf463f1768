"""Records what the driver of this machine says, so that a simulated one can say the same in a test.

    python -P -m launcher.health.recorder

One key=value a line: "!15" is a return code of NVML, and what a GPU does not support is not there. Only to be run as a
process of its own: the driver may never answer.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pynvml

# NVLink: CRC, replays, recoveries; temperature of the memory; what the driver asks for.
FIELDS = {38: "ullVal", 52: "ullVal", 59: "ullVal", 82: "uiVal", 230: "uiVal"}
THRESHOLDS, LINKS = (0, 1, 2, 3), range(18)

nvml: Any = pynvml
Reader = Callable[[Any], object]


def _number(call: str, *arguments: Any) -> Reader:
    return lambda handle: getattr(nvml, f"nvmlDeviceGet{call}")(handle, *arguments)


def _field(number: int, kind: str) -> Reader:
    def read(handle: Any) -> object:
        [field] = nvml.nvmlDeviceGetFieldValues(handle, [number])
        if field.nvmlReturn != nvml.NVML_SUCCESS:
            raise nvml.NVMLError(field.nvmlReturn)
        return getattr(field.value, kind)

    return read


def _fabric(handle: Any) -> object:
    info = nvml.c_nvmlGpuFabricInfoV_t()
    info.version = nvml.nvmlGpuFabricInfo_v2
    nvml.nvmlDeviceGetGpuFabricInfoV(handle, ctypes.byref(info))
    return f"{info.state} {info.status} {info.cliqueId} {info.healthMask}"


def _temperature(handle: Any) -> object:
    try:
        return nvml.nvmlDeviceGetTemperatureV(handle, nvml.NVML_TEMPERATURE_GPU)
    except nvml.NVMLError:
        return nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU)


# What the simulated driver is asked, in its own words.
KEYS: dict[str, Reader] = {
    "uuid": _number("UUID"),
    "vbios": _number("VbiosVersion"),
    "temperature": _temperature,
    "margin": _number("MarginTemperature"),
    **{f"threshold.{kind}": _number("TemperatureThreshold", kind) for kind in THRESHOLDS},
    "ecc": _number("TotalEccErrors", nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, nvml.NVML_VOLATILE_ECC),
    "corrected": _number("TotalEccErrors", nvml.NVML_MEMORY_ERROR_TYPE_CORRECTED, nvml.NVML_VOLATILE_ECC),
    "ecc.mode": lambda handle: nvml.nvmlDeviceGetEccMode(handle)[0],
    "rows": lambda handle: " ".join(map(str, nvml.nvmlDeviceGetRemappedRows(handle))),
    "reasons": lambda handle: hex(nvml.nvmlDeviceGetCurrentClocksEventReasons(handle)),
    "pcie.width": _number("CurrPcieLinkWidth"),
    "pcie.width.max": _number("MaxPcieLinkWidth"),
    "pcie.generation": _number("CurrPcieLinkGeneration"),
    "pcie.generation.max": _number("MaxPcieLinkGeneration"),
    "pcie.replays": _number("PcieReplayCounter"),
    "power": _number("PowerUsage"),
    "power.limit": _number("EnforcedPowerLimit"),
    "persistence": _number("PersistenceMode"),
    "mig": lambda handle: nvml.nvmlDeviceGetMigMode(handle)[0],
    "memory.used": lambda handle: nvml.nvmlDeviceGetMemoryInfo(handle, nvml.nvmlMemory_v2).used,
    "processes": lambda handle: " ".join(str(one.pid) for one in nvml.nvmlDeviceGetComputeRunningProcesses(handle)),
    "fabric": _fabric,
    **{f"link.{link}": _number("NvLinkState", link) for link in LINKS},
    **{f"field.{number}": _field(number, kind) for number, kind in FIELDS.items()},
}


def recorded() -> Iterator[str]:
    """The lines of the profile. An NVML that does not even begin is one line."""
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        yield f"init=!{error.value}"
        return
    yield from _line("driver", lambda _: nvml.nvmlSystemGetDriverVersion(), None)
    yield from _line("cuda", lambda _: nvml.nvmlSystemGetCudaDriverVersion_v2(), None)
    count = nvml.nvmlDeviceGetCount()
    yield f"count={count}"
    for index in range(count):
        try:
            handle = nvml.nvmlDeviceGetHandleByIndex(index)
        except nvml.NVMLError as error:
            yield f"{index}.handle=!{error.value}"
            continue
        for key, read in KEYS.items():
            yield from _line(f"{index}.{key}", read, handle)
    nvml.nvmlShutdown()


def _line(key: str, read: Reader, handle: Any) -> Iterator[str]:
    answer = _answer(read, handle)
    if answer is not None:
        yield f"{key}={answer}"


def _answer(read: Reader, handle: Any) -> str | None:
    """What is said, an error as its number, and None for what is not supported."""
    try:
        return str(read(handle))
    except nvml.NVMLError as error:
        return None if error.value == nvml.NVML_ERROR_NOT_SUPPORTED else f"!{error.value}"
    except AttributeError:  # an nvidia-ml-py that is older than the call
        return None


def main() -> int:
    for line in recorded():
        if line == f"init=!{nvml.NVML_ERROR_LIBRARY_NOT_FOUND}":
            sys.stderr.write("there is no NVIDIA driver here\n")
            return 1
        sys.stdout.write(f"{line}\n")
        sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
