"""What ranks print: one log per node and attempt, each line tagged with time, rank and stream."""

from __future__ import annotations

import asyncio
import contextlib
import os
import queue
import re
import threading
import time
from collections import deque
from datetime import datetime
from pathlib import Path

TAIL_LINES = 60
_ERROR_LINE = re.compile(r"^(?:[A-Za-z_][\w]*\.)*([A-Z]\w*(?:Error|Exception|Interrupt|Exit|Failure))\b:? ?(.*)$")
_FINISH_S = 1.0
_GATHER_S = 0.2  # lines of a moment are written together


def first_error(lines: list[str]) -> tuple[str, str]:
    """(type, text) of the error a process died of, from the end of its stderr; ("", last line) if it has none.

    Of several tracebacks the first counts: the later ones are raised while handling it.
    """
    for line in lines:
        match = _ERROR_LINE.match(line.rstrip())
        if match:
            return match[1], match[2]
    return "", next((line.rstrip() for line in reversed(lines) if line.strip()), "")


class RankLog:
    """Reads the ranks' pipes on the event loop and writes on a thread of its own: a slow disk must not stop us."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._tails: dict[int, deque[str]] = {}
        self._open: dict[int, set[int]] = {}
        self._finished: dict[int, asyncio.Event] = {}
        self._queue: queue.SimpleQueue[tuple[Path, str]] = queue.SimpleQueue()
        threading.Thread(target=self._write, name="rank-log", daemon=True).start()

    def pipes(self, rank: int) -> tuple[int, int]:
        """The write ends for a rank's stdout and stderr; the caller closes them after handing them over."""
        self._tails[rank] = deque(maxlen=TAIL_LINES)
        self._open[rank] = set()
        self._finished[rank] = asyncio.Event()
        return self._pipe(rank, "out"), self._pipe(rank, "err")

    def _pipe(self, rank: int, stream: str) -> int:
        read_end, write_end = os.pipe()
        os.set_blocking(read_end, False)
        self._open[rank].add(read_end)
        rest = bytearray()
        loop = asyncio.get_running_loop()
        loop.add_reader(read_end, self._read, read_end, rank, stream, rest)
        return write_end

    def _read(self, descriptor: int, rank: int, stream: str, rest: bytearray) -> None:
        try:
            data = os.read(descriptor, 1 << 16)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        rest += data
        *lines, last = rest.split(b"\n")
        rest[:] = last
        if not data and rest:
            lines, rest[:] = [bytes(rest)], b""
        for line in lines:
            text = line.decode("utf-8", "replace").rstrip("\r")
            if stream == "err":
                self._tails[rank].append(text)
            stamp = datetime.now().astimezone().isoformat(timespec="milliseconds")
            self._queue.put((self._path, f"{stamp} rank {rank} {stream} {text}\n"))
        if not data:
            asyncio.get_running_loop().remove_reader(descriptor)
            os.close(descriptor)
            self._open[rank].discard(descriptor)
            if not self._open[rank]:
                self._finished[rank].set()

    async def finish(self, rank: int, *, failed: bool) -> list[str]:
        """The last lines of a dead rank's stderr, also written to a file of their own if it failed."""
        with contextlib.suppress(TimeoutError):  # a grandchild may keep the pipe open
            await asyncio.wait_for(self._finished[rank].wait(), _FINISH_S)
        tail = list(self._tails[rank])
        if failed and tail:
            path = self._path.with_name(f"{self._path.stem}.rank{rank}.failed.log")
            self._queue.put((path, "".join(line + "\n" for line in tail)))
        return tail

    def _write(self) -> None:
        while True:
            path, text = self._queue.get()
            time.sleep(_GATHER_S)
            while not self._queue.empty():
                more_path, more = self._queue.get()
                if more_path != path:
                    self._append(path, text)
                    path, text = more_path, ""
                text += more
            self._append(path, text)

    def _append(self, path: Path, text: str) -> None:
        with contextlib.suppress(OSError), path.open("a") as file:  # logs come last when the disk is full
            file.write(text)
