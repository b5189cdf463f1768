"""The detectors of what is around the ranks: storage, disk, scheduler, and what is printed. Pure.

Limits without a source are choices of ours.
"""

from __future__ import annotations

from collections.abc import Mapping

from launcher.events import Json
from policies.finding import NOTHING, Answer, Finding
from policies.schema import Rule
from policies.state import Attempt, EngineState
from policies.when import Disk, Scheduler, StorageStall, TimeLeft

WAITING = ("data", "save")  # phases in which ranks wait for a file system
MOST = 0.5  # of the ranks that are heard, or of the nodes


def surroundings(rule: Rule, state: EngineState) -> Answer:
    """What the detector of a rule about the surroundings says now."""
    when, attempt = rule.when, state.judged
    if attempt is None or state.pending or attempt.ended:
        return NOTHING
    if when.storage_stall:
        return storage_stall(state, attempt, when.storage_stall)
    if when.time_left:
        return time_left(state, when.time_left)
    if when.scheduler:
        return job_state(state, when.scheduler), None
    if when.disk:
        return disk_space(state, attempt, when.disk), None
    return (line_of(rule, state, attempt), None) if when.log else NOTHING


def storage_stall(state: EngineState, attempt: Attempt, detector: StorageStall) -> Answer:
    """Most ranks wait in data or save, or most nodes for the run folder: nobody is at fault, and nothing is lost."""
    found = [one for one in (_ranks_waiting(state), _nodes_waiting(state, attempt)) if one]
    if not found:
        return NOTHING
    since, what = min(found)
    due = since + detector.at_least
    if state.now < due:
        return None, due
    evidence: dict[str, Json] = {"stood_s": round(state.now - since, 3), "limit_s": detector.at_least}
    why = f"{what} for {state.now - since:.0f} s"
    return _finding("storage_stall", f"{attempt.number}:{since}", why, state, since, evidence), None


def _ranks_waiting(state: EngineState) -> tuple[float, str] | None:
    stopped = state.stopped
    phases = [one.phase for one in stopped.ranks.values() if one.phase or one.step >= 0] if stopped else []
    waiting = [phase for phase in phases if phase in WAITING]
    if stopped is None or len(waiting) <= MOST * len(phases):
        return None
    return stopped.since, f"{len(waiting)} of {len(phases)} ranks wait in {' and '.join(sorted(set(waiting)))}"


def _nodes_waiting(state: EngineState, attempt: Attempt) -> tuple[float, str] | None:
    silent = {node: since for node, since in state.storage.items() if node in attempt.slots}
    if len(silent) <= MOST * len(attempt.slots):
        return None
    return max(silent.values()), f"the run folder does not answer on {len(silent)} of {len(attempt.slots)} nodes"


def time_left(state: EngineState, detector: TimeLeft) -> Answer:
    """The job ends soon."""
    ends_at = state.job.ends_at if state.job else None
    if ends_at is None:
        return NOTHING
    due = ends_at - detector.below
    if state.now < due:
        return None, due
    left_s = round(max(0.0, ends_at - state.now), 3)
    return _finding("time_left", f"{ends_at}", f"the job ends in {left_s:.0f} s", state, due, {"left_s": left_s}), None


def job_state(state: EngineState, detector: Scheduler) -> Finding | None:
    """The scheduler says of the job what a rule looks for."""
    job = state.job
    if job is None or job.state not in detector.states:
        return None
    return _finding(
        "scheduler", f"{job.state}:{job.at}", f"the job is {job.state}", state, job.at, {"state": job.state}
    )


def disk_space(state: EngineState, attempt: Attempt, detector: Disk) -> Finding | None:
    """Little room is left for the run folder. Word of it comes when it changes; once an attempt is enough."""
    disk = state.disk
    if disk is None or disk.free >= detector.below.of(disk.total):
        return None
    evidence: dict[str, Json] = {"free": disk.free, "total": disk.total}
    why = f"{disk.free / 1e9:.1f} GB of {disk.total / 1e9:.1f} GB are free, less than {detector.below}"
    return _finding("disk", f"{attempt.number}", why, state, disk.at, evidence)


def line_of(rule: Rule, state: EngineState, attempt: Attempt) -> Finding | None:
    """A line that the rule looks for was printed since it last spoke."""
    line, did = state.lines.get(rule.name), state.rules.get(rule.name)
    if line is None or (did and did.last and line.at <= did.last.at):
        return None
    return Finding(
        "log",
        key=f"{attempt.number}",
        why=f"rank {line.rank} on {line.node}: {line.line[:300]}",
        evidence={"line": line.line, "rank": line.rank, "node": line.node},
        nodes=(line.node,),
        ranks=(line.rank,),
        blame="likely",
        onset_at=line.at,
        onset_step=attempt.step,
    )


def _finding(
    detector: str, key: str, why: str, state: EngineState, onset_at: float, evidence: Mapping[str, Json]
) -> Finding:
    step = state.attempt.step if state.attempt else -1
    return Finding(detector, key, why, evidence={**evidence, "step": step}, onset_at=onset_at, onset_step=step)
