"""The logbook of a run: where the time went, every attempt, every incident with its cause and its cost."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from launcher.accounting import PARTS, Account, sample_faults
from launcher.code.record import read_code
from launcher.environment import changes
from launcher.events import AttemptStarted, CommandReceived, DrainDone, DrainUndone, Event, RunAmended
from launcher.fold import View
from launcher.journal import read_journal
from launcher.ledger import Ledger
from launcher.paths import RunPaths
from launcher.reader import Damage
from launcher.run import Attempt, Run
from launcher.view.snapshot import finite, read_live, snapshot_of
from launcher.view.words import cost, counted, deeds, duration, iso, number, percent
from policies.amended import SET, key_of

_MAX_CELL = 120


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
        "attempts": [_attempt(one, journal.events) for one in run.attempts],
        "amendments": [*_amendments_of(journal.events)],
        "drains": [_drain(event) for event in journal.events if isinstance(event, DrainDone | DrainUndone)],
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


def _attempt(attempt: Attempt, events: Sequence[Event]) -> dict[str, Any]:
    started = (event for event in events if isinstance(event, AttemptStarted) and event.attempt == attempt.number)
    return {
        "attempt": attempt.number,
        "started_at": iso(attempt.started_at),
        "first_step_at": iso(attempt.first_step_at or 0.0),
        "ended_at": iso(attempt.ended_at or 0.0),
        "start_s": attempt.first_step_at - attempt.started_at if attempt.first_step_at else None,
        "restore": list(attempt.restore) if attempt.restore else None,
        "from_step": attempt.restore[0] if attempt.restore else 0,
        "last_step": attempt.last_step,
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


# ---------------------------------------------------------------- the logbook as text


def to_markdown(body: Mapping[str, Any]) -> str:
    """A short logbook to read in the morning."""
    parts = (_header, _time, _attempts, _environment, _amendments, _incidents, _drains, _remarks)
    sections = [part(body) for part in parts]
    return "\n\n".join("\n".join(section) for section in sections if section) + "\n"


def _header(body: Mapping[str, Any]) -> list[str]:
    target = f" of {body['target_step']:,}" if body["target_step"] else ""
    reason = f" ({body['reason']})" if body["reason"] else ""
    digest = body["final_digest"]
    lines = [
        f"# {body['run']}: {body['state']}{reason}",
        "",
        f"Step {body['step']:,}{target}, loss {number(body['loss'])}, after {duration(body['elapsed_s'])}.",
        f"{percent(body['ettr'])} of that went into steps that are kept (ETTR); goodput {percent(body['goodput'])}.",
        f"{counted(body['restarts'], 'restart')}, {counted(body['lost_steps'], 'step')} lost, "
        f"{counted(len(body['incidents']), 'incident')}.",
    ]
    if branch := body["branched_from"]:
        lines.insert(2, f"Began from step {branch['step']:,} of run {branch['run']} (attempt {branch['attempt']}).")
    if code := body["code"]:
        lines.append(f"Code: {code['label']}" + (f", of {code['root']}." if code["root"] else "."))
    if digest:
        mark = {True: "comparable", False: "not comparable", None: "comparability unknown"}
        lines.append(f"Final digest `{digest}`, {mark[body['digest']['comparable']]}: {body['digest']['why']}.")
    return lines


def _table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    return [_row(head), _row(["---"] * len(head)), *(_row(row) for row in rows)]


def _row(cells: Sequence[object]) -> str:
    return f"| {' | '.join(_cell(str(cell)) for cell in cells)} |"


def _cell(text: str) -> str:
    """Text that stays within its cell."""
    text = " ".join(text.split()).replace("|", "\\|")
    return text if len(text) <= _MAX_CELL else text[: _MAX_CELL - 1] + "…"


def _hours(value: float) -> str:
    """Enough digits that a short run does not read as nothing."""
    return f"{value:.2f}" if value >= 1 else f"{value:.4f}"


def _time(body: Mapping[str, Any]) -> list[str]:
    account_, total = body["time"], body["time"]["total_s"]
    rows = [
        (part.replace("_", " "), duration(account_["seconds"][part]), _hours(account_["gpu_hours"][part]),
         percent(account_["seconds"][part] / total if total else None))
        for part in PARTS
        if account_["seconds"][part]
    ]  # fmt: skip
    whole = ("the whole", duration(total), _hours(account_["total_gpu_hours"]), percent(1.0 if total else None))
    return ["## Where the time went", "", *_table(("", "time", "GPU-hours", "share"), [*rows, whole])]


def _attempts(body: Mapping[str, Any]) -> list[str]:
    rows = [
        (one["attempt"], one["started_at"] or "-", f"{one['from_step']:,} to {one['last_step']:,}",
         duration(one["start_s"]), ", ".join(one["nodes"]), one["reason"] or "goes on")
        for one in body["attempts"]
    ]  # fmt: skip
    head = ("attempt", "started", "steps", "to first step", "nodes", "ended by")
    return ["## Attempts", "", *(_table(head, rows) if rows else ["None was started."])]


def _environment(body: Mapping[str, Any]) -> list[str]:
    rows = [
        (one["attempt"], what, *("-" if value is None else value for value in values))
        for one in body["environment_changes"]
        for what, values in one["changes"].items()
    ]
    head = ("with attempt", "what", "before", "after")
    return ["## What attempts ran on", "", *_table(head, rows)] if rows else []


def _amendments(body: Mapping[str, Any]) -> list[str]:
    rows = [
        (one["at"], one["author"], key, "-" if old is None else old, "-" if new is None else new)
        for one in body["amendments"]
        for key, (old, new) in one["changes"].items()
    ]
    return ["## Changes", "", *_table(("when", "by", "what", "before", "after"), rows)] if rows else []


def _incidents(body: Mapping[str, Any]) -> list[str]:
    if not body["incidents"]:
        return ["## Incidents", "", "None."]
    lines = ["## Incidents"]
    for one in body["incidents"]:
        where = f" on {', '.join(one['nodes'])}" if one["nodes"] else ""
        blame = "" if one["blame"] == "none" else f" (blame {one['blame']})"
        lines += [
            "",
            f"### {one['id']}. {one['rule']}{where}, at step {one['step']:,}, {one['opened_at']}",
            "",
            f"- Seen: {one['why'] or one['detector']}{blame}, decided after {duration(one['detected_s'])}.",
            f"- Decided: rule {one['rule']}: {deeds(one)}.",
            f"- Cost: {cost(one) or 'nothing yet'}.",
            f"- Cured: {_was_it_cured(one, body['incidents'])}.",
            *(f"- Note of {note['author']}, {note['at']}: {note['text']}" for note in one["notes"]),
        ]
    return lines


_UNTOUCHED = {
    "ADVISED": "nothing was done",
    "LEFT": "it was left as it is",
    "NOTED": "training went on",
    "WATCHED": "nothing is decided yet",
    "HEALED": "it healed by itself",
    "STAYED": "it stayed, and is the usual now",
}


def _was_it_cured(incident: Mapping[str, Any], incidents: Sequence[Mapping[str, Any]]) -> str:
    """Whether the deed was enough: steps went on, and the same rule was not needed at the same step again."""
    if incident["state"] != "RECOVERED":
        return _UNTOUCHED.get(incident["state"], f"no, {incident['state'].lower()}")
    again = [
        one["id"]
        for one in incidents
        if one["id"] > incident["id"] and one["rule"] == incident["rule"] and abs(one["step"] - incident["step"]) <= 1
    ]
    return f"not for long: the same again as {again[0]}" if again else "yes"


def _drains(body: Mapping[str, Any]) -> list[str]:
    rows = [(one["at"], one["node"], one["detail"], one["reason"] or "-") for one in body["drains"]]
    head = ("when", "node", "what came of it", "reason given")
    return ["## Nodes drained", "", *_table(head, rows)] if rows else []


def _remarks(body: Mapping[str, Any]) -> list[str]:
    """What a careful reader should know of the data themselves."""
    faults = [f"- {fault}" for fault in body["samples"]["faults"][:20]]
    damage = [f"- {one['file']} at byte {one['offset']}: {one['reason']}" for one in body["damage"][:20]]
    lines = ["## Samples", "", "Not every sample was used exactly once:", *faults] if faults else []
    if damage:
        lines += [*([""] if lines else []), "## Journal", "", "Unreadable lines, left out:", *damage]
    return lines
