"""The commands that tell a run what to do. Used by `cli`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from cli_shared import (
    RUNS,
    AsJson,
    Root,
    RunName,
    RunOrSweep,
    Yes,
    command,
    confirm,
    print_json,
    print_text,
    sweep_of,
    tell,
)

steer_app = typer.Typer()
_VERDICTS = ("approve", "hold", "release", "note")


@steer_app.command()
def stop(
    run: RunOrSweep,
    now: Annotated[bool, typer.Option("--now", help="Save nothing; end it also where no supervisor answers.")] = False,
    yes: Yes = False,
    root: Root = RUNS,
) -> None:
    """Save a checkpoint, then end the run, or all runs of a sweep. Asks first; without a terminal it wants --yes."""
    from launcher.paths import user_name
    from launcher.stop import stop as end
    from launcher.view.locate import find_run

    how, author = " without saving" if now else "", user_name(os.getuid())
    if (record := sweep_of(root, run)) is not None:
        from launcher.sweep.steer import stop_all, unfinished

        if not (left := unfinished(record, root)):
            return tell(f"sweep {run}: nothing to stop")
        confirm(f"Stop {len(left)} of {len(record.runs)} runs of sweep {run}{how}?", yes, f"stop {run}")
        return stop_all(left, author, now=now, tell=tell)
    paths = find_run(root, run)
    confirm(f"Stop run {paths.name}{how}?", yes, f"stop {paths.name}")
    return tell(f"{paths.name}: {end(paths, author, now=now, tell=tell)}")


@steer_app.command()
def save(run: RunOrSweep, root: Root = RUNS) -> None:
    """Write a checkpoint at the next step."""
    _command_all(root, run, "save")


@steer_app.command()
def hold(
    run: RunOrSweep,
    reason: Annotated[str, typer.Option(help="Why; it is shown to whoever looks.")] = "",
    root: Root = RUNS,
) -> None:
    """End the ranks and keep the allocation until the run is released."""
    _command_all(root, run, "hold", reason=reason)


@steer_app.command()
def release(run: RunOrSweep, root: Root = RUNS) -> None:
    """Let a held run go on."""
    _command_all(root, run, "release")


@steer_app.command()
def pause(
    run: RunName,
    reason: Annotated[str, typer.Option(help="Why; it is shown to whoever looks.")] = "",
    now: Annotated[bool, typer.Option("--now", help="Save nothing: steps since the last checkpoint are lost.")] = False,
    yes: Yes = False,
    root: Root = RUNS,
) -> None:
    """Save, end the ranks and keep the nodes, free for something else. With --now it asks first, as stop does."""
    from launcher.view.locate import find_run

    paths = find_run(root, run)
    if now:
        confirm(f"Pause run {paths.name} without saving?", yes, f"pause {paths.name} --now")
    command(root, paths.name, "pause", reason=reason, now=now)


@steer_app.command()
def unpause(run: RunName, root: Root = RUNS) -> None:
    """Let a paused run go on from where it was."""
    command(root, run, "unpause")


@steer_app.command()
def replace(
    run: RunName,
    node: Annotated[str, typer.Argument(metavar="NODE", help="A node that trains.")],
    reason: Annotated[str, typer.Option(help="Why; it is shown to whoever looks.")] = "",
    root: Root = RUNS,
) -> None:
    """Save, and go on with a spare in the place of a node. No step is lost."""
    command(root, run, "replace", node=node, reason=reason)


@steer_app.command(name="do")
def do_(
    run: RunName,
    actions: Annotated[str, typer.Argument(metavar="ACTIONS", help="As in a policy: {restart: {from: last_good}}")],
    why: Annotated[str, typer.Option(help="It is journaled, with your name.")],
    yes: Yes = False,
    root: Root = RUNS,
) -> None:
    """Have actions done now, as a rule of the policy would."""
    from launcher import deeds
    from launcher.spec import read_resolved
    from launcher.view.locate import find_run

    paths = find_run(root, run)
    asked = deeds.parsed(actions, frozenset(read_resolved(paths.spec).notify))
    confirm(f"Run {paths.name}: {', '.join(asked)}?", yes, f"do {paths.name}")
    command(root, paths.name, "do", actions=asked, why=why)


@steer_app.command()
def incidents(
    run: RunName,
    what: Annotated[
        str | None,
        typer.Argument(metavar="ID|approve|hold|release|note", help="Show only this one, or say something of one."),
    ] = None,
    incident: Annotated[int | None, typer.Argument(metavar="ID", help="Of which: its number.")] = None,
    text: Annotated[str | None, typer.Argument(metavar="TEXT", help="Of a note.")] = None,
    as_json: AsJson = False,
    root: Root = RUNS,
) -> None:
    """What went wrong, which rule decided, what was done and why. Or what you say to one of them.

    approve: do what was asked about. hold: leave it, or end a restart in a hold. release: take that back. note: add
    your words, also when the run has ended.
    """
    from launcher.view.incidents import incident_of, incidents_of, incidents_text
    from launcher.view.locate import find_run

    if what in _VERDICTS:
        return _say_of_incident(root, run, what, incident, text)
    if what is None:
        found = incidents_of(find_run(root, run))
        return print_json(found) if as_json else print_text(incidents_text(found))
    if not what.isdecimal() or incident is not None:
        raise typer.BadParameter(f"{what!r} is neither a number nor {', '.join(_VERDICTS)}", param_hint="ID")
    one = incident_of(find_run(root, run), int(what))
    return print_json(one) if as_json else print_text(incidents_text([one]))


def _say_of_incident(root: Path, name: str, verb: str, incident: int | None, text: str | None) -> None:
    from launcher.view.locate import find_run
    from launcher.view.steer import note

    if incident is None:
        raise typer.BadParameter("which incident?", param_hint="ID")
    if (text is None) == (verb == "note"):
        problem = "a note needs its text, in quotes" if verb == "note" else "only a note has a text"
        raise typer.BadParameter(problem, param_hint="TEXT")
    if text is not None:
        return tell(note(find_run(root, name), incident, text))
    return command(root, name, verb, incident=incident)


def _command_all(root: Path, name: str, verb: str, **args: Any) -> None:
    """The command to a run, or to all runs of a sweep that have begun and not ended."""
    if (record := sweep_of(root, name)) is None:
        return command(root, name, verb, **args)
    from launcher.sweep.steer import steer_all, unfinished

    return steer_all(unfinished(record, root), verb, args, tell)
