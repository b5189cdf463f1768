"""What the ranks printed, of all nodes, in the order of time."""

from __future__ import annotations

import contextlib
import heapq
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import groupby
from pathlib import Path

from launcher.errors import WrongUse
from launcher.log_parts import named, parts
from launcher.paths import RunPaths
from launcher.snapshots import read_run
from launcher.view.snapshot import snapshot
from launcher.view.terminal import visible
from launcher.view.words import counted, shown_state

POLL_S = 0.5
SHOWN_NAMES = 8
_TAG = re.compile(r"(?P<at>\S+) rank (?P<rank>\d+) (?P<stream>out|err) ?(?P<text>.*)", re.DOTALL)


@dataclass(frozen=True)
class Wanted:
    """Which lines a person asked for; None is all. `since`: Unix seconds."""

    node: str | None = None
    rank: int | None = None
    attempt: int | None = None
    since: float | None = None

    def takes(self, line: Line) -> bool:
        """Whether it is one of those lines, its file being one to read."""
        is_new = self.since is None or datetime.fromisoformat(line.at).timestamp() >= self.since
        return is_new and self.rank in (None, line.rank)


@dataclass(frozen=True, order=True)
class Line:
    """One printed line. Ordered by time first: the stamps of one cluster share a zone."""

    at: str
    node: str
    rank: int
    stream: str
    text: str

    def shown(self, *, colours: bool = False) -> str:
        """The line for a terminal or a file."""
        mark = "!" if self.stream == "err" else " "
        return f"{self.at[11:23]} {self.node} rank {self.rank} {mark} {visible(self.text, colours=colours)}"


def check_wanted(paths: RunPaths, wanted: Wanted) -> None:
    """Raises WrongUse for a node, rank or attempt that the run does not have."""
    run = read_run(paths)
    nodes = {*run.nodes, *(node for attempt in run.attempts for node in attempt.slots)}
    ranks = run.nodes_wanted * run.ranks_per_node
    attempts = len(run.attempts)
    where, name = f"logs {paths.name}", paths.name
    # Before the first attempt a node may be one that has not answered yet.
    if wanted.node is not None and wanted.node not in nodes and attempts:
        names = sorted(nodes)
        some = ", ".join(names[:SHOWN_NAMES]) + (", ..." if len(names) > SHOWN_NAMES else "")
        raise WrongUse(f"run {name} has no node '{wanted.node}'", where, f"--node with one of: {some}")
    if wanted.rank is not None and wanted.rank not in range(ranks):
        last = f" to {ranks - 1}" if ranks > 1 else ""
        raise WrongUse(
            f"run {name} has no rank {wanted.rank}, it has {counted(ranks, 'rank')}", where, f"--rank 0{last}"
        )
    if wanted.attempt is not None and wanted.attempt not in range(1, attempts + 1):
        last = f" to {attempts}" if attempts > 1 else ""
        hint = f"--attempt 1{last}" if attempts else "wait until the first has started"
        raise WrongUse(f"run {name} has had no attempt {wanted.attempt}", where, hint)


def log_files(paths: RunPaths, wanted: Wanted) -> list[tuple[str, Path]]:
    """The logs to read, each with its node. Those of a failing rank repeat what is in its node's log: left out."""
    found = parts(paths.logs, wanted.attempt, wanted.node)
    return [(name[0], path) for path in found if (name := named(path))]


def why_none(paths: RunPaths, wanted: Wanted) -> str:
    """Why there is no log to read yet; "" where there is one."""
    if log_files(paths, wanted):
        return ""
    snap = snapshot(paths)
    told = f": {snap['reason']}" if snap["reason"] else ""
    return f"nothing was printed yet: run {paths.name} is {shown_state(snap)}{told}; next: {snap['next_action']}"


def merged(paths: RunPaths, wanted: Wanted) -> Iterator[Line]:
    """All lines there are now."""
    logs = groupby(log_files(paths, wanted), key=lambda log: (log[1].parent, log[0]))
    return heapq.merge(*(_lines(node, [path for _, path in files], wanted) for (_, node), files in logs))


def _lines(node: str, files: Sequence[Path], wanted: Wanted) -> Iterator[Line]:
    """The lines of the parts of one log; one that went to make room meanwhile is left out."""
    for file in files:
        # A carriage return ends no line.
        with (
            contextlib.suppress(FileNotFoundError),
            file.open(encoding="utf-8", errors="replace", newline="\n") as text,
        ):
            for one in text:
                line = _line(one, node)
                if line and wanted.takes(line):
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
        for node, file in log_files(self.paths, self.wanted):
            for text in self._added(file).decode("utf-8", "replace").split("\n"):
                line = _line(text, node)
                if line and self.wanted.takes(line):
                    found.append(line)
        return sorted(found)

    def _added(self, file: Path) -> bytes:
        """The whole lines added to a file; none where it went to make room."""
        place = self._places.get(file, 0)
        try:
            if file.stat().st_size == place:
                return b""
            with file.open("rb") as stream:
                stream.seek(place)
                data = stream.read()
        except FileNotFoundError:
            return b""
        whole = data[: data.rfind(b"\n") + 1]
        self._places[file] = place + len(whole)
        return whole

    def follow(self) -> Iterator[Line]:
        """Lines as they come, for ever."""
        while True:
            yield from self.read()
            time.sleep(POLL_S)
