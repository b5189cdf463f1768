"""What the files of the command line have in common: arguments that mean the same everywhere, and how to print."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

RunName = Annotated[str, typer.Argument(metavar="RUN", help="Its name, a unique prefix of it, or - for the newest.")]
Root = Annotated[Path, typer.Option(envvar="OPT_LAUNCH_ROOT", help="The folder of the runs.")]
Policies = Annotated[list[str] | None, typer.Option(help="A shipped policy or a file; may be repeated.")]
AsJson = Annotated[bool, typer.Option("--json", help="JSON on standard output, nothing else.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
RunOrSweep = Annotated[str, typer.Argument(metavar="RUN", help="As everywhere, or a sweep: all runs of it.")]
Changes = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="trainer.lr=2e-4")]
Nodes = Annotated[int | None, typer.Option(help="Nodes that train.")]
Spares = Annotated[int | None, typer.Option(help="Nodes in reserve.")]
RUNS = Path("runs")
LEFT_BY_CTRL_C = 130


def print_text(text: str, end: str = "\n", *, flush: bool = False) -> None:
    with printing():
        print(text, end=end, flush=flush)


@contextlib.contextmanager
def printing() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if isinstance(error, BrokenPipeError) or error.filename:  # a file that was read to be shown
            raise
        from launcher.errors import of_the_system

        drop_output()
        raise of_the_system(error, "the output cannot be written", "printing to standard output") from error


def drop_output() -> None:
    """What is still buffered must not fail once more when Python ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def print_json(value: Any) -> None:
    import json

    print_text(json.dumps(value, indent=1, allow_nan=False))


def seconds_of(text: str, flag: str) -> float:
    """A duration with its unit, or a bare number of seconds."""
    from policies.units import parse_duration

    try:
        return float(text) if text.replace(".", "", 1).isdigit() else parse_duration(text)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint=flag) from None


def command(root: Path, name: str, verb: str, **args: Any) -> None:
    from launcher.view.locate import find_run
    from launcher.view.steer import steer

    tell(steer(find_run(root, name), verb, args))


def confirm(question: str, yes: bool, what: str) -> None:
    """Go on only with a person's yes."""
    if not yes and not os.isatty(0):
        from launcher.errors import WrongUse

        raise WrongUse("nobody can be asked: no terminal", what, "add --yes")
    if yes:
        return
    try:
        agreed = typer.confirm(question, err=True)
    except typer.Abort as error:  # click makes one of Ctrl-C and of the end of the input
        if isinstance(error.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from None
        raise
    if not agreed:
        raise typer.Abort


def sweep_of(root: Path, name: str) -> Any:
    """The sweep of this name; None where there is none, or a run is called so."""
    from launcher.sweep.record import find_record

    return None if (root / name).exists() else find_record(root, name)
