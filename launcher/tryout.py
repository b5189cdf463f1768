"""An agent's part in the search for bad nodes: one trial at a time, in a thread beside the agent's loop."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from launcher.health.trial import take_part
from launcher.trials import Part


class Tryout:
    """`environment`: of the processes. `tell(key, report)` takes how a trial went, each time that it is asked for."""

    def __init__(self, environment: Mapping[str, str], tell: Callable[[str, dict[str, Any]], None]) -> None:
        self._environment, self._tell = environment, tell
        self._key = ""  # of the newest one
        self._reports: dict[str, dict[str, Any]] = {}
        self._ended = threading.Event()
        self._work: asyncio.Future[None] | None = None

    @property
    def is_busy(self) -> bool:
        return self._work is not None and not self._work.done()

    def ask(self, key: str, part: Mapping[str, Any]) -> None:
        """Take part, unless that was done before, or is being done. Another trial that still goes on is ended."""
        if key in self._reports:
            self._tell(key, self._reports[key])
        elif key != self._key:
            self._ended.set()
            self._key, self._ended = key, threading.Event()
            self._work = asyncio.get_running_loop().create_task(self._do(key, Part(**part), self._ended, self._work))

    async def end(self) -> None:
        """End what goes on; ranks need the node."""
        self._ended.set()
        if self._work is not None:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.shield(self._work)

    async def _do(self, key: str, part: Part, ended: threading.Event, before: asyncio.Future[None] | None) -> None:
        if before is not None:
            await before
        done: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        threading.Thread(target=self._take_part, args=(part, ended, done), name="trial", daemon=True).start()
        self._reports = {key: await done}
        self._tell(key, self._reports[key])

    def _take_part(self, part: Part, ended: threading.Event, done: asyncio.Future[dict[str, Any]]) -> None:
        report = asdict(take_part(part, self._environment, ended))
        with contextlib.suppress(RuntimeError):  # the agent has left meanwhile
            done.get_loop().call_soon_threadsafe(done.set_result, report)
