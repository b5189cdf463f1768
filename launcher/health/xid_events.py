"""XIDs as the driver tells of them, by NVML's events: they come only to who was there when they happened.

    python -P -m launcher.health.xid_events PARENT

Runs beside an agent, and blocks in the driver: nobody waits for it. Writes lines of JSON: `watched`, once it listens to
all GPUs that can be listened to, and each event. It needs no right to read the kernel's log.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import pynvml as nvml

from launcher.health.nvml import Unread, read
from launcher.warm import die_with

WAIT_MS = 60_000


def main(argv: list[str]) -> int:
    die_with(int(argv[0]))
    nvml.nvmlInit()
    events = nvml.nvmlEventSetCreate()
    kind, watched = nvml.nvmlEventTypeXidCriticalError, 0
    for index in range(nvml.nvmlDeviceGetCount()):
        handle = read(nvml, "nvmlDeviceGetHandleByIndex", index)
        if not isinstance(handle, Unread):
            watched += not isinstance(read(nvml, "nvmlDeviceRegisterEvents", handle, kind, events), Unread)
    if not watched:
        return 1
    tell(watched=watched)
    while True:
        try:
            event = nvml.nvmlEventSetWait_v2(events, WAIT_MS)
        except nvml.NVMLError as error:
            if error.value != nvml.NVML_ERROR_TIMEOUT:  # pyright: ignore[reportAttributeAccessIssue]
                raise
            continue
        tell(bus=bus_of(event.device), xid=int(event.eventData))


def bus_of(handle: Any) -> str:
    """As the kernel's log names it: "0000:3b:00" is 00000000:3B:00.0 to NVML. "" where it is not told."""
    about = read(nvml, "nvmlDeviceGetPciInfo", handle)
    if isinstance(about, Unread):
        return ""
    name = about.busId.decode() if isinstance(about.busId, bytes) else about.busId
    return name.lower().rpartition(".")[0][-len("0000:3b:00") :]


def tell(**line: Any) -> None:
    at = time.clock_gettime(time.CLOCK_BOOTTIME)
    sys.stdout.write(json.dumps({"at": at, **line}) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
