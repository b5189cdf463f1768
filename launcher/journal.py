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

from launcher.events import EpochStarted, Event, Sealed, StepDone, UnknownEvent, from_json, to_json
from launcher.evolve import evolve
from launcher.paths import RunPaths, sync_folder

BALLAST_BYTES = 4 << 20


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
class Damage:
    """A stretch of a file that should be events and is not."""

    file: str
    offset: int
    reason: str


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
    files = _journal_files(paths)
    if sealed is None:
        seals = _valid_seals(files)
    else:
        seals = _Seals(newest_epoch(paths) + 1, {seal.file: seal.length for seal in sealed})
    damage: list[Damage] = []
    events: list[Event] = []
    for file in sorted((*files, *(_metrics_files(paths) if steps else ()))):
        name = _name(file)
        if seals is not None and _epoch_of(file) < seals.epoch and name not in seals.lengths:
            continue
        limit = seals.lengths.get(name) if seals else None
        read, broken = _read_file(file, limit)
        events += read
        damage += broken
    events.sort(key=lambda event: (event.epoch, event.seq))
    return Journal(tuple(events), tuple(damage))


@dataclass(frozen=True)
class _Seals:
    epoch: int
    lengths: dict[str, int]


def _journal_files(paths: RunPaths) -> list[Path]:
    return sorted(path for path in paths.journal_folder.glob("*.jsonl") if path.stem.isdigit())


def _metrics_files(paths: RunPaths) -> list[Path]:
    return sorted(paths.metrics_folder.glob("*.jsonl")) if paths.metrics_folder.exists() else []


def _epoch_of(file: Path) -> int:
    return int(file.name.split(".")[0])


def _name(file: Path) -> str:
    return f"{file.parent.name}/{file.name}"


def _valid_seals(files: Sequence[Path]) -> _Seals | None:
    """The seals of the newest epoch that has begun to write; they cover every older file."""
    for file in reversed(files):
        with file.open("rb") as stream:
            first = stream.readline()
        if not first.endswith(b"\n"):
            continue
        try:
            event = from_json(first)
        except (ValueError, TypeError):
            continue
        if isinstance(event, EpochStarted):
            return _Seals(event.epoch, {seal.file: seal.length for seal in event.sealed})
    return None


def _read_file(file: Path, limit: int | None) -> tuple[list[Event], list[Damage]]:
    data = file.read_bytes()
    data = data if limit is None else data[:limit]
    events: list[Event] = []
    damage: list[Damage] = []
    offset = 0
    for line in data.splitlines(keepends=True):
        if not line.endswith(b"\n"):
            break
        try:
            events.append(from_json(line))
        except UnknownEvent as error:
            damage.append(Damage(_name(file), offset, str(error)))
        except (ValueError, TypeError) as error:
            damage.append(Damage(_name(file), offset, f"{type(error).__name__}: {error}"))
        offset += len(line)
    return events, damage


def seal(paths: RunPaths, epoch: int) -> tuple[Sealed, ...]:
    """Length and digest, up to the last whole line, of every file of the epochs before `epoch`.

    A length sealed by an earlier epoch stays: what a woken supervisor appended later remains void.
    """
    journals = _journal_files(paths)
    earlier = _valid_seals([file for file in journals if _epoch_of(file) < epoch])
    sealed: list[Sealed] = []
    for file in (*journals, *_metrics_files(paths)):
        if _epoch_of(file) >= epoch:
            continue
        name = _name(file)
        if earlier and _epoch_of(file) < earlier.epoch and name not in earlier.lengths:
            continue
        data = file.read_bytes()
        length = earlier.lengths.get(name) if earlier else None
        length = data.rfind(b"\n") + 1 if length is None else length
        sealed.append(Sealed(file=name, length=length, digest=xxhash.xxh3_128_hexdigest(data[:length])))
    return tuple(sealed)


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
