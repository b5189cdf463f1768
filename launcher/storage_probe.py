"""Whether the file system of the run folder answers on this node: asked by a thread, which may never come back."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from pathlib import Path

LOOK_S = 10.0


class StorageProbe:
    """One look at a time, begun every 10 s."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._began_at = -LOOK_S
        self._thread: threading.Thread | None = None

    def waits_s(self) -> float:
        """Seconds for which the present look has been waiting; 0 if it has come back. Called several times a second."""
        now = time.monotonic()
        if self._thread is not None and self._thread.is_alive():
            return now - self._began_at
        if now - self._began_at > LOOK_S:
            self._began_at = now
            self._thread = threading.Thread(target=self._look, name="storage-probe", daemon=True)
            self._thread.start()
        return 0.0

    def _look(self) -> None:
        with contextlib.suppress(OSError):  # an error is an answer
            os.statvfs(self._folder)
            os.listdir(self._folder / "agents")
