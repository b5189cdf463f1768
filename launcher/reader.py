"""Reading what counts of a journal and its metrics: in order, from any place on, whatever else lies there."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from heapq import merge
from pathlib import Path
from typing import BinaryIO, TypeAlias

from launcher.events import EpochStarted, Event, Sealed, UnknownEvent, from_json
from launcher.paths import RunPaths

Place: TypeAlias = tuple[int, int]  # (epoch, seq) of an event
START: Place = (0, 0)


@dataclass(frozen=True)
class Damage:
    """A stretch of a file that should be events and is not."""

    file: str
    offset: int
    reason: str


class Reader:
    """Reads what counts, as `read_journal` does, one event after the other. `damage`: what it could not read so far."""

    def __init__(self, paths: RunPaths, sealed: Sequence[Sealed] | None = None) -> None:
        self._journals, self._metrics = journal_files(paths), metrics_files(paths)
        seals = (
            valid_seals(self._journals)
            if sealed is None
            else Seals(1 + max(map(epoch_of, self._journals), default=0), tuple(sealed))
        )
        self._seals = seals or Seals(0, ())
        self._lengths = {seal.file: seal.length for seal in self._seals.sealed}
        self.damage: list[Damage] = []

    def events(self, after: Place = START, *, steps: bool = True) -> Iterator[Event]:
        """The events after a place, in order. What lies before it is not read."""
        by_epoch: dict[int, list[Path]] = {}
        for file in (*self._journals, *(self._metrics if steps else ())):
            if epoch_of(file) >= after[0] and self._counts(file):
                by_epoch.setdefault(epoch_of(file), []).append(file)
        for epoch in sorted(by_epoch):
            seq = after[1] if epoch == after[0] else 0
            yield from merge(*(self._read(file, seq) for file in by_epoch[epoch]), key=lambda event: event.seq)

    def has(self, place: Place) -> bool:
        """Whether there is an event at a place, and it counts."""
        epoch, seq = place
        return any(
            self._seq_after(file, seq - 1) == seq
            for file in (*self._journals, *self._metrics)
            if epoch_of(file) == epoch and self._counts(file)
        )

    def sealed_before(self, epoch: int) -> tuple[Sealed, ...]:
        """What counts of the epochs before one that has begun; later seals repeat the earlier ones."""
        return tuple(sorted((seal for seal in self._seals.sealed if epoch_of(Path(seal.file)) < epoch), key=str))

    def _counts(self, file: Path) -> bool:
        return epoch_of(file) >= self._seals.epoch or name_of(file) in self._lengths

    def _end(self, file: Path) -> int:
        size = file.stat().st_size
        return min(size, self._lengths.get(name_of(file), size))

    def _seq_after(self, file: Path, seq: int) -> int | None:
        end = self._end(file)
        with file.open("rb") as stream:
            stream.seek(_offset_after(stream, seq, end))
            return _next_seq(stream, end)

    def _read(self, file: Path, after: int) -> Iterator[Event]:
        end = self._end(file)
        with file.open("rb") as stream:
            offset = stream.seek(_offset_after(stream, after, end) if after else 0)
            for line in stream:
                if offset + len(line) > end or not line.endswith(b"\n"):
                    return
                try:
                    yield from_json(line)
                except UnknownEvent as error:
                    self.damage.append(Damage(name_of(file), offset, str(error)))
                except (ValueError, TypeError) as error:
                    self.damage.append(Damage(name_of(file), offset, f"{type(error).__name__}: {error}"))
                offset += len(line)


def _offset_after(stream: BinaryIO, seq: int, end: int) -> int:
    """Where the first line of a higher seq begins, or `end`: lines are in order of seq."""
    low, high = 0, end
    while low < high:
        middle = (low + high) // 2
        stream.seek(max(0, middle - 1))
        if middle:
            stream.readline()  # to the begin of a line
        found = _next_seq(stream, high)
        if found is None or found > seq:
            high = middle
        else:
            low = stream.tell()
    return low


def _next_seq(stream: BinaryIO, end: int) -> int | None:
    """Of the next line that begins before `end`; what cannot be read is passed over."""
    found: int | None = None
    while found is None and stream.tell() < end:
        found = _seq_of(stream.readline())
    return found


def _seq_of(line: bytes) -> int | None:
    try:
        return int(json.loads(line)["seq"]) if line.endswith(b"\n") else None
    except (ValueError, TypeError, KeyError):
        return None


# ---------------------------------------------------------------- files and seals


@dataclass(frozen=True)
class Seals:
    """The files that count of the epochs before `epoch`, and how far."""

    epoch: int
    sealed: tuple[Sealed, ...]


def journal_files(paths: RunPaths) -> list[Path]:
    return sorted(path for path in paths.journal_folder.glob("*.jsonl") if path.stem.isdigit())


def metrics_files(paths: RunPaths) -> list[Path]:
    return sorted(paths.metrics_folder.glob("*.jsonl")) if paths.metrics_folder.exists() else []


def epoch_of(file: Path) -> int:
    return int(file.name.split(".")[0])


def name_of(file: Path) -> str:
    return f"{file.parent.name}/{file.name}"


def valid_seals(files: Sequence[Path]) -> Seals | None:
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
            return Seals(event.epoch, event.sealed)
    return None
