"""A sweep begins: all of its runs, or none. What failed of it begins again."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from launcher import access
from launcher.backends import queue, slurm_array
from launcher.backends.choice import living
from launcher.backends.slurm_array import Run
from launcher.errors import LaunchError, WrongUse, of_the_system
from launcher.paths import RunPaths
from launcher.resume import check_that_it_is_ours, check_that_nothing_lives, reopen
from launcher.run import RunState
from launcher.sections import Access
from launcher.snapshots import read_run
from launcher.spec import read_resolved
from launcher.submit import make, refuse_existing
from launcher.sweep.plan import shares
from launcher.sweep.read import Sweep
from launcher.sweep.record import Record, folder_of, runs_of, write_record


@dataclass(frozen=True)
class Array:
    """Runs of one shape, at most `at_once` of them at once."""

    runs: Sequence[Run]
    at_once: int


def start(sweep: Sweep, root: Path) -> list[RunPaths]:
    """Start all runs; nothing is left behind if one of them cannot be submitted. Raises LaunchError."""
    root, shared = root.absolute(), sweep.runs[0].spec.access
    _refuse_existing(sweep, root)
    with access.sharing(shared), contextlib.ExitStack() as undo:
        folder = _make_folder(sweep, root, shared)
        undo.callback(shutil.rmtree, folder, ignore_errors=True)
        runs: list[Run] = []
        takers: dict[object, RunPaths] = {}  # of runs that want the same of the code, the first one
        for one in sweep.runs:
            wanted = one.spec.command, one.spec.checkpoints, one.spec.launch.code
            paths = make(one.resolved, root, sibling=takers.get(wanted))
            takers.setdefault(wanted, paths)
            undo.callback(shutil.rmtree, paths.root, ignore_errors=True)
            runs.append((paths, one.spec))
        _allocate(folder, sweep.name, runs, (), sweep.max_parallel, 0, undo)
        undo.pop_all()
    return [paths for paths, _ in runs]


def resume_failed(record: Record, root: Path, author: str, max_parallel: int | None = None) -> list[RunPaths]:
    """Start what FAILED, was STOPPED or has no living process; what lives or has SUCCEEDED is left alone.

    All of it, or nothing if an array is refused. Raises LaunchError.
    """
    runs = runs_of(root, record)
    states = {paths: read_run(paths).state for paths in runs}
    alive = living([paths for paths, state in states.items() if not state.is_terminal])
    failed = [paths for paths in runs if paths not in alive and states[paths] is not RunState.SUCCEEDED]
    if not failed:
        return []
    for paths in failed:
        check_that_it_is_ours(paths)
    check_that_nothing_lives(failed)
    again = [(paths, read_resolved(paths.spec)) for paths in failed]
    limit = max_parallel or record.max_parallel
    arrays_of(again, limit)  # whether there are enough places is known before anything is touched
    others = [paths for paths in runs if paths not in failed]
    with access.sharing(again[0][1].access), contextlib.ExitStack() as undo:
        for paths in failed:
            undo.callback(reopen(paths, author).take_back, "not all of the sweep was accepted")
        _allocate(folder_of(root, record.name), record.name, again, others, limit, len(alive), undo)
        undo.pop_all()
    return failed


def arrays_of(runs: Sequence[Run], limit: int | None, busy: int = 0) -> list[Array]:
    """One array for each distinct shape; one in all on a backend that has none. Of the limit `busy` are taken.

    Raises WrongUse when there are fewer places than shapes.
    """
    if runs[0][1].cluster.backend != "slurm":
        return [Array(runs, limit or len(runs))]
    groups = [[runs[position] for position in group] for group in slurm_array.by_shape([spec for _, spec in runs])]
    free = limit if limit is None or limit < len(groups) else max(len(groups), limit - busy)
    try:
        places = shares([len(group) for group in groups], free)
    except ValueError as error:
        raise WrongUse(str(error), f"--max-parallel {limit}", f"--max-parallel {len(groups)} or more") from error
    return [Array(group, at_once) for group, at_once in zip(groups, places, strict=True)]


def _refuse_existing(sweep: Sweep, root: Path) -> None:
    hint = "choose another with --name, or go on with it: --resume-failed"
    refuse_existing(folder_of(root, sweep.name), f"a sweep named '{sweep.name}'", hint)
    for name in (sweep.name, *(run.spec.name for run in sweep.runs)):
        refuse_existing(root / name, f"a run named '{name}'", "choose another name for the sweep with --name")


def _make_folder(sweep: Sweep, root: Path, shared: Access) -> Path:
    """The folder of the sweep, with the record of its runs in it from the first moment. Raises LaunchError."""
    record = Record(sweep.name, sweep.labels, {run.spec.name: run.swept for run in sweep.runs}, sweep.max_parallel)
    folder = folder_of(root, sweep.name)
    try:
        root.mkdir(parents=True, exist_ok=True)
        building = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=root))
        access.open_folder(building, shared)
        write_record(building, record)
        return building.rename(folder)
    except OSError as error:
        refused = of_the_system(error, "cannot make the folder of the sweep", str(folder))
        refused.exit_code = 3
        raise refused from error


def _allocate(
    folder: Path,
    name: str,
    runs: Sequence[Run],
    others: Sequence[RunPaths],
    limit: int | None,
    busy: int,
    undo: contextlib.ExitStack,
) -> None:
    """Ask the backend for an allocation for each run. `busy` of the `others` of the sweep are alive."""
    if runs[0][1].cluster.backend != "slurm":
        try:
            queue.start(folder, [paths for paths, _ in runs], others, limit or len(runs) + len(others))
        except OSError as error:
            raise LaunchError(f"no run could be started: {error}", where=str(folder)) from error
        return
    for array in arrays_of(runs, limit, busy):
        jobs = slurm_array.submit(folder / "submitit", name, array.runs, array.at_once)
        undo.callback(slurm_array.take_back, jobs)
