"""Numbers as people read them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

_BARS = " ▁▂▃▄▅▆▇█"
_GAP = "·"
ENDED = ("SUCCEEDED", "FAILED", "STOPPED")


def duration(seconds: float | None) -> str:
    """As in "1h05m", "42s", "0.31s"; "-" for nothing."""
    if seconds is None:
        return "-"
    if seconds < 1:
        return f"{seconds:.2f}s"
    if seconds < 10:
        return f"{seconds:.1f}s"
    whole = round(seconds)
    days, rest = divmod(whole, 86400)
    hours, rest = divmod(rest, 3600)
    minutes, left = divmod(rest, 60)
    if days:
        return f"{days}d{hours:02d}h"
    if hours:
        return f"{hours}h{minutes:02d}m"
    return f"{minutes}m{left:02d}s" if minutes else f"{left}s"


def percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}%"


def number(value: float | None, digits: int = 4) -> str:
    return "-" if value is None else f"{value:.{digits}g}"


def steps(number: int | None) -> str:
    """A number of steps; "-" for one that is not known."""
    return "-" if number is None else f"{number:,}"


def size(count: int | None) -> str:
    """SI units: "14.2 GB"."""
    if count is None:
        return "-"
    value = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


def counted(number: int, noun: str) -> str:
    """As in "1 step", "2 steps"."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """A line for each row, its cells in columns as wide as what is in them."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def iso(at: float) -> str | None:
    """Local time with its offset; None for a moment that has not come."""
    return datetime.fromtimestamp(at).astimezone().isoformat(timespec="milliseconds") if at else None


def clock(moment: str | None) -> str:
    """The time of day of an ISO 8601 moment."""
    return moment[11:19] if moment else "-"


def sparkline(values: Sequence[float | None], width: int) -> str:
    """The values as a row of bars, highest for the largest; a gap where there is no number."""
    if not values or width < 1:
        return ""
    shown = [values[i * len(values) // width] for i in range(width)] if len(values) > width else list(values)
    known = [value for value in shown if value is not None]
    low, high = min(known, default=0.0), max(known, default=0.0)
    span = high - low
    steps = len(_BARS) - 2
    return "".join(
        _GAP if value is None else _BARS[1 + (round((value - low) / span * steps) if span else 0)] for value in shown
    )


def bar(share: float, width: int) -> str:
    filled = round(max(0.0, min(1.0, share)) * width)
    return "#" * filled + "-" * (width - filled)


def deeds(incident: dict[str, Any]) -> str:
    """What was decided about an incident, in a few words."""
    decision = incident["decision"]
    parts = []
    for name, value in decision["actions"].items():
        origin = value.get("from") if name == "restart" and isinstance(value, dict) else None
        parts.append(f"restart from {origin}" if origin else f"{name} if need be" if value is True else name)
    told = ", ".join(parts) or "nothing"
    return {"advise": f"would: {told}", "ask": f"asks: {told}"}.get(decision["mode"], told)


def cost(incident: dict[str, Any]) -> str:
    """As in "+4.1s, 12 steps lost": how long until steps went on, and how many were done again."""
    parts = [f"+{duration(incident['recovered_s'])}"] if incident["recovered_s"] is not None else []
    if incident["lost_steps"]:
        parts.append(f"{counted(incident['lost_steps'], 'step')} lost")
    return ", ".join(parts)


def shown_state(snap: dict[str, Any]) -> str:
    """The state of a run as people are told it: GONE where it has not ended and nothing of it lives."""
    return snap["state"] if snap["alive"] or snap["state"] in ENDED else "GONE"


def changed(snap: dict[str, Any], attempt: int) -> str:
    """What an attempt ran on other than the one before, in a few words; "" where nothing changed."""
    from launcher.news import differs  # it brings all events along, which few who want words need

    names = [name for one in snap["environment_changes"] if one["attempt"] == attempt for name in one["changes"]]
    return differs(attempt, names) if names else ""


def steps_of(node: dict[str, Any]) -> str:
    """The step a node's ranks are at, as a range where they differ; "-" for one that has not begun, or tells none."""
    known = sorted({rank["step"] for rank in node["ranks"] if rank["step"] is not None})
    told = [f"{step:,}" if step >= 0 else "-" for step in known]
    return "..".join(dict.fromkeys((told[0], told[-1]))) if told else "-"


def phases_of(node: dict[str, Any]) -> str:
    phases = sorted({str(rank["phase"]) for rank in node["ranks"] if rank["phase"]})
    return ", ".join(phases)
