"""Having a person's wish carried out by the run's supervisor."""

from __future__ import annotations

import time
from typing import Any

from launcher import control
from launcher.backends.choice import is_alive
from launcher.errors import LaunchError
from launcher.paths import RunPaths
from launcher.snapshots import read_run
from launcher.view.waiting import GONE_S


def steer(paths: RunPaths, verb: str, args: dict[str, Any], timeout_s: float = control.ANSWER_S) -> str:
    """What the supervisor answered. Raises LaunchError if it would not, Unreachable if there is none."""
    check_that_it_goes_on(paths, verb)
    if is_deserted(paths):
        hint = f"opt-launch resume {paths.name}"
        raise LaunchError(f"run {paths.name}: none of its processes lives", f"{verb} {paths.name}", hint)
    ok, message = control.command(paths, verb, args, timeout_s)
    if not ok:
        raise LaunchError(message or f"the run did not take '{verb}'", f"{verb} {paths.name}")
    return message or f"{paths.name}: {verb} is under way"


def check_that_it_goes_on(paths: RunPaths, verb: str) -> None:
    """Raises LaunchError if the run has ended: nobody is there to answer."""
    run = read_run(paths)
    if run.state.is_terminal:
        hint = "" if run.state == "SUCCEEDED" else f"opt-launch resume {paths.name}"
        raise LaunchError(f"run {paths.name} has ended: {run.state.value}", f"{verb} {paths.name}", hint)


def is_deserted(paths: RunPaths) -> bool:
    """Whether nothing of the run lives; a new allocation is given the time to show up."""
    deadline = time.monotonic() + GONE_S
    while not (alive := is_alive(paths)) and time.monotonic() < deadline:
        time.sleep(0.2)
    return not alive
