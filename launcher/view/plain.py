"""A snapshot as plain lines, for pipes, logs and very small terminals."""

from __future__ import annotations

from typing import Any

from launcher.view.words import (
    changed,
    clock,
    cost,
    deeds,
    duration,
    number,
    percent,
    phases_of,
    shown_state,
    size,
    steps,
    steps_of,
)

SHOWN_INCIDENTS = 10
SHOWN_CHECKPOINTS = 5
SHOWN_WARNINGS = 3


def progress(snap: dict[str, Any]) -> str:
    target = f" / {snap['target_step']:,}" if snap["target_step"] else ""
    return f"step {steps(snap['step'])}{target}"


def outcome(snap: dict[str, Any]) -> str:
    counts = f"attempt {snap['attempt']}  restarts {snap['restarts']}"
    return f"loss {number(snap['loss'])}  {counts}  ettr {percent(snap['ettr'])}"


def plain(snap: dict[str, Any]) -> list[str]:
    """The whole snapshot, one fact a line; of what happened the newest first, for small screens cut off the end."""
    lines = [
        f"run {snap['run']}  {shown_state(snap)}" + (f"  ({snap['reason']})" if snap["reason"] else ""),
        f"{progress(snap)}  {outcome(snap)}",
        f"goodput {percent(snap['goodput'])}  lost steps {steps(snap['lost_steps'])}  up {duration(snap['elapsed_s'])}"
        + (f"  job {snap['job_id']}" if snap["job_id"] else "")
        + scheduler(snap)
        + f"  updated {duration(snap['age_s'])} ago",
        f"next: {snap['next_action']}",
    ]
    if branch := snap["branched_from"]:
        lines.append(f"began from step {branch['step']:,} of run {branch['run']}")
    if differs := changed(snap, snap["attempt"]):
        lines.append(differs)
    lines += [_node(node) for node in snap["nodes"]]
    if refused := snap["drain_refused"]:
        lines.append(f"no node is drained: {refused}")
    lines += [f"warning  {clock(one['at'])}  {one['text']}" for one in reversed(snap["warnings"][-SHOWN_WARNINGS:])]
    incidents = snap["incidents"][-SHOWN_INCIDENTS:]
    hidden = len(snap["incidents"]) - len(incidents)
    lines += [_incident(incident) for incident in reversed(incidents)]
    lines += [f"incidents: {hidden} older ones are not shown"] if hidden else []
    lines += [_checkpoint(one) for one in reversed(snap["checkpoints"][-SHOWN_CHECKPOINTS:])]
    return lines


def scheduler(snap: dict[str, Any]) -> str:
    """What is known of the end of the job, and whether the scheduler answers."""
    return "".join(f"  {told}" for told in (ends(snap), away(snap)) if told)


def ends(snap: dict[str, Any]) -> str:
    """When the job ends; "" where that is not known."""
    left = snap["job"]["left_s"]
    return "" if left is None else f"ends in {duration(left)}"


def away(snap: dict[str, Any]) -> str:
    """That the scheduler does not answer; "" where it does."""
    since = snap["job"]["scheduler_away_s"]
    return "" if since is None else f"Slurm has not answered for {duration(since)}"


def _node(node: dict[str, Any]) -> str:
    ranks = ",".join(str(rank["rank"]) for rank in node["ranks"])
    state = node["state"].lower()
    parts = [f"node {node['name']}", node["role"], state if state != node["role"] else ""]
    parts += [f"ranks {ranks}", f"step {steps_of(node)}", phases_of(node)] if ranks else []
    return "  ".join(part for part in (*parts, node["reason"]) if part)


def _incident(incident: dict[str, Any]) -> str:
    where = ",".join(incident["nodes"])
    parts = (
        f"incident {incident['id']}", clock(incident["opened_at"]), incident["rule"], where,
        incident["state"].lower(), deeds(incident), cost(incident),
    )  # fmt: skip
    return "  ".join(part for part in parts if part)


def _checkpoint(one: dict[str, Any]) -> str:
    return f"checkpoint step {one['step']:,}  attempt {one['attempt']}  {judgement(one)}  {size(one['bytes'])}"


def judgement(one: dict[str, Any]) -> str:
    """What is known of a checkpoint, in words."""
    if not one["complete"]:
        return f"rejected: {one['rejected']}"
    good = "good" if one["good"] else "complete"
    return good if one["lineage"] == "kept" else f"{good}, abandoned"
