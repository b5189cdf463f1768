"""Many hosts' examinations, leftovers and what was collected of them, for people and for programs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from typing import Any, TypeVar

from launcher.doctor.checks import Verdict as Line
from launcher.doctor.show import text_of
from launcher.health.finding import worst_of
from launcher.health.here import line_of
from launcher.remote.examined import Examined
from launcher.view.hosts import one_line
from launcher.view.words import counted

SCHEMA = 1
_Item = TypeVar("_Item")


def json_of(hosts: Sequence[Examined]) -> dict[str, Any]:
    """One object: the verdict of all, and each host with its findings, or why it could not be asked."""
    return {
        "schema": SCHEMA,
        "verdict": worst_of(one.verdict for one in hosts),
        "hosts": [
            {
                "host": one.host,
                "verdict": one.verdict,
                "problem": _parts(one),
                "findings": [asdict(finding) for finding in one.findings],
            }
            for one in hosts
        ],
    }


def lines(hosts: Sequence[Examined], *, colours: bool) -> list[str]:
    """A line for each host; of what is not well a line each, with what would help."""
    told = [line for one in hosts for line in _lines(one)]
    counts = Counter(one.verdict for one in hosts)
    sums = ", ".join(f"{counts[word]} {word}" for word in ("ok", "warn", "fail", "unknown", "skipped") if counts[word])
    text = text_of(told, colours=colours).rpartition("\n")[0]
    return [text, f"{counted(len(hosts), 'host')}: {sums}"]


def one_json(one: Examined) -> dict[str, Any]:
    """The same of a single machine, which needs not be asked."""
    findings = [asdict(finding) for finding in one.findings]
    return {"schema": SCHEMA, "host": one.host, "verdict": one.verdict, "findings": findings}


def one_host(hosts: Sequence[Examined], *, colours: bool) -> list[str]:
    """A line for each finding."""
    return [text_of([line_of(finding) for one in hosts for finding in one.findings], colours=colours)]


def _parts(one: Examined) -> dict[str, str] | None:
    problem = one.problem
    return {"message": problem.message, "where": problem.where, "hint": problem.hint} if problem else None


def _lines(one: Examined) -> Iterator[Line]:
    if one.problem:
        where = f" ({one.problem.where})" if one.problem.where else ""
        yield Line(one.host, "unknown", one_line(one.problem.message + where), one_line(one.problem.hint))
        return
    bad = [line_of(finding) for finding in one.findings if finding.verdict in ("warn", "fail", "unknown")]
    if not bad:
        yield Line(one.host, one.verdict, f"{counted(len(one.findings), 'finding')}")
    for line in bad:
        where = f" {line.where}" if line.where else ""
        yield Line(one.host, line.state, one_line(f"{line.about}{where}: {line.said}"), one_line(line.fix))


def tracked(items: Iterator[_Item], total: int, what: str, show: bool, name: Callable[[_Item], str]) -> Iterator[_Item]:
    """The same items, with a bar on stderr while they come."""
    if not show:
        yield from items
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn(what),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.description}"),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=total)
        for item in items:
            progress.update(task, advance=1, description=name(item))
            yield item
