"""Silent data corruption: ranks that must hold the same bits, and do not. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from launcher.events import Json, StepDone
from policies.finding import Finding
from policies.when import Sdc

_FEW = 8


def corrupted(detector: Sdc, event: StepDone, slots: Mapping[str, tuple[int, ...]]) -> Finding | None:
    """Who holds other bits than the others, by the checksums of a step.

    Where more than half agree the rest is wrong; else one of those who differ is, and nobody knows which. Of several
    things that differ the one that suspects the fewest ranks tells: a wrong shard shows in all that was made of it too.
    """
    if event.step % detector.every:
        return None
    differing = {what: of for what, of in event.checksums.items() if len(set(of.values())) > 1}
    if not differing:
        return None
    suspects = {what: odd_ranks(of) for what, of in differing.items()}
    what = min(suspects, key=lambda one: (not suspects[one], len(suspects[one] or differing[one]), one))
    odd, of = suspects[what], differing[what]
    ranks = odd or tuple(sorted(of))
    nodes = tuple(sorted(node for node, own in slots.items() if set(own) & set(ranks)))
    who = f"{'ranks' if len(ranks) > 1 else 'rank'} {', '.join(map(str, ranks[:_FEW]))} on {', '.join(nodes[:_FEW])}"
    doubt = "" if odd else ", undecidable who is right"
    evidence: dict[str, Json] = {"step": event.step, "what": what, "compared": len(of), "differing": [*differing]}
    return Finding(
        "sdc",
        key=f"{event.attempt}:{what}:{ranks}",
        why=f"checksums of {what} at step {event.step}: {who} differ{doubt}, of {len(of)} that must hold the same bits",
        evidence=evidence,
        nodes=nodes,
        ranks=ranks,
        blame="certain" if odd else "undecidable",
        onset_at=event.at,
        onset_step=max(0, event.step - detector.every),  # when it was compared before, all was well
    )


def odd_ranks(checksums: Mapping[int, int]) -> tuple[int, ...]:
    """The ranks that do not hold what more than half of them do; empty where no such majority is."""
    counts: dict[int, int] = {}
    for number in checksums.values():
        counts[number] = counts.get(number, 0) + 1
    usual = max(counts, key=lambda number: counts[number])
    if 2 * counts[usual] <= len(checksums):
        return ()
    return tuple(sorted(rank for rank, number in checksums.items() if number != usual))
