"""What the supervisor sees around the run, told as facts when it changes: the job, and the disk of the run folder."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Callable, Collection
from pathlib import Path

from launcher.backends.choice import NodeStates
from launcher.events import DiskTold, Event, JobTold

LOOK_S = 15.0  # between two looks at the disk
CHANGED = 0.02  # a change of the free space by such a part is told


class Facts:
    """Looks every now and then for what rules of the policy are about (`detectors`).

    A file system that does not answer is waited for by one thread.
    """

    def __init__(
        self, root: Path, states: NodeStates, detectors: Collection[str], emit: Callable[[Event], Event]
    ) -> None:
        self._root, self._states, self._emit = root, states, emit
        self._wants_job, self._wants_disk = not {"scheduler", "time_left"}.isdisjoint(detectors), "disk" in detectors
        self._job = ("", None)
        self._free: int | None = None
        self._looked_at = -LOOK_S
        self._look: asyncio.Task[None] | None = None

    def look(self) -> None:
        """Called several times a second."""
        job = (self._states.job_state, self._states.ends_at)
        if self._wants_job and job[0] and job != self._job:
            self._job = job
            self._emit(JobTold(at=time.time(), state=job[0], ends_at=job[1]))
        now = time.monotonic()
        if self._wants_disk and now - self._looked_at > LOOK_S and (self._look is None or self._look.done()):
            self._looked_at = now
            self._look = asyncio.get_running_loop().create_task(self._disk())

    async def _disk(self) -> None:
        with contextlib.suppress(OSError):
            about = await asyncio.to_thread(os.statvfs, self._root)
            free, total = about.f_bavail * about.f_frsize, about.f_blocks * about.f_frsize
            if self._free is None or abs(free - self._free) > CHANGED * self._free:
                self._free = free
                self._emit(DiskTold(at=time.time(), free=free, total=total))
