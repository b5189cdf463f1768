"""The commands `opt-launch hosts ...`: what runs remember of hosts together. Used by `cli`."""

from __future__ import annotations

import os
from typing import Annotated, Any

import typer

from cli_shared import AsJson, print_json, print_text, tell

hosts_app = typer.Typer(no_args_is_help=True, help="What all runs remember of hosts, and which they leave out.")

Nodes = Annotated[list[str], typer.Argument(metavar="NODES", help="Names, or lists as Slurm writes them: gpu-[01-04].")]


@hosts_app.command(name="list")
def list_(
    nodes: Annotated[list[str] | None, typer.Argument(metavar="NODES", help="Only these.")] = None,
    everyone: Annotated[bool, typer.Option("--all", help="Also those of which there is nothing to tell.")] = False,
    as_json: AsJson = False,
) -> None:
    """Hosts that are left out, on probation or fail often, the worst first."""
    import time

    from launcher.hosts.deeds import refuse_unknown
    from launcher.hosts.names import unfolded
    from launcher.view import hosts as view

    ledger, now = host_ledger(), time.time()
    reading = ledger.read()
    for one in reading.damage:
        tell(f"warning: {one}")
    if reading.damage:
        hint = "lines of a newer opt-launch need that one to be read; a damaged line can stay, and harms nothing else"
        tell(f"  while: reading {ledger.folder}\n  try:   {hint}")
    names = unfolded(nodes) if nodes else None
    refuse_unknown(names or [], reading.hosts)
    shown = view.chosen(reading, names, everyone=everyone, now=now)
    if as_json:
        return print_json(view.json_of(shown, reading, ledger.folder))
    return print_text("\n".join(view.table(shown, reading, now)))


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
    print_text("\n".join(leave_out(host_ledger(), names, reason, lasts_s, author(), known)))


@hosts_app.command()
def allow(
    nodes: Nodes,
    reason: Annotated[str, typer.Option(help="Why; it is shown to whoever looks.")] = "",
) -> None:
    """Let hosts take part again. Their strikes are forgotten."""
    from launcher.hosts.deeds import allow as let_in
    from launcher.hosts.names import unfolded

    print_text("\n".join(let_in(host_ledger(), unfolded(nodes), author(), reason)))


@hosts_app.command()
def history(node: Annotated[str, typer.Argument(metavar="NODE")], as_json: AsJson = False) -> None:
    """All that was ever written about a host, the oldest first."""
    from launcher.hosts.deeds import refuse_unknown
    from launcher.view import hosts as view

    ledger = host_ledger()
    refuse_unknown([node], ledger.read().hosts)
    records = ledger.history(node)
    return print_json(view.history_json(records)) if as_json else print_text("\n".join(view.history_lines(records)))


def host_ledger() -> Any:
    from launcher.hosts.ledger import Ledger
    from launcher.site import host_ledger as folder

    return Ledger(folder(os.environ))


def author() -> str:
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
