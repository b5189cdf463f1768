"""Verdicts for people and for programs. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from launcher.doctor.checks import Verdict

SCHEMA = 1
_SYMBOLS = {"ok": "+", "warn": "!", "fail": "x", "unknown": "?", "skipped": "-"}
_COLOURS = {"ok": "32", "warn": "33", "fail": "31", "unknown": "36", "skipped": "2"}
_STATE, _ABOUT = 7, 13  # columns; the second as wide as its longest name


def text_of(verdicts: Sequence[Verdict], *, colours: bool) -> str:
    """A line for each, and one more with the fix where something is not as it should be."""
    width = max([_ABOUT, *(len(verdict.about) for verdict in verdicts)])
    lines = [line for verdict in verdicts for line in _lines(verdict, width, colours=colours)]
    return "\n".join([*lines, _sum(verdicts)])


def json_of(verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """One object; `ok` is whether nothing failed."""
    return {"schema": SCHEMA, "ok": nothing_failed(verdicts), "checks": [asdict(one) for one in verdicts]}


def nothing_failed(verdicts: Sequence[Verdict]) -> bool:
    return all(one.state != "fail" for one in verdicts)


def _lines(verdict: Verdict, width: int, *, colours: bool) -> list[str]:
    word = f"{_SYMBOLS[verdict.state]} {verdict.state:{_STATE}}"
    if colours:
        word = f"\x1b[{_COLOURS[verdict.state]}m{word}\x1b[0m"
    where = f"{verdict.where}: " if verdict.where else ""
    line = f"{word} {verdict.about:{width}} {where}{verdict.said}"
    fix = " " * (_STATE + width + 4) + f"try: {verdict.fix}"
    return [line, fix] if verdict.fix and verdict.state != "ok" else [line]


def _sum(verdicts: Sequence[Verdict]) -> str:
    counts = {state: sum(one.state == state for one in verdicts) for state in _SYMBOLS}
    return ", ".join(f"{count} {state}" for state, count in counts.items() if count)
