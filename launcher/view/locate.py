"""Runs under a root: which there are, and which one a person means."""

from __future__ import annotations

from pathlib import Path

from launcher.errors import RunNotFound
from launcher.paths import RunPaths

NEWEST = "-"


def list_runs(root: Path) -> list[RunPaths]:
    """All runs under `root`, the newest last."""
    try:
        folders = [entry for entry in root.iterdir() if (entry / "journal").is_dir()]
    except OSError:
        return []
    return [RunPaths(folder) for folder in sorted(folders, key=lambda folder: (_born(folder), folder.name))]


def _born(folder: Path) -> float:
    """When the run was submitted: its first journal file is written once and never again."""
    try:
        return min(file.stat().st_mtime for file in (folder / "journal").glob("*.jsonl"))
    except (OSError, ValueError):
        return 0.0


def find_run(root: Path, name: str) -> RunPaths:
    """The run of this name, or with this unique prefix; "-" is the newest. Raises RunNotFound."""
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
    if near:
        names = ", ".join(run.name for run in near[-8:])
        raise RunNotFound(f"'{name}' is the beginning of {len(near)} runs: {names}", where, "write more of the name")
    newest = ", ".join(run.name for run in runs[:-9:-1])
    raise RunNotFound(f"there is no run '{name}'", where, f"one of: {newest}")
