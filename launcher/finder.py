"""Keeps the checkpoints of a trainer that tells nobody of them: finds, inspects, rejects; never deletes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

from launcher import found
from launcher.chores import Chores
from launcher.events import (
    AttemptEnded,
    AttemptStarted,
    CheckpointCommitted,
    CheckpointId,
    CheckpointRejected,
    CheckpointRemoved,
    CheckpointSetAside,
    CheckpointVerified,
    Event,
    RunReleased,
    RunUnpaused,
    Warned,
)
from launcher.foreign import CheckpointFiles
from launcher.run import Checkpoint, Run
from launcher.saves import Message

LOOK_S = 2.0
_SHARE = 0.05  # of the time at most goes into looking


class Finder(Chores):
    """Looks every few seconds while the trainer runs, and once more before it is started again.

    `newest`: the trainer takes the newest checkpoint it finds, and must find none that we passed over. `folder`: that
    which relative names are in, whatever copy of the code ranks work in.
    """

    def __init__(
        self,
        files: CheckpointFiles,
        newest: bool,
        folder: Path,
        emit: Callable[[Event], Event],
        ack: Callable[[str, int], None],
    ) -> None:
        super().__init__()
        self._files, self._newest, self._folder = files, newest, folder
        self._emit, self._ack = emit, ack
        self._run = Run()
        self._known: set[CheckpointId] = set()  # told of, though it may not be durable yet
        self._gone: set[CheckpointId] = set()
        self.inspected: frozenset[CheckpointId] = frozenset()
        self.committing = False  # what is found is there
        self.searched = False
        self.unfinished: tuple[str, ...] = ()
        self._spawn(self._look_now_and_then())

    def take(self, _run: Run, node: str, message: Message) -> None:
        """Such a trainer's word about a save is nothing to wait for."""
        self._ack(node, message["said"])

    def durable(self, run: Run, event: Event) -> None:
        """Go on from an event that counts."""
        self._run = run
        match event:
            case AttemptStarted() | AttemptEnded() | RunReleased() | RunUnpaused():
                self.searched, self.inspected = False, frozenset()

    # ------------------------------------------------------------ looking

    async def _look_now_and_then(self) -> None:
        while True:
            began = time.monotonic()
            if self._run.live_attempt is not None and "search" not in self._busy:
                await self._look()
            await asyncio.sleep(max(LOOK_S, (time.monotonic() - began) / _SHARE))

    def search(self) -> None:
        """Look once more, now that nothing is being written; afterwards `searched` is true."""
        self._once("search", self._search())

    async def _search(self) -> None:
        attempt = self._run.attempt
        seen = await self._look()
        if seen is not None and self._run.attempt == attempt:
            self.unfinished, self.searched = seen.unfinished, True

    async def _look(self) -> found.Look | None:
        """Tell what has changed; None if meanwhile the run went on to another attempt."""
        run = self._run
        seen = await self._in_thread(found.look, self._files, self._folder, run, time.time())
        now = self._run
        if (now.attempt and now.attempt.number) != (run.attempt and run.attempt.number):
            return None
        for id_ in seen.gone:
            self._remove(id_)
        self._tell(seen.new)
        return seen

    def _tell(self, new: tuple[found.Found, ...]) -> None:
        """New ones, each the child of the one before."""
        run = self._run
        attempt, parent = run.attempt.number if run.attempt else 0, run.head
        for one in new:
            id_ = (one.step, attempt)
            if id_ in self._known or id_ in run.checkpoints or (parent and one.step <= parent[0]):
                continue
            for other in run.checkpoints.values():
                if other.path == one.path:  # written over
                    self._remove(other.id)
            self._known.add(id_)
            self._emit(
                CheckpointCommitted(
                    at=time.time(), step=one.step, attempt=attempt, parent=parent, manifest_digest=one.digest,
                    bytes=one.bytes, path=one.path, written_at=one.written_at,
                )
            )  # fmt: skip
            # Its digest is of what was read of it just now.
            self._emit(CheckpointVerified(at=time.time(), step=one.step, attempt=attempt))
            parent = id_

    def _remove(self, id_: CheckpointId) -> None:
        if id_ in self._gone or self._run.checkpoints[id_].removed:
            return
        self._gone.add(id_)
        self._emit(CheckpointRemoved(at=time.time(), step=id_[0], attempt=id_[1]))

    # ------------------------------------------------------------ before a restart

    def inspect(self, checkpoint: Checkpoint) -> None:
        """Compare a checkpoint with what was found; afterwards it is in `inspected` or rejected."""
        self._once(f"inspect {checkpoint.id}", self._inspect(checkpoint))

    async def _inspect(self, checkpoint: Checkpoint) -> None:
        path, digest = checkpoint.path, checkpoint.manifest_digest
        wrong = await self._in_thread(found.inspect, path, digest, self._files.verify)
        if wrong:
            self._emit(self.rejection(checkpoint.id, wrong))
            return
        if self._newest and not await self._set_aside(checkpoint.step):
            return
        self.inspected |= {checkpoint.id}

    async def _set_aside(self, beyond: int) -> bool:
        try:
            moved = await self._in_thread(found.set_aside, self._files.glob, self._folder, beyond)
        except OSError as error:
            self._emit(Warned(at=time.time(), text=f"checkpoints after step {beyond} cannot be set aside: {error}"))
            await asyncio.sleep(LOOK_S)
            return False
        for path, to in moved:
            self._emit(CheckpointSetAside(at=time.time(), path=path, moved_to=to))
        return True

    @staticmethod
    def rejection(id_: CheckpointId, reason: str) -> CheckpointRejected:
        return CheckpointRejected(at=time.time(), step=id_[0], attempt=id_[1], reason=reason)
