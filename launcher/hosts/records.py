"""What the host ledger holds: one fact about one or several hosts a line. Pure.

`id` names the fact: written twice, by a supervisor and by its successor, it counts once. Times (`at`, `until`) are Unix
seconds. `by`: the person, or the run and its owner. A host is known by the name of its node; `boot_id` is the kernel's,
`gpus` are UUIDs.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal, TypeAlias

from annotated_types import Interval

FORMAT = 1

Remedy: TypeAlias = Literal["none", "restart_app", "reset_gpu", "reboot_node", "drain", "service", "raise_limit"]
Moment: TypeAlias = Annotated[float, Interval(ge=0, lt=32_503_680_000)]  # before the year 3000: no broken clock's
Verdict: TypeAlias = Literal["ok", "warn", "fail", "unknown", "skipped"]


@dataclass(frozen=True, kw_only=True)
class _Record:
    __pydantic_config__: ClassVar = {"allow_inf_nan": False, "str_max_length": 4096}

    id: str
    at: Moment
    by: str
    v: Literal[1] = FORMAT


@dataclass(frozen=True, kw_only=True)
class Seen(_Record):
    """The machine that had this name then."""

    kind: Literal["seen"] = "seen"
    host: str
    boot_id: str = ""
    gpus: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Served(_Record):
    """Hosts trained together for `hours` so far, in one attempt of a run; of the same id the most hours count."""

    kind: Literal["served"] = "served"
    hosts: tuple[str, ...]
    hours: Annotated[float, Interval(ge=0, lt=1e6)]
    run: str = ""


@dataclass(frozen=True, kw_only=True)
class Blamed(_Record):
    """An incident of a run was put down to a host. `code`: the detector, or that of the finding behind it."""

    kind: Literal["blamed"] = "blamed"
    host: str
    run: str
    code: str
    why: str = ""


@dataclass(frozen=True, kw_only=True)
class Found(_Record):
    """What a check said."""

    kind: Literal["found"] = "found"
    host: str
    code: str
    verdict: Verdict
    summary: str = ""
    evidence: dict[str, str | float | int | bool | None] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Excluded(_Record):
    """A host takes no part until `until`; None: until a person allows it.

    `gpus`: the machine is left out under any other name as well. `boot_id`: a later boot cures what a reset cures.
    `automatic`: by a policy, not by a person. `strikes`: so many exclusions in a row, this one among them.
    """

    kind: Literal["excluded"] = "excluded"
    host: str
    reason: str
    until: Moment | None
    automatic: bool
    code: str = ""
    remedy: Remedy = "none"
    strikes: int = 1
    boot_id: str = ""
    gpus: tuple[str, ...] = ()
    evidence: dict[str, str | float | int | bool | None] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Allowed(_Record):
    """A person lets a host take part again. `ends`: the ids of the exclusions taken back; later ones count."""

    kind: Literal["allowed"] = "allowed"
    host: str
    ends: tuple[str, ...]
    reason: str = ""


Record: TypeAlias = Seen | Served | Blamed | Found | Excluded | Allowed


def hosts_of(record: Record) -> tuple[str, ...]:
    """The hosts that a record is about."""
    return record.hosts if isinstance(record, Served) else (record.host,)
