"""The live screen: a snapshot as something rich can draw. Pure; at home in 80 x 24."""

from __future__ import annotations

import textwrap
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from launcher.view.plain import away, ends, judgement, progress
from launcher.view.words import (
    ENDED,
    bar,
    changed,
    clock,
    cost,
    counted,
    deeds,
    duration,
    number,
    percent,
    phases_of,
    shown_state,
    size,
    sparkline,
    steps,
    steps_of,
)

STALE_S, FROZEN_S = 5.0, 30.0
SMALLEST = (60, 15)  # below this the plain lines read better
ROOMY = 20  # lines, from which on what comes next may take several
_COLOURS = {
    "SUCCEEDED": "green", "RUNNING": "green", "ALIVE": "green", "RECOVERED": "green",
    "PENDING": "yellow", "STARTING": "yellow", "SUSPECT": "yellow", "OPEN": "yellow", "ADVISED": "dim", "NOTED": "dim",
    "WATCHED": "yellow", "HEALED": "green", "STAYED": "dim",
    "RECOVERING": "cyan", "PAUSED": "magenta", "HELD": "red", "FAILED": "red", "STOPPED": "red", "LOST": "red",
    "ENDED": "dim", "GONE": "dim",
}  # fmt: skip
_WORST = {"lost": 0, "excluded": 1, "active": 2, "spare": 3}
_MARKS = {"lost": "x", "excluded": "x", "spare": "."}


def screen(snap: dict[str, Any], width: int = 80, height: int = 24) -> RenderableType:
    """The picture of a run that fits into `width` x `height` characters."""
    told = [*_next(snap, width, roomy=height >= ROOMY), *_remarks(snap)]
    nodes, incidents, checkpoints = _shares(snap, height - 10 - len(told))
    parts: list[RenderableType] = [
        _header(snap, width),
        _progress(snap, width),
        _numbers(snap, width),
        _losses(snap, width),
        *told,
        _rule(f"NODES {_count(snap)}", "worst first", width),
        _nodes(snap, nodes),
        _rule(_incident_title(snap), "newest first", width),
        _incidents(snap, incidents),
        _rule("CHECKPOINTS", "newest first", width),
        _checkpoints(snap, checkpoints),
    ]
    return Group(*parts)


def leaving(snap: dict[str, Any]) -> str:
    """How to leave the live screen, and what that does not touch."""
    left = " q or Ctrl-C leaves"
    if not snap["alive"]:
        return left
    return left + ("; the run stays in the queue" if snap["job"]["waiting"] else "; the run goes on")


def _shares(snap: dict[str, Any], room: int) -> tuple[int, int, int]:
    """How many nodes, incidents and checkpoints are shown; what one leaves free the next may have."""
    room = max(3, room)
    checkpoints = max(1, min(len(snap["checkpoints"]), 3, room // 3))
    incidents = max(1, min(len(snap["incidents"]), max(2, (room - checkpoints) // 2)))
    nodes = max(1, min(len(snap["nodes"]), room - checkpoints - incidents))
    return nodes, incidents, checkpoints


def _spread(left: Text, right: Text, width: int) -> Text:
    """Two texts at both ends of a line; the left one gives way."""
    left.truncate(max(0, width - right.cell_len - 1), overflow="ellipsis")
    return left + Text(" " * max(1, width - left.cell_len - right.cell_len)) + right


def _state(word: str) -> Text:
    return Text(word, style=_COLOURS.get(word, ""))


def _header(snap: dict[str, Any], width: int) -> Text:
    state = shown_state(snap)
    told = Text(state, style="red") if state == "GONE" else _state(state)
    left = Text.assemble(" ", (snap["run"], "bold"), "   ", told)
    left.append(f"   attempt {snap['attempt']}")
    left.append(f"   job {snap['job_id']}" if snap["job_id"] else "")
    left.append(f"   up {duration(snap['elapsed_s'])}")
    return _spread(left, _freshness(snap), width)


def _freshness(snap: dict[str, Any]) -> Text:
    """A frozen supervisor must be seen: the age of the newest word from it."""
    if snap["state"] in ENDED:
        return Text(f"ended {clock(snap['updated_at'])}", style="dim")
    if waiting := snap["job"]["waiting"]:
        told = "" if waiting["told_s"] is None else f", {duration(waiting['told_s'])} ago"
        return Text(f"in the queue{told}", style="yellow")
    age = snap["age_s"]
    if not snap["alive"]:
        return Text(f"last word {duration(age)} ago", style="red")
    if age < STALE_S:
        return Text(f"live, {age:.0f}s ago", style="green")
    return Text(f"STALE, {duration(age)} ago", style="yellow" if age < FROZEN_S else "red")


def _progress(snap: dict[str, Any], width: int) -> Text:
    text = Text(f" {progress(snap)}")
    target = snap["target_step"]
    if target and snap["step"] is not None:
        share = snap["step"] / target
        text.append(f"  {percent(share)} [{bar(share, max(6, min(40, width - 70)))}]")
        goes_on = snap["alive"] and not snap["job"]["waiting"]
        if snap["median_step_s"] and goes_on:
            text.append(f"  eta {duration((target - snap['step']) * snap['median_step_s'])}")
    text.append(f"  ettr {percent(snap['ettr'])}  goodput {percent(snap['goodput'])}")
    return _cut(text, width)


def _cut(text: Text, width: int) -> Text:
    text.truncate(width, overflow="ellipsis")
    return text


def _numbers(snap: dict[str, Any], width: int) -> Text:
    metrics = snap["metrics"]
    told = [f" loss {number(snap['loss'])}"]
    known = {key: number(metrics[key]) for key in ("grad_norm", "lr", "scale") if metrics.get(key) is not None}
    told += [f"{name} {known[key]}" for key, name in (("grad_norm", "gnorm"), ("lr", "lr")) if key in known]
    told += [f"step time {duration(snap['median_step_s'])}"]
    told += [f"scale {known['scale']}"] if "scale" in known else []
    return _spread(Text("  ".join(told)), Text(ends(snap)), width)


def _line(text: Text) -> Text:
    text.no_wrap, text.overflow = True, "ellipsis"
    return text


def _losses(snap: dict[str, Any], width: int) -> Text:
    known = [loss for loss in snap["losses"] if loss is not None]
    least = f"  min {number(min(known))}" if known else ""
    return Text(" loss ") + Text(sparkline(snap["losses"], width - 7 - len(least)), style="cyan") + Text(least)


def _next(snap: dict[str, Any], width: int, *, roomy: bool) -> list[Text]:
    """What comes next, and why: in one line, or where that is too narrow and there is room, in up to four."""
    action, reason = snap["next_action"], snap["reason"]
    told = Text.assemble(_word("NEXT", "bold cyan"), action, (f"   {reason}" if reason else "", "yellow"))
    if not roomy or told.cell_len <= width:
        return [_line(told)]
    parts = [("NEXT", "bold cyan", action, ""), *([("WHY", "bold yellow", reason, "yellow")] if reason else [])]
    return [
        _line(Text.assemble(_word("" if index else word, style), (text, colour)))
        for word, style, about, colour in parts
        for index, text in enumerate(textwrap.wrap(about, width - 7, max_lines=2, placeholder=" …"))
    ]


def _word(word: str, style: str) -> Text:
    return Text.assemble(" ", (f"{word:<4}", style), "  ")


def _remarks(snap: dict[str, Any]) -> list[Text]:
    """What is no incident and should be known: the newest warning, and on what this attempt runs unlike the last."""
    differs = changed(snap, snap["attempt"])
    newest = [f"{clock(one['at'])} {one['text']}" for one in snap["warnings"][-1:]]
    newest = [*filter(None, [away(snap)]), *newest]
    told = [("WARN", "bold yellow", text) for text in newest] + [("NOTE", "bold", text) for text in [differs] if text]
    return [_line(Text.assemble(_word(word, style), text)) for word, style, text in told]


def _rule(title: str, note: str, width: int) -> Text:
    head, tail = f"-- {title} ", f" {note} --"
    return Text(head + "-" * max(0, width - len(head) - len(tail)) + tail, style="dim")


def _count(snap: dict[str, Any]) -> str:
    if snap["nodes"] and shown_state(snap) == "GONE":
        return f"{len(snap['nodes'])}: gone"
    roles = [node["role"] for node in snap["nodes"]]
    told = [f"{roles.count(role)} {role}" for role in ("active", "spare", "lost", "excluded") if role in roles]
    return f"{len(roles)}: {', '.join(told)}" if told else "none has answered"


def _grid(*ratios: int) -> Table:
    """Columns as wide as what is in them; those with a ratio share what is left and are cut."""
    table = Table.grid(padding=(0, 2, 0, 0), expand=True)
    for ratio in ratios:
        table.add_column(no_wrap=True, overflow="ellipsis", ratio=ratio or None)
    return table


def _badness(node: dict[str, Any]) -> tuple[int, int, int]:
    steps = [rank["step"] for rank in node["ranks"] if rank["step"] is not None]
    return (0 if node["state"] == "SUSPECT" else 1, _WORST.get(node["role"], 4), min(steps, default=0))


def _nodes(snap: dict[str, Any], shown: int) -> RenderableType:
    nodes = sorted(snap["nodes"], key=_badness)
    hidden = len(nodes) - shown
    shown -= 1 if hidden > 0 else 0
    table = _grid(0, 0, 0, 0, 0, 0, 1)
    for node in nodes[:shown]:
        mark = "~" if node["state"] == "SUSPECT" else _MARKS.get(node["role"], " ")
        beat = f"beat {duration(node['beat_s'])}" if node["beat_s"] is not None else ""
        ranks = ",".join(str(rank["rank"]) for rank in node["ranks"])
        step = f"step {steps_of(node)}" if node["ranks"] else ""
        why = node["reason"] or phases_of(node)
        name = f" {mark} {node['name']}"
        ranks = f"ranks {_short(ranks)}" if ranks else ""
        table.add_row(name, node["role"], _state(node["state"]), beat, ranks, step, why)
    if not nodes:
        return Text("   none has answered yet", style="dim")
    return Group(table, Text(f"   ... {len(nodes) - shown} more", style="dim")) if hidden > 0 else table


def _short(ranks: str) -> str:
    return ranks if len(ranks) <= 9 else f"{ranks.split(',', 1)[0]}..{ranks.rsplit(',', 1)[-1]}"


def _incident_title(snap: dict[str, Any]) -> str:
    opened = sum(1 for incident in snap["incidents"] if incident["state"] in ("OPEN", "HELD", "ASKED"))
    told = f"INCIDENTS {len(snap['incidents'])}" + (f" ({opened} open)" if opened else "")
    told += f", {counted(snap['restarts'], 'restart')}" if snap["restarts"] else ""
    return told + (f", {counted(snap['lost_steps'], 'step')} lost" if snap["lost_steps"] else "")


def _incidents(snap: dict[str, Any], shown: int) -> RenderableType:
    if not snap["incidents"]:
        return Text("   none", style="dim")
    table = _grid(0, 0, 0, 0, 0, 1)
    for one in [*reversed(snap["incidents"])][:shown]:
        told = ": ".join(part for part in (cost(one), deeds(one)) if part)
        where = ",".join(one["nodes"])[:16] or f"step {steps(one['step'])}"
        table.add_row(f" #{one['id']}", clock(one["opened_at"]), one["rule"], where, _state(one["state"]), told)
    return table


def _checkpoints(snap: dict[str, Any], shown: int) -> RenderableType:
    if not snap["checkpoints"]:
        return Text("   none yet", style="dim")
    table = _grid(0, 0, 0, 0, 1)
    for one in [*reversed(snap["checkpoints"])][:shown]:
        style = "green" if one["good"] else "" if one["complete"] else "red"
        said = Text(judgement(one), style="dim" if one["lineage"] == "abandoned" else style)
        attempt = f"attempt {one['attempt']}"
        table.add_row(f"   step {one['step']:,}", attempt, clock(one["committed_at"]), size(one["bytes"]), said)
    return table
