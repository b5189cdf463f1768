"""What viewers get to see beyond the journal: the newest beats, and what will be done next. Disposable."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Any

from launcher.fleet import Contact
from launcher.run import Incident, Run, RunState
from policies.units import format_duration

SCHEMA = 1


def live_view(
    run: Run, epoch: int, contacts: Iterable[Contact], job: Mapping[str, Any], at: float, *, saves: bool
) -> dict[str, Any]:
    """The content of live.json at `at` (Unix seconds). `job`: what the scheduler says of it, or that it does not.

    `saves`: whether the trainer can be told to.
    """
    now = time.monotonic()
    nodes = {contact.node: {"beat_s": round(now - contact.heard_at, 3), "ranks": contact.ranks} for contact in contacts}
    told = {"next_action": next_action(run, at, saves=saves), "nodes": nodes, "job": job}
    return {"schema": SCHEMA, "epoch": epoch, "at": at, **told}


def next_action(run: Run, at: float, *, saves: bool = True) -> str:
    """In one line: what will be done next, and why."""
    pending, save = run.pending, "save" if saves else "end the ranks"
    if run.stop_requested and not run.state.is_terminal:
        how = "stop at once" if run.stop_now or not saves else "save, then stop"
        return f"{how}, as {run.stop_requested} asked"
    if run.job_ending and not run.state.is_terminal:
        return f"{save}, and go on in the next job: {run.job_ending}"
    if run.hold_requested:
        return f"{save}, then hold: {run.hold_requested}"
    if run.state is RunState.HELD:
        return f"nothing until released: {run.hold_reason}"
    if run.paused_by:
        how = "end the ranks" if run.pause_now else save
        return f"{how}, then pause: {run.paused_by}"
    if pending is not None:
        wait_s = max(0.0, pending.at + pending.delay_s - at)
        what = ", ".join(pending.actions)
        when = f" in {wait_s:.0f}s" if wait_s >= 1 else ""
        return f"{what}{when}: {pending.rule}: {pending.why}"
    if run.job_ending:
        return f"{save}, then have the scheduler begin the job anew: {run.job_ending}"
    if asked := next((one for one in run.incidents if one.state == "ASKED"), None):
        return f"{_asked(run, asked, at)}: {asked.rule}: {asked.why}"
    if run.state is RunState.SUSPECT:
        silent = [node.name for node in run.nodes.values() if node.silent_since is not None]
        about = f"{', '.join(silent)} is silent" if silent else "no step moves"
        return f"wait and see: {about}"
    if run.state in (RunState.PENDING, RunState.RECOVERING):
        return "start the ranks as soon as enough nodes answer"
    if run.replace is not None:
        when = "save, then replace" if run.replacing_since else "when a spare is there, save and replace"
        return f"{when} {', '.join(run.replace.nodes)}: {run.replace.why}"
    return ""  # what a run that trains does next, the journal tells


def _asked(run: Run, incident: Incident, at: float) -> str:
    left = format_duration(float(round(max(0.0, incident.due_at - at))))
    when = f"in {left}" if incident.otherwise == "act" else f"only if approved within {left}"
    return f"{', '.join(incident.actions)} {when}: incidents {run.name} approve {incident.number}, or hold"
