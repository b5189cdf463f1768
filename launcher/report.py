"""The logbook of a run: where the time went, every attempt, every incident with its cause and its cost."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from launcher.accounting import Account, sample_faults
from launcher.code.record import read_code
from launcher.environment import changes
from launcher.events import AttemptStarted, CommandReceived, DrainDone, DrainUndone, Event, RunAmended, Warned
from launcher.fold import View
from launcher.journal import read_journal
from launcher.ledger import Ledger
from launcher.paths import RunPaths
from launcher.reader import Damage
from launcher.run import Attempt, Run
from launcher.view.snapshot import finite, read_live, snapshot_of
from launcher.view.words import duration, iso
from policies.amended import SET, key_of


def report(paths: RunPaths, now: float | None = None) -> dict[str, Any]:
    """The report as one JSON object: the snapshot and everything the whole history adds to it."""
    import time

    now = time.time() if now is None else now
    journal = read_journal(paths)
    view = View(books=Ledger(whole=True)).taken(journal.events)
    run, books = view.run, view.books.account(now)
    snap = snapshot_of(paths.name, view, read_live(paths), now)
    body = snap | {
        "final_digest": final_digest(run),
        "digest": comparability(run, _environments(paths, run)),
        "effective_loss": [{"step": step, "attempt": at, "loss": loss} for step, at, loss in books.loss_curve],
        "time": time_account(books),
        "code": _code(paths),
        "attempts": [attempt_account(one, journal.events) for one in run.attempts],
        "amendments": [*_amendments_of(journal.events)],
        "drains": [_drain(event) for event in journal.events if isinstance(event, DrainDone | DrainUndone)],
        "warnings": [{"at": iso(one.at), "text": one.text} for one in journal.events if isinstance(one, Warned)],
        "samples": {"ranges": len(books.kept_samples), "faults": sample_faults(books.kept_samples, books.first_sample)},
        "damage": [_damage(one) for one in journal.damage],
    }
    return finite(body)


def final_digest(run: Run) -> str | None:
    """The digest of the final weights, where the trainer computed one."""
    return next((one.done.final_digest for one in reversed(run.attempts) if one.done), None)


def time_account(books: Account) -> dict[str, Any]:
    """The parts of the time in seconds and GPU-hours; both sum to the whole."""
    return {
        "seconds": books.seconds,
        "gpu_hours": books.gpu_hours,
        "total_s": books.total_us / 1e6,
        "total_gpu_hours": sum(books.gpu_hours.values()),
        "slots": books.slots,
    }


def _code(paths: RunPaths) -> dict[str, Any] | None:
    """The code that was taken down last; None where that is not known."""
    try:
        code = read_code(paths)
    except (OSError, ValueError):
        return None
    return asdict(code) | {"label": code.label} if code else None


def attempt_account(attempt: Attempt, events: Sequence[Event]) -> dict[str, Any]:
    """What became of an attempt. Steps: from how many, None where its first one has yet to tell, to how many."""
    started = (event for event in events if isinstance(event, AttemptStarted) and event.attempt == attempt.number)
    return {
        "attempt": attempt.number,
        "started_at": iso(attempt.started_at),
        "first_step_at": iso(attempt.first_step_at or 0.0),
        "ended_at": iso(attempt.ended_at or 0.0),
        "start_s": attempt.first_step_at - attempt.started_at if attempt.first_step_at else None,
        "restore": list(attempt.restore) if attempt.restore else None,
        "from_step": attempt.from_step,
        "last_step": None if attempt.first_step_at is None and attempt.from_step is None else attempt.last_step,
        "nodes": list(attempt.slots),
        "ranks": attempt.ranks,
        "why": next((event.why for event in started), ""),
        "reason": attempt.reason,
        "exits": {str(rank): code for rank, code in sorted(attempt.exits.items())},
    }


def _amendments_of(events: Iterable[Event]) -> Iterator[dict[str, Any]]:
    """What people have asked for otherwise, of the run or of its policy."""
    for event in events:
        if isinstance(event, RunAmended) and event.changes:
            yield {"at": iso(event.at), "author": event.author, "changes": event.changes}
        elif isinstance(event, CommandReceived) and event.verb == SET and "path" in event.args:
            key, new = key_of(event), event.args["value"]
            for_s = event.args.get("for_s")
            told = f"{new} for {duration(for_s)}" if isinstance(for_s, (int, float)) else new
            changes = {f"policy.{key}": [event.args["before"], told]}
            yield {"at": iso(event.at), "author": event.author, "changes": changes}


def _drain(event: DrainDone | DrainUndone) -> dict[str, Any]:
    reason = event.reason if isinstance(event, DrainDone) else ""
    return {"at": iso(event.at), "node": event.node, "ok": event.ok, "detail": event.detail, "reason": reason}


def _damage(damage: Damage) -> dict[str, Any]:
    return {"file": damage.file, "offset": damage.offset, "reason": damage.reason}


# ---------------------------------------------------------------- may digests be compared


def _environments(paths: RunPaths, run: Run) -> dict[int, Mapping[str, Any]]:
    """What was recorded of the machines of each attempt that made a step."""
    found: dict[int, Mapping[str, Any]] = {}
    for attempt in run.attempts:
        try:
            body = json.loads(paths.environment(attempt.number).read_bytes())
        except (OSError, ValueError):
            continue
        if isinstance(body, dict):
            found[attempt.number] = body
    return found


def comparability(run: Run, environments: Mapping[int, Mapping[str, Any]]) -> dict[str, Any]:
    """Whether the final digest may be compared with that of another run; None where nobody recorded enough."""
    stepped = [one for one in run.attempts if one.first_step_at is not None]
    sizes = sorted({one.ranks for one in stepped})
    if len(sizes) > 1:
        return {"comparable": False, "why": f"the attempts had {', '.join(map(str, sizes))} ranks"}
    shapes = {tuple(sorted(len(ranks) for ranks in one.slots.values())) for one in stepped}
    if len(shapes) > 1:
        return {"comparable": False, "why": "the attempts had different numbers of ranks on their nodes"}
    known = [environments[one.number] for one in stepped if one.number in environments]
    if not known or len(known) < len(stepped):
        return {"comparable": None, "why": "the hardware of the attempts was not recorded"}
    changed = sorted({key for one in known[1:] for key in changes(known[0], one)})
    if changed:
        return {"comparable": False, "why": f"these changed between attempts: {', '.join(changed)}"}
    return {"comparable": True, "why": "every attempt had the same shape and the same hardware"}
