"""What Slurm's commands print, of all versions from 20.11 on. An unknown word is a value like any other.

Formats that are read: squeue and sinfo with -h and -o, sacct's column State, `scontrol -o show`, `show config`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

from launcher.backends.report import NodeReport

AS_OF = "Configuration data as of"
_NOTHING = frozenset({"Unknown", "N/A", "NONE", "None", "n/a", "(null)", ""})
_OVER = frozenset(
    {"BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "REVOKED", "TIMEOUT"}
)
_QUEUED = frozenset({"PENDING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "RESV_DEL_HOLD", "SPECIAL_EXIT"})
_JOB = re.compile(r"(?:^|\s)(JobState|Reason|Restarts|EndTime)=(\S*)")
_NODE = re.compile(r"(?:^|\s)(NodeName|State|Partitions)=(\S*)")
_PARTITION = re.compile(r"(?:^|\s)(PartitionName|Default|State|MaxTime)=(\S*)")
_NODE_REASON = re.compile(r"\sReason=(.*?)(?:\s+\[\w+@\S+\])?(?:\s+\w+=.*)?$")
# Marks behind the word of sinfo, and older scontrol's.
_MARKS = {
    "*": "not_responding", "~": "powered_down", "#": "powering_up", "!": "power_down", "%": "powering_down",
    "$": "maint", "@": "reboot_requested", "^": "reboot_issued", "-": "planned", "+": "completing",
}  # fmt: skip
_DOWN = frozenset({"down", "fail", "failing", "error", "powered_down", "powering_down"})
_DRAINING = frozenset({"drain", "drained", "draining", "drng"})
_CLOSED = frozenset(
    {"drain", "drained", "draining", "maint", "maintenance", "reserved", "inval", "invalid_reg", "future", "unknown"}
    | {"reboot_issued", "blocked", "not_responding"}
)
_SPAN = re.compile(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?")


@dataclass(frozen=True)
class Job:
    """What the controller says of a job. `ends_at`: Unix seconds, None where there is no limit or it is not known."""

    state: str
    reason: str
    restarts: int
    ends_at: float | None


@dataclass(frozen=True)
class InQueue:
    """What squeue says of a job. `starts_at`: when it began or is expected to, Unix seconds; None: nobody knows."""

    state: str
    reason: str = ""
    starts_at: float | None = None


@dataclass(frozen=True)
class Node:
    """What the controller says of a node. `said`: its state as written; `words`: the same taken apart."""

    name: str
    said: str
    words: frozenset[str]
    reason: str
    partitions: tuple[str, ...]

    @property
    def is_drained(self) -> bool:
        """Whether it is kept from new jobs, or will be once those on it have ended."""
        return bool(self.words & _DRAINING)

    @property
    def is_down(self) -> bool:
        """Whether it is gone, or on its way."""
        return bool(self.words & _DOWN)

    @property
    def takes_jobs(self) -> bool:
        """Whether it works, now or after the jobs that are on it."""
        return not self.words & (_DOWN | _CLOSED)


@dataclass(frozen=True)
class Partition:
    """What the controller says of a partition. `limit_s`: of a job's time; None: there is none."""

    name: str
    default: bool
    state: str
    limit_s: float | None


def is_over(state: str) -> bool:
    """Whether a job in this state ("" when Slurm knows it no more) will never run again; an unknown one is not over.

    sacct writes "CANCELLED by 1000", and may cut a word short with a "+".
    """
    words = set(re.findall(r"[A-Z][A-Z_]+", state.partition(" by ")[0]))
    return state == "" or (bool(words) and words <= _OVER)


def is_queued(state: str) -> bool:
    """Whether a job in this state waits for its turn, for the first time or again: no process of it lives."""
    return state in _QUEUED


def queue_of(text: str) -> dict[str, InQueue]:
    """The lines "JOB|STATE|START|REASON" of squeue, by job."""
    found: dict[str, InQueue] = {}
    for line in text.splitlines():
        job, *rest = (part.strip() for part in line.split("|", 3))
        if len(rest) == 3:
            state, starts, reason = rest
            found[job] = InQueue(state, "" if reason in _NOTHING else reason, moment(starts))
    return found


def job_of(text: str) -> Job | None:
    """A line of `scontrol -o show job`; None where it is none."""
    fields = dict(_JOB.findall(text))
    if "JobState" not in fields:
        return None
    reason, restarts = fields.get("Reason", ""), fields.get("Restarts", "")
    return Job(
        state=fields["JobState"],
        reason="" if reason in _NOTHING else reason.replace("_", " "),
        restarts=int(restarts) if restarts.isdecimal() else 0,
        ends_at=moment(fields.get("EndTime", "")),
    )


def last_that_ran(text: str) -> tuple[str, str] | None:
    """(job, state) of the last of sacct's lines "JobID|State|Start" whose job was ever started, or of the first."""
    lines = [parts for line in text.splitlines() if len(parts := line.split("|")) == 3]
    started = [line for line in lines if line[2] not in _NOTHING] or lines[:1]
    return (started[-1][0], started[-1][1]) if started else None


def node_words(state: str) -> frozenset[str]:
    """A node's state taken apart: "down*" is down and not_responding, "MIXED+DRAIN" mixed and drain."""
    words: set[str] = set()
    for part in state.strip().lower().split("+"):
        word = part.rstrip("".join(_MARKS))
        words |= {word, *(_MARKS[mark] for mark in part[len(word) :])}
    if state.endswith("+"):
        words.add(_MARKS["+"])
    return frozenset(words - {""})


def reports(text: str) -> dict[str, NodeReport]:
    """The lines "NODE STATE REASON" of sinfo, the reason "none" or left out where there is none.

    One that only does not respond is not down yet.
    """
    found: dict[str, NodeReport] = {}
    for line in text.splitlines():
        name, _, rest = line.strip().partition(" ")
        state, _, reason = (part.strip() for part in rest.strip().partition(" "))
        said = f"Slurm says: {state}" + ("" if reason in _NOTHING | {"none"} else f" ({reason})")
        words = node_words(state)
        if name:
            drains = bool(words & _DRAINING)
            down, draining = said if words & _DOWN else "", said if drains else ""
            found[name] = NodeReport(down, draining=draining, drain_reason=reason if drains else "")
    return found


def nodes_of(text: str) -> Iterator[Node]:
    """The lines of `scontrol -o show node`."""
    for line in text.splitlines():
        fields = dict(_NODE.findall(line))
        if "NodeName" in fields and "State" in fields:
            reason = _NODE_REASON.search(line)
            partitions = fields.get("Partitions", "")
            yield Node(
                fields["NodeName"],
                fields["State"],
                node_words(fields["State"]),
                reason[1].strip() if reason and reason[1] not in _NOTHING else "",
                tuple(partitions.split(",")) if partitions not in _NOTHING else (),
            )


def partitions_of(text: str) -> Iterator[Partition]:
    """The lines of `scontrol -o show partition`."""
    for line in text.splitlines():
        fields = dict(_PARTITION.findall(line))
        if name := fields.get("PartitionName"):
            limit_s = span_s(fields.get("MaxTime", ""))
            yield Partition(name, fields.get("Default") == "YES", fields.get("State", ""), limit_s)


def settings_of(text: str) -> dict[str, str]:
    """The lines `Name = value` of `scontrol show config`, and the time at its head as AS_OF."""
    pairs = (line.partition("=") for line in text.splitlines() if "=" in line)
    found = {name.strip(): value.strip() for name, _, value in pairs}
    first, since, at = text.partition("\n")[0].partition(AS_OF)
    return found | {AS_OF: at.strip()} if since and not first else found


def moment(text: str) -> float | None:
    """Unix seconds of Slurm's local time; None where it is unknown or there is none."""
    try:
        return None if text in _NOTHING else datetime.fromisoformat(text).timestamp()
    except ValueError:
        return None


def span_s(text: str) -> float | None:
    """Seconds of a time limit ("2-00:00:00", "05:00", "30", "infinite"); None where there is no limit or no knowing.

    As Slurm reads it: minutes, minutes:seconds, hours:minutes:seconds, days-hours and so on.
    """
    match = _SPAN.fullmatch(text.strip())
    if match is None:
        return None
    days, *parts = match.groups()
    numbers = [int(part) for part in parts if part is not None]
    units = (3600, 60, 1) if days is not None or len(numbers) == 3 else (60, 1)
    return int(days or 0) * 86400.0 + sum(number * unit for number, unit in zip(numbers, units, strict=False))
