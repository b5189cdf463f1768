"""Showing a run while it changes: the live screen, and plain lines again and again."""

from __future__ import annotations

import json
import sys
import time

from rich.console import Console, RenderableType
from rich.live import Live
from rich.text import Text

from launcher.paths import RunPaths
from launcher.run import RunState
from launcher.view.plain import plain
from launcher.view.screens import SMALLEST, screen
from launcher.view.snapshot import snapshot
from launcher.view.waiting import pause_after

REFRESH_S = 1.0


def show_once(paths: RunPaths, console: Console) -> None:
    """One picture of the run: the screen on a terminal, plain lines elsewhere."""
    console.print(_picture(paths, console)[0], soft_wrap=not console.is_terminal)


def show_live(paths: RunPaths, console: Console) -> None:
    """The screen, redrawn every second until the run has ended; its last state stays on the terminal."""
    picture, ended = _picture(paths, console)
    with Live(picture, console=console, auto_refresh=False, screen=True) as live:
        reading_s = 0.0
        while not ended:
            time.sleep(pause_after(reading_s, REFRESH_S))
            begun = time.monotonic()
            picture, ended = _picture(paths, console)
            reading_s = time.monotonic() - begun
            live.update(picture, refresh=True)
    console.print(picture)


def show_changes(paths: RunPaths, every_s: float, *, as_json: bool) -> None:
    """Lines fit for a log: only those that changed, or one JSON object each time, until the run has ended."""
    before: list[str] = []
    while True:
        snap = snapshot(paths)
        if as_json:
            print(json.dumps(snap), flush=True)
        else:
            lines = plain(snap)
            for line in (line for line in lines if line not in before):
                print(line, flush=True)
            before = lines
        if RunState(snap["state"]).is_terminal:
            return
        time.sleep(every_s)


def _picture(paths: RunPaths, console: Console) -> tuple[RenderableType, bool]:
    snap = snapshot(paths)
    ended = RunState(snap["state"]).is_terminal
    width, height = console.size
    if not console.is_terminal or width < SMALLEST[0] or height < SMALLEST[1]:
        return Text("\n".join(plain(snap))), ended
    return screen(snap, width, height - 1), ended


def stderr() -> Console:
    """A console on standard error, for commands whose output is read by scripts."""
    return Console(stderr=True, highlight=False)


def stdout() -> Console:
    """A console on standard output; rich itself obeys NO_COLOR, FORCE_COLOR and TERM."""
    return Console(file=sys.stdout, highlight=False)
