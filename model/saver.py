"""Saving while training goes on: a copy on the training thread, then files and reports on a writer thread.

A save never runs a collective: two threads on one gloo group give wrong sums without an error. Ranks do not wait for
each other either; that all parts are there is found out by whoever commits: the launcher through its agents
(`ViaReporter`), or rank 0 through files (`ViaFiles`), behind one interface.
"""

import json
import os
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.tensor import DTensor

from launcher.reporter import Reporter
from model import checkpoint
from model.checkpoint import Chunk, Plan

POLL_S = 0.02


@dataclass(frozen=True)
class Part:
    """One rank's part of a checkpoint, on disk. `state` is the JSON state, from rank 0."""

    step: int
    folder: Path
    chunks: Sequence[Chunk]
    state: Mapping[str, Any] | None
    blocked_s: float


class Committer(Protocol):
    """Makes a checkpoint of parts. Called on the writer thread, except `wait`."""

    def written(self, part: Part) -> None:
        """This rank's part is on disk. Raises OSError when the last act fails."""

    def failed(self, step: int, folder: Path, error: OSError) -> None:
        """This rank could not do its part."""

    def wait(self, step: int, limit_s: float, /) -> bool:
        """Whether the last act for `step`, if it is this rank's to do, was done within `limit_s` seconds."""
        ...


class Saver:
    """Saves of one rank, one at a time.

    When a save is due while the one before is still being written, it waits for that: skipping would make the
    lost work of a failure unbounded on slow storage. The wait is part of the reported blocked time.
    """

    def __init__(
        self, plan: Plan, tensors: Mapping[str, DTensor], committer: Committer, *, rank: int, root: Path, attempt: int
    ) -> None:
        self.committer, self.rank, self.root, self.attempt = committer, rank, root, attempt
        self._pairs = []
        for item in plan.items:
            shard = tensors[item.index.fqn].to_local()
            buffer = torch.empty(shard.shape, dtype=shard.dtype, pin_memory=shard.is_cuda)
            self._pairs.append((item.index, shard, buffer))
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="checkpoint-writer")
        self._pending: Future[bool] | None = None
        self.last_step: int | None = None  # of the save begun last

    def save(self, step: int, state: Mapping[str, Any]) -> float:
        """Begin the save after `step` completed steps; returns the seconds that the training thread was blocked."""
        began = time.monotonic()
        if self._pending:
            self._pending.result()  # raises what only a bug can have raised
        for _, shard, buffer in self._pairs:
            buffer.copy_(shard, non_blocking=True)
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
        self.last_step = step
        blocked_s = time.monotonic() - began
        self._pending = self._writer.submit(self._write, step, state if self.rank == 0 else None, blocked_s)
        return blocked_s

    def wait(self, limit_s: float) -> bool:
        """Whether this rank's part of the save begun last was written, within `limit_s` seconds."""
        with suppress(FutureTimeout):
            return self._pending is None or self._pending.result(limit_s)
        return False

    def _write(self, step: int, state: Mapping[str, Any] | None, blocked_s: float) -> bool:
        folder = self.root / checkpoint.folder_name(step, self.attempt)
        try:
            chunks = checkpoint.write_part(folder, self.rank, ((index, buffer) for index, _, buffer in self._pairs))
            self.committer.written(Part(step, folder, chunks, state, blocked_s))
        except OSError as error:  # no space left, a storage that is away: training goes on, the next save may work
            self.committer.failed(step, folder, error)
            return False
        return True


class ViaReporter:
    """Parts go to the agents; when all are there the launcher asks rank 0 for `.metadata`, and commits."""

    def __init__(self, reporter: Reporter, metadata: Metadata | None) -> None:
        self.reporter = reporter
        self._finished = -1
        self._change = threading.Condition()
        self._asked = metadata is not None
        if metadata is not None:
            threading.Thread(target=self._finish_loop, args=(metadata,), name="checkpoint-finish", daemon=True).start()

    def written(self, part: Part) -> None:
        """Report the part, with the chunks as the opaque results that come back in the request to finish."""
        chunks = list(part.chunks)
        self.reporter.save_part(part.step, part.folder, chunks, json.dumps(chunks), part.state, part.blocked_s)

    def failed(self, step: int, folder: Path, error: OSError) -> None:
        """Report it; the checkpoint will stay incomplete and never be used."""
        self.reporter.save_failed(step, f"{folder}: {type(error).__name__}: {error}")

    def wait(self, step: int, limit_s: float, /) -> bool:
        """Whether `.metadata` of `step` was written and reported in time; True at once where that is not our task."""
        with self._change:
            return not self._asked or self._change.wait_for(lambda: self._finished >= step, limit_s)

    def _finish_loop(self, metadata: Metadata) -> None:
        while True:
            request = self.reporter.finish_requests.get()
            step, folder = request["step"], Path(request["directory"])
            parts = [json.loads(result) for result in request["results"].values()]
            try:
                files = {checkpoint.METADATA: checkpoint.write_metadata(folder, metadata, parts)}
                self.reporter.save_finished(step, folder, files)
            except OSError as error:
                self.failed(step, folder, error)
            with self._change:
                self._finished = max(self._finished, step)
                self._change.notify_all()


class ViaFiles:
    """Without a launcher: each rank leaves `part_<rank>.json`, and rank 0 collects them and writes the manifest."""

    def __init__(self, metadata: Metadata | None, *, rank: int, ranks: int, attempt: int, parent: str | None) -> None:
        self.metadata, self.rank, self.ranks, self.attempt, self.parent = metadata, rank, ranks, attempt, parent
        self.limit_s = 120.0  # for the slowest rank's part, after ours

    def written(self, part: Part) -> None:
        """Leave our part; on rank 0 wait for the others' and complete the checkpoint."""
        own = part.folder / f"part_{self.rank}.json"
        _write_whole(own, json.dumps({"chunks": part.chunks}).encode())
        if self.metadata is None:
            return
        parts = self._collect(part.folder)
        metadata = checkpoint.write_metadata(part.folder, self.metadata, parts)
        chunks = [chunk for chunks in parts for chunk in chunks]
        sizes = {path: (part.folder / path).stat().st_size for path in sorted({chunk["path"] for chunk in chunks})}
        manifest = {
            "schema": checkpoint.SCHEMA,
            "run": part.folder.parent.name,
            "step": part.step,
            "attempt": self.attempt,
            "parent": self.parent,
            "world_size": self.ranks,
            "files": {path: {"bytes": size} for path, size in sizes.items()},
            "metadata": metadata,
            "chunks": chunks,
            "state": part.state,
        }
        _write_whole(part.folder / checkpoint.MANIFEST, json.dumps(manifest).encode())
        self.parent = part.folder.name

    def failed(self, step: int, folder: Path, error: OSError) -> None:
        """Say it, and tell rank 0 not to wait; without its manifest the checkpoint does not exist."""
        print(f"rank {self.rank}: the save of step {step} failed: {error}", flush=True)
        with suppress(OSError):  # where even this cannot be written rank 0 waits until its limit
            _write_whole(folder / f"part_{self.rank}.json", json.dumps({"error": str(error)}).encode())

    def wait(self, _step: int, _limit_s: float, /) -> bool:
        """True: the last act is part of rank 0's writing."""
        return True

    def _collect(self, folder: Path) -> list[list[Chunk]]:
        paths = [folder / f"part_{rank}.json" for rank in range(self.ranks)]
        deadline = time.monotonic() + self.limit_s
        while missing := [path.name for path in paths if not path.exists()]:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{folder}: after {self.limit_s:.0f} s still without {', '.join(missing[:8])}")
            time.sleep(POLL_S)
        parts = [json.loads(path.read_bytes()) for path in paths]
        if errors := [f"rank {rank}: {part['error']}" for rank, part in enumerate(parts) if "error" in part]:
            raise OSError(f"{folder}: incomplete; {'; '.join(errors[:8])}")
        return [part["chunks"] for part in parts]


def _write_whole(path: Path, data: bytes) -> None:
    """Write a file so that it is there completely or not at all."""
    aside = path.with_name(path.name + ".tmp")
    with open(aside, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(aside, path)
    checkpoint.sync_folder(path.parent)
