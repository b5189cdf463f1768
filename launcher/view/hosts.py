"""The host ledger as a table, worst first, as history, and as JSON."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from launcher.hosts.fold import Host
from launcher.hosts.ledger import Reading
from launcher.hosts.records import Allowed, Blamed, Excluded, Found, Record, Seen, Served
from launcher.hosts.standing import Standing, standings
from launcher.view.words import aligned, counted, duration, iso

SCHEMA = 1
_WORST = {"excluded": 0, "lemon": 1, "probation": 2, "ok": 3}
_BAD = ("warn", "fail")
_HEAD = ["HOST", "STATE", "UNTIL", "STRIKES", "FAILED", "DAYS", "RATE", "WHY"]


def chosen(reading: Reading, names: Collection[str] | None, *, everyone: bool, now: float) -> list[Standing]:
    """The hosts to show, the worst first: those named, or all, or those of which there is something to tell."""
    found = [one for name, one in standings(reading.hosts, now).items() if names is None or name in names]
    if names is None and not everyone:
        found = [one for one in found if _is_worth_telling(one, reading.hosts[one.name])]
    return sorted(found, key=lambda one: (_WORST[_word(one)], -one.rate, one.name))


def table(shown: Sequence[Standing], reading: Reading, now: float) -> list[str]:
    """One line a host under a heading, and one that sums up."""
    rows = [_HEAD, *(_row(one, reading.hosts[one.name], now) for one in shown)]
    rest = len(reading.hosts) - len(shown)
    counts = Counter(map(_word, shown))
    told = [f"{counts[word]} {word}" for word in _WORST if counts[word]]
    told += [f"{counted(rest, 'more host')} not shown (--all)"] if rest else []
    return [*(aligned(rows) if shown else []), ", ".join(told) or "the host ledger is empty"]


def json_of(shown: Sequence[Standing], reading: Reading, ledger: Path) -> dict[str, Any]:
    """One object: the hosts shown, worst first, and what of the ledger could not be read."""
    return {
        "schema": SCHEMA,
        "ledger": str(ledger),
        "hosts": [_object(one, reading.hosts[one.name]) for one in shown],
        "damage": list(map(str, reading.damage)),
    }


def history_lines(records: Sequence[Record]) -> list[str]:
    """A line for each record, the oldest first."""
    return [f"{_local(one.at)}  {one.kind:8}  {one_line(f'{_told(one)}  ({one.by})')}" for one in records]


def history_json(records: Sequence[Record]) -> list[dict[str, Any]]:
    """Each record as it is in the ledger, its times as ISO 8601."""
    return [_with_moments(asdict(one)) for one in records]


def _with_moments(record: dict[str, Any]) -> dict[str, Any]:
    return {key: iso(value) if key in ("at", "until") and value else value for key, value in record.items()}


def _word(one: Standing) -> str:
    return "lemon" if one.state == "ok" and one.is_lemon else one.state


def _is_worth_telling(one: Standing, host: Host) -> bool:
    return one.state != "ok" or bool(one.failures) or any(check.verdict in _BAD for check in host.checks.values())


def _row(one: Standing, host: Host, now: float) -> list[str]:
    left = one.exclusion
    until = "-" if left is None else "allowed" if left.until is None else _until(left.until, now)
    strikes = str(left.strikes) if left and left.automatic else "-"
    return [
        one.name, _word(one), until, strikes, str(one.failures), f"{one.days:.1f}", f"{one.rate:.2f}", _why(one, host),
    ]  # fmt: skip


def _until(moment: float, now: float) -> str:
    left_s = moment - now
    return f"{duration(abs(left_s))} ago" if left_s < 0 else f"in {duration(left_s)}"


def _why(one: Standing, host: Host) -> str:
    """What stands against a host, in a line."""
    if one.exclusion is not None:
        left = one.exclusion
        alias = f" (as {left.host})" if left.host != one.name else ""
        return one_line(f"{left.reason} ({left.by}){alias}")
    bad = [(check.at, f"{code}: {check.summary}") for code, check in host.checks.items() if check.verdict in _BAD]
    bad += [(blame.at, f"{blame.code}: {blame.why}") for blame in host.blames.values()]
    return one_line(max(bad)[1]) if bad else ""


def _object(one: Standing, host: Host) -> dict[str, Any]:
    left, seen = one.exclusion, host.identity
    return {
        "host": one.name,
        "state": one.state,
        "lemon": one.is_lemon,
        "failures": one.failures,
        "node_days": round(one.days, 3),
        "failures_per_node_day": round(one.rate, 4),
        "exclusion": _with_moments(asdict(left)) if left else None,
        "identity": {"seen_at": iso(seen.at), "boot_id": seen.boot_id, "gpus": list(seen.gpus)} if seen else None,
        "checks": {
            code: {"at": iso(check.at), "verdict": check.verdict, "summary": check.summary}
            for code, check in sorted(host.checks.items())
        },
    }


def _told(record: Record) -> str:
    match record:
        case Seen():
            return f"boot {record.boot_id[:8] or '?'}" + (
                f", {counted(len(record.gpus), 'GPU')}" if record.gpus else ""
            )
        case Served():
            return f"{record.hours:.1f} h in run {record.run}, {counted(len(record.hosts), 'node')}"
        case Blamed():
            return f"run {record.run}: {record.code}: {record.why}"
        case Found():
            return f"{record.code}: {record.verdict}: {record.summary}"
        case Excluded():
            lasts = f"for {duration(record.until - record.at)}" if record.until else "until allowed"
            strike = f", strike {record.strikes}" if record.automatic else ""
            return f"{lasts}{strike}: {record.reason}"
        case Allowed():
            return record.reason or "no reason given"


def _local(moment: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(moment))


def one_line(text: str) -> str:
    """What others have written, without what would move a terminal's cursor."""
    return text if text.isprintable() else "".join(letter if letter.isprintable() else " " for letter in text)
