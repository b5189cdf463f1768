"""Reading through nvidia-ml-py, so that what cannot be read is never taken for a value."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from launcher.health.context import Context
from launcher.health.finding import Finding


@dataclass(frozen=True)
class Unread:
    """A value that there is not: not supported here, or not to be read."""

    why: str
    supported: bool = True
    lost: bool = False


@dataclass(frozen=True)
class Gpu:
    """One GPU. `name`: its UUID. `is_given`: Slurm has given it, like all others that can be seen, to our job."""

    nvml: Any
    handle: Any
    name: str
    at: Context
    is_given: bool = False

    def read(self, call: str, *arguments: Any) -> Any:
        """What nvmlDevice{call} returns, or why it returns nothing; older nvidia-ml-py has not all calls."""
        return read(self.nvml, f"nvmlDevice{call}", self.handle, *arguments)

    def field(self, number: int, kind: str = "uiVal") -> Any:
        """The value of a field. It says nothing unless the field's own return code is good."""
        fields = self.read("GetFieldValues", [number])
        if isinstance(fields, Unread):
            return fields
        if fields[0].nvmlReturn != self.nvml.NVML_SUCCESS:
            return unread(self.nvml, self.nvml.NVMLError(fields[0].nvmlReturn))
        return getattr(fields[0].value, kind)

    def judged(self, code: str, value: Any, judge: Callable[[Any], Finding]) -> Iterator[Finding]:
        """What is made of a value; nothing of one that is not supported."""
        if not isinstance(value, Unread):
            yield judge(value)
        elif value.lost:
            yield lost(self.name, value)
        elif value.supported:
            yield Finding(code=code, verdict="unknown", subject=self.name, summary=f"cannot be read: {value.why}")

    def since_last(self, what: str) -> float:
        """Seconds since this was asked the last time; 0 at the first."""
        now, key = int(time.clock_gettime(time.CLOCK_BOOTTIME)), f"{self.name}/{what}/at"
        before = self.at.before.get(key, now)
        self.at.after[key] = now
        return float(max(0, now - before)) if isinstance(before, int) else 0.0


def read(nvml: Any, call: str, *arguments: Any) -> Any:
    """What a call of NVML returns, or why it returns nothing."""
    function = getattr(nvml, call, None)
    if function is None:
        return Unread(f"this nvidia-ml-py has no {call}", supported=False)
    try:
        return function(*arguments)
    except nvml.NVMLError as error:
        return unread(nvml, error)


def unread(nvml: Any, error: Any) -> Unread:
    unsupported = (
        nvml.NVML_ERROR_NOT_SUPPORTED,
        nvml.NVML_ERROR_FUNCTION_NOT_FOUND,
        nvml.NVML_ERROR_INVALID_ARGUMENT,
        nvml.NVML_ERROR_ARGUMENT_VERSION_MISMATCH,
    )
    return Unread(str(error), error.value not in unsupported, error.value == nvml.NVML_ERROR_GPU_IS_LOST)


def lost(name: str, value: Unread) -> Finding:
    """A GPU that cannot be reached."""
    if not value.lost:
        return Finding(code="gpu-lost", verdict="unknown", subject=name, summary=f"cannot be opened: {value.why}")
    summary = "it has fallen off the bus"
    return Finding(code="gpu-lost", verdict="fail", subject=name, summary=summary, remedy="reboot_node")
