"""What checks of nodes have found: the detectors `gpu_fault` and `check`, and what `exclude: failed` leaves out. Pure.

What many nodes have at once is no fault of theirs: the guard of the host ledger (launcher/hosts/guard.py) in the run.
"""

from __future__ import annotations

from collections.abc import Mapping

from launcher.events import ActionDone, CheckFinding, Event, Json
from launcher.evolve import evolve
from policies.answer import Outcome, decision_of, remembered
from policies.finding import Finding
from policies.schema import Policy
from policies.state import EngineState
from policies.when import Check, GpuFault, When

COMMON_NODES, COMMON_SHARE = 3, 0.3
GPU, ECC, XID = "gpu", "gpu-ecc", "gpu-xid"  # codes of checks

Faults = Mapping[str, tuple[CheckFinding, ...]]  # node -> what has failed there


def faulty_nodes(when: When, state: EngineState) -> Finding | None:
    """Nodes with failed checks that nobody has decided about in this attempt.

    Before the first start all nodes are waited for, as what many have at once is another matter.
    """
    attempt = state.attempt
    is_over = attempt is not None and (attempt.ended or attempt.done)
    if state.pending or state.is_held or state.is_over or state.commands or is_over:
        return None
    if attempt is None and len(state.examined) < state.nodes_wanted + state.spares_wanted:
        return None
    faults = _faults(when, state)
    new = tuple(node for node in faults if node not in state.judged_faults)
    if not new:
        return None
    slots = attempt.slots if attempt else {}
    step = attempt.step if attempt else -1
    common = common_cause(faults, len(state.examined - state.troubled))
    why = common or "; ".join(f"{node}: {_told(faults[node])}" for node in new)
    needed = not common and not _enough_others(state, set(faults))
    return Finding(
        when.detector,
        key=f"{state.decisions}:{','.join(new)}",  # told once by `judged_faults`; what comes back is told again
        why=why + ("; it is needed: no other node is there" if needed else ""),
        evidence=_evidence(faults, new),
        nodes=new,
        ranks=tuple(rank for node in new for rank in slots.get(node, ())),
        blame="none" if common else "certain",
        onset_at=state.now,
        onset_step=step,
        needed=needed,
    )


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
    common = common_cause(faults, len(state.examined - state.troubled))
    is_needed = not _enough_others(state, set(faults))
    why = common or "; ".join(f"{node}: {_told(of)}" for node, of in faults.items())
    finding = Finding(
        "check",
        key=asked.decision,
        why=why + ("; without them nodes are lacking: none is left out" if is_needed and not common else ""),
        evidence=_evidence(faults, tuple(faults)),
        nodes=tuple(faults),
        blame="none" if common else "certain",
        onset_at=state.now,
        onset_step=state.attempt.step if state.attempt else -1,
    )
    actions: dict[str, Json] = {} if common or is_needed else {"exclude": "blamed"}
    decision = decision_of(state, event, finding, asked.rule, actions, incident=asked.incident, counts=False)
    return remembered(evolve(state, decisions=state.decisions + 1), decision), (decision,)


def common_cause(faults: Faults, present: int) -> str:
    """What so many nodes have at once that it is no fault of theirs; "" if nothing is."""
    for code in sorted({one.code for of in faults.values() for one in of}):
        count = sum(any(one.code == code for one in of) for of in faults.values())
        if count >= COMMON_NODES and count >= COMMON_SHARE * present:
            one = next(one for of in faults.values() for one in of if one.code == code)
            return f"{count} of {present} nodes have {code}, a common cause, so none is left out: {one.told}"
    return ""


def _faults(when: When, state: EngineState) -> dict[str, tuple[CheckFinding, ...]]:
    """The nodes that are there, with what has failed on them and the detector looks for."""
    found = {
        node: tuple(one for _, one in sorted(of.items()) if _matches(when, one))
        for node, of in sorted(state.faults.items())
        if node not in state.troubled
    }
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


def _enough_others(state: EngineState, faulty: set[str]) -> bool:
    """Whether the run has all the nodes that it wants without these; of who was not examined nothing is known."""
    wanted = len(state.attempt.slots) if state.attempt else state.nodes_wanted
    return len(state.examined - state.troubled - state.barred - state.excluded - faulty) >= wanted


def _told(faults: tuple[CheckFinding, ...]) -> str:
    return "; ".join(one.told for one in faults)


def _evidence(faults: Faults, nodes: tuple[str, ...]) -> dict[str, Json]:
    """node -> the first of what has failed there, as the host ledger will hold it."""
    return {
        "findings": {
            node: {
                "code": faults[node][0].code,
                "remedy": faults[node][0].remedy,
                "told": _told(faults[node]),
                "limit": faults[node][0].limit,
                "readings": dict(faults[node][0].evidence),
            }
            for node in nodes
        }
    }
