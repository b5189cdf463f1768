"""The commands `opt-launch hosts check`, `collect`, `clean`, `record`: what is done to hosts. Used by `cli`."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from cli_hosts import author, host_ledger, hosts_app
from cli_shared import RUNS, AsJson, Root, Yes, confirm, print_json, print_text, seconds_of, tell

SomeNodes = Annotated[
    list[str] | None, typer.Argument(metavar="NODES", help="Names, or lists as Slurm writes them: gpu-[01-04].")
]
OfRun = Annotated[str | None, typer.Option("--run", help="The nodes of this run, or some of them.")]
TheRun = Annotated[str, typer.Option("--run", help="The run: its name, a unique prefix of it, or - for the newest.")]
Via = Annotated[
    Literal["srun", "ssh"] | None,
    typer.Option(help="How hosts are reached. Without it srun where a job of yours that runs has them all, else ssh."),
]
Python = Annotated[
    str, typer.Option(envvar="OPT_LAUNCH_PYTHON", help="The Python there that has opt-launch; as here if not told.")
]
Timeout = Annotated[str, typer.Option(metavar="60s", help="For each host, from when it is asked.")]
SshConfig = Annotated[Path | None, typer.Option(metavar="FILE", help="In place of ~/.ssh/config.")]
Tier = Annotated[Literal["fast", "standard"], typer.Option(help="How thoroughly.")]


@hosts_app.command()
def check(
    nodes: SomeNodes = None,
    run: OfRun = None,
    tier: Tier = "fast",
    folder: Annotated[list[str] | None, typer.Option(help="It must be there, with room. May be repeated.")] = None,
    interface: Annotated[str, typer.Option(help="The network interface over which nodes talk.")] = "",
    record: Annotated[
        bool | None,
        typer.Option(help="Write what is wrong into the host ledger. So it is when hosts or a run are named."),
    ] = None,
    nagios: Annotated[
        bool, typer.Option("--nagios", help="Leave with 0 ok, 1 warn, 2 fail, 3 unknown, for monitoring.")
    ] = False,
    via: Via = None,
    python: Python = sys.executable,
    timeout: Timeout = "60s",
    ssh_config: SshConfig = None,
    root: Root = RUNS,
    as_json: AsJson = False,
) -> None:
    """Examine this machine, or hosts. Every check has a deadline; what is stuck is named, and stops nothing else."""
    from launcher.health.finding import NAGIOS, worst_of
    from launcher.remote.examined import Examined, examined, exit_code
    from launcher.view import examined as view

    asked = {"tier": tier, "folders": folder or [], "interface": interface}
    if nodes or run:
        found = examined(_answers("check", asked, nodes, _of_run(root, run), via, python, timeout, ssh_config))
    else:
        from launcher.health.here import examine, node_name

        found = [Examined(node_name(), tuple(examine(tier, folder or [], interface)))]
    is_one = not (nodes or run)
    if as_json:
        print_json(view.one_json(found[0]) if is_one else view.json_of(found))
    else:
        colours = os.isatty(1) and not os.environ.get("NO_COLOR")
        print_text("\n".join((view.one_host if is_one else view.lines)(found, colours=colours)))
    code = NAGIOS[worst_of(one.verdict for one in found)] if nagios else exit_code(found)
    if (record or (record is None and not is_one)) and not _recorded(found) and not nagios:
        code = code or 1
    raise typer.Exit(code)


@hosts_app.command()
def collect(
    run: TheRun,
    nodes: SomeNodes = None,
    to: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Else a folder in incidents/ of the run.")] = None,
    via: Via = None,
    python: Python = sys.executable,
    timeout: Timeout = "120s",
    ssh_config: SshConfig = None,
    root: Root = RUNS,
    as_json: AsJson = False,
) -> None:
    """Fetch the stacks of a run's processes and the kernel's log from its nodes, also where its agent is gone."""
    import time

    from launcher.view import leftovers as view

    target = _of_run(root, run)
    assert target is not None
    folder = to or target.folder / "incidents" / time.strftime("collected-%Y%m%d-%H%M%S")
    asked = {"run": str(target.folder), "jobs": list(target.jobs)}
    answers = _answers("collect", asked, nodes, target, via, python, timeout, ssh_config)
    files = view.write(answers, folder)
    told = view.collected(answers, files, folder)
    print_json(told) if as_json else print_text("\n".join(view.collected_lines(told)))
    raise typer.Exit(view.exit_code(answers))


@hosts_app.command()
def clean(
    run: TheRun,
    nodes: SomeNodes = None,
    yes: Yes = False,
    via: Via = None,
    python: Python = sys.executable,
    timeout: Timeout = "60s",
    ssh_config: SshConfig = None,
    root: Root = RUNS,
    as_json: AsJson = False,
) -> None:
    """End processes of a run whose agent is gone. Those of a living agent, of others and of other runs are left."""
    from launcher.view import leftovers as view

    target = _of_run(root, run)
    assert target is not None
    asked = {"run": str(target.folder), "jobs": list(target.jobs), "end": False}
    answers = _answers("clean", asked, nodes, target, via, python, timeout, ssh_config)
    hosts = view.with_leftovers(answers)
    if hosts:
        tell("\n".join(view.left_lines(answers)))
        confirm(f"End them on {', '.join(hosts)}?", yes, f"hosts clean --run {run}")
        again = None if target.is_virtual else hosts
        answers = [
            *(one for one in answers if one.host not in hosts),
            *_answers("clean", {**asked, "end": True}, again, target, via, python, timeout, ssh_config),
        ]
    told = view.cleaned(answers)
    print_json(told) if as_json else print_text("\n".join(view.cleaned_lines(told)))
    raise typer.Exit(view.exit_code(answers))


@hosts_app.command()
def record(
    file: Annotated[Path | None, typer.Argument(metavar="FILE", help="Else standard output.")] = None,
) -> None:
    """Write down what the GPU driver of this machine says, for tests that simulate it."""
    from launcher.health.here import profile

    text = profile()
    if file is None:
        return print_text(text, end="")
    try:
        file.write_text(text)
    except OSError as error:
        from launcher.errors import of_the_system

        raise of_the_system(error, "the profile cannot be written", str(file)) from error
    return tell(f"{file}: {text.count(chr(10))} readings")


def _of_run(root: Path, run: str | None) -> Any:
    from launcher.remote.way import of_run
    from launcher.view.locate import find_run

    return of_run(find_run(root, run)) if run else None


def _answers(
    verb: str,
    asked: dict[str, Any],
    nodes: list[str] | None,
    run: Any,
    via: Literal["srun", "ssh"] | None,
    python: str,
    timeout: str,
    ssh_config: Path | None,
) -> list[Any]:
    """What the hosts answer, with a bar on stderr where that is a terminal."""
    from launcher.remote.ask import Question, ask
    from launcher.remote.way import find_way
    from launcher.view.examined import tracked

    limit_s = seconds_of(timeout, "--timeout")
    if limit_s <= 0:
        raise typer.BadParameter("0s is no time to answer in", param_hint="--timeout")
    way = find_way(nodes or (), run, via, ssh_config, os.environ)
    answers = ask(way.transport, way.hosts, Question(verb, asked, python, limit_s))
    return [*tracked(answers, len(way.hosts), f"{verb}, by {way.by}", sys.stderr.isatty(), lambda one: one.host)]


def _recorded(found: list[Any]) -> bool:
    """Write the findings into the host ledger. One that cannot be written takes nothing from what was found."""
    from launcher.errors import LaunchError
    from launcher.health.here import record

    try:
        record(host_ledger(), {one.host: one.findings for one in found if one.problem is None}, author())
    except LaunchError as error:
        tell(f"not recorded: {error}")
        return False
    return True
