"""What each attempt runs on, and which code: recorded, and compared with the attempt before."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from launcher.chores import Chores
from launcher.code.present import present
from launcher.code.record import read_code
from launcher.environment import changes, of_attempt
from launcher.events import EnvironmentChanged, Event, Json
from launcher.paths import RunPaths, write_atomically


class Surroundings(Chores):
    """Worth having, not worth a run: what cannot be recorded is left out."""

    def __init__(self, paths: RunPaths, command: Sequence[str], emit: Callable[[Event], Event]) -> None:
        super().__init__()
        self._paths, self._command, self._emit = paths, command, emit

    def record(self, attempt: int, by_node: Mapping[str, dict[str, Any]]) -> None:
        """An attempt starts on these nodes. What the code is follows: git may take its time."""
        recorded = of_attempt({**by_node})
        self._write(attempt, recorded)
        self._once(f"attempt {attempt}", self._compare(attempt, recorded))

    async def _compare(self, attempt: int, recorded: Mapping[str, Any]) -> None:
        changed = await self._in_thread(self._with_code, attempt, recorded)
        if changed:
            self._emit(EnvironmentChanged(at=time.time(), attempt=attempt, changes=changed))

    def _with_code(self, attempt: int, recorded: Mapping[str, Any]) -> dict[str, Json]:
        """Record the code too; what has changed since the last attempt of which that is known."""
        with contextlib.suppress(OSError, ValueError):
            if code := read_code(self._paths):
                recorded = {**recorded, "code": present(code, self._command)}
                self._write(attempt, recorded)
        for earlier in range(attempt - 1, 0, -1):
            with contextlib.suppress(OSError, ValueError):
                return changes(json.loads(self._paths.environment(earlier).read_bytes()), recorded)
        return {}

    def _write(self, attempt: int, recorded: Mapping[str, Any]) -> None:
        with contextlib.suppress(OSError):
            write_atomically(self._paths.environment(attempt), json.dumps(recorded))
