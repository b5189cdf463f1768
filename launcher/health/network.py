"""Checks of the network: the interface over which nodes talk, and InfiniBand ports."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from launcher.health.context import Context
from launcher.health.finding import Finding

ACTIVE = "4: ACTIVE"
# Of a port's counters those whose growth means trouble; a link that went down and came back is the worst.
COUNTERS = ("symbol_error", "link_error_recovery", "port_rcv_errors", "local_link_integrity_errors")
LINK_DOWNED = "link_downed"


def interface(at: Context) -> Iterator[Finding]:
    """Whether the one that was named is there and up."""
    if not at.interface:
        yield Finding(code="interface", verdict="skipped", summary="no interface was named (launch.network.interface)")
        return
    try:
        state = at.text(f"sys/class/net/{at.interface}/operstate")
    except FileNotFoundError:
        summary = "there is no such interface"
        yield Finding(code="interface", verdict="fail", subject=at.interface, summary=summary, remedy="drain")
        return
    is_up = state in ("up", "unknown")  # what has no carrier to tell of, like lo, says unknown
    yield Finding(
        code="interface",
        verdict="ok" if is_up else "fail",
        subject=at.interface,
        summary=f"its state is {state}",
        evidence={"operstate": state},
        limit="up",
        limit_source="config",
        remedy="none" if is_up else "drain",
    )


def infiniband(at: Context) -> Iterator[Finding]:
    """Ports that were active and are not, and errors they have counted since the last check."""
    ports = [*at.glob("sys/class/infiniband/*/ports/[0-9]*")]
    if not ports:
        yield Finding(code="infiniband-port", verdict="skipped", summary="there is no InfiniBand")
    else:
        summary = f"{len(ports)} InfiniBand ports"  # how many there should be, only other hosts know
        yield Finding(code="infiniband-count", verdict="ok", summary=summary, evidence={"ports": len(ports)})
    for port in ports:
        name = f"{port.parts[-3]}:{port.name}"
        yield _state(at, port, name)
        yield from _errors(at, port, name)


def _state(at: Context, port: Path, name: str) -> Finding:
    place = port.relative_to(at.root)
    state, rate = at.text(f"{place}/state"), at.text(f"{place}/rate")
    was = at.before.get(f"port/{name}", "")
    if state == ACTIVE:
        at.after[f"port/{name}"] = rate
        slower = bool(was) and was != rate
        return Finding(
            code="infiniband-port",
            verdict="warn" if slower else "ok",
            subject=name,
            summary=f"active at {rate}" + (f", and was at {was}" if slower else ""),
            evidence={"state": state, "rate": rate},
            limit=was or None,
            limit_source="baseline" if was else "",
        )
    if not was:
        return Finding(
            code="infiniband-port",
            verdict="skipped",
            subject=name,
            summary=f"{state}, and never seen active: perhaps nothing is plugged in",
            evidence={"state": state},
        )
    at.after[f"port/{name}"] = was
    return Finding(
        code="infiniband-port",
        verdict="fail",
        subject=name,
        summary=f"{state}, and was active at {was}",
        evidence={"state": state},
        limit=ACTIVE,
        limit_source="baseline",
        remedy="drain",
    )


def _errors(at: Context, port: Path, name: str) -> Iterator[Finding]:
    place = port.relative_to(at.root)
    grown = {
        counter: more
        for counter in (LINK_DOWNED, *COUNTERS)
        if (port / "counters" / counter).exists()
        and (more := at.grown(f"{name}/{counter}", at.number(f"{place}/counters/{counter}")))
    }
    if grown:
        told = ", ".join(f"{counter} +{more}" for counter, more in grown.items())
        yield Finding(
            code="infiniband-errors",
            verdict="warn",
            subject=name,
            summary=f"since the last check {told}",
            evidence=dict(grown),
            limit=0,
            limit_source="baseline",
        )
