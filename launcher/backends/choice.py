"""Which backend a run is on. A backend is a module with the functions of `Backend`."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import Protocol

from launcher.backends import local, own, slurm, slurm_jobs
from launcher.backends.report import NodeReport
from launcher.paths import RunPaths
from launcher.sections import RunSpec


class NodeStates(Protocol):
    """Asked again and again by the supervisor; answers at once, from what it last learned.

    `ends_at`: when the allocation does; `away_since`: since when nobody answers. Unix seconds, None if not so.
    `job_state`: in the scheduler's words, "" where it said nothing.
    """

    job_state: str
    ends_at: float | None
    away_since: float | None

    def read(self) -> dict[str, NodeReport]: ...


class Backend(Protocol):
    """What the rest of the launcher needs of a backend."""

    def submit(self, paths: RunPaths, spec: RunSpec, /) -> None: ...

    def script(self, paths: RunPaths, spec: RunSpec, /) -> str: ...

    def is_alive(self, paths: RunPaths, /, *, at_once: bool = False) -> bool: ...

    def is_waiting(self, paths: RunPaths, /) -> bool: ...

    def give_back(self, paths: RunPaths, /) -> None: ...

    def node_states(self, paths: RunPaths, job_id: str, /) -> NodeStates: ...

    def begun(self, paths: RunPaths, spec: RunSpec, job_id: str, /) -> str: ...

    def requeue(self, job_id: str, exclude: Sequence[str], /) -> None: ...

    def fate(self, job_id: str, exclude: Sequence[str], /) -> str | None: ...

    def ended(self, paths: RunPaths, job_id: str, /) -> None: ...

    def end(self, job_id: str, /) -> None: ...


_BACKENDS: dict[str, Backend] = {"local": local, "slurm": slurm, "own": own}


def backend_of(spec: RunSpec) -> Backend:
    """The backend that the spec names."""
    return _BACKENDS[spec.cluster.backend]


def has_scheduler(spec: RunSpec) -> bool:
    """Whether this process is part of a job that a scheduler may end."""
    return spec.cluster.backend == "slurm" or (spec.cluster.backend == "own" and "SLURM_JOB_ID" in os.environ)


def how_ended(paths: RunPaths) -> str:
    """What the scheduler said of the end of a run's last job; "" if it said nothing."""
    try:
        return str(json.loads(paths.job_state.read_text()).get("how", ""))
    except (OSError, ValueError, AttributeError):
        return ""


def is_alive(paths: RunPaths, *, at_once: bool = False) -> bool:
    """Whether an allocation of the run waits or lives; `at_once`: now, not as of a moment ago."""
    return bool(living([paths], at_once=at_once))


def living(runs: Sequence[RunPaths], *, at_once: bool = False) -> list[RunPaths]:
    """Those that are alive. Slurm is asked about all of them at once."""
    backends = {paths: _backend_of_allocation(paths) for paths in runs}
    alive = slurm_jobs.living([paths for paths in runs if backends[paths] is slurm], at_once=at_once)
    for paths, backend in backends.items():
        if backend not in (None, slurm) and backend.is_alive(paths, at_once=at_once):
            alive.add(paths)
    return [paths for paths in runs if paths in alive]


def is_waiting(paths: RunPaths) -> bool:
    """Whether the run's allocation waits for its turn, so that no process of it can live."""
    backend = _backend_of_allocation(paths)
    return backend is not None and backend.is_waiting(paths)


def give_back(paths: RunPaths) -> None:
    """End the run's allocation and all processes in it, or take it out of the queue. Raises LaunchError."""
    backend = _backend_of_allocation(paths)
    if backend is not None:
        backend.give_back(paths)


def _backend_of_allocation(paths: RunPaths) -> Backend | None:
    try:
        name = json.loads(paths.allocation.read_text()).get("backend")
    except (OSError, ValueError):
        return None
    return _BACKENDS.get(name, local)
