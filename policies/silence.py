"""The node_lost detector: a silent node is lost when the work, or the backend, says so too."""

from __future__ import annotations

import math
import re
from bisect import bisect_right
from collections.abc import Mapping

from launcher.events import Json, RankExited, StepsStopped
from policies.finding import NOTHING, Answer, Finding, percentile
from policies.state import Attempt, EngineState
from policies.when import NodeLost

COMMON_CAUSE_S = 60.0  # how long to wait when many agents fall silent together
COMMON_CAUSE_AGENTS, COMMON_CAUSE_SHARE, TOGETHER_S = 3, 0.3, 2.0
STOPPING_LOST_S = 2.0  # silence that loses a node while its attempt is being ended anyway

# How torch's backends and the kernel say that it is the other side that went away.
_BROKEN = re.compile(
    r"connection (was )?(likely )?(reset|closed|refused|aborted)|broken pipe|timed? ?out|socket ?timeout|"
    r"remote process exited|ncclRemoteError|NCCL communicator was aborted|failed to (recv|send)|(recv|send)\w* failed|"
    r"connect\w* to .*failed|peer (is )?(gone|closed)|no route to host|network is unreachable|end of file",
    re.IGNORECASE,
)
_BROKEN_TYPES = frozenset(
    {"ConnectionResetError", "ConnectionAbortedError", "ConnectionRefusedError", "BrokenPipeError"}
)


def is_broken_link(event: RankExited) -> bool:
    """Whether a rank died of a peer that went away, rather than by itself."""
    kind = event.error_type.rsplit(".", 1)[-1]
    return kind in _BROKEN_TYPES or bool(event.error and _BROKEN.search(event.error))


def kind_of_exit(event: RankExited) -> str:
    """The word by which failures of different ranks are compared."""
    return "broken link" if is_broken_link(event) else event.error_type or f"exit code {event.code}"


def suspects(state: EngineState, attempt: Attempt) -> list[str]:
    """The nodes of the attempt whose agents are silent and not known to be gone."""
    return [node for node in sorted(state.troubled) if node in attempt.slots and not state.agents[node].down]


def common_cause_until(state: EngineState) -> float | None:
    """Until when nothing is decided, because so many agents fell silent together that the cause is one."""
    silent = sorted(since for node in state.troubled if (since := _silent_since(state, node)) is not None)
    if len(silent) < COMMON_CAUSE_AGENTS:
        return None
    joined = sum(bool(agent.incarnation) and not agent.down for agent in state.agents.values())
    enough = max(COMMON_CAUSE_AGENTS, math.ceil(COMMON_CAUSE_SHARE * joined))
    at = 0
    while at < len(silent):
        together = bisect_right(silent, silent[at] + TOGETHER_S) - at
        if together >= enough and silent[at] + COMMON_CAUSE_S > state.now:
            return silent[at] + COMMON_CAUSE_S
        at += together if together >= enough else 1
    return None


def _silent_since(state: EngineState, node: str) -> float | None:
    agent = state.agents[node]
    return None if agent.down else agent.silent_since


def lost_nodes(state: EngineState, detector: NodeLost) -> Answer:
    """Nodes of the attempt that are lost: silent, and the work or the backend says so too."""
    attempt, pending = state.judged, state.pending
    if attempt is None or (attempt.ended and not pending) or (pending and not pending.restart):
        return NOTHING
    if not state.troubled and not attempt.replaced:
        return NOTHING
    reasons = dict.fromkeys(attempt.replaced, "its agent was started anew")
    reasons |= {node: down for node in state.troubled if node in attempt.slots and (down := state.agents[node].down)}
    deadlines: list[float] = []
    if (until := common_cause_until(state)) is not None:
        deadlines.append(until)
    else:
        for node in suspects(state, attempt):
            due, reason = _lost_at(state, attempt, node, detector)
            if due is not None and due <= state.now:
                reasons.setdefault(node, reason)
            elif due is not None:
                deadlines.append(due)
    lost = {node: reason for node, reason in reasons.items() if not pending or node not in pending.lost}
    if not lost:
        return None, min(deadlines, default=None)
    return _lost_finding(state, attempt, lost), None


def _lost_at(state: EngineState, attempt: Attempt, node: str, detector: NodeLost) -> tuple[float | None, str]:
    """When a suspect is lost, and why; no time while the steps of the others prove it alive."""
    agent = state.agents[node]
    since = agent.silent_since if agent.silent_since is not None else state.now
    if state.pending:
        return max(state.pending.at, agent.silent_at) + STOPPING_LOST_S, "silent while its ranks were being ended"
    if any(is_broken_link(one) and one.node not in state.troubled for one in attempt.exits):
        return agent.silent_at, "silent, and its peers lost their connections"
    if state.stopped and state.stopped.proof:
        return max(state.stopped.at, since + _proof_s(state, state.stopped)), "silent, and steps have stopped"
    if state.stopped or not attempt.has_stepped:
        # As long as steps went on, the node was alive, however long it had been silent.
        alone = max(since, state.stopped.since) if state.stopped else since
        return alone + detector.unproven, f"silent for {detector.unproven:g} s where no step could prove it alive"
    return None, ""


def _proof_s(state: EngineState, stopped: StepsStopped) -> float:
    """How long steps must stand still, counted from the start of a silence, to prove a loss.

    The supervisor waited so long before it spoke of a stop; one that is older than that proves no more.
    """
    usual = percentile(state.step_times, 99)
    waited = max(0.0, stopped.at - stopped.since)
    return waited if usual is None else min(waited, max(1.0, 3 * usual))


def _lost_finding(state: EngineState, attempt: Attempt, lost: Mapping[str, str]) -> Finding:
    nodes = tuple(sorted(lost))
    agents = [state.agents[node] for node in nodes if node in state.agents]
    signs = [sign for agent in agents for sign in (agent.silent_since, agent.down_since) if sign is not None]
    signs += [state.unwatched_since] if state.unwatched_since is not None else []
    onset_at = min(signs, default=state.now)
    evidence: dict[str, Json] = {"reasons": dict(lost), "step": attempt.step}
    if signs:
        evidence["silent_s"] = round(state.now - onset_at, 3)
    return Finding(
        "node_lost",
        key=f"{attempt.number}:{','.join(nodes)}",
        why="; ".join(f"{node}: {lost[node]}" for node in nodes),
        evidence=evidence,
        nodes=nodes,
        ranks=tuple(rank for node in nodes for rank in attempt.slots.get(node, ())),
        blame="certain",
        onset_at=onset_at,
        onset_step=attempt.step,
        is_first_step=not attempt.has_begun,
    )
