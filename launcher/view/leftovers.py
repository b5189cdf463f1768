"""What was fetched from a run's nodes, and what was left over there, for people and for programs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from launcher.errors import of_the_system
from launcher.remote.answer import Answer
from launcher.view.hosts import one_line
from launcher.view.words import counted

SCHEMA = 1
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,100}")


def write(answers: Sequence[Answer], folder: Path) -> dict[str, list[str]]:
    """Put the texts of each host into files HOST.NAME; their names. Raises LaunchError."""
    written: dict[str, list[str]] = {}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for one in answers:
            for name, text in _texts(one).items():
                (folder / f"{one.host}.{name}").write_text(text)
                written.setdefault(one.host, []).append(f"{one.host}.{name}")
    except OSError as error:
        raise of_the_system(error, "what was collected cannot be written", str(folder)) from error
    return written


def collected(answers: Sequence[Answer], files: dict[str, list[str]], folder: Path) -> dict[str, Any]:
    """One object: the folder, and of each host the run's processes and the files."""
    hosts = [
        {**_host(one), "processes": (one.told or {}).get("processes", []), "files": files.get(one.host, [])}
        for one in _sorted(answers)
    ]
    return {"schema": SCHEMA, "folder": str(folder), "hosts": hosts}


def collected_lines(told: dict[str, Any]) -> list[str]:
    lines = [
        _problem(one)
        or f"{one['host']}: {_processes(len(one['processes']))} of the run, {counted(len(one['files']), 'file')}"
        for one in told["hosts"]
    ]
    return [*lines, f"in {told['folder']}"]


def with_leftovers(answers: Sequence[Answer]) -> list[str]:
    """The hosts on which there is something to end."""
    return [one.host for one in _sorted(answers) if one.told and one.told.get("left")]


def left_lines(answers: Sequence[Answer]) -> list[str]:
    """A line for each process that is left over."""
    return [
        one_line(f"{one.host}: pid {process['pid']}, rank {process['rank']}: {process['command']}")
        for one in _sorted(answers)
        for process in (one.told or {}).get("left", [])
    ]


def cleaned(answers: Sequence[Answer]) -> dict[str, Any]:
    """One object: of each host what was left over, how many processes of living agents, what survives SIGKILL."""
    hosts = [
        {**_host(one), **{key: (one.told or {}).get(key) for key in ("left", "living", "survived")}}
        for one in _sorted(answers)
    ]
    return {"schema": SCHEMA, "hosts": hosts}


def cleaned_lines(told: dict[str, Any]) -> list[str]:
    return [_problem(one) or f"{one['host']}: {_cleaned(one)}" for one in told["hosts"]]


def exit_code(answers: Sequence[Answer]) -> int:
    """1 where a process survives SIGKILL, 5 where somebody could not be asked, else 0."""
    if any(one.told and one.told.get("survived") for one in answers):
        return 1
    return 5 if any(one.problem for one in answers) else 0


def _cleaned(one: dict[str, Any]) -> str:
    living = f"; {_processes(one['living'])} of a living agent left alone" if one["living"] else ""
    if not one["left"]:
        return f"nothing is left over{living}"
    ended = _processes(len(one["left"]) - len(one["survived"]))
    stuck = ", ".join(map(str, one["survived"]))
    return f"{ended} ended{f', and {stuck} survives SIGKILL: reboot the node' if stuck else ''}{living}"


def _host(one: Answer) -> dict[str, Any]:
    problem = one.problem
    told = {"message": problem.message, "where": problem.where, "hint": problem.hint} if problem else None
    return {"host": one.host, "problem": told}


def _problem(one: dict[str, Any]) -> str:
    problem = one["problem"]
    if problem is None:
        return ""
    where = f" ({problem['where']})" if problem["where"] else ""
    hint = f"; try: {problem['hint']}" if problem["hint"] else ""
    return one_line(f"{one['host']}: {problem['message']}{where}{hint}")


def _texts(one: Answer) -> dict[str, str]:
    """Of an answer, which may be anything, what can be files."""
    texts = (one.told or {}).get("texts")
    return (
        {k: v for k, v in texts.items() if _NAME.fullmatch(k) and isinstance(v, str)} if isinstance(texts, dict) else {}
    )


def _processes(number: int) -> str:
    return f"{number} process" if number == 1 else f"{number} processes"


def _sorted(answers: Sequence[Answer]) -> list[Answer]:
    return sorted(answers, key=lambda one: one.host)
