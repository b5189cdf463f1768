"""The commands that start runs and wait for them. Used by `cli`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from cli_shared import (
    LEFT_BY_CTRL_C,
    RUNS,
    Changes,
    Nodes,
    Policies,
    Root,
    RunName,
    RunOrSweep,
    Spares,
    print_text,
    seconds_of,
    sweep_of,
    tell,
)

start_app = typer.Typer()

Timeout = Annotated[str | None, typer.Option(help="Give up after so long (90s, 2h): exit code 124.")]
ThroughHold = Annotated[bool, typer.Option("--through-hold", help="Wait on while the run is held.")]


@start_app.command()
def submit(
    file: Annotated[Path | None, typer.Argument(metavar="RUN.yaml", help="May be left out with --from.")] = None,
    backend: Annotated[Literal["local", "slurm"] | None, typer.Option(help="Where.")] = None,
    policy: Policies = None,
    nodes: Nodes = None,
    spares: Spares = None,
    changes: Changes = None,
    name: Annotated[str | None, typer.Option(help="The run's name.")] = None,
    origin: Annotated[
        str | None, typer.Option("--from", metavar="RUN@STEP", help="Begin from a checkpoint of that run; or @latest.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be started; touch nothing.")] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Wait for the end, as the command wait does.")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Show the live screen.")] = False,
    root: Root = RUNS,
) -> None:
    """Start a run. Prints its name. A flag wins over --set, --set over RUN.yaml, RUN.yaml over site.yaml."""
    from launcher import branch, sizes
    from launcher import submit as starter
    from launcher.view.copying import copying

    flags = {"name": name, "backend": backend, "nodes": nodes, "spares": spares, "policy": policy}
    resolved, source = branch.resolve(file, origin, root, changes or (), flags)
    if dry_run:
        from launcher.view.dry_run import plan_text

        return print_text(plan_text(resolved, root, source))
    from launcher.access import closed_above

    with copying(source) as progress:
        paths = starter.submit(resolved, root, source, progress)
    print_text(paths.name, flush=True)
    if (closed := closed_above(paths.root, resolved.spec.access)) is not None:
        tell(f"warning: {closed} is closed to group {resolved.spec.access.group}: chmod o+x, or another --root")
    _tell_code(paths)
    if skipped := sizes.skipped(resolved.spec):
        tell(f"cluster.min_nodes: {skipped}")
    if watch:
        from launcher.view import watch as viewer

        viewer.show_live(paths, viewer.stderr())
    if wait:
        _wait_for(paths, None, through_hold=False)
    return None


@start_app.command(
    add_help_option=False,
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
)
def run(arguments: Annotated[list[str] | None, typer.Argument(metavar="[FLAGS] SCRIPT ARGUMENTS")] = None) -> None:
    """Start a script as torchrun does: here, or as one task a node of your own job. --help shows all flags."""
    from launcher.door import enter

    try:
        raise typer.Exit(enter(arguments or ()))
    except KeyboardInterrupt:
        raise typer.Exit(LEFT_BY_CTRL_C) from None  # nothing has been started


@start_app.command()
def sweep(
    file: Annotated[Path, typer.Argument(metavar="SWEEP.yaml")],
    max_parallel: Annotated[int | None, typer.Option(min=1, help="At most so many runs at once.")] = None,
    resume_failed: Annotated[
        bool, typer.Option("--resume-failed", help="Start again what failed, was stopped or died; nothing else.")
    ] = False,
    backend: Annotated[Literal["local", "slurm"] | None, typer.Option(help="Where.")] = None,
    policy: Policies = None,
    nodes: Nodes = None,
    spares: Spares = None,
    changes: Changes = None,
    name: Annotated[str | None, typer.Option(help="The sweep's name, with which those of its runs begin.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be started; touch nothing.")] = False,
    root: Root = RUNS,
) -> None:
    """Start a run for each of several values. Prints their names. Flags and --set apply to every run."""
    from launcher.sweep import read, start

    flags = {"backend": backend, "nodes": nodes, "spares": spares, "policy": policy}
    if resume_failed:
        with_changes = bool(changes or dry_run or [value for value in flags.values() if value not in (None, [])])
        return _resume_failed(read.name_of(file, name), root, max_parallel, with_changes=with_changes)
    planned = read.read_sweep(file, changes or (), {"name": name, **flags}, max_parallel)
    if dry_run:
        from launcher.view.dry_run import sweep_text

        return print_text(sweep_text(planned, root))
    return print_text("\n".join(one.name for one in start.start(planned, root)))


@start_app.command()
def resume(
    run: RunName,
    changes: Changes = None,
    nodes: Nodes = None,
    spares: Spares = None,
    policy: Policies = None,
    partition: Annotated[str | None, typer.Option(help="Slurm's.")] = None,
    time: Annotated[str | None, typer.Option(help="The job's limit: 12h, 3-00:00:00.")] = None,
    new_code: Annotated[bool, typer.Option("--new-code", help="Copy the code anew; else it stays as it was.")] = False,
    root: Root = RUNS,
) -> None:
    """Start a run again that has ended, or whose processes have all died; perhaps with changes. Prints its name."""
    from launcher.paths import user_name
    from launcher.resume import resume as start
    from launcher.view.locate import find_run

    paths = find_run(root, run)
    flags = {"nodes": nodes, "spares": spares, "policy": policy, "partition": partition, "time": time}
    start(paths, user_name(os.getuid()), changes or (), flags, new_code=new_code)
    print_text(paths.name)
    if new_code:
        _tell_code(paths)


@start_app.command(name="wait")
def wait_(run: RunOrSweep, timeout: Timeout = None, through_hold: ThroughHold = False, root: Root = RUNS) -> None:
    """Wait for the end: 0 SUCCEEDED, 1 FAILED or STOPPED, 6 HELD, 124 timeout. Of a sweep: the highest of its runs."""
    from launcher.view.locate import find_run

    limit_s = seconds_of(timeout, "--timeout") if timeout else None
    if (record := sweep_of(root, run)) is not None:
        from launcher.sweep.record import runs_of
        from launcher.view.waiting import Patience, wait_all

        raise typer.Exit(wait_all(runs_of(root, record), Patience(limit_s, through_hold), tell))
    _wait_for(find_run(root, run), limit_s, through_hold=through_hold)


def _resume_failed(name: str, root: Path, max_parallel: int | None, *, with_changes: bool) -> None:
    from launcher.errors import WrongUse
    from launcher.paths import user_name
    from launcher.sweep import record, start

    if with_changes:
        hint = "with --resume-failed only --name, --max-parallel and --root"
        raise WrongUse("runs that were submitted keep their settings", f"sweep --resume-failed of {name}", hint)
    resumed = start.resume_failed(record.record_of(root, name), root, user_name(os.getuid()), max_parallel)
    return print_text("\n".join(one.name for one in resumed)) if resumed else tell(f"sweep {name}: nothing to resume")


def _tell_code(paths: Any) -> None:
    from launcher.code.record import read_code
    from launcher.view.code import told

    if (code := read_code(paths)) and (line := told(paths, code)):
        tell(line)


def _wait_for(paths: Any, timeout_s: float | None, *, through_hold: bool) -> None:
    from launcher.view.waiting import Patience, outcome_text, wait

    code, run = wait(paths, Patience(timeout_s, through_hold))
    tell(outcome_text(run, code))
    raise typer.Exit(code)
