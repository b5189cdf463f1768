"""The host ledger as files: a folder that all runs of a person, or of a group, share.

    HOST-PID-TOKEN.jsonl    records of one process, appended and never changed
    snapshot.json           what they came to, up to a length of each; may be deleted at any time

One writer to a file, so nothing of it needs locks, and writers of many hosts lose nothing. A line that cannot be read
is kept where it is, left out, and told.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import secrets
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Annotated

from pydantic import Field, TypeAdapter, ValidationError

from launcher.errors import of_the_system
from launcher.hosts.fold import Hosts, fold, pruned
from launcher.hosts.records import FORMAT, Record, hosts_of
from launcher.paths import sync_folder

SNAPSHOT = "snapshot.json"
SNAPSHOT_AFTER = 64 << 10  # bytes that were not in the last one
TORN_AFTER_S = 60.0  # a line without an end may be about to get one
SHOWN_DAMAGE = 20


@dataclass(frozen=True)
class Damage:
    """A line that is left out: `offset` in bytes."""

    file: str
    offset: int
    reason: str

    def __str__(self) -> str:
        return f"{self.file} at byte {self.offset}: {self.reason}: left out"


@dataclass
class _Kept:
    """What has been read so far. `format`: of the records that could be read then."""

    format: int = FORMAT
    lengths: dict[str, int] = field(default_factory=dict)  # file -> bytes that are folded
    damage: list[Damage] = field(default_factory=list)
    hosts: Hosts = field(default_factory=dict)


@dataclass(frozen=True)
class Reading:
    """What the ledger says, and what of it could not be read."""

    hosts: Hosts
    damage: Sequence[Damage]


class Ledger:
    """One process's view of the folder, and its own file in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._kept: _Kept | None = None
        self._in_snapshot = 0  # bytes
        self._file: Path | None = None

    def read(self) -> Reading:
        """Everything that has been written until now; a folder that does not exist is empty. Raises LaunchError."""
        try:
            files = {entry.name: entry.stat() for entry in os.scandir(self.folder) if _is_records(entry.name)}
        except FileNotFoundError:
            return Reading({}, ())
        except OSError as error:
            raise of_the_system(error, "the host ledger cannot be read", str(self.folder)) from error
        with _no_collections():
            return self._read(files)

    def _read(self, files: Mapping[str, os.stat_result]) -> Reading:
        if self._kept is None:
            self._kept = _read_snapshot(self.folder)
            self._in_snapshot = sum(self._kept.lengths.values())
        if any(name not in files or files[name].st_size < length for name, length in self._kept.lengths.items()):
            self._kept = _Kept()  # a file was taken away, or put back as it had been
        torn = [one for name in sorted(files) for one in self._read_on(self._kept, name, files[name])]
        if sum(self._kept.lengths.values()) - self._in_snapshot > SNAPSHOT_AFTER:
            self._write_snapshot(self._kept, max(about.st_mtime for about in files.values()))
        return Reading(self._kept.hosts, (*self._kept.damage, *torn))

    def history(self, host: str) -> list[Record]:
        """Every record about a host, the oldest first. Raises LaunchError."""
        needle = json.dumps(host).encode()
        found: dict[tuple[str, str], Record] = {}
        try:
            for path in sorted(self.folder.glob("*.jsonl")):
                for line in path.read_bytes().splitlines():
                    if needle in line and isinstance(record := _parsed(line), Record) and host in hosts_of(record):
                        key = (record.kind, record.id)
                        found[key] = max(found.get(key, record), record, key=lambda one: one.at)
        except OSError as error:
            raise of_the_system(error, "the host ledger cannot be read", str(self.folder)) from error
        return sorted(found.values(), key=lambda one: one.at)

    def append(self, *records: Record) -> None:
        """Add records; on return they are durable, whole or not at all. Raises LaunchError."""
        text = b"".join(_adapter().dump_json(one) + b"\n" for one in records)
        try:
            self._append(text)
        except OSError as error:
            raise of_the_system(error, "the host ledger cannot be written", str(self.folder)) from error

    def _append(self, text: bytes) -> None:
        is_new = self._file is None
        if is_new:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        file = self._file or self.folder / f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}.jsonl"
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        try:
            if is_new:
                os.fchmod(descriptor, _mode(self.folder))
            start = os.fstat(descriptor).st_size
            try:
                view = memoryview(text)
                while view:
                    view = view[os.write(descriptor, view) :]
                os.fsync(descriptor)
            except OSError:
                os.ftruncate(descriptor, start)
                raise
        finally:
            os.close(descriptor)
        if is_new:
            sync_folder(self.folder)
            self._file = file

    def _read_on(self, kept: _Kept, name: str, about: os.stat_result) -> Iterator[Damage]:
        """Fold what a file has more than before; a line without an end is not passed, and told if it is old."""
        offset = kept.lengths.get(name, 0)
        if about.st_size <= offset:
            return
        try:
            with (self.folder / name).open("rb") as file:
                file.seek(offset)
                data = file.read()
        except OSError as error:
            yield Damage(name, offset, (error.strerror or str(error)).lower())
            return
        end = data.rfind(b"\n") + 1
        records: list[Record] = []
        for line in data[:end].splitlines(keepends=True):
            record = _parsed(line)
            if isinstance(record, str):
                kept.damage.append(Damage(name, offset, record))
            else:
                records.append(record)
            offset += len(line)
        del kept.damage[SHOWN_DAMAGE:]
        fold(records, kept.hosts)
        kept.lengths[name] = offset
        if data[end:] and time.time() - about.st_mtime > TORN_AFTER_S:
            yield Damage(name, offset, "a line that was never finished")

    def _write_snapshot(self, kept: _Kept, now: float) -> None:
        """For the next reader; that we may not write it harms nobody. `now`: by no clock that may be years ahead."""
        draft = self.folder / f".{SNAPSHOT}.{secrets.token_hex(8)}"
        try:
            pruned(kept.hosts, now)
            draft.write_bytes(_snapshots().dump_json(kept))
            draft.chmod(_mode(self.folder))
            draft.replace(self.folder / SNAPSHOT)
            self._in_snapshot = sum(kept.lengths.values())
        except OSError:
            with contextlib.suppress(OSError):
                draft.unlink(missing_ok=True)


@contextlib.contextmanager
def _no_collections() -> Iterator[None]:
    """Python's collector would look at all that is read again and again, which takes longer than to read it."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def _read_snapshot(folder: Path) -> _Kept:
    """One that is missing, damaged or of another version is made anew from the records."""
    try:
        kept = _snapshots().validate_json((folder / SNAPSHOT).read_bytes())
    except (OSError, ValidationError):
        return _Kept()
    return kept if kept.format == FORMAT else _Kept()


def _parsed(line: bytes) -> Record | str:
    """The record of a line, or why it is none."""
    try:
        return _adapter().validate_json(line)
    except ValidationError as error:
        return _reason(line, error)


def _reason(line: bytes, error: ValidationError) -> str:
    try:
        version = json.loads(line).get("v")
    except (ValueError, AttributeError):
        return "not a record"
    if isinstance(version, int) and version > FORMAT:
        return f"written by a newer opt-launch (format {version}, this one reads {FORMAT})"
    first = error.errors(include_url=False, include_input=False)[0]
    return f"not a record: {'.'.join(map(str, first['loc'][1:]))}: {first['msg'].lower()}".replace(": : ", ": ")


@cache
def _adapter() -> TypeAdapter[Record]:
    return TypeAdapter(Annotated[Record, Field(discriminator="kind")])


@cache
def _snapshots() -> TypeAdapter[_Kept]:
    return TypeAdapter(_Kept)


def _is_records(name: str) -> bool:
    return name.endswith(".jsonl") and not name.startswith(".")


def _mode(folder: Path) -> int:
    """Of a file in the folder: who may read the folder may read it."""
    return 0o600 | (folder.stat().st_mode & 0o044)
