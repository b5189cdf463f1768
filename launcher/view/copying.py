"""How far a checkpoint has been copied, on a terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from launcher.branch import Source


@contextmanager
def copying(source: Source | None) -> Iterator[Callable[[int], None]]:
    """A function to tell the bytes to that have been copied; a bar on stderr where that is a terminal."""
    if source is None or not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(f"step {source.branch.step} of {source.branch.run}", total=source.checkpoint.bytes)
        yield lambda count: progress.advance(task, count)
