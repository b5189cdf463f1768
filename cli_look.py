"""The commands that show how runs are doing, and what a cluster is like. Used by `cli`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from cli_shared import (
    LEFT_BY_CTRL_C,
    RUNS,
    AsJson,
    Root,
    RunName,
    print_json,
    print_text,
    printing,
    seconds_of,
    sweep_of,
    tell,
)

look_app = typer.Typer()


@look_app.command()
def status(
    run: Annotated[str | None, typer.Argument(metavar="RUN", help="Without it: all runs, a line each.")] = None,
    once: Annotated[bool, typer.Option("--once", help="Show it once and leave.")] = False,
    watch: Annotated[str | None, typer.Option(metavar="5s", help="Print what changed, every so often.")] = None,
    as_json: AsJson = False,
    root: Root = RUNS,
) -> None:
    """How a run is doing, and what happens next; on a terminal a live screen. Of a sweep: a table of its runs."""
    from launcher.view.locate import find_run, list_runs

    if run is None:
        return _list(root, list_runs(root), as_json=as_json)
    if record := sweep_of(root, run):
        return _showsweep_of(root, record, watch, as_json=as_json)
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


@look_app.command()
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
    from launcher.view.logs import Follower, Wanted, check_wanted, merged, why_none

    began = time.time() - seconds_of(since, "--since") if since else None
    paths, wanted = find_run(root, run), Wanted(node, rank, attempt, began)
    check_wanted(paths, wanted)
    if why := why_none(paths, wanted):
        tell(why)
    colours = os.isatty(1) and not os.environ.get("NO_COLOR")
    for line in Follower(paths, wanted).follow() if follow else merged(paths, wanted):
        print_text(line.shown(colours=colours), flush=follow)


@look_app.command()
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


@look_app.command()
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
            nodes = examination.examine_nodes(root, asked[1], timeout_s, tell)
        except KeyboardInterrupt:
            tell("\nleft by Ctrl-C: the job of the probe was cancelled")
            raise typer.Exit(LEFT_BY_CTRL_C) from None
        verdicts = examination.with_answers(verdicts, nodes)
    if as_json:
        print_json(show.json_of(verdicts))
    else:
        print_text(show.text_of(verdicts, colours=os.isatty(1) and not os.environ.get("NO_COLOR")))
    raise typer.Exit(0 if show.nothing_failed(verdicts) else 1)


def _list(root: Path, runs: list[Any], *, as_json: bool) -> None:
    from launcher.view.sweeps import all_runs, list_lines

    snaps = all_runs(root, runs)
    if as_json:
        return print_json(snaps)
    return print_text("\n".join(list_lines(snaps))) if snaps else tell("no runs here: see --root, OPT_LAUNCH_ROOT")


def _showsweep_of(root: Path, record: Any, watch: str | None, *, as_json: bool) -> None:
    from launcher.view import sweeps

    if watch is not None:
        every_s = seconds_of(watch, "--watch")
        with printing():
            return sweeps.show_changes(root, record, every_s, as_json=as_json)
    snap = sweeps.sweep_snapshot(root, record)
    return print_json(snap) if as_json else print_text("\n".join(sweeps.table(snap)))
