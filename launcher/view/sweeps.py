"""A sweep as one table, and as JSON."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from launcher.paths import RunPaths
from launcher.sweep.plan import compact
from launcher.sweep.record import Record, list_records, runs_of
from launcher.view.plain import outcome, progress
from launcher.view.snapshot import SCHEMA, snapshots
from launcher.view.watch import follow
from launcher.view.words import aligned, counted, number, percent, shown_state

_TOLD = (
    "run", "state", "alive", "reason", "attempt", "step", "target_step", "loss", "restarts", "lost_steps", "ettr",
    "goodput", "job_id", "updated_at", "next_action",
)  # fmt: skip


def sweep_snapshot(root: Path, record: Record) -> dict[str, Any]:
    """The present state of a sweep; of each run what the table shows, and a little more."""
    snaps = snapshots(runs_of(root, record))
    runs = [{key: snap[key] for key in _TOLD} | {"swept": record.runs[snap["run"]]} for snap in snaps]
    return {
        "schema": SCHEMA,
        "sweep": record.name,
        "max_parallel": record.max_parallel,
        "labels": record.labels,
        "states": dict(Counter(map(shown_state, runs))),
        "runs": runs,
    }


def show_changes(root: Path, record: Record, every_s: float, *, as_json: bool) -> None:
    """Lines of the table as they change, or the whole as JSON each time, until no run goes on."""

    def is_over(snap: dict[str, Any]) -> bool:
        return not any(run["alive"] for run in snap["runs"])

    follow(lambda: sweep_snapshot(root, record), table, is_over, every_s, as_json=as_json)


def table(snap: dict[str, Any]) -> list[str]:
    """One line for each run, under a heading, and a line that sums up."""
    keys = snap["labels"]
    rows = [["RUN", *(label.upper() for label in keys.values()), "STATE", "STEP", "LOSS", "RESTARTS", "ETTR"]]
    for run in snap["runs"]:
        swept = [_shown(run["swept"][key]) if key in run["swept"] else "-" for key in keys]
        step = progress(run).removeprefix("step ")
        state, restarts = shown_state(run), str(run["restarts"])
        rows.append([run["run"], *swept, state, step, number(run["loss"]), restarts, percent(run["ettr"])])
    return [*aligned(rows), f"sweep {snap['sweep']}: {_sum(snap)}"]


def all_runs(root: Path, runs: Sequence[RunPaths]) -> list[dict[str, Any]]:
    """All runs, each with the sweep it belongs to, or null."""
    of_sweep = {name: record.name for record in list_records(root) for name in record.runs}
    return [{"sweep": of_sweep.get(snap["run"]), **snap} for snap in snapshots(runs)]


def list_lines(snaps: Sequence[dict[str, Any]]) -> list[str]:
    """A line for each run; those of a sweep stand together, where its newest is."""
    last = {snap["sweep"]: position for position, snap in enumerate(snaps)}
    groups = [
        [snap] if snap["sweep"] is None else [one for one in snaps if one["sweep"] == snap["sweep"]]
        for position, snap in enumerate(snaps)
        if snap["sweep"] is None or last[snap["sweep"]] == position
    ]
    lines = iter(aligned([_row(snap) for group in groups for snap in group]))
    told: list[str] = []
    for group in groups:
        told += [f"sweep {sweep}"] if (sweep := group[0]["sweep"]) else []
        told += [next(lines) for _ in group]
    return told


def _row(snap: dict[str, Any]) -> list[str]:
    indent = "  " if snap["sweep"] else ""
    told = snap["next_action"] if snap["job"]["waiting"] else outcome(snap)
    return [indent + snap["run"], shown_state(snap), progress(snap), told]


def _shown(value: Any) -> str:
    """A value in a column; a mapping as what is in it."""
    if isinstance(value, Mapping):
        return ",".join(f"{key}={_shown(inner)}" for key, inner in value.items())
    return compact(value)


def _sum(snap: dict[str, Any]) -> str:
    states = snap["states"]
    told = ", ".join(f"{count} {state}" for state, count in sorted(states.items()))
    again = sum(states.get(state, 0) for state in ("FAILED", "STOPPED", "GONE"))
    return f"{counted(len(snap['runs']), 'run')}: {told}" + (f"; {again} for --resume-failed" if again else "")
