"""What an agent that somebody started by hand, or by their own srun, owes them: output, Ctrl-C, an exit code.

A thread writes: a reader who stalls (a terminal after Ctrl-S) must not stop the agent, nor one who leaves the training.
"""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping

SHOWN = "OPT_LAUNCH_SHOWN"  # the variable by which the agent learns that it stands in the foreground, and what to show
GENTLE = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
BACKLOG_BYTES = 16 << 20  # held for a slow reader; what comes beyond is in the run's logs only
_STDOUT, _STDERR = 1, 2
_RETRY_S = 0.05


class Foreground:
    """The standard streams of this process. `shown`: the local ranks whose "out" and "err" appear there."""

    def __init__(self, shown: Mapping[str, list[int]]) -> None:
        self._shown = shown
        self._queue: deque[tuple[int, bytes]] = deque()
        self._backlog = 0
        self._dropped = 0
        self._is_new = threading.Condition()
        self._closing = False
        self.signal = 0  # by which we were told to end
        self._thread = threading.Thread(target=self._write_all, name="foreground", daemon=True)
        self._thread.start()

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> Foreground | None:
        """That of an agent with this environment; None where nobody looks."""
        return cls(json.loads(environment[SHOWN])) if SHOWN in environment else None

    # ------------------------------------------------------------ output

    def hearer(self, local_rank: int) -> Callable[[str, bytes, float], None]:
        """What takes the bytes of a rank's "out" and "err", and shows those that are to be seen."""

        def hear(stream: str, data: bytes, _at: float) -> None:
            if local_rank in self._shown[stream]:
                self._put(_STDOUT if stream == "out" else _STDERR, data)

        return hear

    def tell(self, text: str) -> None:
        """A line of our own."""
        self._put(_STDERR, f"opt-launch: {text}\n".encode())

    def _put(self, descriptor: int, data: bytes) -> None:
        with self._is_new:
            if self._backlog > BACKLOG_BYTES:
                self._dropped += len(data)
                return
            self._queue.append((descriptor, data))
            self._backlog += len(data)
            self._is_new.notify()

    def _write_all(self) -> None:
        while True:
            with self._is_new:
                self._is_new.wait_for(lambda: self._queue or self._closing)
                if not self._queue:
                    return
                descriptor, data = self._queue.popleft()
                self._backlog -= len(data)
                dropped, self._dropped = (0, self._dropped) if self._queue else (self._dropped, 0)
            _write(descriptor, data)
            if dropped:
                _write(_STDERR, f"opt-launch: {dropped:,} bytes were not shown, they are in the run's logs\n".encode())

    def close(self, wait_s: float) -> None:
        """Write what is left, for so long at most."""
        with self._is_new:
            self._closing = True
            self._is_new.notify()
        self._thread.join(wait_s)

    # ------------------------------------------------------------ the end

    def is_first(self, number: int) -> bool:
        """Whether this is the first signal to end; the second one is obeyed at once."""
        first, self.signal = not self.signal, number
        return first

    def exit_code(self, state: str) -> int:
        """For a run that ended in this state; "" if it has not ended."""
        if state == "SUCCEEDED":
            return 0
        return 128 + self.signal if self.signal else 1


def _write(descriptor: int, data: bytes) -> None:
    """Write all of it; a reader that is gone is no concern of the run."""
    while data:
        try:
            data = data[os.write(descriptor, data) :]
        except BlockingIOError:
            time.sleep(_RETRY_S)
        except OSError:
            return
