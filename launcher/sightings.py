"""Whether a supervisor that cannot be reached is alive, by what it writes in the run folder."""

from __future__ import annotations

import os
from pathlib import Path


class Sightings:
    """`live.json` is written once a second. What counts is that it changes while we look: clocks may differ.

    A network file system may show what is a minute old. Times are monotonic seconds.
    """

    def __init__(self, file: Path) -> None:
        self._file = str(file)
        self._since = -1.0
        self._began_at = self._changed_at = -1e9
        self._seen: tuple[int, int] | None = None

    def look(self, now: float, since: float) -> None:
        """Look again; `since` is the last word of a supervisor, and with each such word looking begins anew."""
        try:
            about = os.stat(self._file)
            seen = about.st_ino, about.st_mtime_ns
        except OSError:
            seen = None
        if since != self._since:
            self._since, self._began_at, self._changed_at = since, now, -1e9
        elif seen is not None and seen != self._seen:
            self._changed_at = now
        self._seen = seen

    def is_there(self, now: float, within_s: float) -> bool:
        """Whether one has written something within so many seconds."""
        return now - self._changed_at < within_s

    def is_nobody(self, now: float, for_s: float) -> bool:
        """Whether we have looked for so many seconds, and nobody has written anything."""
        return now - self._began_at >= for_s and not self.is_there(now, for_s)
