"""The journal: one append-only file per epoch, sealed by its successors.

A supervisor claims an epoch by making its folder; its first event *seals* all older files (length and
digest). What a superseded supervisor writes after that is void: readers take sealed files up to their sealed
length and ignore files the newest epoch does not name. Journal and metrics share one counter per
epoch, so that both can be read back in the order in which they were decided upon.
"""

from __future__ import annotations

import errno
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import xxhash

from launcher.events import EpochStarted, Event, Sealed, StepDone, to_json
from launcher.evolve import evolve
from launcher.paths import RunPaths, sync_folder
from launcher.reader import Damage, Reader, Seals, epoch_of, journal_files, metrics_files, name_of, valid_seals

BALLAST_BYTES = 4 << 20
_BLOCK_BYTES = 1 << 20


class Superseded(Exception):
    """A higher epoch exists: nothing this process writes counts any more."""


# ---------------------------------------------------------------- epochs


def claim_epoch(paths: RunPaths) -> int:
    """Claim the next epoch; atomic among any number of claimants. Raises OSError."""
    while True:
        epoch = newest_epoch(paths) + 1
        try:
            paths.epoch(epoch).mkdir()
        except FileExistsError:
            continue
        sync_folder(paths.epochs)
        return epoch


def newest_epoch(paths: RunPaths) -> int:
    """The highest epoch claimed so far, 0 before the first."""
    return max((int(entry.name) for entry in paths.epochs.iterdir() if entry.name.isdigit()), default=0)


# ---------------------------------------------------------------- reading


@dataclass(frozen=True)
class Journal:
    """What counts of a run's journal and metrics, in order; and what could not be read."""

    events: tuple[Event, ...]
    damage: tuple[Damage, ...]


def read_journal(paths: RunPaths, sealed: Sequence[Sealed] | None = None, *, steps: bool = True) -> Journal:
    """Read all that counts. A torn last line of an unsealed file is left out silently: it was never acted upon.

    A new supervisor passes the seals it is about to write, and so reads exactly what it seals. Without `steps` the
    metrics stay unread, which are most of a long run.
    """
    reader = Reader(paths, sealed)
    events = tuple(reader.events(steps=steps))
    return Journal(events, tuple(reader.damage))


def seal(paths: RunPaths, epoch: int) -> tuple[Sealed, ...]:
    """Length and digest, up to the last whole line, of every file of the epochs before `epoch`.

    What an earlier epoch has sealed stays as it is: what a woken supervisor appended later remains void.
    """
    journals = journal_files(paths)
    earlier = valid_seals([file for file in journals if epoch_of(file) < epoch]) or Seals(0, ())
    known = {seal.file: seal for seal in earlier.sealed}
    files = [file for file in (*journals, *metrics_files(paths)) if epoch_of(file) < epoch]
    counted = [file for file in files if epoch_of(file) >= earlier.epoch or name_of(file) in known]
    return tuple(known.get(name_of(file)) or _sealed(file) for file in counted)


def _sealed(file: Path) -> Sealed:
    length, hasher, rest = 0, xxhash.xxh3_128(), b""
    with file.open("rb") as stream:
        while block := stream.read(_BLOCK_BYTES):
            whole, newline, rest = (rest + block).rpartition(b"\n")
            hasher.update(whole + newline)
            length += len(whole) + len(newline)
    return Sealed(file=name_of(file), length=length, digest=hasher.hexdigest())


# ---------------------------------------------------------------- writing


class JournalWriter:
    """Appends events of one epoch from its own thread; tells when they have become durable.

    `put` returns at once with the event as it will be read back (epoch and seq set). After the fsync, and only
    if no higher epoch exists, `on_durable(events)` is called from the writer's thread, in order.
    `on_lost(error)` is called once if that can never happen again: superseded, or a disk that takes nothing.
    `soon(function)` calls a function a little later in the putting thread (`loop.call_soon`), so that the events of
    a moment wake the writer once.
    """

    def __init__(
        self,
        paths: RunPaths,
        epoch: int,
        on_durable: Callable[[list[Event]], None],
        on_lost: Callable[[Exception], None],
        soon: Callable[[Callable[[], None]], object] = lambda function: function(),
    ) -> None:
        self._paths, self.epoch = paths, epoch
        self._on_durable, self._on_lost, self._soon = on_durable, on_lost, soon
        self._seq = 0
        self._gathered: list[Event] = []
        self._queue: queue.SimpleQueue[list[Event] | None] = queue.SimpleQueue()
        self._files: dict[Path, int] = {}
        self._thread = threading.Thread(target=self._run, name="journal", daemon=True)
        self._thread.start()

    def put(self, event: Event) -> Event:
        self._seq += 1
        event = evolve(event, epoch=self.epoch, seq=self._seq)
        self._gathered.append(event)
        if len(self._gathered) == 1:
            self._soon(self._hand_over)
        return event

    def _hand_over(self) -> None:
        self._queue.put(self._gathered)
        self._gathered = []

    def close(self, timeout_s: float = 10.0) -> None:
        """Write what was put, then end the thread."""
        self._hand_over()
        self._queue.put(None)
        self._thread.join(timeout_s)

    def _run(self) -> None:
        try:
            for batch in self._batches():
                self._append(batch)
                if self._paths.epoch(self.epoch + 1).exists():
                    raise Superseded(f"epoch {self.epoch + 1} exists")
                self._on_durable(batch)
        except (OSError, Superseded) as error:
            self._on_lost(error)
        finally:
            for descriptor in self._files.values():
                os.close(descriptor)

    def _batches(self) -> Iterator[list[Event]]:
        while (batch := self._queue.get()) is not None:
            while not self._queue.empty():
                if (more := self._queue.get()) is None:
                    self._queue.put(None)
                    break
                batch = batch + more
            if batch:
                yield batch

    def _append(self, batch: list[Event]) -> None:
        """Write and fsync. A full disk costs the ballast first; without it the journal comes before the metrics."""
        by_file: dict[Path, list[Event]] = {}
        for event in batch:
            is_metrics = isinstance(event, StepDone)
            file = self._paths.metrics(self.epoch, event.attempt) if is_metrics else self._paths.journal(self.epoch)
            by_file.setdefault(file, []).append(event)
        for file in sorted(by_file):  # journal/ before metrics/
            text = "".join(to_json(event) + "\n" for event in by_file[file]).encode()
            try:
                self._write(file, text)
            except OSError as error:
                if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                    raise
                self._paths.ballast.unlink(missing_ok=True)
                self._write_when_possible(file, text)

    def _write_when_possible(self, file: Path, text: bytes) -> None:
        """Retry until the disk takes it: an event that was not written must not be acted upon."""
        while True:
            try:
                return self._write(file, text)
            except OSError as error:
                if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                    raise
            if self._paths.epoch(self.epoch + 1).exists():
                raise Superseded(f"epoch {self.epoch + 1} exists")
            time.sleep(0.5)

    def _write(self, file: Path, text: bytes) -> None:
        descriptor = self._files.get(file)
        if descriptor is None:
            descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
            self._files[file] = descriptor
            sync_folder(file.parent)
        start = os.fstat(descriptor).st_size
        try:
            view = memoryview(text)
            while view:
                view = view[os.write(descriptor, view) :]
            os.fsync(descriptor)
        except OSError:
            os.ftruncate(descriptor, start)  # no half-written line may stay in front of the next try
            raise


def make_ballast(paths: RunPaths) -> None:
    """Set aside the space the journal may need once the disk is full. Raises OSError."""
    with paths.ballast.open("wb") as file:
        file.write(bytes(BALLAST_BYTES))  # not every shared file system can fallocate
        file.flush()
        os.fsync(file.fileno())


def write_first_epoch(paths: RunPaths, events: Sequence[Event]) -> None:
    """Write a whole epoch at once, from a process that is no supervisor (submit, resume). Raises OSError."""
    epoch = claim_epoch(paths)
    lost: list[Exception] = []
    writer = JournalWriter(paths, epoch, lambda _: None, lost.append)
    for event in events:
        writer.put(evolve(event, sealed=seal(paths, epoch)) if isinstance(event, EpochStarted) else event)
    writer.close()
    if lost:
        raise lost[0]
