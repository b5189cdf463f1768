"""What can go wrong, as one tree. The command line prints `str(error)` and leaves with `exit_code`.

    LaunchError            1   anything the program itself gives up on
    ├── WrongUse           2   the command asks for what does not exist, or leaves out what it needs
    ├── ConfigError        3   RUN.yaml, a policy or a --set is wrong; holds every mistake found
    ├── RunNotFound        4   no run of that name
    └── Unreachable        5   the scheduler, a node or the supervisor did not answer

The text of an error has up to three parts: what happened, where, and what to do about it.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from dataclasses import dataclass

SHOWN_COLUMNS = 100  # of a source line
_BEFORE_MARK = 40  # of them, before what is marked
_CURES = {
    errno.ENOENT: "check the path",
    errno.ENOTDIR: "check the path",
    errno.EACCES: "check the permissions",
    errno.EPERM: "check the permissions",
    errno.ENOSPC: "make room there, or write elsewhere",
    errno.EDQUOT: "make room there, or write elsewhere",
    errno.EROFS: "write elsewhere",
}


class LaunchError(Exception):
    """An error a person can do something about: one line what, one line where, one line what to do."""

    exit_code = 1

    def __init__(self, message: str, where: str = "", hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.where = where
        self.hint = hint

    def __str__(self) -> str:
        where = f"\n  while: {self.where}" if self.where else ""
        hint = f"\n  try:   {self.hint}" if self.hint else ""
        return self.message + where + hint


@dataclass(frozen=True)
class Mistake:
    """One mistake in what a person wrote. `line` and `column` count from 1; 0 where there is no line.

    `where` is the file as the person named it, or the flag (`--set trainer.lr=fast`). `source` is the
    line itself, underlined for `width` characters from `column`.
    """

    where: str
    message: str
    line: int = 0
    column: int = 0
    source: str = ""
    width: int = 1

    def __str__(self) -> str:
        if not self.line:
            return f"{self.where}: {self.message}"
        head = f"{self.where}:{self.line}:{self.column}: {self.message}"
        if not self.source.strip():
            return head
        gutter = f"{self.line:5d} | "
        # A tab would shift the marks; the columns count it as one character.
        source, column = _window(self.source.replace("\t", " ").rstrip(), self.column)
        underline = " " * (column - 1) + "^" * max(1, min(self.width, len(source) - column + 1))
        return f"{head}\n{gutter}{source}\n{' ' * (len(gutter) - 2)}| {underline}"


def _window(source: str, column: int) -> tuple[str, int]:
    """The part of a long line around a column, and that column in it."""
    if len(source) <= SHOWN_COLUMNS:
        return source, column
    first = max(0, min(column - 1 - _BEFORE_MARK, len(source) - SHOWN_COLUMNS))
    left, right = "..." if first else "", "..." if first + SHOWN_COLUMNS < len(source) else ""
    return f"{left}{source[first : first + SHOWN_COLUMNS]}{right}", column - first + len(left)


class ConfigError(LaunchError):
    """Everything that is wrong with what a person wrote, each mistake with its place."""

    exit_code = 3

    def __init__(self, mistakes: Sequence[Mistake], hint: str = "") -> None:
        self.mistakes = tuple(mistakes)
        places, count = sorted({mistake.where for mistake in self.mistakes}), len(self.mistakes)
        total = [f"{count} mistakes in {', '.join(places)}"] if count > 1 else []
        super().__init__("\n".join([*map(str, self.mistakes), *total]), hint=hint)


class WrongUse(LaunchError):
    """The command asks for what does not exist, or leaves out what it needs."""

    exit_code = 2


class RunNotFound(LaunchError):
    """No run of that name under the root."""

    exit_code = 4


class Unreachable(LaunchError):
    """The scheduler, a node or the supervisor did not answer."""

    exit_code = 5


def of_the_system(error: OSError, what: str = "", where: str = "") -> LaunchError:
    """What the operating system refused, as what could not be done, where, and what to do about it."""
    reason = (error.strerror or str(error)).lower()
    place = where or (str(error.filename) if error.filename else "")
    return LaunchError(f"{what}: {reason}" if what else reason, place, _CURES.get(error.errno or 0, ""))
