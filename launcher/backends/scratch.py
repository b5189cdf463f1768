"""Node-local folders: made for one process, and swept away by the next one when that process was killed."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import psutil

_PREFIX = "opt-launch-"


def make_scratch() -> Path:
    """A new folder that belongs to this process. Its path is short: sockets in it have a limit of 108 bytes."""
    return Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-"))


def sweep_scratch() -> None:
    """Delete the folders of processes that are no more, as far as they are ours to delete."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        pid = folder.name.removeprefix(_PREFIX).split("-")[0]
        if pid.isdigit() and not psutil.pid_exists(int(pid)):
            shutil.rmtree(folder, ignore_errors=True)
