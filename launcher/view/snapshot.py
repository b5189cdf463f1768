"""A run as one JSON object: what `status --json` prints, and all that the screens show."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from launcher.accounting import Account, detected_s, recovered_s
from launcher.backends.choice import standings, way_on
from launcher.checkpoints import NoChoice, choose, choose_undecided
from launcher.fold import View
from launcher.journal import newest_epoch
from launcher.paths import RunPaths
from launcher.run import HALTED, Incident, Node, NodeState, Run, RunState
from launcher.search import told
from launcher.snapshots import read_view
from launcher.view.unheard import UNSAID, has_begun, is_quiet, since, until, with_standing
from launcher.view.words import iso

SCHEMA = 1
HISTORY = 240  # losses that a screen may draw

Live = Mapping[str, Any]


def snapshot(paths: RunPaths, now: float | None = None) -> dict[str, Any]:
    """The present state of the run in `paths`. Holds only what JSON can say: no number is NaN."""
    return snapshots([paths], now)[0]


def snapshots(runs: Sequence[RunPaths], now: float | None = None) -> list[dict[str, Any]]:
    """The present states of these runs."""
    clock = time.time if now is None else lambda: now
    ways = {paths: way_on(paths) for paths in runs}
    snaps = {paths: snapshot_of(paths.name, read_view(paths), read_live(paths), clock(), ways[paths]) for paths in runs}
    unheard = [paths for paths, snap in snaps.items() if snap["alive"] and (is_quiet(snap) or not has_begun(snap))]
    for paths, standing in standings(unheard).items():
        snaps[paths] = with_standing(snaps[paths], standing, clock(), ways[paths])
    return [*snaps.values()]


def read_live(paths: RunPaths) -> Live:
    """What the supervisor last said of every rank; empty when it is missing or of a superseded supervisor."""
    try:
        live = json.loads(paths.live.read_bytes())
        current = isinstance(live, dict) and int(live.get("epoch", -1)) >= newest_epoch(paths)
    except (OSError, ValueError, TypeError):
        return {}
    return live if current else {}


def snapshot_of(name: str, view: View, live: Live, now: float, way_on: str = "") -> dict[str, Any]:
    """The snapshot of what follows from the events; pure. `way_on`: by what a person has the run go on."""
    run, books = view.run, view.books.account(now)
    live = {} if run.state.is_terminal else live
    told_at = _float(live.get("at")) or 0.0
    if run.attempt and told_at < run.attempt.started_at:
        live = {}  # it tells of the ranks of an earlier attempt
    updated, job = max(run.updated_at, told_at), _mapping(live.get("job"))
    return finite(
        {
            "schema": SCHEMA,
            "run": run.name or name,
            "state": run.state.value,
            "alive": not run.state.is_terminal,
            "reason": run.hold_reason or run.paused_by or run.ended_reason,
            "attempt": run.attempt.number if run.attempt else 0,
            "branched_from": asdict(run.branched_from) if run.branched_from else None,
            "step": None if run.is_unobserved else run.step,
            "target_step": run.target_step,
            "loss": run.metrics.get("loss"),
            "ettr": books.ettr,
            "goodput": books.goodput,
            "restarts": run.restarts,
            "lost_steps": None if run.is_unobserved and run.restarts else run.lost_steps,
            "job_id": run.job_id,
            "job": _job(job, now),
            "submitted_at": iso(run.submitted_at),
            "updated_at": iso(updated),
            "age_s": round(max(0.0, now - updated), 3),
            "elapsed_s": books.total_us / 1e6,
            "median_step_s": books.median_step_s,
            "supervisor": {"pid": run.supervisor_pid, "host": run.supervisor_host, "epoch": run.epoch},
            "next_action": _told(run, live) or next_action(run, way_on),
            "drained": {node: one.reason for node, one in run.drained.items()},
            "drain_refused": run.drain_refused,
            "nodes": [_node(run, node, live) for node in _ordered(run)],
            "incidents": [_incident(run, incident) for incident in run.incidents],
            "environment_changes": [
                {"attempt": one.number, "changes": dict(one.differs)} for one in run.attempts if one.differs
            ],
            "warnings": [{"at": iso(one.at), "text": one.text} for one in run.warnings],
            "checkpoints": _checkpoints(run),
            "metrics": dict(run.metrics),
            "losses": _recent_losses(books),
            "time_s": books.seconds,
        }
    )


def finite(value: Any) -> Any:
    """The same with null in place of every number that JSON lacks."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return value


def _float(value: object) -> float | None:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def _job(job: Live, now: float) -> dict[str, Any]:
    return UNSAID | {"left_s": _left_s(job, now), "scheduler_away_s": since(_float(job.get("away_since")), now)}


def _left_s(job: Live, now: float) -> float | None:
    ends_at = _float(job.get("ends_at"))
    return None if ends_at is None else max(0.0, ends_at - now)


def _recent_losses(books: Account) -> list[float | None]:
    return [step.loss for step in books.kept[-HISTORY:]]


# ---------------------------------------------------------------- what comes next


def _told(run: Run, live: Live) -> str:
    """The supervisor knows best what it is about to do, except of a run that waits for a person."""
    return "" if run.state in HALTED else str(live.get("next_action") or "")


def next_action(run: Run, way_on: str = "") -> str:
    """What happens next, as far as the journal tells."""
    if searching := told(run):
        return searching
    match run.state:
        case RunState.SUCCEEDED:
            return "nothing: the run is done"
        case RunState.FAILED | RunState.STOPPED:
            return until(way_on or f"opt-launch resume {run.name}")
        case RunState.HELD:
            return f"waits for a person: opt-launch release {run.name}{_from_before(run)}"
        case RunState.PAUSED:
            return f"nothing, until a person says: opt-launch unpause {run.name}"
        case RunState.PENDING:
            return f"start attempt {len(run.attempts) + 1} with {run.nodes_wanted} nodes; {len(run.nodes)} answered"
        case RunState.STARTING:
            return _beginning(run)
        case RunState.RECOVERING:
            return _recovery(run)
        case RunState.SUSPECT:
            return "decide: something is silent or stands still"
        case _:
            return _training(run)


def _from_before(run: Run) -> str:
    """Where a held run would go on, if that is not its newest checkpoint."""
    choice, newest = choose_undecided(run), choose(run)
    if choice == newest or isinstance(choice, NoChoice) or choice.restore is None:
        return ""
    return f" goes on from step {choice.restore[0]:,}, before the trouble"


def _beginning(run: Run) -> str:
    number = run.attempt.number if run.attempt else 1
    if run.is_unobserved:
        return f"attempt {number}: its ranks run for a while; no step has been told of"
    if run.attempt and run.attempt.resumes_itself:
        return f"attempt {number}: first step, from where the command resumes by itself"
    return f"attempt {number}: first step from step {run.step:,}"


def _recovery(run: Run) -> str:
    if run.pending is None:
        return f"start attempt {len(run.attempts) + 1} when {run.nodes_wanted} nodes are there"
    return f"{', '.join(run.pending.actions)} (rule {run.pending.rule})"


def _training(run: Run) -> str:
    end = f"; done at step {run.target_step:,}" if run.target_step is not None else ""
    if not run.save_every:
        return f"train on{end}"
    save = (run.step // run.save_every + 1) * run.save_every
    return f"checkpoint at step {save:,}{end}"


# ---------------------------------------------------------------- the parts


def _ordered(run: Run) -> list[Node]:
    return sorted(run.nodes.values(), key=lambda node: (node.index, node.name))


def _slots(run: Run) -> Mapping[str, tuple[int, ...]]:
    """Who holds the ranks: between attempts those of the last one."""
    return run.attempt.slots if run.attempt else {}


def _role(run: Run, node: Node) -> str:
    if node.excluded:
        return "excluded"
    if node.state is NodeState.LOST:
        return "lost"
    if node.name in _slots(run):
        return "active"
    return "excluded" if node.barred or node.avoided or node.faults else "spare"


def _node(run: Run, node: Node, live: Live) -> dict[str, Any]:
    role = _role(run, node)
    told = _mapping(_mapping(live.get("nodes")).get(node.name))
    ranks = _mapping(told.get("ranks"))
    slots = _slots(run).get(node.name, ()) if role == "active" else ()
    return {
        "name": node.name,
        "role": role,
        "state": "GONE" if run.state.is_terminal else node.state.value,
        "reason": "; ".join(dict.fromkeys(filter(None, (*_reasons(node), _drained(run, node))))),
        "agent_pid": node.pid,
        "host": node.host,
        "beat_s": None if node.state is NodeState.LOST else _float(told.get("beat_s")),
        "examined_at": iso(node.examined_at),
        "findings": [asdict(one) for one in node.findings.values()],
        "ranks": [_rank(run, rank, _mapping(ranks.get(str(rank)))) for rank in slots],
    }


def _reasons(node: Node) -> tuple[str, ...]:
    """What is amiss with a node, for whatever reason others are preferred to it."""
    faults = "; ".join(one.told for one in node.faults)
    return (node.excluded, "" if node.avoided == faults else node.avoided, node.barred or node.draining, faults)


def _drained(run: Run, node: Node) -> str:
    drained = run.drained.get(node.name)
    return f"drained in Slurm ({drained.reason})" if drained else ""


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _rank(run: Run, rank: int, told: Mapping[str, Any]) -> dict[str, Any]:
    """`step`, `phase` and how long since are None of a rank that never tells of itself: many let one speak for all."""
    of_steps = ("step", "phase", "phase_s", "moved_s")
    keys = ("pid", "step", "phase", "alive", "os_state", "phase_s", "moved_s")
    silent = of_steps if told.get("heard") is False else ()
    shown = {"rank": rank} | {key: None if key in silent else told.get(key) for key in keys}
    code = run.attempt.exits.get(rank) if run.attempt else None
    if code is None:
        return shown
    return shown | {"alive": False, "phase": f"killed by signal {-code}" if code < 0 else f"exit code {code}"}


def _incident(run: Run, incident: Incident) -> dict[str, Any]:
    return {
        "id": incident.number,
        "rule": incident.rule,
        "detector": incident.detector,
        "attempt": incident.attempt,
        "step": None if run.is_unobserved else incident.step,
        "opened_at": iso(incident.opened_at),
        "detected_s": detected_s(incident),
        "recovered_s": recovered_s(incident),
        "lost_steps": incident.lost_steps,
        "nodes": list(incident.nodes),
        "blame": incident.blame,
        "decision": {"mode": incident.mode, "actions": dict(incident.actions), "ids": list(incident.decisions)},
        "why": incident.why,
        "state": incident.state,
        "due_at": iso(incident.due_at),
        "otherwise": incident.otherwise,
        "notes": [{"at": iso(note.at), "author": note.author, "text": note.text} for note in incident.notes],
    }


def _checkpoints(run: Run) -> list[dict[str, Any]]:
    line = {checkpoint.id for checkpoint in run.lineage()}
    return [
        {
            "step": one.step,
            "attempt": one.attempt,
            "complete": one.usable,
            "good": run.is_good(one),
            "lineage": "kept" if one.id in line else "abandoned",
            "tier": "disk",
            "bytes": one.bytes,
            "committed_at": iso(one.committed_at),
            "rejected": one.rejected,
        }
        for one in sorted(run.checkpoints.values(), key=lambda one: (one.step, one.attempt))
        if not one.removed
    ]
