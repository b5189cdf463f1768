"""What a check says of a host. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from launcher.hosts.records import Remedy, Verdict

Value: TypeAlias = str | float | int | bool | None
LimitSource: TypeAlias = Literal["", "device", "baseline", "peers", "table", "config", "kernel"]

WORST: tuple[Verdict, ...] = ("fail", "unknown", "warn", "ok")
NAGIOS: dict[Verdict, int] = {"ok": 0, "skipped": 0, "warn": 1, "fail": 2, "unknown": 3}


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One answer of one check: `code` is stable, `subject` what it is about (a port, a GPU, a folder).

    `evidence`: the readings. `limit` and where it came from: what they were compared with. `remedy`: what would help.
    `unknown` could not be measured: it is not ok, and excludes nobody.
    """

    code: str
    verdict: Verdict
    summary: str
    subject: str = ""
    evidence: dict[str, Value] = field(default_factory=dict)
    limit: Value = None
    limit_source: LimitSource = ""
    remedy: Remedy = "none"


def worst(findings: Iterable[Finding]) -> Verdict:
    """The verdict of all together; nothing at all is not known to be well."""
    return worst_of(one.verdict for one in findings)


def worst_of(verdicts: Iterable[Verdict]) -> Verdict:
    """The one that counts; what was only skipped is not known to be well."""
    there = {*verdicts}
    for verdict in WORST:
        if verdict in there:
            return verdict
    return "unknown"
