"""Slow work beside the loop: on threads, and each thing only once at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

_Result = TypeVar("_Result")


class Chores:
    """What keeps checkpoints, for its slow parts."""

    def __init__(self) -> None:
        self._busy: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._threads = ThreadPoolExecutor(2, thread_name_prefix="keeper")

    def _once(self, key: str, coroutine: object) -> None:
        """Run unless the same is under way."""
        if key in self._busy:
            coroutine.close()  # type: ignore[attr-defined]
            return
        self._busy.add(key)
        self._spawn(coroutine, key)

    def _spawn(self, coroutine: object, key: str = "") -> None:
        task = asyncio.get_running_loop().create_task(coroutine)  # type: ignore[arg-type]
        self._tasks.add(task)
        task.add_done_callback(lambda done: (self._tasks.discard(done), self._busy.discard(key)))

    async def _in_thread(self, function: Callable[..., _Result], *args: object) -> _Result:
        return await asyncio.get_running_loop().run_in_executor(self._threads, function, *args)
