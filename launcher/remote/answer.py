"""What comes back from a host that was asked: the line that `launcher.remote.there` prints, among others. Pure."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter, ValidationError

from launcher.errors import LaunchError, Unreachable
from launcher.health.finding import Finding

SCHEMA = 1
MARK = "opt-launch answers: "  # before the JSON: what login scripts print stands in other lines
NOT_FOUND = 127  # of a shell, for a command that is not there
_SHOWN = 300  # characters of what was said instead


@dataclass(frozen=True)
class Output:
    """How a command ended elsewhere, and what it wrote to stdout and stderr together."""

    code: int
    text: str


@dataclass(frozen=True)
class Answer:
    """What one host answered, or why it did not. `sent_at`, `came_at`: Unix seconds of our clock."""

    host: str
    told: dict[str, Any] | None = None
    problem: LaunchError | None = None
    sent_at: float = 0.0
    came_at: float = 0.0


def command_for(python: str, verb: str, asked: dict[str, Any]) -> list[str]:
    """What is run on a host. `-P`: whatever lies in the folder it begins in is not imported."""
    return [python, "-P", "-m", "launcher.remote.there", json.dumps({"verb": verb, **asked})]


def answer_of(output: Output, python: str) -> dict[str, Any]:
    """What was told. Raises LaunchError if it is no answer, or an error of the other side."""
    for line in reversed(output.text.splitlines()):
        if line.startswith(MARK):
            return _read(line.removeprefix(MARK))
    raise _no_answer(output, python)


def findings_of(told: dict[str, Any]) -> list[Finding]:
    """The findings in an answer. Raises Unreachable if they are none."""
    try:
        return TypeAdapter(list[Finding]).validate_python(told.get("findings"))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise Unreachable(f"what it found cannot be read: {place}: {first['msg'].lower()}") from None


def _read(text: str) -> dict[str, Any]:
    try:
        told = json.loads(text)
        schema = int(told["schema"])
    except (ValueError, TypeError, KeyError):
        raise Unreachable(f"its answer cannot be read: {text[:_SHOWN]}") from None
    if schema > SCHEMA:
        hint = "use the same opt-launch on both sides: --python names the one there"
        raise Unreachable(f"a newer opt-launch answers there (format {schema}, this one reads {SCHEMA})", hint=hint)
    if error := told.get("error"):
        raise LaunchError(str(error.get("message")), str(error.get("where", "")), str(error.get("hint", "")))
    return told


def _no_answer(output: Output, python: str) -> Unreachable:
    lines = [line.strip() for line in output.text.splitlines() if line.strip()]
    hint = "install opt-launch there, or name the Python that has it: --python PATH"
    if output.code == NOT_FOUND or _says(lines, f"{python}: No such file", f"{python}: not found"):
        return Unreachable(f"there is no {python}", hint=hint)
    if _says(lines, "No module named"):
        return Unreachable(f"opt-launch cannot be imported by {python} there: {lines[-1][:_SHOWN]}", hint=hint)
    last = f": {lines[-1][:_SHOWN]}" if lines else ""
    return Unreachable(f"its opt-launch ended with exit code {output.code}{last}", hint="try it by hand there")


def _says(lines: Sequence[str], *texts: str) -> bool:
    return any(text in line for line in lines for text in texts)
