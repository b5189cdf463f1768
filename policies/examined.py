"""What checks of nodes have found: the detectors `gpu_fault` and `check`, and what `exclude: failed` leaves out. Pure.

What many nodes have at once is no fault of theirs: the guard of the host ledger (launcher/hosts/guard.py) in the run.
"""

from __future__ import annotations

from collections.abc import Mapping

from launcher.events import ActionDone, CheckFinding, Event, Json
from launcher.evolve import evolve
from policies.answer import Outcome, decision_of, remembered
from policies.finding import NOTHING, Answer, Finding
from policies.schema import Policy
from policies.state import EngineState, Fault
from policies.when import Check, GpuFault, When

COMMON_NODES, COMMON_SHARE = 3, 0.3
# From the first word of a fault to a decision about it: the others are looked at meanwhile (supervisor), so that what
# they have too is known, and what is over by then was none. As long as a rung waits for an examination.
SETTLE_S = 45.0
GPU, ECC, XID = "gpu", "gpu-ecc", "gpu-xid"  # codes of checks

Faults = Mapping[str, tuple[Fault, ...]]  # node -> what has failed there


def faulty_nodes(when: When, state: EngineState) -> Answer:
    """Nodes with failed checks that nobody has decided about in this attempt.

    What many have at once is another matter, and they tell of it one after the other. So before the first start all
    nodes are waited for, and later the others are given time.
    """
    attempt = state.attempt
    is_over = attempt is not None and (attempt.ended or attempt.done)
    if state.pending or state.is_held or state.is_over or state.commands or is_over:
        return NOTHING
    if attempt is None and len(state.examined) < state.nodes_wanted + state.spares_wanted:
        return NOTHING
    faults = _faults(when, state)
    new = _not_judged(faults)
    due = {node: of[0].since + (SETTLE_S if attempt else 0.0) for node, of in new.items()}
    settled = {node: of for node, of in new.items() if due[node] <= state.now}
    if not settled:
        return None, min(due.values(), default=None)
    common = common_cause(new, faults, state)
    told = new if common else settled
    needed = not common and not _enough_others(state)
    slots = attempt.slots if attempt else {}
    finding = Finding(
        when.detector,
        key=f"{state.decisions}:{','.join(told)}",  # told once, as they are judged then; what comes back is told again
        why=(common or _why(told)) + ("; it is needed: no other node is there" if needed else ""),
        evidence=_evidence(told),
        nodes=tuple(told),
        ranks=tuple(rank for node in told for rank in slots.get(node, ())),
        blame="none" if common else "certain",
        onset_at=state.now,
        onset_step=attempt.step if attempt else -1,
        needed=needed,
    )
    return finding, None


def failing_nodes(when: When, state: EngineState) -> list[str]:
    """Those that have what the detector looks for, whether or not that is decided upon."""
    return [*_faults(when, state)]


def failed_checks(_policy: Policy, state: EngineState, event: Event) -> Outcome:
    """The examination that a rung has asked for is over: who fails is left out, as part of the same incident."""
    asked = state.checking
    if asked is None or not isinstance(event, ActionDone):
        return state, ()
    if (event.action, event.decision) != ("check", asked.decision):
        return state, ()
    state = evolve(state, checking=None)
    faults = _faults(When(check=Check()), state) | _faults(When(gpu_fault=GpuFault()), state) if asked.excludes else {}
    if not faults:
        return state, ()
    common = common_cause(faults, faults, state)
    is_needed = not common and not _enough_others(state)
    finding = Finding(
        "check",
        key=asked.decision,
        why=(common or _why(faults)) + ("; without them nodes are lacking: none is left out" if is_needed else ""),
        evidence=_evidence(faults),
        nodes=tuple(faults),
        blame="none" if common else "certain",
        onset_at=state.now,
        onset_step=state.attempt.step if state.attempt else -1,
    )
    actions: dict[str, Json] = {} if common or is_needed else {"exclude": "blamed"}
    decision = decision_of(state, event, finding, asked.rule, actions, incident=asked.incident, counts=False)
    return remembered(evolve(state, decisions=state.decisions + 1), decision), (decision,)


def common_cause(of: Faults, all_faults: Faults, state: EngineState) -> str:
    """What of these so many nodes have that it is no fault of theirs; "" if nothing is."""
    present = len(state.examined - state.troubled)
    codes = {node: {fault.found.code for fault in faults} for node, faults in all_faults.items()}
    for one in sorted((fault.found for faults in of.values() for fault in faults), key=lambda one: one.code):
        count = sum(one.code in there for there in codes.values())
        if count >= COMMON_NODES and count >= COMMON_SHARE * present:
            return f"{count} of {present} nodes have {one.code}, a common cause, so none is left out: {one.told}"
    return ""


def _faults(when: When, state: EngineState) -> dict[str, tuple[Fault, ...]]:
    """The nodes that are there, with what has failed on them and the detector looks for, the oldest first."""
    found = {
        node: tuple(sorted((one for one in of.values() if _matches(when, one.found)), key=_age))
        for node, of in sorted(state.faults.items())
        if node not in state.troubled
    }
    return {node: of for node, of in found.items() if of}


def _age(fault: Fault) -> tuple[float, str]:
    return fault.since, fault.found.key


def _not_judged(faults: Faults) -> dict[str, tuple[Fault, ...]]:
    found = {node: tuple(one for one in of if not one.judged) for node, of in faults.items()}
    return {node: of for node, of in found.items() if of}


def _matches(when: When, one: CheckFinding) -> bool:
    if when.check:
        return one.code in when.check.codes if when.check.codes else not one.code.startswith(GPU)
    fault = when.gpu_fault
    if fault is None or not one.code.startswith(GPU):
        return False
    if fault.xid is None and fault.ecc_uncorrected is None:
        return True
    count, xid = one.evidence.get("uncorrected"), one.evidence.get("xid")
    if one.code == ECC and fault.ecc_uncorrected is not None:
        return isinstance(count, int) and count >= fault.ecc_uncorrected
    return one.code == XID and isinstance(xid, int) and any(first <= xid <= last for first, last in fault.xids)


def _enough_others(state: EngineState) -> bool:
    """Whether the run has all its nodes without those that fail; of who was not examined nothing is known."""
    wanted = len(state.attempt.slots) if state.attempt else state.nodes_wanted
    faulty = {node for node, of in state.faults.items() if any(one.judged != "common" for one in of.values())}
    return len(state.examined - state.troubled - state.barred - state.excluded - faulty) >= wanted


def _why(faults: Faults) -> str:
    return "; ".join(f"{node}: {_told(of)}" for node, of in faults.items())


def _told(faults: tuple[Fault, ...]) -> str:
    return "; ".join(fault.found.told for fault in faults)


def _evidence(faults: Faults) -> dict[str, Json]:
    """node -> the first of what has failed there, as the host ledger will hold it; `keys`: all of it."""
    return {"findings": {node: _about(of) for node, of in faults.items()}}


def _about(faults: tuple[Fault, ...]) -> dict[str, Json]:
    first = faults[0].found
    return {
        "code": first.code,
        "remedy": first.remedy,
        "told": _told(faults),
        "limit": first.limit,
        "readings": dict(first.evidence),
        "keys": [fault.found.key for fault in faults],
    }
