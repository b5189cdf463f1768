"""Runs that wait for their turn on this machine: at most so many of a sweep at once.

A process of its own, which stands for the scheduler: a run whose allocation it is waits, and is alive as long as it
is. It ends when the last run has been started. If it is killed, the runs that wait have no living process, and can be
resumed like any others.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import psutil

from launcher.backends import local
from launcher.errors import LaunchError
from launcher.paths import RunPaths, write_atomically
from launcher.spec import read_resolved

_POLL_S = 0.5
_READY, _STARTING = "ready\n", "starting"
_OWNER = "owner.json"


def start(folder: Path, waiting: Sequence[RunPaths], others: Sequence[RunPaths], at_once: int) -> None:
    """Start the queue. It keeps its log in `folder`, and counts the others of the sweep that live. Raises OSError."""
    command = [sys.executable, "-P", "-m", "launcher.backends.queue", str(folder)]
    asked = {"waiting": [str(one.root) for one in waiting], "others": [str(one.root) for one in others]}
    with (folder / "queue.log").open("ab") as log:
        queue = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, start_new_session=True
        )
    assert queue.stdin is not None
    assert queue.stdout is not None
    with queue.stdin, queue.stdout, contextlib.suppress(BrokenPipeError):
        queue.stdin.write(json.dumps(asked | {"at_once": at_once}))
        queue.stdin.close()
        if queue.stdout.readline() == _READY:
            return
    raise OSError(f"the queue ended at once: see {folder / 'queue.log'}")


def _say(paths: RunPaths, token: str) -> None:
    """The run's allocation is this process: it waits, or is about to be started."""
    me = psutil.Process()
    about = {"backend": "local", "token": token, "job_id": "", "pid": me.pid, "started": me.create_time(), "nodes": {}}
    write_atomically(paths.allocation, json.dumps({**about, "host": socket.gethostname()}))


def _start_all(waiting: Sequence[RunPaths], others: Sequence[RunPaths], at_once: int) -> None:
    begun = [*others]
    for paths in waiting:
        while sum(local.is_alive(one) and not local.is_waiting(one) for one in begun) >= at_once:
            time.sleep(_POLL_S)
        if not local.is_waiting(paths):
            continue  # it was stopped
        try:
            _say(paths, _STARTING)
            local.submit(paths, read_resolved(paths.spec))
            begun.append(paths)
        except (OSError, LaunchError) as error:
            print(f"{paths.name}: no allocation could be started: {error}", file=sys.stderr, flush=True)
            paths.allocation.unlink(missing_ok=True)


def take_place(folder: Path) -> list[Path]:
    """Stand in line behind the queues of the sweep that were started before: these.

    A place is a folder that says whose it is, and appears with its name: no two get the same. It stays.
    """
    me = psutil.Process()
    draft = Path(tempfile.mkdtemp(prefix=".place.", dir=folder))
    about = {"host": socket.gethostname(), "pid": me.pid, "started": me.create_time()}
    write_atomically(draft / _OWNER, json.dumps(about))
    for number in itertools.count():
        try:
            draft.rename(_place(folder, number))
            return [_place(folder, earlier) for earlier in range(number)]
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                raise
    raise AssertionError("numbers do not end")


def is_in_line(place: Path) -> bool:
    """Whether the queue of this place lives. One of another machine is not waited for: nobody here can know."""
    about = json.loads((place / _OWNER).read_text())
    return about["host"] == socket.gethostname() and local.living(about["pid"], about["started"]) is not None


def _place(folder: Path, number: int) -> Path:
    return folder / f"queue.{number}"


def main() -> None:
    """What `start` starts."""
    asked = json.load(sys.stdin)
    waiting, others = ([RunPaths(Path(root)) for root in asked[key]] for key in ("waiting", "others"))
    for paths in waiting:
        _say(paths, local.WAITING)
    print(_READY, end="", flush=True)
    os.dup2(2, 1)  # whoever reads our output waits for its end
    before = take_place(Path(sys.argv[1]))
    while any(map(is_in_line, before)):
        time.sleep(_POLL_S)
    _start_all(waiting, others, asked["at_once"])


if __name__ == "__main__":
    main()
