"""Has the scheduler keep nodes that look broken from everybody, beside the loop; if the spec wants that."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Any

from launcher.backends import slurm_drain
from launcher.backends.choice import has_scheduler
from launcher.backends.slurm_drain import Answer
from launcher.drain import is_too_many, reason_of, to_drain, to_open
from launcher.events import AttemptStarted, Decision, DrainDone, DrainUndone, EpochStarted, Event
from launcher.run import Broken, Run
from launcher.sections import RunSpec

_AGAIN_S = 15.0


class NoDrainer:
    """Where nobody asked for it, or where there is no scheduler."""

    def durable(self, run: Run, event: Event) -> None: ...


class Drainer:
    """One node after the other, as the run says; what comes of it is journaled, with the id of the decision."""

    def __init__(self, emit: Callable[[Event], Event]) -> None:
        self._emit = emit
        self._run = Run()
        self._work: asyncio.Task[None] | None = None
        self._told: set[tuple[str, str]] = set()  # what the run may not know yet to be done

    def durable(self, run: Run, event: Event) -> None:
        """Go on from an event that counts."""
        self._run = run
        if isinstance(event, EpochStarted | Decision | AttemptStarted | DrainDone | DrainUndone) and (
            self._work is None or self._work.done()
        ):
            work = self._next()
            self._work = asyncio.get_running_loop().create_task(work) if work else None

    def _next(self) -> Coroutine[Any, Any, None] | None:
        """Opening comes first: a node that takes part is not to stand there as broken."""
        for node, drained in to_open(self._run).items():
            if (node, drained.reason) not in self._told:
                return self._undrain(node, drained.reason)
        for node, broken in to_drain(self._run).items():
            if (node, broken.decision) not in self._told:
                return self._drain(node, broken)
        return None

    async def _drain(self, node: str, broken: Broken) -> None:
        reason = reason_of(self._run.name, broken.why)
        if node not in self._run.drained and is_too_many(self._run, time.time()):
            answer = Answer(False, "left as it is: enough were drained within the hour")
        else:
            answer = await _ask(slurm_drain.drain, node, reason)
        self._told.add((node, broken.decision))
        outcome = DrainDone(
            at=time.time(), node=node, decision=broken.decision, ok=answer.ok, reason=reason, detail=answer.detail,
            refused=answer.refused,
        )  # fmt: skip
        self._emit(outcome)

    async def _undrain(self, node: str, reason: str) -> None:
        answer = await _ask(slurm_drain.undrain, node, reason)
        self._told.add((node, reason))
        self._emit(DrainUndone(at=time.time(), node=node, ok=answer.ok, detail=answer.detail))


async def _ask(deed: Callable[[str, str], Answer | None], node: str, reason: str) -> Answer:
    """Until Slurm answers."""
    while (answer := await asyncio.to_thread(deed, node, reason)) is None:
        await asyncio.sleep(_AGAIN_S)
    return answer


def drainer_of(spec: RunSpec, emit: Callable[[Event], Event]) -> Drainer | NoDrainer:
    """Who sees to it in this run."""
    return Drainer(emit) if spec.cluster.slurm.drain and has_scheduler(spec) else NoDrainer()
