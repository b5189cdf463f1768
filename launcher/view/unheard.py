"""What viewers are told of a run of which nothing is heard: it waits in the queue, or nothing of it lives. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from launcher.backends.standing import Standing
from launcher.run import RunState
from launcher.view.words import iso

QUIET_S = 5.0  # no word for so long: does anything of it live?
UNSAID: dict[str, Any] = {"left_s": None, "scheduler_away_s": None, "waiting": None}


def is_quiet(snap: Mapping[str, Any]) -> bool:
    return snap["age_s"] >= QUIET_S


def has_begun(snap: Mapping[str, Any]) -> bool:
    """Whether anything of the run has ever been heard."""
    return snap["state"] != RunState.PENDING or bool(snap["nodes"])


def with_standing(snap: dict[str, Any], standing: Standing, now: float, way_on: str) -> dict[str, Any]:
    """The snapshot with what is known of the run's allocation. `way_on`: by what a person has the run go on."""
    job = snap["job"] | {"scheduler_away_s": since(standing.away_since, now)}
    gone = [{**node, "state": "GONE", "beat_s": None} for node in snap["nodes"]]
    if not standing.may_live and is_quiet(snap):  # else it may be about to begin
        why = "; ".join(filter(None, ["none of its processes lives", standing.how]))
        return snap | {"alive": False, "reason": why, "next_action": until(way_on), "job": UNSAID, "nodes": gone}
    if standing.waiting is None or not standing.may_live:
        return snap | {"job": job}
    waiting = standing.waiting
    told = {"job_id": waiting.job_id, "reason": waiting.reason, "starts_at": iso(waiting.starts_at or 0.0)}
    job |= {"left_s": None, "waiting": told | {"told_s": since(standing.told_at, now)}}
    job_id = waiting.job_id or snap["job_id"]
    return snap | {"job_id": job_id, "next_action": str(waiting), "job": job, "nodes": gone}


def until(way_on: str) -> str:
    """What happens next to a run that has ended, or died."""
    return f"nothing, until a person says: {way_on}"


def since(at: float | None, now: float) -> float | None:
    """Seconds since then."""
    return None if at is None else round(max(0.0, now - at), 3)
