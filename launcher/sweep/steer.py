"""All runs of a sweep are stopped, or asked for the same: each as it would be by itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from launcher.backends.choice import standings
from launcher.errors import LaunchError
from launcher.paths import RunPaths
from launcher.snapshots import read_run
from launcher.stop import stop
from launcher.sweep.record import Record, runs_of
from launcher.view.steer import steer

Tell = Callable[[str], None]


def unfinished(record: Record, root: Path) -> list[RunPaths]:
    """The runs of the sweep that have not ended: those that wait for their turn first, the last of them first.

    In this order none begins because one before it has ended.
    """
    runs = [paths for paths in runs_of(root, record) if not read_run(paths).state.is_terminal]
    waiting = _waiting([*reversed(runs)])
    return waiting + [paths for paths in runs if paths not in waiting]


def stop_all(runs: Sequence[RunPaths], author: str, *, now: bool, tell: Tell) -> None:
    """Stop these runs, those too that have not begun. Raises LaunchError for those that would not, after all others."""
    _each(runs, lambda paths: stop(paths, author, now=now, tell=tell), "stop", tell)


def steer_all(runs: Sequence[RunPaths], verb: str, args: dict[str, Any], tell: Tell) -> None:
    """Ask the same of all of these runs that have begun. Raises LaunchError for those that would not, after all."""
    waiting = _waiting(runs)
    _each([paths for paths in runs if paths not in waiting], lambda paths: steer(paths, verb, args), verb, tell)


def _waiting(runs: Sequence[RunPaths]) -> list[RunPaths]:
    return [paths for paths, standing in standings(runs, at_once=True).items() if standing.waiting]


def _each(runs: Sequence[RunPaths], deed: Callable[[RunPaths], str], verb: str, tell: Tell) -> None:
    refused: list[LaunchError] = []
    for paths in runs:
        try:
            tell(f"{paths.name}: {deed(paths)}")
        except LaunchError as error:
            tell(f"{paths.name}: {error.message.removeprefix(f'run {paths.name}').lstrip(': ')}")
            refused.append(error)
    if refused:
        message = f"'{verb}' came to nothing for {len(refused)} of {len(runs)} runs"
        summary = LaunchError(message, "the runs of a sweep", refused[0].hint)
        summary.exit_code = max(error.exit_code for error in refused)
        raise summary
