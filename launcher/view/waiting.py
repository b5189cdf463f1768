"""Waiting for a run: until it ends, is held, or nobody works on it any more."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from launcher.backends.choice import may_live, way_on
from launcher.errors import LaunchError
from launcher.paths import RunPaths
from launcher.run import Incident, Run, RunState
from launcher.snapshots import read_run
from launcher.view.words import clock, iso, number, steps

POLL_S = 0.5
_REST = 10
GONE_S = 5.0  # no living process for so long: a new allocation has had time to show up

HELD, TIMED_OUT = 6, 124


@dataclass(frozen=True)
class Patience:
    """How long to wait, and whether to wait on while the run is held."""

    timeout_s: float | None = None
    through_hold: bool = False


def wait(paths: RunPaths, patience: Patience) -> tuple[int, Run]:
    """The exit code for what became of the run. Raises LaunchError when its processes are all dead."""
    started = time.monotonic()
    dead_since: float | None = None
    line, told = _ProgressLine(), None
    try:
        while True:
            begun = time.monotonic()
            run, now = read_run(paths), time.monotonic()
            pause_s = pause_after(now - begun, POLL_S)
            code = verdict(run, patience)
            if code is not None:
                return code, run
            if told is not None and len(run.incidents) > told:
                line.clear()
                print("\n".join(incident_text(one) for one in run.incidents[told:]), file=sys.stderr, flush=True)
            told = len(run.incidents)
            line.show(run)
            dead_since = None if may_live(paths) else (dead_since or now)
            if dead_since is not None and now - dead_since >= GONE_S:
                raise LaunchError(
                    f"run {paths.name} is {run.state.value} and none of its processes lives",
                    f"waiting, at step {_step(run)}",
                    way_on(paths),
                )
            left = pause_s if patience.timeout_s is None else started + patience.timeout_s - now
            if left <= 0:
                return TIMED_OUT, run
            time.sleep(min(pause_s, left))
    finally:
        line.clear()


def _step(run: Run) -> str:
    return steps(None if run.is_unobserved else run.step)


def wait_all(runs: Sequence[RunPaths], patience: Patience, tell: Callable[[str], None]) -> int:
    """Wait for each of these runs, and tell what became of it; the highest of their exit codes."""
    began = time.monotonic()
    worst = 0
    for paths in runs:
        left_s = None if patience.timeout_s is None else max(0.0, patience.timeout_s - (time.monotonic() - began))
        try:
            code, run = wait(paths, replace(patience, timeout_s=left_s))
            tell(outcome_text(run, code))
        except LaunchError as error:
            code = error.exit_code
            tell(f"{error.message}\n  try:   {error.hint}")
        worst = max(worst, code)
    return worst


def incident_text(incident: Incident) -> str:
    """An incident in a line, for somebody who waits."""
    advised = {"advise": " (advise only)", "ask": f" (asked: opt-launch incidents RUN approve {incident.number})"}
    deeds = ", ".join(incident.actions)
    return f"{clock(iso(incident.decided_at))} {incident.rule}: {incident.why}: {deeds}{advised.get(incident.mode, '')}"


def pause_after(reading_s: float, least_s: float) -> float:
    """How long to rest after a look at the journal: watching a long run must not keep a machine or its disk busy."""
    return max(least_s, _REST * reading_s)


def verdict(run: Run, patience: Patience) -> int | None:
    """The exit code of a run that has come to an end or a halt; None while it goes on."""
    if run.state is RunState.SUCCEEDED:
        return 0
    if run.state.is_terminal:
        return 1
    return HELD if run.state is RunState.HELD and not patience.through_hold else None


def outcome_text(run: Run, code: int) -> str:
    """What became of the run, and what a person can do."""
    told = f"{run.name}: {run.state.value} at step {_step(run)}"
    if code == TIMED_OUT and run.state is RunState.PAUSED:
        return f"{told}: {run.paused_by}; waiting for it has timed out\n  try:   opt-launch unpause {run.name}"
    if code == TIMED_OUT:
        return f"{told}; it goes on, waiting for it has timed out"
    reason = run.hold_reason or run.ended_reason
    told += f": {reason}" if reason else ""
    if code == HELD:
        return f"{told}\n  try:   opt-launch release {run.name}"
    return told


class _ProgressLine:
    """One line on stderr that is written over; nothing where stderr is no terminal."""

    def __init__(self) -> None:
        self._shown = ""

    def show(self, run: Run) -> None:
        if not sys.stderr.isatty():
            return
        target = f" / {run.target_step:,}" if run.target_step else ""
        loss = f"  loss {number(run.metrics['loss'])}" if "loss" in run.metrics else ""
        text = f"{run.name}  {run.state.value}  step {_step(run)}{target}{loss}  restarts {run.restarts}"
        if text != self._shown:
            sys.stderr.write(f"\r\x1b[K{text[:79]}")
            sys.stderr.flush()
            self._shown = text

    def clear(self) -> None:
        if self._shown:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
            self._shown = ""
