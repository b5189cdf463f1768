"""Commands that decisions want run: each at most once, with a time limit, in a process group of its own, no shell."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from launcher.events import ActionDone, Decision, Event
from launcher.paths import RunPaths
from launcher.run import Run

LIMIT_S = 600.0
OUTPUT_BYTES = 1 << 20  # what is kept of what a command prints
_READ_BYTES = 1 << 16
SCHEMA = 1


class Errands:
    """Starts commands and journals what came of them.

    The file for a command's output is made before its start, and never again: where a successor finds one without an
    outcome, the command was begun and nobody knows how it ended.
    """

    def __init__(self, paths: RunPaths, emit: Callable[[Event], Event], limit_s: float = LIMIT_S) -> None:
        self._paths, self._emit, self._limit_s = paths, emit, limit_s
        self._tasks: dict[str, asyncio.Task[None]] = {}

    @property
    def busy(self) -> bool:
        """Whether a command is running."""
        return any(not task.done() for task in self._tasks.values())

    def start(self, run: Run, decision: Decision) -> None:
        """Run the command of a decision, unless that is under way."""
        if decision.id not in self._tasks:
            self._tasks[decision.id] = asyncio.get_running_loop().create_task(self._perform(run, decision))

    async def _perform(self, run: Run, decision: Decision) -> None:
        output = self._paths.command_output(decision.incident, decision.id)
        began = time.monotonic()
        try:
            output.parent.mkdir(parents=True, exist_ok=True)
            with output.open("xb", buffering=0) as file:
                ok, said = await self._run(run, decision, file)
        except FileExistsError:
            ok, said = False, "it was begun before this supervisor: how it ended is not known"
        except OSError as error:
            ok, said = False, f"it could not be started: {error.strerror or error}"
        else:
            said = f"{said} after {time.monotonic() - began:.1f}s"
        detail = f"{said}; output in {output.relative_to(self._paths.root)}"
        self._emit(ActionDone(at=time.time(), decision=decision.id, action="run", ok=ok, detail=detail))

    async def _run(self, run: Run, decision: Decision, file: Any) -> tuple[bool, str]:
        """Raises OSError where the command cannot be started."""
        arguments = decision.actions["run"]
        assert isinstance(arguments, list)
        process = await asyncio.create_subprocess_exec(
            *map(str, arguments),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            cwd=self._paths.root,
            env={**os.environ, "OPT_LAUNCH_ROOT": str(self._paths.root.parent)},
            start_new_session=True,
        )
        about = json.dumps(incident_json(self._paths.root, run, decision), indent=1).encode() + b"\n"
        try:
            async with asyncio.timeout(self._limit_s):
                await asyncio.gather(_feed(process, about), _keep(process, file))
                code = await process.wait()
        except TimeoutError:
            await _kill_group(process)
            return False, "it was killed: its time was up"
        return code == 0, f"exit status {code}" if code >= 0 else f"killed by signal {-code}"


async def _feed(process: asyncio.subprocess.Process, about: bytes) -> None:
    """Give it the incident. One that does not care to read is no worse for it."""
    assert process.stdin is not None
    with contextlib.suppress(OSError):
        process.stdin.write(about)
        await process.stdin.drain()
        process.stdin.close()


async def _keep(process: asyncio.subprocess.Process, file: Any) -> None:
    """Write what it prints into the file, up to a limit; a full disk stops nothing."""
    assert process.stdout is not None
    left = OUTPUT_BYTES
    while data := await process.stdout.read(_READ_BYTES):
        with contextlib.suppress(OSError):
            file.write(data[:left])
        left = max(0, left - len(data))


async def _kill_group(process: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(OSError):
        os.killpg(process.pid, signal.SIGKILL)
    await process.wait()


def incident_json(root: Path, run: Run, decision: Decision) -> dict[str, Any]:
    """What a command reads on its standard input. Times are Unix seconds."""
    return {
        "schema": SCHEMA,
        "run": run.name,
        "folder": str(root),
        "state": run.state.value,
        "step": run.step,
        "incident": decision.incident,
        "decision": decision.id,
        "attempt": decision.attempt,
        "rule": decision.rule,
        "detector": decision.detector,
        "why": decision.why,
        "actions": decision.actions,
        "evidence": decision.evidence,
        "nodes": decision.nodes,
        "ranks": decision.ranks,
        "blame": decision.blame,
        "onset_at": decision.onset_at,
        "onset_step": decision.onset_step,
        "decided_at": decision.at,
    }
