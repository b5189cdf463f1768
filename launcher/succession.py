"""How a run outlives its job, on the supervisor's side: the end is seen coming, and the next job is seen to."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from launcher.backends.choice import Backend, NodeStates
from launcher.events import Event, JobEnding, JobOver, RunEnded, Warned
from launcher.paths import RunPaths
from launcher.recovery import lost_nodes
from launcher.run import Run
from launcher.sections import RunSpec

_AGAIN_S = 15.0
_FATE_S = 1.0


class Succession:
    """Of one job (or one life of a job that was requeued). What is slow is done aside.

    `left_out()`: the nodes that the host ledger has no job get.
    """

    def __init__(
        self,
        paths: RunPaths,
        spec: RunSpec,
        job_id: str,
        backend: Backend,
        states: NodeStates,
        emit: Callable[[Event], Event],
        left_out: Callable[[], Sequence[str]],
    ) -> None:
        self._paths, self._spec, self._job_id, self._backend = paths, spec, job_id, backend
        self._states, self._emit, self._left_out = states, emit, left_out
        self._run = Run()
        self._warned = self._asking = False
        self._requeued_at = -1e9
        self._tasks: set[asyncio.Task[None]] = set()

    def begun(self) -> None:
        """The run goes on in this job: see to the one after it."""
        self._aside(self._see_to_the_next())

    def durable(self, run: Run, event: Event) -> None:
        """Go on from an event that counts."""
        self._run = run
        if isinstance(event, RunEnded):
            self._aside(asyncio.to_thread(self._backend.ended, self._paths, self._job_id))

    def look(self) -> None:
        """Called every now and then: the end of the job may be near, though nobody has said so."""
        ends_at, cluster = self._states.ends_at, self._spec.cluster
        if cluster.backend == "own" and cluster.continue_by == "none":
            return  # there it is for the user to say whether the job is to warn us: their script may do better
        if ends_at is None or time.time() < ends_at - cluster.slurm.lead:
            return
        if ending := self.ending(time.time(), "the time limit of the job", decided=False):
            self._emit(ending)

    def ending(self, at: float, reason: str, *, decided: bool) -> JobEnding | None:
        """The event, once for this job. If whoever ends the job has decided, it is asked what becomes of it."""
        if decided and not self._asking:
            self._asking = True
            self._aside(self._ask_fate())
        if self._warned or self._run.job_ending or self._run.state.is_terminal:
            return None
        self._warned = True
        return JobEnding(at=at, reason=reason, decided=decided)

    def requeue(self, lost: Sequence[str]) -> None:
        """Have the job begin anew; asked again only after a while."""
        if time.monotonic() - self._requeued_at > _AGAIN_S:
            self._requeued_at = time.monotonic()
            self._backend.requeue(self._job_id, self._excluded(lost))

    def has_left(self, answering: bool) -> bool:
        """Whether all is done that can be done here, and a job that waits already goes on."""
        run = self._run
        chained = self._spec.cluster.continue_by == "chain" and not run.job_decided
        return bool(run.job_ending) and chained and run.live_attempt is None and not answering

    @property
    def told(self) -> dict[str, Any]:
        """What viewers see: when the job ends, and since when the scheduler is away (Unix seconds)."""
        return {"ends_at": self._states.ends_at, "away_since": self._states.away_since}

    def _excluded(self, lost: Sequence[str]) -> list[str]:
        """The nodes that the job must not get when it begins anew: those lost, left out, and never wanted."""
        return [*filter(None, [self._spec.cluster.slurm.exclude]), *dict.fromkeys((*lost, *self._left_out()))]

    async def _ask_fate(self) -> None:
        reason: str | None = None
        while reason is None:
            lost = self._excluded(lost_nodes(self._run))
            reason = await asyncio.to_thread(self._backend.fate, self._job_id, lost)
            await asyncio.sleep(0 if reason is not None else _FATE_S)
        if reason:
            self._emit(JobOver(at=time.time(), reason=reason))

    async def _see_to_the_next(self) -> None:
        if wrong := await asyncio.to_thread(self._backend.begun, self._paths, self._spec, self._job_id):
            self._emit(Warned(at=time.time(), text=wrong))

    def _aside(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
