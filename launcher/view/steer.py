"""Having a person's wish carried out by the run's supervisor."""

from __future__ import annotations

from typing import Any

from launcher import control
from launcher.advance import fold
from launcher.errors import LaunchError
from launcher.journal import read_journal
from launcher.paths import RunPaths


def steer(paths: RunPaths, verb: str, args: dict[str, Any]) -> str:
    """What the supervisor answered. Raises LaunchError if it would not, Unreachable if there is none."""
    run = fold(read_journal(paths).events)
    if run.state.is_terminal:  # nobody is there to answer: say so at once
        hint = "" if run.state == "SUCCEEDED" else f"opt-launch resume {paths.name}"
        raise LaunchError(f"run {paths.name} has ended: {run.state.value}", f"{verb} {paths.name}", hint)
    ok, message = control.command(paths, verb, args)
    if not ok:
        raise LaunchError(message or f"the run did not take '{verb}'", f"{verb} {paths.name}")
    return message or f"{paths.name}: {verb} is under way"
