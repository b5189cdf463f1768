"""The detectors, one function for a rule's `when`: its finding, or when to look again.

Silence and exits have modules of their own; hangs, draining nodes and numbers are here. Limits without a source are
choices of ours.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

from launcher.events import Json, RankProgress, StepDone, StepsStopped
from policies.exits import failed_rank, matches_exit
from policies.finding import NOTHING, Answer, Finding, percentile
from policies.schema import Rule
from policies.silence import lost_nodes, suspects
from policies.state import Attempt, EngineState
from policies.surroundings import surroundings
from policies.when import Hang, NonFinite, Phases, Threshold

FIRST_STEP_S = 1800.0


def look(rule: Rule, state: EngineState) -> Answer:
    """What the detector of an infrastructure rule says now."""
    when = rule.when
    if when.node_lost:
        return lost_nodes(state, when.node_lost)
    if when.exit:
        finding, deadline = failed_rank(state)
        return (finding if finding and matches_exit(when.exit, finding.evidence) else None), deadline
    if when.draining:
        return draining_nodes(state), None
    if when.hang:
        return hang(state, when.hang, rule.for_.seconds or 0.0 if rule.for_ else 0.0)
    return surroundings(rule, state)


# ---------------------------------------------------------------- hangs


def hang(state: EngineState, detector: Hang, for_s: float = 0.0) -> Answer:
    """Nothing moves though every node answers."""
    attempt = state.judged
    if attempt is None or state.pending or attempt.ended or attempt.exits or suspects(state, attempt):
        return NOTHING
    stopped = state.stopped
    if attempt.is_up and not attempt.has_stepped:
        return NOTHING  # it tells nothing by which a hang could be known
    if not attempt.has_stepped:
        limit, what, since = detector.first_step or FIRST_STEP_S, "no first step", attempt.started_at
    elif stopped and not _is_deaf(stopped):
        limit, what = _limit(state, detector, stopped)
        since = stopped.since
    else:
        return NOTHING
    due = since + limit + for_s
    if state.now < due:
        return None, due
    return _hang_finding(state, attempt, what, limit, since), None


def _is_deaf(stopped: StepsStopped) -> bool:
    """Whether none of the ranks that tell of themselves is on a node that answers: what they do is not known."""
    return bool(stopped.ranks) and not any(map(is_heard, stopped.ranks.values()))


def is_heard(rank: RankProgress) -> bool:
    """Whether a rank has ever told of itself. Many a trainer lets one rank speak for all."""
    return rank.step >= 0 or rank.section > 0


def _limit(state: EngineState, detector: Hang, stopped: StepsStopped) -> tuple[float, str]:
    """How long nothing may move, and the words for it. Ranks wait for one that is in a declared phase."""
    heard = [one for one in stopped.ranks.values() if is_heard(one)]
    if heard and max(heard, key=lambda one: (one.step, one.section)).phase == "start":
        return detector.first_step or FIRST_STEP_S, "no second word of a step"
    declared = {one.phase for one in heard} & Phases.model_fields.keys()
    if declared:
        slowest = max(declared, key=lambda phase: (getattr(detector.phases, phase), phase))
        return getattr(detector.phases, slowest), f"no rank moved in phase {slowest}"
    usual = percentile(state.step_times, detector.no_step.percentile) or 0.0
    return max(detector.at_least, detector.no_step.factor * max(usual, stopped.usual_s)), "no rank moved"


def _hang_finding(state: EngineState, attempt: Attempt, what: str, limit: float, since: float) -> Finding:
    places = state.stopped.ranks if state.stopped else {}
    blame, ranks = blamed_ranks(places)
    nodes = tuple(sorted({places[rank].node for rank in ranks}))
    whom = f"; rank {', '.join(map(str, ranks[:8]))} on {', '.join(nodes[:8])} is behind ({blame})" if ranks else ""
    stood_s = state.now - since
    evidence: dict[str, Json] = {"stood_s": round(stood_s, 3), "limit_s": round(limit, 3), "step": attempt.step}
    return Finding(
        "hang",
        key=f"{attempt.number}:{since}",
        why=f"{what} for {stood_s:.1f} s, limit {limit:.1f} s{whom}",
        evidence=evidence,
        nodes=nodes,
        ranks=ranks,
        blame=blame,
        onset_at=since,
        onset_step=attempt.step,
        is_first_step=not attempt.has_stepped,
    )


def blamed_ranks(
    places: Mapping[int, RankProgress],
) -> tuple[Literal["certain", "likely", "undecidable"], tuple[int, ...]]:
    """Who holds the others up: stopped processes for certain, else the only rank that is behind all others."""
    if halted := tuple(sorted(rank for rank, one in places.items() if one.os_state == "T")):
        return "certain", halted
    heard = [rank for rank, one in places.items() if is_heard(one)]
    order = sorted(heard, key=lambda rank: (places[rank].step, places[rank].section))
    if len(order) > 1:
        last, next_ = places[order[0]], places[order[1]]
        if (last.step, last.section) < (next_.step, next_.section):
            return "likely", (order[0],)
    return "undecidable", ()


# ---------------------------------------------------------------- nodes wanted back


def draining_nodes(state: EngineState) -> Finding | None:
    """Nodes of the attempt that their admin wants back, while nothing else is amiss and there is something to save."""
    attempt = state.judged
    if attempt is None or state.pending or attempt.ended or attempt.exits or not attempt.has_stepped:
        return None
    wanted = {node: why for node, why in sorted(state.draining.items()) if node in attempt.slots}
    if not wanted:
        return None
    return Finding(
        "draining",
        key=f"{attempt.number}:{','.join(wanted)}",
        why="; ".join(f"{node}: {why}" for node, why in wanted.items()),
        evidence={"step": attempt.step},
        nodes=tuple(wanted),
        ranks=tuple(rank for node in wanted for rank in attempt.slots[node]),
        blame="certain",
        onset_at=state.now,
        onset_step=attempt.step,
    )


# ---------------------------------------------------------------- numbers


def bad_metrics(detector: NonFinite | Threshold, event: StepDone) -> dict[str, float]:
    """The metrics of a step that are what the detector looks for; empty when all is well."""
    if isinstance(detector, Threshold):
        value = event.metrics.get(detector.metric, math.nan)
        above = detector.above is not None and value > detector.above
        below = detector.below is not None and value < detector.below
        return {detector.metric: value} if above or below else {}
    # A skipped update with an infinite norm is how a loss scale finds its size. Some tell of several steps at once.
    if event.metrics.get("skipped", 0) >= 1:
        return {}
    values = {name: event.metrics[name] for name in detector.metrics if name in event.metrics}
    return {name: value for name, value in values.items() if not math.isfinite(value)}
