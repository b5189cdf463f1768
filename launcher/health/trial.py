"""A node's part in a trial: starts the processes that compute, watches them, ends them for certain, tells what came.

Whoever steers the trials is no member of any: a collective that hangs holds up nothing but itself, and not for long.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from launcher.trials import START_S, Part, Report

COMMAND = (sys.executable, "-P", "-m", "launcher.health.collective")
DIE_S = 5.0  # after SIGKILL; a driver may take its time
_LAST = 400  # characters of what was printed at last
_TOLD = ("devices", "started", "taken", "wrong", "products")  # by these keys a line is the program's own


def take_part(
    part: Part, environment: Mapping[str, str], ended: threading.Event | None = None, command: Sequence[str] = COMMAND
) -> Report:
    """Compute this part, and tell how it went. It ends by itself, and early once `ended` is set."""
    try:
        process = subprocess.Popen(
            [*command, str(os.getpid()), json.dumps(asdict(part))], env=environment,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
    except OSError as error:
        return Report("not_started", (error.strerror or str(error)).lower())
    seen = _Seen()
    deadline = time.monotonic() + START_S
    with contextlib.closing(_Lines(process)) as lines:
        while (line := lines.next(deadline, ended)) is not None:
            if seen.take(line):
                deadline = time.monotonic() + part.burn_s + part.limit_s
        overdue = not lines.is_over
    survives = not _end(process)
    return seen.report(process.returncode, overdue=overdue, survives=survives, port=_free_port())


@dataclass
class _Seen:
    """What the processes have told so far."""

    devices: int = 1
    started: int = 0
    taken: bool = False
    finished: int = 0
    wrong: int = 0
    bandwidth: float | None = None
    burns: tuple[dict[str, Any], ...] = ()
    last: str = ""

    def take(self, line: str) -> bool:
        """Whether it says that one more process is there."""
        told = _told(line)
        if told is None:
            self.last = line.strip()[-_LAST:] or self.last
        elif "products" in told:
            self.burns += (told,)
        elif "wrong" in told:
            self.finished += 1
            self.wrong += told["wrong"]
            slowest = [one for one in (self.bandwidth, told["bandwidth"]) if one]
            self.bandwidth = min(slowest, default=None)
        else:
            self.devices = told.get("devices", self.devices)
            self.started += "started" in told
            self.taken |= "taken" in told
        return told is not None and "started" in told

    def report(self, code: int | None, *, overdue: bool, survives: bool, port: int) -> Report:
        passed = code == 0 and self.finished == self.devices and not self.wrong
        differ = sum(one["differ"] for one in self.burns)
        outcome = "not_started" if self.taken or not self.started else "timed_out" if overdue else "failed"
        said = (
            "its process survives SIGKILL" if survives
            else f"{differ} products of the same matrices had other bits" if differ
            else "the port was in use" if self.taken
            else f"{self.wrong} wrong sums" if self.wrong
            else "" if passed
            else "no end in time" if overdue and self.started
            else _of_code(code, self.last)
        )  # fmt: skip
        return Report(
            outcome="passed" if passed and not differ and not survives else "failed" if survives else outcome,
            said=said, bandwidth=self.bandwidth if passed else None, devices=self.devices, port=port,
            digests=tuple(one["digest"] for one in self.burns),
            copied=min((one["copied"] for one in self.burns), default=None),
        )  # fmt: skip


def _of_code(code: int | None, last: str) -> str:
    if code is not None and code < 0:
        return f"its process ended by {signal.Signals(-code).name}"
    return last or f"its process ended with exit code {code}"


def _told(line: str) -> dict[str, Any] | None:
    """A line of the program's own; None for what torch or NCCL print between."""
    with contextlib.suppress(ValueError):
        told = json.loads(line)
        if isinstance(told, dict) and any(key in told for key in _TOLD):
            return told
    return None


class _Lines:
    """What a process prints, line by line."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        self._pipe = process.stdout
        os.set_blocking(self._pipe.fileno(), False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._pipe, selectors.EVENT_READ)
        self._read = b""
        self.is_over = False

    def next(self, deadline: float, ended: threading.Event | None) -> str | None:
        """The next line; None when there is none any more, or not in time."""
        while b"\n" not in self._read and not self.is_over:
            left_s = deadline - time.monotonic()
            if left_s <= 0 or (ended is not None and ended.is_set()):
                return None
            if self._selector.select(min(left_s, 0.2)):
                data = os.read(self._pipe.fileno(), 1 << 16)
                self._read += data
                self.is_over = not data
        line, _, self._read = self._read.partition(b"\n")
        return line.decode("utf-8", "replace") if line or not self.is_over else None

    def close(self) -> None:
        self._selector.close()
        self._pipe.close()


def _end(process: subprocess.Popen[bytes]) -> bool:
    """End its whole group; whether that could be done."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(0.2)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    try:
        process.wait(DIE_S)
    except subprocess.TimeoutExpired:
        return False
    return True


def _free_port() -> int:
    """A port on which this node's store can listen in the next trial."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]
