"""The commands `opt-launch hosts ...`: what runs remember of hosts together. Used by `cli`."""

from __future__ import annotations

import os
import sys
from typing import Annotated, Any, Literal

import typer

hosts_app = typer.Typer(no_args_is_help=True, help="What all runs remember of hosts, and which they leave out.")

Nodes = Annotated[list[str], typer.Argument(metavar="NODES", help="Names, or lists as Slurm writes them: gpu-[01-04].")]
AsJson = Annotated[bool, typer.Option("--json", help="JSON on standard output, nothing else.")]


@hosts_app.command(name="list")
def list_(
    nodes: Annotated[list[str] | None, typer.Argument(metavar="[NODES]", help="Only these.")] = None,
    everyone: Annotated[bool, typer.Option("--all", help="Also those of which there is nothing to tell.")] = False,
    as_json: AsJson = False,
) -> None:
    """Hosts that are left out, on probation or fail often, the worst first."""
    import time

    from launcher.hosts.deeds import refuse_unknown
    from launcher.hosts.names import unfolded
    from launcher.view import hosts as view

    ledger, now = _ledger(), time.time()
    reading = ledger.read()
    _tell([f"warning: {one}" for one in reading.damage])
    names = unfolded(nodes) if nodes else None
    refuse_unknown(names or [], reading.hosts)
    shown = view.chosen(reading, names, everyone=everyone, now=now)
    if as_json:
        return _print_json(view.json_of(shown, reading, ledger.folder))
    return _print(view.table(shown, reading, now))


@hosts_app.command()
def check(
    tier: Annotated[Literal["fast", "standard"], typer.Option(help="How thoroughly.")] = "fast",
    folder: Annotated[list[str] | None, typer.Option(help="It must be there, with room. May be repeated.")] = None,
    interface: Annotated[str, typer.Option(help="The network interface over which nodes talk.")] = "",
    record: Annotated[bool, typer.Option("--record", help="Write what is wrong into the host ledger.")] = False,
    nagios: Annotated[
        bool, typer.Option("--nagios", help="Leave with 0 ok, 1 warn, 2 fail, 3 unknown, for a prolog of Slurm.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Examine this machine. Every check has a deadline; what is stuck is named, and stops nothing else."""
    from dataclasses import asdict

    from launcher.doctor import show
    from launcher.health.finding import NAGIOS, worst
    from launcher.health.here import examine, line_of, node_name
    from launcher.health.here import record as write_down

    findings = examine(tier, folder or [], interface)
    if record:
        write_down(_ledger(), findings, _author())
    verdict = worst(findings)
    if as_json:
        told = [asdict(one) for one in findings]
        _print_json({"schema": 1, "host": node_name(), "verdict": verdict, "findings": told})
    else:
        colours = os.isatty(1) and not os.environ.get("NO_COLOR")
        _print([show.text_of([line_of(one) for one in findings], colours=colours)])
    raise typer.Exit(NAGIOS[verdict] if nagios else int(verdict == "fail"))


@hosts_app.command()
def exclude(
    nodes: Nodes,
    reason: Annotated[str, typer.Option(help="Why; it is shown to whoever looks.")],
    lasts: Annotated[
        str | None, typer.Option("--for", metavar="24h", help="So long; without it until somebody allows it.")
    ] = None,
) -> None:
    """Leave hosts out of every run from its next start on."""
    from launcher.backends.slurm_calls import show_nodes
    from launcher.hosts.deeds import exclude as leave_out
    from launcher.hosts.names import unfolded

    names, lasts_s = unfolded(nodes), _seconds(lasts)
    there = show_nodes()
    known = None if there is None else {node.name for node in there}
    _print(leave_out(_ledger(), names, reason, lasts_s, _author(), known))


@hosts_app.command()
def allow(
    nodes: Nodes,
    reason: Annotated[str, typer.Option(help="Why; it is shown to whoever looks.")] = "",
) -> None:
    """Let hosts take part again. Their strikes are forgotten."""
    from launcher.hosts.deeds import allow as let_in
    from launcher.hosts.names import unfolded

    _print(let_in(_ledger(), unfolded(nodes), _author(), reason))


@hosts_app.command()
def history(node: Annotated[str, typer.Argument(metavar="NODE")], as_json: AsJson = False) -> None:
    """All that was ever written about a host, the oldest first."""
    from launcher.hosts.deeds import refuse_unknown
    from launcher.view import hosts as view

    ledger = _ledger()
    refuse_unknown([node], ledger.read().hosts)
    records = ledger.history(node)
    return _print_json(view.history_json(records)) if as_json else _print(view.history_lines(records))


def _ledger() -> Any:
    from launcher.hosts.ledger import Ledger
    from launcher.site import host_ledger

    return Ledger(host_ledger(os.environ))


def _author() -> str:
    from launcher.paths import user_name

    return user_name(os.getuid())


def _seconds(text: str | None) -> float | None:
    from policies.units import parse_duration

    try:
        lasts_s = None if text is None else parse_duration(text)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--for") from None
    if lasts_s == 0:
        raise typer.BadParameter("0s would leave nobody out", param_hint="--for")
    return lasts_s


def _print(lines: list[str]) -> None:
    print("\n".join(lines))


def _print_json(value: Any) -> None:
    import json

    print(json.dumps(value, indent=1, allow_nan=False))


def _tell(lines: list[str]) -> None:
    for line in lines:
        print(line, file=sys.stderr)
