"""Hears of XIDs at the moment when the driver tells of them, in an agent's loop."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable

from launcher.health.context import Heard

END_S = 1.0
COMMAND = (sys.executable, "-P", "-m", "launcher.health.xid_events")


class XidWatch:
    """`since`: seconds since boot, from when on all XIDs are heard; None: they are not. `heard` is called for each."""

    def __init__(self, heard: Callable[[Heard], None]) -> None:
        self.since: float | None = None
        self._heard, self._read = heard, b""
        self._process = subprocess.Popen(
            [*COMMAND, str(os.getpid())],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        assert self._process.stdout is not None
        self._pipe = self._process.stdout
        os.set_blocking(self._pipe.fileno(), False)
        asyncio.get_running_loop().add_reader(self._pipe.fileno(), self._take)

    def close(self) -> None:
        """Listen no more."""
        self.since = None
        if not self._pipe.closed:
            asyncio.get_running_loop().remove_reader(self._pipe.fileno())
            self._pipe.close()
            self._process.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):  # it may be stuck in the driver
                self._process.wait(END_S)

    def _take(self) -> None:
        data = os.read(self._pipe.fileno(), 1 << 16)
        if not data:  # no driver, or none that tells
            self.close()
            return
        *lines, self._read = (self._read + data).split(b"\n")
        for line in map(json.loads, lines):
            if "watched" in line:
                self.since = line["at"]
            else:
                self._heard(Heard(line["bus"], line["xid"], line["at"]))
