"""The command line: parse, call one function, print, leave with the right code.

Exit codes: 0 done, 1 failed, 2 usage, 3 bad config or policy, 4 no such run, 5 somebody did not answer,
6 the run is held, 124 waited too long, 130 Ctrl-C, 141 nobody reads on. What is heavy is imported inside the commands.
"""

from __future__ import annotations

from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from cli_examine import hosts_app
from cli_look import look_app
from cli_policy import policy_app
from cli_shared import LEFT_BY_CTRL_C, drop_output, print_text, tell
from cli_start import start_app
from cli_steer import steer_app
from launcher.errors import LaunchError, of_the_system

READER_IS_GONE = 141  # what a shell shows for a command that ended by SIGPIPE


class Outermost(TyperGroup):
    """The frame around all commands: an error becomes what, where and what to do, without a traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            done = super().invoke(ctx)
            print_text("", end="", flush=True)
            return done
        except KeyboardInterrupt:
            tell("\nleft by Ctrl-C: runs go on (opt-launch status; opt-launch stop RUN ends one)")
            raise typer.Exit(LEFT_BY_CTRL_C) from None
        except BrokenPipeError:
            drop_output()
            raise typer.Exit(READER_IS_GONE) from None
        except typer.BadParameter as error:
            error.message = error.message.removeprefix("Value error, ")
            raise
        except (LaunchError, OSError) as error:
            if ctx.params.get("debug"):
                raise
            told = of_the_system(error) if isinstance(error, OSError) else error
            tell(f"error: {told}")
            raise typer.Exit(told.exit_code) from None


app = typer.Typer(
    name="opt-launch",
    cls=Outermost,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # its help takes twice as long to appear
    help="Fault-tolerant launcher for PyTorch training on clusters: submit once, sleep, read the logbook in the "
    "morning. On Slurm, or on virtual nodes of this machine.",
)
for commands in (start_app, look_app, steer_app):
    app.add_typer(commands)
app.add_typer(policy_app, name="policy")
app.add_typer(hosts_app, name="hosts")


def _version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        print_text(f"opt-launch {version('opt-launch')}")
        raise typer.Exit


@app.callback()
def _common(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show it and leave.")
    ] = False,
) -> None:
    """Options before the command."""


def main() -> None:
    """The console script."""
    app()


if __name__ == "__main__":
    main()
