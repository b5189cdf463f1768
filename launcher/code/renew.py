"""A run that is resumed is given other code than it had: only because somebody says so, and the former is kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from launcher.code.plan import IN_PLACE, Plan, plan
from launcher.code.record import Code, read_code
from launcher.code.take import take
from launcher.errors import LaunchError, WrongUse, of_the_system
from launcher.events import Json
from launcher.paths import RunPaths
from launcher.sections import RunSpec


@dataclass(frozen=True)
class Renewed:
    """Code that was taken anew; `change`: what the journal is told."""

    code: Code
    change: Mapping[str, Json]


def renew(paths: RunPaths, former_spec: RunSpec, spec: RunSpec, *, asked_for: bool) -> Renewed | None:
    """Take the code anew if it was asked for, or if it is to be used in another way; None if neither.

    It is taken from the folder that the run was submitted from. Raises LaunchError.
    """
    former = read_code(paths)
    if not asked_for and spec.launch.code == former_spec.launch.code:
        _check_that_it_is_there(paths, former)
        return None
    folder = Path(former.folder) if former else Path.cwd()
    where = f"resume {paths.name}"
    if not folder.is_dir():
        raise LaunchError(f"{folder} is gone, where the code was taken from", where, "submit the run anew")
    planned = plan(spec, folder, paths.root.parent)
    if asked_for and planned.mode != "snapshot":
        raise WrongUse(f"nothing can be copied anew: {_why(planned)}", where, "leave out --new-code")
    try:
        code = take(paths, planned, former)
    except OSError as error:
        raise of_the_system(error, "the code cannot be copied for the run", where) from error
    return Renewed(code, {"code": [former.label if former else None, code.label]})


def _why(planned: Plan) -> str:
    if planned.mode == "installed":
        return "it is our own trainer that runs"
    return f"the code is used as it is in {planned.folder} ({planned.why})"


def _check_that_it_is_there(paths: RunPaths, code: Code | None) -> None:
    """Raises LaunchError where ranks would find nothing to run."""
    if code is not None and code.mode != "installed" and not (folder := code.working_folder(paths)).is_dir():
        hint = "--new-code takes it anew" if code.mode == "snapshot" else f"it was {IN_PLACE}: put it back"
        raise LaunchError(f"the code is gone: {folder}", f"resume {paths.name}", hint)
