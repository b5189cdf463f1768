"""The exit detector: which rank failed first and by itself, and what that says about its node."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from launcher.events import Json, RankExited
from policies.finding import NOTHING, Answer, Finding
from policies.silence import COMMON_CAUSE_S, common_cause_until, is_broken_link, kind_of_exit, suspects
from policies.state import Attempt, EngineState
from policies.when import Exit

# A broken link makes a node suspect only after a second, so peers' errors wait a little longer for the true cause.
SETTLE_S = 2.0

_SIGNALS = {4: "SIGILL", 6: "SIGABRT", 7: "SIGBUS", 8: "SIGFPE", 9: "SIGKILL", 11: "SIGSEGV", 15: "SIGTERM"}


def failed_rank(state: EngineState) -> Answer:
    """The rank that failed first and by itself, once it is clear enough who that is."""
    attempt = state.judged
    if attempt is None or state.pending or not attempt.exits:
        return NOTHING
    if (until := common_cause_until(state)) is not None:
        return None, until
    own = [one for one in attempt.exits if not is_broken_link(one)]
    if killed := next((one for one in own if one.code < 0), None):
        due = killed.at + SETTLE_S  # who ends a whole job sends SIGTERM, and word of it may still be on its way
        if killed.code == -15 and state.now < due and not attempt.ended:
            return None, due
        return _exit_finding(attempt, killed, blame="none"), None
    first = attempt.exits[0]
    # Peers of a silent node die of it: as long as it may still be found lost, they are not judged.
    wait_s = COMMON_CAUSE_S if not own and suspects(state, attempt) else SETTLE_S
    due = first.at + wait_s
    if state.now < due and not attempt.ended and (wait_s != SETTLE_S or not own or not _all_told(attempt)):
        return None, due
    if not own:
        return _exit_finding(attempt, first, blame="undecidable"), None
    cause = own[0]
    everywhere = _is_everywhere(attempt, cause) or _has_moved(state, cause)
    elsewhere = any(one.node != cause.node for one in own)
    likely = len(attempt.slots) > 1 and not elsewhere and not everywhere
    blame = "likely" if likely else "undecidable"
    return _exit_finding(attempt, cause, blame=blame, everywhere=everywhere), None


def _all_told(attempt: Attempt) -> bool:
    """Whether every node has reported a failure; on one node, every rank."""
    if len(attempt.slots) > 1:
        return {node for node, _ in attempt.exit_kinds} >= set(attempt.slots)
    return attempt.exit_count >= attempt.world_size


def _is_everywhere(attempt: Attempt, cause: RankExited) -> bool:
    same = {node for node, kind in attempt.exit_kinds if kind == kind_of_exit(cause)}
    if len(attempt.slots) > 1:
        return same >= set(attempt.slots)
    return _all_told(attempt) and len(attempt.exit_kinds) == 1


def _has_moved(state: EngineState, cause: RankExited) -> bool:
    """Whether the same error ended an earlier attempt before its first step on another node: it is the script's."""
    attempt = state.attempt
    if attempt is None or attempt.has_begun or cause.code < 0:
        return False
    told = (cause.error_type, cause.error)
    return any(one.node != cause.node and (one.error_type, one.error) == told for one in state.failed_early)


def _exit_finding(
    attempt: Attempt,
    cause: RankExited,
    *,
    blame: Literal["likely", "undecidable", "none"],
    everywhere: bool = False,
) -> Finding:
    line = cause.error.strip().split("\n", 1)[0][:300]
    told = f"{cause.error_type}: {line}" if cause.error_type and line else cause.error_type or line
    name = _SIGNALS.get(-cause.code, f"signal {-cause.code}")
    what = f"killed by {name}" if cause.code < 0 else f"exit code {cause.code}"
    evidence: dict[str, Json] = {"rank": cause.rank, "node": cause.node, "step": cause.step}
    evidence |= {"code": cause.code} | ({"signal": name} if cause.code < 0 else {})
    evidence |= {"error_type": cause.error_type, "error": line} if told else {}
    evidence["failed_ranks"] = attempt.exit_count
    evidence |= {"before_first_step": not attempt.has_begun, "everywhere": everywhere}
    # Being killed from outside, or losing a peer, says nothing about what the next attempt will do.
    repeats = cause.code not in (-9, -15) and not is_broken_link(cause)
    return Finding(
        "exit",
        key=str(attempt.number),
        why=f"rank {cause.rank} on {cause.node}: {told or what}",
        evidence=evidence,
        nodes=() if blame == "undecidable" else (cause.node,),
        ranks=(cause.rank,),
        blame=blame,
        onset_at=attempt.exits[0].at,
        onset_step=cause.step,
        error=(kind_of_exit(cause), line, cause.step) if repeats and attempt.has_stepped else None,
        is_first_step=not attempt.has_begun,
    )


def matches_exit(wanted: Exit, evidence: Mapping[str, Json]) -> bool:
    """Whether an exit, by its evidence, is one of those a rule is about."""
    return not unmatched(wanted, evidence)


def unmatched(wanted: Exit, evidence: Mapping[str, Json]) -> list[str]:
    """The parameters of a rule's detector that an exit does not meet."""
    kind = str(evidence.get("error_type", ""))
    names = {kind, kind.rsplit(".", 1)[-1]}
    met = {
        "codes": wanted.codes is None or evidence.get("code") in wanted.codes,
        "exception": wanted.exception is None or bool(names & set(wanted.exception)),
        "before_first_step": wanted.before_first_step in (None, evidence.get("before_first_step")),
        "everywhere": wanted.everywhere in (None, evidence.get("everywhere")),
    }
    return [name for name, is_met in met.items() if not is_met]
