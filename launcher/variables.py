"""The variables of ranks that were taken from the submitter's environment: one file of the run, mode 0600."""

from __future__ import annotations

import json
from collections.abc import Mapping

from launcher.paths import RunPaths, write_atomically
from launcher.sections import FROM_ENV, RunSpec


def read_variables(paths: RunPaths) -> dict[str, str]:
    """Those that the run has ever taken; empty if none."""
    try:
        return json.loads(paths.variables.read_text())
    except FileNotFoundError:
        return {}


def keep_variables(paths: RunPaths, spec: RunSpec, environment: Mapping[str, str]) -> None:
    """Take what the spec asks for, and keep what was taken before where it is not set now. Raises OSError."""
    taken = {name: environment[name] for name in wanted(spec) if name in environment}
    if taken:
        write_atomically(paths.variables, json.dumps({**read_variables(paths), **taken}), mode=0o600)


def wanted(spec: RunSpec) -> list[str]:
    """The names that `launch.env` takes from the environment."""
    return [name for name, value in spec.launch.env.items() if value == FROM_ENV]
