"""Keeps the run's checkpoints for the supervisor: commits, reads back, rejects, deletes; slow work on a thread."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from launcher import saves
from launcher.checkpoints import removable
from launcher.chores import Chores
from launcher.events import (
    AttemptEnded,
    AttemptStarted,
    CheckpointCommitted,
    CheckpointFailed,
    CheckpointId,
    CheckpointRejected,
    CheckpointRemoved,
    CheckpointVerified,
    Event,
    StepDone,
)
from launcher.paths import RunPaths
from launcher.run import Checkpoint, Run
from launcher.saves import Message, Pending
from launcher.sections import Checkpoint as Retention

_DEFAULT = Retention()


class Keeper(Chores):
    """Collects the parts of saves and looks after what has been committed."""

    searched, unfinished = True, ()  # nothing need be looked for: its trainer tells

    def __init__(
        self,
        paths: RunPaths,
        retention: Retention | None,
        emit: Callable[[Event], Event],
        ack: Callable[[str, int], None],
        send: Callable[[str, Mapping[str, object]], None],
    ) -> None:
        super().__init__()
        self._paths, self._retention = paths, retention or _DEFAULT
        self._emit, self._ack, self._send = emit, ack, send
        self._pending: dict[CheckpointId, Pending] = {}
        self._committing: CheckpointId | None = None
        self._failed: set[CheckpointId] = set()
        self._run = Run()
        self._read: set[CheckpointId] = set()  # read back in full, by us
        self.inspected: frozenset[CheckpointId] = frozenset()

    @property
    def committing(self) -> bool:
        """Whether a save is whole and only the word of it is not durable yet."""
        return self._committing is not None

    # ------------------------------------------------------------ saves under way

    def take(self, run: Run, node: str, message: Message) -> None:
        """A rank's word about a save. It is acknowledged when the save is over, so that a successor hears it too."""
        id_ = (message["step"], message["attempt"])
        live = run.live_attempt
        if live is None or live.number != id_[1] or id_ in run.checkpoints or id_ in self._failed:
            self._ack(node, message["said"])
            return
        if message["type"] == "save_failed":
            self._ack(node, message["said"])
            self._fail(id_, f"rank {message['rank']} on {node}: {message['error']}")
            return
        save = self._pending.setdefault(id_, Pending(*id_, Path(message["directory"])))
        save.said.append((node, message["said"]))
        if message["type"] == "save_finished":
            save.files = message["files"]
        else:
            save.parts[message["rank"]] = message
        if save.is_whole(live.ranks):
            self._ask_to_finish(run, save)
            self._commit_next(run)

    def _ask_to_finish(self, run: Run, save: Pending) -> None:
        """Have the rank that writes `.metadata` do so, if this trainer's saves have such a last act."""
        if not save.needs_finish or save.finish_asked or run.live_attempt is None:
            return
        save.finish_asked = True
        first = next(node for node, ranks in run.live_attempt.slots.items() if 0 in ranks)
        results = {str(rank): part["results"] for rank, part in save.parts.items()}
        request = {"type": "finish", "step": save.step, "directory": str(save.directory), "results": results}
        self._send(first, {"type": "to_rank", "attempt": save.attempt, "rank": 0, "message": request})

    def _commit_next(self, run: Run) -> None:
        """Commit the oldest whole save; one after the other, since each names its predecessor as parent."""
        if self._committing is not None or run.live_attempt is None:
            return
        ranks = run.live_attempt.ranks
        ready = [save for save in self._pending.values() if save.is_whole(ranks) and not save.needs_finish]
        if ready:
            save = min(ready, key=lambda save: save.step)
            self._committing = (save.step, save.attempt)
            self._spawn(self._commit(run, save))

    async def _commit(self, run: Run, save: Pending) -> None:
        id_, parent = (save.step, save.attempt), run.head
        try:
            digest, size = await self._in_thread(self._write, run, save, parent)
        except OSError as error:
            self._committing = None
            self._fail(id_, f"manifest: {error}")
            return
        self._emit(
            CheckpointCommitted(
                at=time.time(), step=save.step, attempt=save.attempt, parent=parent, manifest_digest=digest, bytes=size
            )
        )

    def _write(self, run: Run, save: Pending, parent: CheckpointId | None) -> tuple[str, int]:
        return saves.write_manifest(self._paths, saves.manifest_of(run, save, parent))

    def _fail(self, id_: CheckpointId, reason: str) -> None:
        """Several ranks may fail at one save: told once. What was written is deleted, which may free the disk."""
        save = self._pending.pop(id_, None)
        for node, said in save.said if save else ():
            self._ack(node, said)
        if id_ in self._failed:
            return
        self._failed.add(id_)
        self._emit(CheckpointFailed(at=time.time(), step=id_[0], attempt=id_[1], reason=reason))
        self._spawn(self._remove(*id_))

    # ------------------------------------------------------------ what is durable

    def durable(self, run: Run, event: Event) -> None:
        """Go on from an event that counts."""
        self._run = run
        if isinstance(event, StepDone):
            return
        match event:
            case CheckpointCommitted():
                save = self._pending.pop((event.step, event.attempt), None)
                for node, said in save.said if save else ():
                    self._ack(node, said)
                self._committing = None
                self._commit_next(run)
            case AttemptStarted():
                self.inspected = frozenset()
                self._once("clean", self._clean(run))
            case AttemptEnded():
                for save in self._pending.values():
                    for node, said in save.said:
                        self._ack(node, said)
                self._pending.clear()
                self._committing = None
            case CheckpointRemoved():
                self._spawn(self._remove(event.step, event.attempt))
        self._look_after(run)

    def _look_after(self, run: Run) -> None:
        """Read back the newest checkpoint that has not been yet; let go of what retention does not keep."""
        line = (one for one in run.lineage() if one.usable and not one.verified)
        unread = next((one for one in line if one.id not in self._read), None)
        if unread is not None:
            self._once("scrub", self._scrub(unread))
        for checkpoint in removable(run, self._retention.keep, self._retention.keep_every):
            key = f"remove {checkpoint.id}"
            if key not in self._busy:
                self._busy.add(key)
                self._emit(CheckpointRemoved(at=time.time(), step=checkpoint.step, attempt=checkpoint.attempt))

    async def _scrub(self, checkpoint: Checkpoint) -> None:
        wrong = await self._in_thread(saves.scrub, self._paths, checkpoint)
        self._read.add(checkpoint.id)
        known = self._run.checkpoints.get(checkpoint.id)
        if known is None or not known.usable:
            return  # let go of meanwhile
        if wrong:
            self._emit(self.rejection(checkpoint.id, wrong))
        else:
            self._emit(CheckpointVerified(at=time.time(), step=checkpoint.step, attempt=checkpoint.attempt))

    async def _remove(self, step: int, attempt: int) -> None:
        await self._in_thread(shutil.rmtree, self._paths.checkpoint(step, attempt), True)

    async def _clean(self, run: Run) -> None:
        await self._in_thread(saves.remove_unreferenced, self._paths, run)

    # ------------------------------------------------------------ before a restart

    def search(self) -> None:
        """Nothing to look for."""

    def inspect(self, checkpoint: Checkpoint) -> None:
        """Look at a checkpoint's files; afterwards it is in `inspected` or rejected."""
        self._once(f"inspect {checkpoint.id}", self._inspect(checkpoint))

    async def _inspect(self, checkpoint: Checkpoint) -> None:
        wrong = await self._in_thread(saves.inspect, self._paths, checkpoint)
        if wrong:
            self._emit(self.rejection(checkpoint.id, wrong))
        else:
            self.inspected |= {checkpoint.id}

    @staticmethod
    def rejection(id_: CheckpointId, reason: str) -> CheckpointRejected:
        return CheckpointRejected(at=time.time(), step=id_[0], attempt=id_[1], reason=reason)
