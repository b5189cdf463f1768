"""A run begins: its folder is made whole or not at all, and the backend is asked for an allocation."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

from launcher import access
from launcher.backends.choice import backend_of
from launcher.branch import Progress, Source, adopt
from launcher.code.plan import plan
from launcher.code.take import share, take
from launcher.errors import LaunchError, of_the_system
from launcher.events import EpochStarted, Event, RunSubmitted
from launcher.journal import make_ballast, write_first_epoch
from launcher.paths import RunPaths, write_atomically
from launcher.sections import RunSpec
from launcher.spec import ResolvedSpec, dump_resolved
from launcher.variables import keep_variables
from policies.load import dump_policy


def submit(
    resolved: ResolvedSpec, root: Path, source: Source | None = None, progress: Progress = lambda _: None
) -> RunPaths:
    """Make the run folder and start the run, from the checkpoint of another one if there is a `source`.

    Nothing is left behind if that fails. Raises LaunchError.
    """
    paths = make(resolved, root, source, progress)
    try:
        with access.sharing(resolved.spec.access):
            allocate(paths, resolved.spec)
    except LaunchError:
        shutil.rmtree(paths.root, ignore_errors=True)
        raise
    return paths


def make(
    resolved: ResolvedSpec,
    root: Path,
    source: Source | None = None,
    progress: Progress = lambda _: None,
    sibling: RunPaths | None = None,
) -> RunPaths:
    """The run folder, whole or not at all; with the code of a `sibling` that was just made. Raises LaunchError."""
    spec = resolved.spec
    paths = RunPaths(root.absolute() / spec.name)
    refuse_existing(paths.root, f"a run named '{spec.name}'", "choose another with --name, or resume it")
    try:
        root.mkdir(parents=True, exist_ok=True)
        building = RunPaths(Path(tempfile.mkdtemp(prefix=f".{spec.name}.", dir=root)))
    except OSError as error:
        raise _config(f"cannot make the run folder: {error.strerror}", root, "check --root") from error
    try:
        with access.sharing(spec.access):
            access.open_folder(building.root, spec.access)
            _fill(building, resolved, source, progress)
            _take_code(building, spec, root, sibling)
        building.root.rename(paths.root)
    except OSError as error:
        raise _config(f"cannot make the run folder: {error.strerror or error}", paths.root, "check --root") from error
    finally:
        shutil.rmtree(building.root, ignore_errors=True)  # nothing, once it has its name
    return paths


def refuse_existing(folder: Path, what: str, hint: str) -> None:
    """Raises LaunchError if the folder is there."""
    if folder.exists():
        raise _config(f"{what} exists", folder, hint)


def allocate(paths: RunPaths, spec: RunSpec) -> None:
    """Ask the backend for an allocation. Raises LaunchError."""
    try:
        backend_of(spec).submit(paths, spec)
    except OSError as error:  # a TimeoutError too
        raise LaunchError(f"no allocation could be started: {error}", where=str(paths.root)) from error


def _config(message: str, where: Path, hint: str) -> LaunchError:
    error = LaunchError(message, where=str(where), hint=hint)
    error.exit_code = 3
    return error


def _fill(paths: RunPaths, resolved: ResolvedSpec, source: Source | None, progress: Progress) -> None:
    paths.make_folders()
    access.open_control(paths, resolved.spec.access)
    write_spec(paths, resolved)
    write_atomically(paths.secret, secrets.token_hex(32), mode=0o600)
    keep_variables(paths, resolved.spec, os.environ)
    make_ballast(paths)
    now = time.time()
    begun: list[Event] = [_submitted(resolved.spec, source, now)]
    if source is not None:
        adopt(source, paths, progress)
        begun.append(source.committed(now))
    write_first_epoch(paths, [login_epoch(), *begun])


def _take_code(paths: RunPaths, spec: RunSpec, root: Path, sibling: RunPaths | None) -> None:
    try:
        if sibling is None:
            take(paths, plan(spec, Path.cwd(), root))
        else:
            share(paths, sibling)
    except OSError as error:
        raise of_the_system(error, "the code cannot be copied for the run") from error


def write_spec(paths: RunPaths, resolved: ResolvedSpec) -> None:
    """What agents, supervisors and ranks go by."""
    write_atomically(paths.policy, dump_policy(resolved.policy))
    trainer = resolved.spec.trainer
    if trainer is not None:
        write_atomically(paths.trainer, json.dumps(trainer.model_dump(exclude_none=True)))
    write_atomically(paths.spec, dump_resolved(resolved))


def login_epoch() -> EpochStarted:
    """The beginning of an epoch that is written by a command, and has no supervisor."""
    return EpochStarted(at=time.time(), host=os.uname().nodename, pid=os.getpid(), node="", job_id="")


def asked(spec: RunSpec) -> dict[str, Any]:
    """The fields of `events.Asked`."""
    trainer = spec.trainer
    return {
        "nodes": spec.cluster.nodes,
        "ranks_per_node": spec.starts_per_node,
        "slots_per_node": spec.cluster.ranks_per_node,
        "spares": spec.cluster.spares,
        "target_step": trainer.steps if trainer else spec.abilities.done_step,
        "probation": trainer.checkpoint.probation if trainer else 20,
        "save_every": trainer.checkpoint.every if trainer else None,
        "settings": {"lr": trainer.lr, "clip": trainer.clip} if trainer else {},
    }


def _submitted(spec: RunSpec, source: Source | None, at: float) -> RunSubmitted:
    branched = {"first_sample": source.first_sample, "branched_from": source.branch} if source else {}
    return RunSubmitted(at=at, run=spec.name, **asked(spec), **branched)
