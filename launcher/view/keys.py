"""Keys that a person presses while a screen is shown."""

from __future__ import annotations

import contextlib
import os
import select
import sys
import termios
import time
import tty
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def keys() -> Iterator[Callable[[float], bytes]]:
    """A function that waits so many seconds for a key and tells it, b"" for none. Ctrl-C stays what it is.

    Without a terminal to read from, or in the background, where the shell has it, there are no keys.
    """
    if not _is_ours():
        yield _no_key
        return
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    tty.setcbreak(descriptor)
    try:
        yield lambda seconds: _key(descriptor, seconds)
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


def _is_ours() -> bool:
    if not sys.stdin or not sys.stdin.isatty():
        return False
    try:
        return os.tcgetpgrp(sys.stdin.fileno()) == os.getpgrp()
    except OSError:  # a terminal, and not the one that controls us: nobody else reads from it
        return True


def _no_key(seconds: float) -> bytes:
    time.sleep(seconds)
    return b""


def _key(descriptor: int, seconds: float) -> bytes:
    ready, _, _ = select.select([descriptor], [], [], seconds)
    return os.read(descriptor, 1) if ready else b""
