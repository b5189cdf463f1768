"""Showing a run while it changes: the live screen, and plain lines again and again."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from launcher.paths import RunPaths
from launcher.run import RunState
from launcher.view.keys import keys
from launcher.view.plain import plain
from launcher.view.screens import SMALLEST, leaving, screen
from launcher.view.snapshot import snapshot
from launcher.view.waiting import pause_after

REFRESH_S = 1.0
LEAVE = b"q"


def show_once(paths: RunPaths, console: Console) -> None:
    """One picture of the run: the screen on a terminal, plain lines elsewhere."""
    console.print(_picture(snapshot(paths), console), soft_wrap=not console.is_terminal)


def show_live(paths: RunPaths, console: Console) -> None:
    """The screen, redrawn every second until the run has ended or q is pressed; its last state stays there."""
    snap = snapshot(paths)
    live = Live(live_picture(snap, console), console=console, auto_refresh=False, screen=True)
    with keys() as key:
        try:  # not with: left by Ctrl-C while it starts, it would not give the terminal back
            live.start(refresh=True)
            snap = _shown_until_left(paths, live, snap, key)
        finally:
            live.stop()
    console.print(_picture(snap, console))


def _shown_until_left(
    paths: RunPaths, live: Live, snap: dict[str, Any], key: Callable[[float], bytes]
) -> dict[str, Any]:
    """The last snapshot that was shown."""
    reading_s = 0.0
    while not RunState(snap["state"]).is_terminal:
        if key(pause_after(reading_s, REFRESH_S)) == LEAVE:
            break
        begun = time.process_time()  # without the wait for a scheduler that does not answer
        snap = snapshot(paths)
        reading_s = time.process_time() - begun
        live.update(live_picture(snap, live.console), refresh=True)
    return snap


def show_changes(paths: RunPaths, every_s: float, *, as_json: bool) -> None:
    """Lines fit for a log: only those that changed, or one JSON object each time, until the run has ended."""
    follow(lambda: snapshot(paths), plain, lambda snap: RunState(snap["state"]).is_terminal, every_s, as_json=as_json)


def follow(
    look: Callable[[], dict[str, Any]],
    lines_of: Callable[[dict[str, Any]], list[str]],
    is_over: Callable[[dict[str, Any]], bool],
    every_s: float,
    *,
    as_json: bool,
) -> None:
    """Look every so often until it is over, and print the lines that changed, or one JSON object each time."""
    before: list[str] = []
    while True:
        snap = look()
        if as_json:
            print(json.dumps(snap), flush=True)
        else:
            lines = lines_of(snap)
            for line in (line for line in lines if line not in before):
                print(line, flush=True)
            before = lines
        if is_over(snap):
            return
        time.sleep(every_s)


def _picture(snap: dict[str, Any], console: Console) -> RenderableType:
    width, height = console.size
    if not console.is_terminal or width < SMALLEST[0] or height < SMALLEST[1]:
        return Text("\n".join(plain(snap)))
    return screen(snap, width, height - 1)


def live_picture(snap: dict[str, Any], console: Console) -> RenderableType:
    """The picture with the way out as its last line, also where the picture itself is cut off."""
    picture, room = _picture(snap, console), console.height - 1
    if isinstance(picture, Text):
        picture = Text("\n").join(picture.wrap(console, console.width)[:room])
    return Group(picture, Text(leaving(snap), style="dim", no_wrap=True, overflow="ellipsis"))


def stderr() -> Console:
    """A console on standard error, for commands whose output is read by scripts."""
    return Console(stderr=True, highlight=False)


def stdout() -> Console:
    """A console on standard output; rich itself obeys NO_COLOR, FORCE_COLOR and TERM."""
    return Console(file=sys.stdout, highlight=False)
