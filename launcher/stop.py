"""Ending a run: by its supervisor, or, where there is none that answers, through the backend alone."""

from __future__ import annotations

import time
from collections.abc import Callable

from launcher.backends.choice import give_back, waiting
from launcher.control import ANSWER_S
from launcher.errors import Unreachable
from launcher.events import AttemptEnded, Event, RunEnded
from launcher.journal import write_first_epoch
from launcher.paths import RunPaths
from launcher.snapshots import read_run
from launcher.submit import login_epoch
from launcher.view.steer import check_that_it_goes_on, is_deserted, steer

NOW_S = 15.0  # in which a lost supervisor has been replaced
_DESERTED = "none of its processes was alive"


def stop(paths: RunPaths, author: str, *, now: bool, tell: Callable[[str], None]) -> str:
    """End the run, after a last checkpoint unless `now`; what came of it. Raises LaunchError.

    A job that waits in the queue has no supervisor, nor has a run whose processes have died: these are ended here.
    So is one whose supervisor does not answer, but only `now`: what is trained since the last checkpoint is lost.
    """
    check_that_it_goes_on(paths, "stop")
    if (queued := waiting(paths)) is not None and queued.is_ours:
        return _end(paths, author, "its job was waiting in the queue")
    if is_deserted(paths):
        return _end(paths, author, _DESERTED)
    try:
        return steer(paths, "stop", {"now": now}, NOW_S if now else ANSWER_S)
    except Unreachable as error:
        if is_deserted(paths):  # they were just ending
            return _end(paths, author, _DESERTED)
        if not now:
            hint = f"opt-launch stop {paths.name} --now ends it without one, and without a checkpoint"
            raise Unreachable(error.message, error.where, hint) from error
        tell(f"{error.message}: its allocation is ended without one")
        return _end(paths, author, "no supervisor answered")


def _end(paths: RunPaths, author: str, why: str) -> str:
    """End the allocation and tell the journal, in an epoch that fences off whatever may still live."""
    give_back(paths)
    run = read_run(paths)
    if run.state.is_terminal:
        return f"ended: {run.state.value}"
    reason = f"stopped by {author}: {why}"
    ending: list[Event] = [RunEnded(at=time.time(), state="STOPPED", reason=reason)]
    if run.live_attempt is not None:
        ending.insert(0, AttemptEnded(at=time.time(), attempt=run.live_attempt.number, reason=reason))
    write_first_epoch(paths, [login_epoch(), *ending])
    return f"ended: {why}"
