"""What a check says of a host. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from launcher.events import CheckFinding as Finding
from launcher.terms import Verdict

__all__ = ["NAGIOS", "OPEN_FILES", "WORST", "Finding", "worst", "worst_of"]

WORST: tuple[Verdict, ...] = ("fail", "unknown", "warn", "ok")
# What a node with eight ranks, their data loaders and our agent needs, with room: an estimate of ours, no vendor's. A
# rank of NCCL and its loaders have some hundred files open each.
OPEN_FILES = 4096
NAGIOS: dict[Verdict, int] = {"ok": 0, "skipped": 0, "warn": 1, "fail": 2, "unknown": 3}


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
