"""The log of a node's ranks in an attempt, in parts of limited size, none of which is ever renamed.

`NODE.log` is the first, `NODE.log.2` and so on follow. A reader who knows how far it has read in each loses nothing.
"""

from __future__ import annotations

import contextlib
import glob
import re
from collections.abc import Iterator
from pathlib import Path

PARTS = 8  # of what is kept of a node, a part has this share at most
_NAME = re.compile(r"(?P<node>.+)\.log(?:\.(?P<number>\d+))?")
_FAILED = ".failed"


def part(first: Path, number: int) -> Path:
    """The path of a part; the first has number 1."""
    return first if number == 1 else first.with_name(f"{first.name}.{number}")


def named(path: Path) -> tuple[str, int] | None:
    """(node, number) of a part; None for what is none, such as the last lines of a failed rank."""
    match = _NAME.fullmatch(path.name)
    return (match["node"], int(match["number"] or 1)) if match and not match["node"].endswith(_FAILED) else None


def parts(logs: Path, attempt: int | None = None, node: str | None = None) -> list[Path]:
    """The parts under the folder of all logs, by attempt, node and number."""
    pattern = f"{'*' if attempt is None else f'{attempt:04d}'}/{'*' if node is None else glob.escape(node)}.log*"
    found = [(path.parent.name, name, path) for path in logs.glob(pattern) if (name := named(path))]
    return [path for _, name, path in sorted(found) if node in (None, name[0])]


def newest(first: Path) -> Path:
    """The part that was begun last."""
    there = parts_of(first)
    return there[-1] if there else first


def parts_of(first: Path) -> list[Path]:
    """The parts of one log that are there, the oldest first."""
    return parts(first.parent.parent, int(first.parent.name), first.name.removesuffix(".log"))


class LogParts:
    """Writes to the newest part. Of a node all that its attempts have printed is kept up to `limit` bytes.

    Beyond that the oldest parts go, of whichever attempt; never the one that is being written, nor the first of this
    attempt, in which a trainer tells what it was asked for.
    """

    def __init__(self, first: Path, limit: int) -> None:
        self._first, self._limit, self._most = first, limit, limit // PARTS
        self._number, self._size = 1, 0
        with contextlib.suppress(OSError):
            present = newest(first)
            self._size = present.stat().st_size
            self._number = (named(present) or ("", 1))[1]

    def append(self, text: str) -> None:
        """Write whole lines. Raises OSError."""
        data = text.encode("utf-8", "replace")
        if self._size and self._size + len(data) > self._most:
            self._number, self._size = self._number + 1, 0
            self._make_room()
        with part(self._first, self._number).open("ab") as file:
            self._size += len(data)
            file.write(data)

    def _make_room(self) -> None:
        """For one more part."""
        sizes = dict(self._sizes())
        excess = sum(sizes.values()) + self._most - self._limit
        for path, size in sizes.items():
            if excess <= 0:
                return
            if path != self._first:
                with contextlib.suppress(OSError):
                    path.unlink()
                    excess -= size

    def _sizes(self) -> Iterator[tuple[Path, int]]:
        for path in parts(self._first.parent.parent, node=self._first.name.removesuffix(".log")):
            with contextlib.suppress(OSError):
                yield path, path.stat().st_size
