"""A run that has ended, or whose processes have died, goes on in a new allocation, perhaps asked for otherwise."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from launcher import access
from launcher.amend import Amended, amend
from launcher.backends import own
from launcher.backends.choice import living
from launcher.code.renew import renew
from launcher.code.take import forget
from launcher.errors import LaunchError
from launcher.events import Asked, Event, RunAmended, RunEnded, RunResumed
from launcher.evolve import evolve
from launcher.journal import read_journal, write_first_epoch
from launcher.paths import RunPaths, owner_of, write_atomically
from launcher.run import Run, RunState
from launcher.snapshots import read_run
from launcher.spec import RunSpec, read_resolved
from launcher.submit import allocate, asked, login_epoch, write_spec
from launcher.variables import keep_variables

ENDING_S, DYING_S = 10.0, 3.0  # what has just ended, or was killed, may take a moment to be gone
_PAUSE_S = 0.5


def resume(
    paths: RunPaths,
    author: str,
    overrides: Sequence[str] = (),
    flags: Mapping[str, Any] | None = None,
    *,
    new_code: bool = False,
) -> None:
    """Start a new allocation for a run of which nothing lives, with changes as `load_spec` takes them.

    `new_code`: copy the code anew.

    Raises LaunchError if the run is alive, belongs to somebody else, or has succeeded and nothing more is asked of it;
    ConfigError for changes that cannot be. What fails leaves the run as it was, and its end in the journal.
    """
    paths = RunPaths(paths.root.absolute())  # ranks may begin elsewhere than we
    check_that_it_is_ours(paths)
    spec = read_resolved(paths.spec)
    if spec.cluster.backend == "own":
        raise own.cannot_start(paths)
    check_that_nothing_lives([paths])
    with access.sharing(spec.access):
        reopened = reopen(paths, author, overrides, flags, new_code=new_code)
        try:
            allocate(paths, reopened.spec)
        except LaunchError as error:
            reopened.take_back(str(error))
            raise


@dataclass(frozen=True)
class Reopened:
    """A run that is ready for a new allocation; `take_back`, with the reason, where none can be had."""

    spec: RunSpec
    take_back: Callable[[str], None]


def reopen(
    paths: RunPaths,
    author: str,
    overrides: Sequence[str] = (),
    flags: Mapping[str, Any] | None = None,
    *,
    new_code: bool = False,
) -> Reopened:
    """Make a run of which nothing lives ready to go on, with changes. Raises as `resume` does."""
    former = read_resolved(paths.spec)
    events, run = read_journal(paths, steps=False).events, read_run(paths)
    flags = {name: value for name, value in (flags or {}).items() if value not in (None, [], ())}
    amended = amend(paths, run, overrides, flags, author) if overrides or flags else None
    spec = amended.resolved.spec if amended else former
    _check_that_something_is_left(paths, run, spec, amended)
    renewed = renew(paths, former, spec, asked_for=new_code)
    files = [(path, path.read_text()) for path in (paths.spec, paths.policy, paths.trainer) if path.exists()]
    if amended is not None:
        write_spec(paths, amended.resolved)
    keep_variables(paths, spec, os.environ)
    changed: list[Event] = []
    if amended is not None or renewed is not None or not _is_known(events, spec):
        changes = {**(amended.changes if amended else {}), **(renewed.change if renewed else {})}
        changed.append(RunAmended(at=time.time(), author=author, changes=changes, **asked(spec)))
    begin_again(paths, author, changed)

    def take_back(why: str) -> None:
        for path, text in files:
            write_atomically(path, text)
        if renewed is not None:
            forget(paths, renewed.code.number)
        back = RunAmended(at=time.time(), author=author, **asked(former))
        write_first_epoch(paths, [login_epoch(), back, _end(events, run, why)])

    return Reopened(spec, take_back)


def begin_again(paths: RunPaths, author: str, changed: Sequence[Event] = ()) -> None:
    """What has ended, or died, goes on in a new allocation. Raises OSError."""
    write_first_epoch(paths, [login_epoch(), RunResumed(at=time.time(), author=author), *changed])
    for stale in (*paths.agents.glob("*.json"), *paths.control.glob("*.json")):
        stale.unlink(missing_ok=True)  # addresses of the dead, and what was asked of them


def check_that_it_is_ours(paths: RunPaths) -> None:
    """Raises LaunchError for a run that we see only because its owner lets us."""
    if not os.access(paths.journal_folder, os.W_OK):
        owner = owner_of(paths.root)
        raise LaunchError(f"run '{paths.name}' belongs to {owner}", f"resume {paths.name}", f"ask {owner} to resume it")


def check_that_nothing_lives(runs: Sequence[RunPaths]) -> None:
    """Give what has ended, or was killed, the time to be gone.

    Raises LaunchError for a run that is alive, Unreachable where nobody can tell.
    """
    ended = any(read_run(paths).state.is_terminal for paths in runs)
    deadline = time.monotonic() + (ENDING_S if ended else DYING_S)
    while (alive := living(runs)) and time.monotonic() < deadline:
        time.sleep(_PAUSE_S)
    for paths, standing in alive.items():
        told = f": {standing.waiting}" if standing.waiting else ""
        hint = f"opt-launch status {paths.name}"
        raise LaunchError(f"run '{paths.name}' is alive{told}", where=str(paths.root), hint=hint)


def _check_that_something_is_left(paths: RunPaths, run: Run, spec: RunSpec, amended: Amended | None) -> None:
    if run.state is RunState.SUCCEEDED and not _has_more_to_do(run, spec, amended):
        more = f"opt-launch resume {paths.name} --set trainer.steps=N trains on"
        hint = more if spec.trainer else "nothing is left to do"
        raise LaunchError(f"run '{paths.name}' has succeeded", where=str(paths.root), hint=hint)


def _has_more_to_do(run: Run, spec: RunSpec, amended: Amended | None) -> bool:
    if spec.trainer is not None:
        return spec.trainer.steps > run.step
    return amended is not None and "command" in amended.changes


def _is_known(events: Sequence[Event], spec: RunSpec) -> bool:
    """Whether the journal speaks of the spec that is there: who changed it may have died in between."""
    told = next((event for event in reversed(events) if isinstance(event, Asked)), None)
    return all(getattr(told, name, None) == value for name, value in asked(spec).items())


def _end(events: Sequence[Event], run: Run, why: str) -> RunEnded:
    """What the run comes to when no allocation can be had: the end it had, or one now."""
    former = next((event for event in reversed(events) if isinstance(event, RunEnded)), None)
    if former is not None and run.state.is_terminal:
        return evolve(former, at=time.time())
    return RunEnded(at=time.time(), state="STOPPED", reason=f"could not be resumed: {why.splitlines()[0]}")
