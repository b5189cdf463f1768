"""Runs under a root: which there are, and which one a person means."""

from __future__ import annotations

import os
from pathlib import Path

from launcher.errors import LaunchError, RunNotFound
from launcher.paths import RunPaths, owner_of
from launcher.sweep.record import find_record, runs_of

NEWEST = "-"


def list_runs(root: Path) -> list[RunPaths]:
    """All runs under `root` that we may see, the newest last. Raises LaunchError if the folder may not be read."""
    try:
        folders = [entry for entry in root.iterdir() if _is_run(entry)]
    except PermissionError as error:
        hint = "--root or OPT_LAUNCH_ROOT name the folder of the runs"
        raise LaunchError("the folder of the runs may not be read", str(root.absolute()), hint) from error
    except OSError:
        return []
    return [RunPaths(folder) for folder in sorted(folders, key=lambda folder: (_born(folder), folder.name))]


def _is_run(folder: Path) -> bool:
    try:
        return (folder / "journal").is_dir()
    except OSError:  # closed to us
        return False


def _born(folder: Path) -> float:
    """When the run was submitted: its first journal file is written once and never again."""
    try:
        return min(file.stat().st_mtime for file in (folder / "journal").glob("*.jsonl"))
    except (OSError, ValueError):
        return 0.0


def find_run(root: Path, name: str) -> RunPaths:
    """The run of this name, or with this unique prefix; "-" is the newest.

    Raises RunNotFound, also for a sweep of several runs, or LaunchError where it is closed to us.
    """
    if name.strip(".") and Path(name).name == name and _is_closed(root / name):
        owner = owner_of(root / name)
        hint = f"ask {owner} for access.group in RUN.yaml: one of your groups"
        raise LaunchError(f"run {name} belongs to {owner}, and is closed to you", str(root.absolute() / name), hint)
    runs = list_runs(root)
    where = f"looking in {root.absolute()}"
    if not runs:
        raise RunNotFound("there is no run here", where, "--root or OPT_LAUNCH_ROOT name the folder of the runs")
    if name == NEWEST:
        return runs[-1]
    exact = [run for run in runs if run.name == name]
    near = exact or [run for run in runs if name and run.name.startswith(name)]
    if len(near) == 1:
        return near[0]
    if record := find_record(root, name):
        of_sweep = ", ".join(one.name for one in runs_of(root, record))
        raise RunNotFound(f"{name} is a sweep: take one of its runs", where, f"one of: {of_sweep}" if of_sweep else "")
    if near:
        names = ", ".join(run.name for run in near[-8:])
        raise RunNotFound(f"'{name}' is the beginning of {len(near)} runs: {names}", where, "write more of the name")
    newest = ", ".join(run.name for run in runs[:-9:-1])
    raise RunNotFound(f"there is no run '{name}'", where, f"one of: {newest}")


def _is_closed(folder: Path) -> bool:
    try:
        return folder.is_dir() and not os.access(folder, os.R_OK | os.X_OK)
    except OSError:
        return False
