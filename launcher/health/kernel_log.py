"""The kernel's log of this boot, as /dev/kmsg gives it: "6,1234,98765432,-;text", a record a line (kernel's ABI)."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

RECORD_BYTES = 1 << 16  # the device gives one record a read, and refuses who has no room for it
MOST_BYTES = 64 << 20
_RECORD = re.compile(r"\d+,\d+,(\d+),[^;]*;(.*)")


@dataclass(frozen=True)
class Entry:
    """`at`: seconds since boot."""

    at: float
    text: str


def kernel_log(root: Path) -> list[Entry]:
    """All that it still holds, the oldest first. Raises OSError, PermissionError where it is not for us."""
    lines = _read(root / "dev/kmsg").decode("utf-8", "replace").splitlines()
    records = (_RECORD.fullmatch(line) for line in lines)  # what belongs to a record stands indented below it
    return [Entry(int(one[1]) / 1e6, one[2]) for one in records if one]


def _read(file: Path) -> bytes:
    descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK)
    data = bytearray()
    try:
        while len(data) < MOST_BYTES:
            try:
                part = os.read(descriptor, RECORD_BYTES)
            except BrokenPipeError:  # written over meanwhile; the next read goes on behind it
                continue
            except BlockingIOError:
                break
            if not part:
                break
            data += part
    finally:
        os.close(descriptor)
    return bytes(data)
