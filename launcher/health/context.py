"""What checks look at: a tree of files as the kernel shows it, the folders of a run, what was found before."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from launcher.terms import Tier


@dataclass(frozen=True)
class SiteCheck:
    """A check of the site's own. `command` is started without a shell.

    With `nagios` its exit code says 0 ok, 1 warn, 2 fail, 3 unknown; without, 0 is ok and all else a fault.
    """

    name: str
    command: tuple[str, ...]
    nagios: bool = False
    tier: Tier = "standard"
    deadline_s: float = 10.0


@dataclass(frozen=True)
class Heard:
    """An XID that the driver itself has told of, `at` seconds since boot. `bus`: as the kernel's log names the GPU."""

    bus: str
    xid: int
    at: float


@dataclass(frozen=True)
class Context:
    """`root`: in place of / for /proc and /sys. `folders`: what must be there and have room for `bytes_needed`.

    `interface`: the one over which nodes talk; "" if none is named. `site`: checks of the site's own. `before`: what an
    earlier check of this boot has left, by names of its own; `after` is what this one leaves. `heard`: XIDs that the
    driver has told of since `heard_since` (seconds since boot); None: nobody has listened.
    """

    root: Path = Path("/")
    folders: tuple[str, ...] = ()
    bytes_needed: int = 0
    interface: str = ""
    site: tuple[SiteCheck, ...] = ()
    environment: Mapping[str, str] = field(default_factory=lambda: os.environ)
    before: Mapping[str, int | str] = field(default_factory=dict)
    after: dict[str, int | str] = field(default_factory=dict)
    heard: tuple[Heard, ...] = ()
    heard_since: float | None = None

    def text(self, path: str) -> str:
        """The content of a file under the root, without blanks around. Raises OSError."""
        return (self.root / path).read_text(errors="replace").strip()

    def number(self, path: str) -> int:
        """The number in a file. Raises OSError, ValueError."""
        return int(self.text(path).split()[0])

    def glob(self, pattern: str) -> Iterator[Path]:
        """Paths under the root, in order."""
        return iter(sorted(self.root.glob(pattern)))

    def grown(self, name: str, value: int) -> int:
        """By how much a counter has grown since the check before this one; one that fell was reset."""
        self.after[name] = value
        before = self.before.get(name, value)
        return value - before if isinstance(before, int) and value >= before else 0
