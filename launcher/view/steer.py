"""Having a person's wish carried out by the run's supervisor."""

from __future__ import annotations

import os
import time
import uuid
from typing import Any

from launcher import control, verdicts
from launcher.backends.choice import may_live, standings, way_on
from launcher.errors import LaunchError, Unreachable
from launcher.events import CommandAnswered
from launcher.journal import write_first_epoch
from launcher.paths import RunPaths, user_name
from launcher.snapshots import read_run
from launcher.submit import login_epoch
from launcher.view.waiting import GONE_S


def steer(paths: RunPaths, verb: str, args: dict[str, Any], timeout_s: float = control.ANSWER_S) -> str:
    """What the supervisor answered. Raises LaunchError if it would not, Unreachable if there is none."""
    check_that_it_goes_on(paths, verb)
    _check_that_somebody_lives(paths, verb)
    ok, message = control.command(paths, verb, args, timeout_s)
    if not ok:
        raise LaunchError(message or f"the run did not take '{verb}'", _command(verb, paths))
    return message or f"{verb} is under way"


def _command(verb: str, paths: RunPaths) -> str:
    """As it was typed."""
    return f"{verb.replace('_', ' ')} {paths.name}"


def note(paths: RunPaths, incident: int, text: str) -> str:
    """Add a person's words to an incident; of a run that has ended, whoever may write into its folder does it here."""
    run = read_run(paths)
    if not run.state.is_terminal:
        return steer(paths, "note", {"incident": incident, "text": text})
    asked = {"id": uuid.uuid4().hex[:12], "verb": "note", "args": {"incident": incident, "text": text}}
    said = control.received(asked, user_name(os.getuid()), time.time())
    assert said is not None
    said = verdicts.checked(said, run)
    if "refused" in said.args:
        raise LaunchError(str(said.args["refused"]), f"incidents {paths.name} note {incident}")
    answer = CommandAnswered(at=time.time(), id=said.id, ok=True, message="noted")
    write_first_epoch(paths, [login_epoch(), said, answer])
    return f"noted at incident {incident}"


def _check_that_somebody_lives(paths: RunPaths, verb: str) -> None:
    """Raises LaunchError where no process of the run can answer: it waits in the queue, or all have died."""
    where = _command(verb, paths)
    standing = standings([paths])[paths]
    if standing.waiting and standing.may_live:
        _check_that_it_has_begun(paths, where)
    if is_deserted(paths):
        raise LaunchError(f"run {paths.name}: none of its processes lives", where, way_on(paths))


def _check_that_it_has_begun(paths: RunPaths, where: str) -> None:
    """Raises LaunchError for a run that waits now, not as of a moment ago; Unreachable where nobody can tell."""
    now = standings([paths], at_once=True)[paths]
    if queued := now.waiting:
        leave = f"opt-launch stop {paths.name}" if queued.is_ours else f"scancel {queued.job_id}"
        hint = f"wait until it has begun, or take it out of the queue: {leave}"
        raise LaunchError(f"run {paths.name} has no process: {queued}", where, hint)
    if now.lives is None and not read_run(paths).nodes:
        job = now.jobs[0]
        raise Unreachable(f"Slurm does not answer: whether job {job} has begun is not known", where, "try again")


def check_that_it_goes_on(paths: RunPaths, verb: str) -> None:
    """Raises LaunchError if the run has ended: nobody is there to answer."""
    run = read_run(paths)
    if run.state.is_terminal:
        hint = "" if run.state == "SUCCEEDED" else way_on(paths)
        raise LaunchError(f"run {paths.name} has ended: {run.state.value}", _command(verb, paths), hint)


def is_deserted(paths: RunPaths) -> bool:
    """Whether nothing of the run lives; a new allocation is given the time to show up."""
    deadline = time.monotonic() + GONE_S
    while not (alive := may_live(paths)) and time.monotonic() < deadline:
        time.sleep(0.2)
    return not alive
