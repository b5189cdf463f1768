"""How ranks come to an end: killed, or asked to save and end first. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from launcher.abilities import Abilities
from launcher.events import AttemptEnded
from launcher.moves import Emit, Fleet, Move, Send
from launcher.reporter import SAVE, STOP
from launcher.run import Attempt, Run, RunState
from launcher.starts import begin


def stray_ranks(run: Run, fleet: Fleet) -> Iterator[Send]:
    """Ranks of an older attempt, on a node that had fallen silent and is back."""
    live = run.live_attempt
    for node, inventory in fleet.answering.items():
        if inventory.ranks_alive and (live is None or inventory.attempt < live.number):
            yield Send(node, {"type": "kill", "attempt": inventory.attempt})


def clear(run: Run, fleet: Fleet, reason: str) -> list[Move]:
    """Kill the ranks of the live attempt; once every answering node of it has confirmed, the attempt has ended."""
    attempt = run.live_attempt
    assert attempt is not None
    left = [
        node for node in attempt.slots if node in fleet.answering and fleet.answering[node].cleared < attempt.number
    ]
    if left:
        return [Send(node, {"type": "kill", "attempt": attempt.number}) for node in left]
    return [Emit(AttemptEnded(at=fleet.now, attempt=attempt.number, reason=reason))]


def end_gently(
    run: Run, attempt: Attempt, fleet: Fleet, trainer: Abilities, since: float, reason: str, limit_s: float = 0.0
) -> list[Move]:
    """Have the trainer save and end; kill what does not end in time, or by itself, and what has nothing to save yet."""
    finished = len(attempt.exits) == attempt.ranks
    overdue = fleet.now - since > (limit_s or trainer.save_s)
    failing = any(code != 0 for code in attempt.exits.values())
    if finished and fleet.committing and not overdue:
        return []  # what was just saved is not there to go on from yet
    nothing_to_save = not attempt.has_begun or run.state is RunState.HELD or run.pending
    saved = bool(trainer.signal) and trainer.saves == "goes_on" and saved_since(run, since)
    if finished or overdue or failing or nothing_to_save or saved or trainer.saves == "never":
        return clear(run, fleet, reason)
    return [*begin(run, attempt, fleet, trainer), *wish(attempt, trainer, STOP | SAVE, since)]


def saved_since(run: Run, at: float) -> bool:
    head = run.checkpoints.get(run.head) if run.head else None
    return head is not None and head.committed_at > at


def wish(attempt: Attempt, trainer: Abilities, bits: int, asked_at: float) -> list[Move]:
    """Ask the trainer for something, through the rank that speaks for all or by a signal to each.

    The time tells one wish from another.
    """
    if trainer.signal:
        signal = {"type": "signal", "attempt": attempt.number, "signal": trainer.signal, "wish": asked_at}
        return [Send(node, signal) for node in attempt.slots]
    return [to_first_rank(attempt, {"type": "wanted", "bits": bits, "wish": asked_at})]


def to_first_rank(attempt: Attempt, message: Mapping[str, object]) -> Send:
    node = next(node for node, ranks in attempt.slots.items() if 0 in ranks)
    return Send(node, {"type": "to_rank", "attempt": attempt.number, "rank": 0, "message": message})
