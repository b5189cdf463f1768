"""What a person does to the host ledger: exclude and allow. Each answer says how to take it back."""

from __future__ import annotations

import difflib
import secrets
import time
from collections.abc import Collection, Sequence

from launcher.errors import WrongUse
from launcher.hosts.ledger import Ledger
from launcher.hosts.names import folded
from launcher.hosts.records import Allowed, Excluded
from launcher.hosts.standing import excluded


def exclude(
    ledger: Ledger, names: Sequence[str], reason: str, lasts_s: float | None, author: str, known: Collection[str] | None
) -> list[str]:
    """Leave hosts out for so long; None: until they are allowed. `known`: all there are; None: nobody can tell.

    Returns what to print. Raises WrongUse for hosts that do not exist, LaunchError where nothing can be written.
    """
    now = time.time()
    hosts = ledger.read().hosts
    if known is not None:
        refuse_unknown([name for name in names if name not in hosts], known, "Slurm has no node")
    until = None if lasts_s is None else now + lasts_s
    ledger.append(*(
        Excluded(
            id=secrets.token_hex(8),
            at=now,
            by=author,
            host=name,
            reason=reason,
            until=until,
            automatic=False,
            gpus=seen.gpus if name in hosts and (seen := hosts[name].identity) else (),
        )
        for name in names
    ))  # fmt: skip
    nodes = folded(names)
    when = f"until {_local(until)}" if until else "until somebody allows it"
    return [
        f"{nodes}: excluded from all runs {when}: {reason}",
        "runs that are on it leave it out from their next start; opt-launch replace RUN NODE has one leave it now",
        f"undo: opt-launch hosts allow '{nodes}'",
    ]


def allow(ledger: Ledger, names: Sequence[str], author: str, reason: str = "") -> list[str]:
    """Let hosts take part again. Returns what to print. Raises WrongUse for hosts of which nothing is known."""
    now = time.time()
    hosts = ledger.read().hosts
    refuse_unknown(names, hosts)
    lines: list[str] = []
    records: list[Allowed] = []
    ends = {name: sorted(host.exclusions.keys() - host.ended) for name, host in hosts.items()}
    left_out = excluded(hosts, now)
    for name in names:
        one = left_out.get(name)
        of = {name, one.host} if one else {name}  # it may be the same machine under another name
        records += [
            Allowed(
                id=secrets.token_hex(8), at=now, by=author, host=host, ends=tuple(sorted(ends[host])), reason=reason
            )
            for host in sorted(of)
            if ends[host]
        ]
        if one is None:
            lines.append(f"{name}: was not excluded")
        else:
            under = f", under the name {one.host}" if one.host != name else ""
            lines.append(f"{name}: allowed again; it was excluded by {one.by}{under}: {one.reason}")
    if records:
        ledger.append(*records)
        lines.append(f"undo: opt-launch hosts exclude '{folded(names)}' --reason '...'")
    return lines


def refuse_unknown(names: Sequence[str], known: Collection[str], what: str = "the host ledger does not know") -> None:
    """Raises WrongUse, with what may have been meant, if some of the names are not known."""
    unknown = [name for name in names if name not in known]
    if unknown:
        near = difflib.get_close_matches(unknown[0], known, n=1)
        raise WrongUse(f"{what} {', '.join(unknown)}", hint=f"did you mean {near[0]}?" if near else "")


def _local(moment: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(moment))
