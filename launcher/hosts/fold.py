"""What the records of the ledger come to: `fold(records)`. Pure.

Writers have clocks of their own, and their files are read in any order and in parts. So the result does not depend on
the order of records, and a record that is read twice changes nothing: of all that is kept, each is a set, a largest or
a newest.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

from launcher.hosts.records import Allowed, Blamed, Excluded, Found, Record, Seen, Served, Verdict

WINDOW_S = 28 * 86400.0  # of what rates are made, as in Meta's study of lemon nodes (arXiv:2410.21680)


class Identity(NamedTuple):
    """The machine behind a name, as last seen."""

    at: float
    boot_id: str
    gpus: tuple[str, ...]


class Blame(NamedTuple):
    """An incident that was put down to the host."""

    at: float
    run: str
    code: str
    why: str


# One attempt that the host trained in: (at, hours). Plain: there are the most of these, and all are read each time.
Service: TypeAlias = tuple[float, float]


class Check(NamedTuple):
    """The newest answer of a check; `summary` of one that is ok is in the records only."""

    at: float
    verdict: Verdict
    summary: str


@dataclass
class Host:
    """All that is known of a host. Keys of `exclusions`, `blames` and `services` are ids of records."""

    name: str
    identity: Identity | None = None
    exclusions: dict[str, Excluded] = field(default_factory=dict)
    ended: set[str] = field(default_factory=set)  # exclusions that a person has taken back
    blames: dict[str, Blame] = field(default_factory=dict)
    services: dict[str, Service] = field(default_factory=dict)
    checks: dict[str, Check] = field(default_factory=dict)  # by code


Hosts: TypeAlias = dict[str, Host]


def fold(records: Iterable[Record], hosts: Hosts | None = None) -> Hosts:
    """The hosts after all these records. Takes over `hosts`, which are changed in place."""
    hosts = {} if hosts is None else hosts
    for record in records:
        if isinstance(record, Served):
            for name in record.hosts:
                _serve(_host(hosts, name), record)
        else:
            _apply(_host(hosts, record.host), record)
    return hosts


def pruned(hosts: Hosts, now: float) -> Hosts:
    """Without what is too old to count any more; takes over `hosts`."""
    since = now - WINDOW_S
    for host in hosts.values():
        host.blames = {id_: one for id_, one in host.blames.items() if one.at >= since}
        host.services = {id_: one for id_, one in host.services.items() if one[0] >= since}
        host.exclusions = {id_: one for id_, one in host.exclusions.items() if not _is_past(one, host, since)}
    return hosts


def _is_past(one: Excluded, host: Host, since: float) -> bool:
    if one.id in host.ended:
        return one.at < since
    return one.until is not None and one.until < since


def _host(hosts: Hosts, name: str) -> Host:
    found = hosts.get(name)
    if found is None:
        found = hosts[name] = Host(name)
    return found


def _serve(host: Host, record: Served) -> None:
    new, known = (record.at, record.hours), host.services.get(record.id)
    host.services[record.id] = new if known is None else max(known, new, key=lambda one: (one[1], one[0]))


def _apply(host: Host, record: Seen | Blamed | Found | Excluded | Allowed) -> None:
    match record:
        case Seen():
            seen = Identity(record.at, record.boot_id, record.gpus)
            host.identity = seen if host.identity is None else max(host.identity, seen)
        case Blamed():
            blame = Blame(record.at, record.run, record.code, record.why)
            host.blames[record.id] = min(blame, host.blames.get(record.id, blame))
        case Found():
            said = "" if record.verdict == "ok" else record.summary  # nearly all are well, and nobody reads of them
            check = Check(record.at, record.verdict, said)
            host.checks[record.code] = max(check, host.checks.get(record.code, check))
        case Excluded():
            known = host.exclusions.get(record.id, record)
            host.exclusions[record.id] = min(known, record, key=lambda one: (one.at, one.until or 0.0, one.reason))
        case Allowed():
            host.ended.update(record.ends)
