"""What the ranks printed, of all nodes, in the order of time."""

from __future__ import annotations

import heapq
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from launcher.paths import RunPaths

POLL_S = 0.5
_TAG = re.compile(r"(?P<at>\S+) rank (?P<rank>\d+) (?P<stream>out|err) ?(?P<text>.*)", re.DOTALL)


@dataclass(frozen=True)
class Wanted:
    """Which lines a person asked for; None is all."""

    node: str | None = None
    rank: int | None = None
    attempt: int | None = None


@dataclass(frozen=True, order=True)
class Line:
    """One printed line. Ordered by time first: the stamps of one cluster share a zone."""

    at: str
    node: str
    rank: int
    stream: str
    text: str

    def __str__(self) -> str:
        mark = "!" if self.stream == "err" else " "
        return f"{self.at[11:23]} {self.node} rank {self.rank} {mark} {self.text}"


def log_files(paths: RunPaths, wanted: Wanted) -> list[Path]:
    """The logs to read. Those of a failing rank repeat what is in its node's log, and are left out."""
    attempt = "*" if wanted.attempt is None else f"{wanted.attempt:04d}"
    files = sorted(paths.logs.glob(f"{attempt}/*.log"))
    return [
        file
        for file in files
        if not file.name.endswith(".failed.log") and (wanted.node is None or file.stem == wanted.node)
    ]


def merged(paths: RunPaths, wanted: Wanted) -> Iterator[Line]:
    """All lines there are now."""
    return heapq.merge(*(_lines(file, wanted) for file in log_files(paths, wanted)))


def _lines(file: Path, wanted: Wanted) -> Iterator[Line]:
    with file.open(encoding="utf-8", errors="replace") as stream:
        for text in stream:
            line = _line(text, file.stem)
            if line and wanted.rank in (None, line.rank):
                yield line


def _line(text: str, node: str) -> Line | None:
    match = _TAG.fullmatch(text.rstrip("\n"))
    return Line(match["at"], node, int(match["rank"]), match["stream"], match["text"]) if match else None


@dataclass
class Follower:
    """Reads what is added to the logs, new files included; network file systems tell nobody, so it looks."""

    paths: RunPaths
    wanted: Wanted
    _places: dict[Path, int] = field(default_factory=dict)

    def read(self) -> list[Line]:
        """The whole lines added since the last call, in the order of time."""
        found: list[Line] = []
        for file in log_files(self.paths, self.wanted):
            with file.open("rb") as stream:
                stream.seek(self._places.get(file, 0))
                data = stream.read()
            whole = data[: data.rfind(b"\n") + 1]
            self._places[file] = self._places.get(file, 0) + len(whole)
            for text in whole.decode("utf-8", "replace").split("\n"):
                line = _line(text, file.stem)
                if line and self.wanted.rank in (None, line.rank):
                    found.append(line)
        return sorted(found)

    def follow(self) -> Iterator[Line]:
        """Lines as they come, for ever."""
        while True:
            yield from self.read()
            time.sleep(POLL_S)
