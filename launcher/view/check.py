"""Policies looked at by themselves, before any run uses them."""

from __future__ import annotations

from collections.abc import Sequence

from launcher.errors import ConfigError
from policies.load import load_policy, shipped


def check_policies(files: Sequence[str]) -> list[str]:
    """A line for each policy. Raises ConfigError with the mistakes of all of them."""
    lines, mistakes = [], []
    for file in files:
        try:
            policy = load_policy([file if "/" in file or file in shipped() else f"./{file}"])
        except ConfigError as error:
            mistakes += error.mistakes
        else:
            lines.append(f"{file}: ok, {len(policy.rules)} rules")
    if mistakes:
        raise ConfigError(mistakes)
    return lines
