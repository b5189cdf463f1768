"""Policies looked at by themselves, before any run uses them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from launcher.errors import ConfigError
from launcher.view.words import counted
from policies.load import is_path, load_policy, shipped


def check_policies(files: Sequence[str]) -> list[str]:
    """A line for each policy. Raises ConfigError with the mistakes of all of them."""
    lines, mistakes = [], []
    for file in files:
        try:
            policy = load_policy([_named(file)])
        except ConfigError as error:
            mistakes += error.mistakes
        else:
            lines.append(f"{file}: ok, {counted(len(policy.rules), 'rule')}")
    if mistakes:
        raise ConfigError(mistakes)
    return lines


def _named(file: str) -> str:
    """A bare word is a shipped policy, unless only a file has that name."""
    is_file = not is_path(file) and file not in shipped() and Path(file).is_file()
    return f"./{file}" if is_file else file
