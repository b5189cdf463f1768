"""What is known of a sweep after it was submitted: its name, its runs, and by what they differ."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from launcher.errors import RunNotFound
from launcher.paths import RunPaths, write_atomically

_ENDING = ".sweep"
_FILE = "sweep.json"


@dataclass(frozen=True)
class Record:
    """A sweep. `labels`: what each swept key is called; `runs`: by name, the values of those keys."""

    name: str
    labels: Mapping[str, str]
    runs: Mapping[str, Mapping[str, Any]]
    max_parallel: int | None


def folder_of(root: Path, name: str) -> Path:
    """Where a sweep keeps what is of none of its runs."""
    return root.absolute() / f"{name}{_ENDING}"


def write_record(folder: Path, record: Record) -> None:
    """Raises OSError."""
    write_atomically(folder / _FILE, json.dumps({"schema": 1, **asdict(record)}, indent=1))


def find_record(root: Path, name: str) -> Record | None:
    """The sweep of this name; None where there is none."""
    return _read(folder_of(root, name) / _FILE)


def record_of(root: Path, name: str) -> Record:
    """The sweep of this name. Raises RunNotFound."""
    if (record := find_record(root, name)) is None:
        names = ", ".join(one.name for one in list_records(root))
        raise RunNotFound(f"there is no sweep '{name}'", f"looking in {root.absolute()}", names and f"one of: {names}")
    return record


def list_records(root: Path) -> Iterator[Record]:
    """All sweeps under `root`."""
    for file in sorted(root.glob(f"*{_ENDING}/{_FILE}")):
        if (record := _read(file)) is not None:
            yield record


def runs_of(root: Path, record: Record) -> list[RunPaths]:
    """The runs of the sweep that are still there."""
    found = [RunPaths(root.absolute() / name) for name in record.runs]
    return [paths for paths in found if paths.journal_folder.is_dir()]


def _read(file: Path) -> Record | None:
    try:
        body = json.loads(file.read_text())
        return Record(body["name"], body["labels"], body["runs"], body["max_parallel"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
