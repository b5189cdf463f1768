"""What ranks print: one log per node and attempt, each line tagged with time, rank and stream."""

from __future__ import annotations

import contextlib
import fcntl
import os
import queue
import re
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from itertools import zip_longest
from pathlib import Path

from launcher.arrivals import Arrivals
from launcher.log_parts import LogParts

TAIL_LINES = 60
Heard = Callable[[str, bytes, float], None]
_ERROR_LINE = re.compile(r"^(?:[A-Za-z_][\w]*\.)*([A-Z]\w*(?:Error|Exception|Interrupt|Exit|Failure))\b:? ?(.*)$")
_RANK = re.compile(r"^\[rank\d+\]: ?")  # torch puts this before each line of a traceback, once there is a process group
_TERMINATED = re.compile(r"^terminate called after throwing an instance of '(?:\w+::)*(\w+)'$")  # C++; its text follows
_WHAT = re.compile(r"^\s*what\(\):\s*(.*)$")
PIPE_BYTES = 1 << 20
_READ_BYTES = 1 << 16
_LONGEST_LINE = 1 << 16
_GATHER_S = 1.0  # lines of a moment are written together
_GATHER_CHARS = 1 << 16


def first_error(lines: list[str]) -> tuple[str, str]:
    """(type, text) of the error a process died of, from the end of its stderr; ("", last line) if it has none.

    Of several errors the first counts: the later ones are raised while handling it.
    """
    said = [text for line in lines if (text := _RANK.sub("", line).rstrip())]
    for text, following in zip_longest(said, said[1:], fillvalue=""):
        if match := _ERROR_LINE.match(text):
            return match[1], match[2]
        if match := _TERMINATED.match(text):
            what = _WHAT.match(following)
            return match[1], what[1] if what else ""
    return "", said[-1] if said else ""


class RankLog:
    """Gathers what arrives on the ranks' pipes; writes on a thread of its own, for a slow disk must not stop us.

    `watch(rank, lines)` sees them first. `limit`: so many bytes are kept of a node. A pipe holds 1 MiB where the kernel
    allows, so that a rank that prints between two looks need not wait.
    """

    def __init__(
        self, path: Path, arrivals: Arrivals, limit: int, watch: Callable[[int, list[str]], None] | None = None
    ) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._parts = LogParts(path, limit)
        self._path, self._arrivals, self._watch = path, arrivals, watch
        self._tails: dict[int, deque[str]] = {}
        self._streams: set[_Stream] = set()
        self._text, self._handed_at = "", 0.0
        # Text, and for the last lines of a failed rank their own file; None: no more will come.
        self._queue: queue.SimpleQueue[tuple[str, Path | None] | None] = queue.SimpleQueue()
        self._writer = threading.Thread(target=self._write, name="rank-log", daemon=True)
        self._writer.start()

    def pipes(self, rank: int, hearers: tuple[Heard, ...] = ()) -> tuple[int, int]:
        """The write ends for a rank's stdout and stderr; the caller closes them after handing them over.

        `hearers` get all that arrives, as it arrives: stream ("out" or "err"), bytes, monotonic seconds.
        """
        self._tails[rank] = deque(maxlen=TAIL_LINES)
        return self._pipe(rank, "out", hearers), self._pipe(rank, "err", hearers)

    def _pipe(self, rank: int, name: str, hearers: tuple[Heard, ...]) -> int:
        read_end, write_end = os.pipe()
        os.set_blocking(read_end, False)
        with contextlib.suppress(OSError):
            fcntl.fcntl(read_end, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        stream = _Stream(read_end, rank, name, hearers)
        self._streams.add(stream)
        self._arrivals.follow(read_end, partial(self._take, stream))
        return write_end

    def _take(self, stream: _Stream) -> None:
        lines, ended = stream.read()
        if ended:
            self._close(stream)
        if not lines:
            return
        if self._watch is not None:
            self._watch(stream.rank, lines)
        if stream.name == "err":
            self._tails[stream.rank] += lines
        head = f"{datetime.now().astimezone().isoformat(timespec='milliseconds')} rank {stream.rank} {stream.name} "
        self._text += "".join(f"{head}{line}\n" for line in lines)
        if len(self._text) > _GATHER_CHARS:
            self._hand_over()

    def _close(self, stream: _Stream) -> None:
        self._streams.remove(stream)
        self._arrivals.forget(stream.descriptor)
        os.close(stream.descriptor)

    def flush(self) -> None:
        """Have written what was gathered, if that is due; to be called now and then."""
        if time.monotonic() - self._handed_at > _GATHER_S:
            self._hand_over()

    def _hand_over(self) -> None:
        if self._text:
            self._queue.put((self._text, None))
            self._text, self._handed_at = "", time.monotonic()

    def finish(self, rank: int, *, failed: bool) -> list[str]:
        """The last lines of a dead rank's stderr, also written to a file of their own if it failed."""
        self._hand_over()
        tail = list(self._tails[rank])
        if failed and tail:
            path = self._path.with_name(f"{self._path.stem}.rank{rank}.failed.log")
            self._queue.put(("".join(line + "\n" for line in tail), path))
        return tail

    def close(self, wait_s: float = 0.0) -> None:
        """Read no more: what is still open then belongs to a process that a dead rank left behind."""
        for stream in list(self._streams):
            self._close(stream)
        self._hand_over()
        self._queue.put(None)
        self._writer.join(wait_s)

    def _write(self) -> None:
        while (written := self._queue.get()) is not None:
            with contextlib.suppress(OSError):  # logs come last when the disk is full
                self._append(*written)

    def _append(self, text: str, path: Path | None) -> None:
        if path is None:
            self._parts.append(text)
        else:
            with path.open("a") as file:
                file.write(text)


@dataclass(eq=False)
class _Stream:
    """The read end of one pipe."""

    descriptor: int
    rank: int
    name: str
    hearers: tuple[Heard, ...] = ()
    rest: bytes = b""

    def read(self) -> tuple[list[str], bool]:
        """The whole lines that have arrived, and whether the stream has ended; then also the last half line."""
        data, ended = b"", False
        while not ended:
            try:
                more = os.read(self.descriptor, _READ_BYTES)
            except BlockingIOError:
                break
            except OSError:
                more = b""
            ended = not more
            data += more
        for hear in self.hearers if data else ():
            hear(self.name, data, time.monotonic())
        *lines, self.rest = (self.rest + data).split(b"\n")
        if self.rest and (ended or len(self.rest) > _LONGEST_LINE):  # a progress bar ends no line for weeks
            lines.append(self.rest)
            self.rest = b""
        return [line.decode("utf-8", "replace").rstrip("\r") for line in lines], ended
