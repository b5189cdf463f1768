"""A run begins: its folder is made whole or not at all, and the backend is asked for an allocation."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import tempfile
import time
from pathlib import Path

from launcher.advance import fold
from launcher.backends import own
from launcher.backends.choice import backend_of, is_alive
from launcher.errors import LaunchError
from launcher.events import EpochStarted, RunResumed, RunSubmitted
from launcher.journal import make_ballast, read_journal, write_first_epoch
from launcher.paths import RunPaths, write_atomically
from launcher.sections import RunSpec
from launcher.spec import ResolvedSpec, dump_resolved, read_resolved
from policies.load import dump_policy

ENDING_S, DYING_S = 10.0, 3.0  # what has just ended, or was killed, may take a moment to be gone
_PAUSE_S = 0.5


def submit(resolved: ResolvedSpec, root: Path) -> RunPaths:
    """Make the run folder and start the run; nothing is left behind if that fails. Raises LaunchError."""
    paths = make(resolved, root)
    try:
        backend_of(resolved.spec).submit(paths, resolved.spec)
    except OSError as error:  # a TimeoutError too
        shutil.rmtree(paths.root, ignore_errors=True)
        raise LaunchError(f"no allocation could be started: {error}", where=str(paths.root)) from error
    except LaunchError:
        shutil.rmtree(paths.root, ignore_errors=True)
        raise
    return paths


def make(resolved: ResolvedSpec, root: Path) -> RunPaths:
    """The run folder, whole or not at all. Raises LaunchError."""
    spec = resolved.spec
    paths = RunPaths(root.absolute() / spec.name)
    if paths.root.exists():
        raise _config(f"a run named '{spec.name}' exists", paths.root, "choose another with --name, or resume it")
    try:
        root.mkdir(parents=True, exist_ok=True)
        building = RunPaths(Path(tempfile.mkdtemp(prefix=f".{spec.name}.", dir=root)))
    except OSError as error:
        raise _config(f"cannot make the run folder: {error.strerror}", root, "check --root") from error
    try:
        _fill(building, resolved)
        building.root.rename(paths.root)
    except OSError as error:
        shutil.rmtree(building.root, ignore_errors=True)
        raise _config(f"cannot make the run folder: {error.strerror or error}", paths.root, "check --root") from error
    return paths


def _config(message: str, where: Path, hint: str) -> LaunchError:
    error = LaunchError(message, where=str(where), hint=hint)
    error.exit_code = 3
    return error


def _fill(paths: RunPaths, resolved: ResolvedSpec) -> None:
    spec = resolved.spec
    paths.make_folders()
    write_atomically(paths.spec, dump_resolved(resolved))
    write_atomically(paths.policy, dump_policy(resolved.policy))
    write_atomically(paths.secret, secrets.token_hex(32), mode=0o600)
    if spec.trainer is not None:
        write_atomically(paths.trainer, json.dumps(spec.trainer.model_dump(exclude_none=True)))
    make_ballast(paths)
    write_first_epoch(paths, [_epoch(), _submitted(spec)])


def _epoch() -> EpochStarted:
    return EpochStarted(at=time.time(), host=os.uname().nodename, pid=os.getpid(), node="", job_id="")


def _submitted(spec: RunSpec) -> RunSubmitted:
    trainer = spec.trainer
    return RunSubmitted(
        at=time.time(),
        run=spec.name,
        nodes=spec.cluster.nodes,
        ranks_per_node=spec.cluster.ranks_per_node,
        spares=spec.cluster.spares,
        target_step=trainer.steps if trainer else spec.abilities.done_step,
        probation=trainer.checkpoint.probation if trainer else 20,
        save_every=trainer.checkpoint.every if trainer else None,
    )


def resume(paths: RunPaths, author: str) -> None:
    """Start a new allocation for a run whose processes are gone. Raises LaunchError if it is alive or has succeeded."""
    spec = read_resolved(paths.spec)
    if spec.cluster.backend == "own":
        raise own.cannot_start(paths)
    has_ended = fold(read_journal(paths).events).state.is_terminal
    deadline = time.monotonic() + (ENDING_S if has_ended else DYING_S)
    while (alive := is_alive(paths, at_once=True)) and time.monotonic() < deadline:
        time.sleep(_PAUSE_S)
    if alive:
        raise LaunchError(f"run '{paths.name}' is alive", where=str(paths.root), hint=f"opt-launch status {paths.name}")
    if fold(read_journal(paths).events).state == "SUCCEEDED":
        raise LaunchError(f"run '{paths.name}' has succeeded", where=str(paths.root), hint="nothing is left to do")
    begin_again(paths, author)
    try:
        backend_of(spec).submit(paths, spec)
    except OSError as error:
        raise LaunchError(f"no allocation could be started: {error}", where=str(paths.root)) from error


def begin_again(paths: RunPaths, author: str) -> None:
    """What has ended, or died, goes on in a new allocation. Raises OSError."""
    write_first_epoch(paths, [_epoch(), RunResumed(at=time.time(), author=author)])
    for stale in paths.agents.glob("*.json"):
        stale.unlink(missing_ok=True)
