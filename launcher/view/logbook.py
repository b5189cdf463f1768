"""The report of a run as text: a short logbook to read in the morning. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from launcher.accounting import PARTS
from launcher.view.words import cost, counted, deeds, duration, number, percent, steps

_MAX_CELL = 120
_MOST = 20  # lines of a list


def to_markdown(body: Mapping[str, Any]) -> str:
    """Markdown of a report."""
    parts = (_header, _time, _attempts, _environment, _amendments, _incidents, _drains, _warnings, _remarks)
    sections = [part(body) for part in parts]
    return "\n\n".join("\n".join(section) for section in sections if section) + "\n"


def _header(body: Mapping[str, Any]) -> list[str]:
    target = f" of {body['target_step']:,}" if body["target_step"] else ""
    reason = f" ({body['reason']})" if body["reason"] else ""
    digest = body["final_digest"]
    lines = [
        f"# {body['run']}: {body['state']}{reason}",
        "",
        f"Step {steps(body['step'])}{target}, loss {number(body['loss'])}, after {duration(body['elapsed_s'])}.",
        _kept(body),
        f"{counted(body['restarts'], 'restart')}, {_lost(body)}, {counted(len(body['incidents']), 'incident')}.",
    ]
    if branch := body["branched_from"]:
        lines.insert(2, f"Began from step {branch['step']:,} of run {branch['run']} (attempt {branch['attempt']}).")
    if code := body["code"]:
        lines.append(f"Code: {code['label']}" + (f", of {code['root']}." if code["root"] else "."))
    if digest:
        mark = {True: "comparable", False: "not comparable", None: "comparability unknown"}
        lines.append(f"Final digest `{digest}`, {mark[body['digest']['comparable']]}: {body['digest']['why']}.")
    return lines


def _kept(body: Mapping[str, Any]) -> str:
    if body["ettr"] is None:
        return (
            f"How much of that went into steps that are kept is not known (ETTR -; goodput {percent(body['goodput'])})."
        )
    return f"{percent(body['ettr'])} of that went into steps that are kept (ETTR); goodput {percent(body['goodput'])}."


def _lost(body: Mapping[str, Any]) -> str:
    return "steps lost -" if body["lost_steps"] is None else f"{counted(body['lost_steps'], 'step')} lost"


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
        (one["attempt"], one["started_at"] or "-", f"{steps(one['from_step'])} to {steps(one['last_step'])}",
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
            f"### {one['id']}. {one['rule']}{where}, at step {steps(one['step'])}, {one['opened_at']}",
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
        if one["id"] > incident["id"]
        and one["rule"] == incident["rule"]
        and abs((one["step"] or 0) - (incident["step"] or 0)) <= 1
    ]
    return f"not for long: the same again as {again[0]}" if again else "yes"


def _drains(body: Mapping[str, Any]) -> list[str]:
    rows = [(one["at"], one["node"], one["detail"], one["reason"] or "-") for one in body["drains"]]
    head = ("when", "node", "what came of it", "reason given")
    return ["## Nodes drained", "", *_table(head, rows)] if rows else []


def _warnings(body: Mapping[str, Any]) -> list[str]:
    said = body["warnings"]
    lines = [f"- {one['at']}: {one['text']}" for one in said[-_MOST:]]
    hidden = [f"- {counted(len(said) - _MOST, 'older one')} before these"] if len(said) > _MOST else []
    return ["## Warnings", "", *hidden, *lines] if lines else []


def _remarks(body: Mapping[str, Any]) -> list[str]:
    """What a careful reader should know of the data themselves."""
    faults = [f"- {fault}" for fault in body["samples"]["faults"][:_MOST]]
    damage = [f"- {one['file']} at byte {one['offset']}: {one['reason']}" for one in body["damage"][:_MOST]]
    lines = ["## Samples", "", "Not every sample was used exactly once:", *faults] if faults else []
    if damage:
        lines += [*([""] if lines else []), "## Journal", "", "Unreadable lines, left out:", *damage]
    return lines
