"""The command line: parse, call one function, print, leave with the right code.

Exit codes: 0 done, 1 failed, 2 usage, 3 bad config or policy, 4 no such run, 5 somebody did not answer,
6 the run is held, 124 waited too long, 130 Ctrl-C, 141 nobody reads on. What is heavy is imported inside the commands.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from cli_examine import hosts_app
from cli_policy import policy_app
from cli_shared import (
    RUNS,
    AsJson,
    Policies,
    Root,
    RunName,
    Yes,
    command,
    confirm,
    drop_output,
    print_json,
    print_text,
    printing,
    seconds_of,
    tell,
)

LEFT_BY_CTRL_C = 130
READER_IS_GONE = 141  # what a shell shows for a command that ended by SIGPIPE


class Outermost(TyperGroup):
    """The frame around all commands: an error becomes what, where and what to do, without a traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            done = super().invoke(ctx)
            print_text("", end="", flush=True)
            return done
        except KeyboardInterrupt:
            tell("\nleft by Ctrl-C: runs go on without you (opt-launch status; opt-launch stop RUN ends one)")
            raise typer.Exit(LEFT_BY_CTRL_C) from None
        except BrokenPipeError:
            drop_output()
            raise typer.Exit(READER_IS_GONE) from None
        except typer.BadParameter as error:
            error.message = error.message.removeprefix("Value error, ")
            raise
        except Exception as error:
            from launcher.errors import LaunchError, of_the_system

            if ctx.params.get("debug") or not isinstance(error, (LaunchError, OSError)):
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
app.add_typer(policy_app, name="policy")
app.add_typer(hosts_app, name="hosts")

RunOrSweep = Annotated[str, typer.Argument(metavar="RUN", help="As everywhere, or a sweep: all runs of it.")]
Changes = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="trainer.lr=2e-4")]
Nodes = Annotated[int | None, typer.Option(help="Nodes that train.")]
Spares = Annotated[int | None, typer.Option(help="Nodes in reserve.")]
Timeout = Annotated[str | None, typer.Option(help="Give up after so long (90s, 2h): exit code 124.")]
ThroughHold = Annotated[bool, typer.Option("--through-hold", help="Wait on while the run is held.")]


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


@app.command()
def submit(
    file: Annotated[Path | None, typer.Argument(metavar="[RUN.yaml]", help="May be left out with --from.")] = None,
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


@app.command(
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


@app.command()
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


@app.command()
def status(
    run: Annotated[str | None, typer.Argument(metavar="[RUN]", help="Without it: all runs, a line each.")] = None,
    once: Annotated[bool, typer.Option("--once", help="Show it once and leave.")] = False,
    watch: Annotated[str | None, typer.Option(metavar="5s", help="Print what changed, every so often.")] = None,
    as_json: AsJson = False,
    root: Root = RUNS,
) -> None:
    """How a run is doing, and what happens next; on a terminal a live screen. Of a sweep: a table of its runs."""
    from launcher.view.locate import find_run, list_runs

    if run is None:
        return _list(root, list_runs(root), as_json=as_json)
    if record := _sweep(root, run):
        return _show_sweep(root, record, watch, as_json=as_json)
    paths = find_run(root, run)
    if as_json and watch is None:
        from launcher.view.snapshot import snapshot

        return print_json(snapshot(paths))
    from launcher.view import watch as viewer

    if watch is not None:
        every_s = seconds_of(watch, "--watch")
        with printing():
            return viewer.show_changes(paths, every_s, as_json=as_json)
    console = viewer.stdout()
    show = viewer.show_once if once or not console.is_terminal else viewer.show_live
    with printing():
        return show(paths, console)


@app.command()
def logs(
    run: RunName,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Go on as lines come.")] = False,
    node: Annotated[str | None, typer.Option(help="Only this node.")] = None,
    rank: Annotated[int | None, typer.Option(help="Only this rank.")] = None,
    attempt: Annotated[int | None, typer.Option(help="Only this attempt.")] = None,
    since: Annotated[str | None, typer.Option(metavar="10m", help="Only what was printed since so long ago.")] = None,
    root: Root = RUNS,
) -> None:
    """What the ranks printed, all nodes merged by time."""
    import time

    from launcher.view.locate import find_run
    from launcher.view.logs import Follower, Wanted, check_wanted, merged

    began = time.time() - seconds_of(since, "--since") if since else None
    paths, wanted = find_run(root, run), Wanted(node, rank, attempt, began)
    check_wanted(paths, wanted)
    colours = os.isatty(1) and not os.environ.get("NO_COLOR")
    for line in Follower(paths, wanted).follow() if follow else merged(paths, wanted):
        print_text(line.shown(colours=colours), flush=follow)


@app.command()
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
    if (record := _sweep(root, run)) is not None:
        from launcher.sweep.steer import stop_all, unfinished

        if not (left := unfinished(record, root)):
            return tell(f"sweep {run}: nothing to stop")
        confirm(f"Stop {len(left)} of {len(record.runs)} runs of sweep {run}{how}?", yes, f"stop {run}")
        return stop_all(left, author, now=now, tell=tell)
    paths = find_run(root, run)
    confirm(f"Stop run {paths.name}{how}?", yes, f"stop {paths.name}")
    return tell(end(paths, author, now=now, tell=tell))


@app.command()
def save(run: RunOrSweep, root: Root = RUNS) -> None:
    """Write a checkpoint at the next step."""
    _command_all(root, run, "save")


@app.command()
def hold(
    run: RunOrSweep,
    reason: Annotated[str, typer.Option(help="Why; it is shown to whoever looks.")] = "",
    root: Root = RUNS,
) -> None:
    """End the ranks and keep the allocation until the run is released."""
    _command_all(root, run, "hold", reason=reason)


@app.command()
def release(run: RunOrSweep, root: Root = RUNS) -> None:
    """Let a held run go on."""
    _command_all(root, run, "release")


@app.command()
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


@app.command()
def unpause(run: RunName, root: Root = RUNS) -> None:
    """Let a paused run go on from where it was."""
    command(root, run, "unpause")


@app.command()
def replace(
    run: RunName,
    node: Annotated[str, typer.Argument(metavar="NODE", help="A node that trains.")],
    reason: Annotated[str, typer.Option(help="Why; it is shown to whoever looks.")] = "",
    root: Root = RUNS,
) -> None:
    """Save, and go on with a spare in the place of a node. No step is lost."""
    command(root, run, "replace", node=node, reason=reason)


@app.command()
def examine(
    run: RunName,
    nodes: Annotated[list[str] | None, typer.Argument(metavar="[NODES]", help="Else all of the run.")] = None,
    tier: Annotated[Literal["fast", "standard"], typer.Option(help="How thoroughly.")] = "fast",
    root: Root = RUNS,
) -> None:
    """Have the run's agents check their nodes, while it trains. What they find is answered like the policy says."""
    command(root, run, "examine", tier=tier, **({"nodes": nodes} if nodes else {}))


@app.command(name="do")
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


@app.command()
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


@app.command(name="wait")
def wait_(run: RunName, timeout: Timeout = None, through_hold: ThroughHold = False, root: Root = RUNS) -> None:
    """Wait for the end: 0 SUCCEEDED, 1 FAILED or STOPPED, 6 HELD, 124 timeout."""
    from launcher.view.locate import find_run

    limit_s = seconds_of(timeout, "--timeout") if timeout else None
    _wait_for(find_run(root, run), limit_s, through_hold=through_hold)


@app.command()
def incidents(
    run: RunName,
    verb: Annotated[
        Literal["approve", "hold", "release", "note"] | None, typer.Argument(metavar="[approve|hold|release|note]")
    ] = None,
    incident: Annotated[int | None, typer.Argument(metavar="[ID]", help="The number of an incident.")] = None,
    text: Annotated[str | None, typer.Argument(metavar="[TEXT]", help="Of a note.")] = None,
    as_json: AsJson = False,
    root: Root = RUNS,
) -> None:
    """What went wrong, which rule decided, what was done and why. Or what you say to one of them.

    approve: do what was asked about. hold: leave it, or end a restart in a hold. release: take that back. note: add
    your words, also when the run has ended.
    """
    from launcher.view.incidents import incidents_of, incidents_text
    from launcher.view.locate import find_run

    if verb is not None:
        return _say_of_incident(root, run, verb, incident, text)
    found = incidents_of(find_run(root, run))
    return print_json(found) if as_json else print_text(incidents_text(found))


@app.command()
def report(
    run: RunName,
    form: Annotated[Literal["md", "html", "json"], typer.Option("--format", help="md or json.")] = "md",
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Write it here.")] = None,
    root: Root = RUNS,
) -> None:
    """The logbook: where the time went, every attempt, every incident and its cost."""
    import json

    from launcher.errors import LaunchError, of_the_system
    from launcher.report import report as make_report
    from launcher.view.locate import find_run
    from launcher.view.logbook import to_markdown

    if form == "html":
        raise LaunchError("reports as HTML are not built yet", "report --format html", "--format md or --format json")
    paths = find_run(root, run)
    body = make_report(paths)
    text = to_markdown(body) if form == "md" else json.dumps(body, indent=1, allow_nan=False) + "\n"
    if output is None:
        return print_text(text, end="")
    try:
        output.write_text(text)
    except OSError as error:
        raise of_the_system(error, "the report cannot be written", f"report {paths.name} -o {output}") from error
    return tell(f"written to {output}")


@app.command()
def doctor(
    probe: Annotated[bool, typer.Option("--probe", help="Submit a short job that looks at two nodes.")] = False,
    partition: Annotated[str | None, typer.Option(help="Of the probe.")] = None,
    account: Annotated[str | None, typer.Option(help="Of the probe.")] = None,
    changes: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="As in submit.")] = None,
    timeout: Annotated[str, typer.Option(help="The probe may wait so long for its nodes.")] = "2m",
    as_json: AsJson = False,
    root: Root = RUNS,
) -> None:
    """What this machine and the cluster are like, a line for each thing, with what to do about it."""
    from launcher.doctor import examination, show

    flags = {"partition": partition, "account": account}
    timeout_s = seconds_of(timeout, "--timeout")
    asked = [examination.asked_spec(changes or (), flags, probed=probed) for probed in (False, True)]
    verdicts = [*examination.examine_here(root, asked[0])]
    if probe:
        try:
            verdicts += examination.examine_nodes(root, asked[1], timeout_s, tell)
        except KeyboardInterrupt:
            tell("\nleft by Ctrl-C: the job of the probe was cancelled")
            raise typer.Exit(LEFT_BY_CTRL_C) from None
    if as_json:
        print_json(show.json_of(verdicts))
    else:
        print_text(show.text_of(verdicts, colours=os.isatty(1) and not os.environ.get("NO_COLOR")))
    raise typer.Exit(0 if show.nothing_failed(verdicts) else 1)


def main() -> None:
    """The console script."""
    app()


def _resume_failed(name: str, root: Path, max_parallel: int | None, *, with_changes: bool) -> None:
    from launcher.errors import WrongUse
    from launcher.paths import user_name
    from launcher.sweep import record, start

    if with_changes:
        hint = "with --resume-failed only --name, --max-parallel and --root"
        raise WrongUse("runs that were submitted keep their settings", f"sweep --resume-failed of {name}", hint)
    resumed = start.resume_failed(record.record_of(root, name), root, user_name(os.getuid()), max_parallel)
    return print_text("\n".join(one.name for one in resumed)) if resumed else tell(f"sweep {name}: nothing to resume")


def _list(root: Path, runs: list[Any], *, as_json: bool) -> None:
    from launcher.view.sweeps import all_runs, list_lines

    snaps = all_runs(root, runs)
    if as_json:
        return print_json(snaps)
    return print_text("\n".join(list_lines(snaps))) if snaps else tell("no runs here: see --root, OPT_LAUNCH_ROOT")


def _show_sweep(root: Path, record: Any, watch: str | None, *, as_json: bool) -> None:
    from launcher.view import sweeps

    if watch is not None:
        every_s = seconds_of(watch, "--watch")
        with printing():
            return sweeps.show_changes(root, record, every_s, as_json=as_json)
    snap = sweeps.sweep_snapshot(root, record)
    return print_json(snap) if as_json else print_text("\n".join(sweeps.table(snap)))


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
    if (record := _sweep(root, name)) is None:
        return command(root, name, verb, **args)
    from launcher.sweep.steer import steer_all, unfinished

    return steer_all(unfinished(record, root), verb, args, tell)


def _sweep(root: Path, name: str) -> Any:
    """The sweep of this name; None where there is none, or a run is called so."""
    from launcher.sweep.record import find_record

    return None if (root / name).exists() else find_record(root, name)


def _tell_code(paths: Any) -> None:
    from launcher.code.record import read_code
    from launcher.view.code import told

    if (code := read_code(paths)) and (line := told(paths, code)):
        tell(line)


def _wait_for(paths: Any, timeout_s: float | None, *, through_hold: bool) -> None:
    from launcher.backends.choice import is_alive
    from launcher.view.waiting import Patience, outcome_text, wait

    code, run = wait(paths, Patience(timeout_s, through_hold), is_alive)
    tell(outcome_text(run, code))
    raise typer.Exit(code)


if __name__ == "__main__":
    main()
