"""Which backend a run is on. A backend is a module with the functions of `Backend`."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import Protocol

from launcher.backends import local, own, slurm, slurm_jobs
from launcher.backends.report import NodeReport
from launcher.backends.standing import Standing, Waiting
from launcher.errors import Unreachable
from launcher.paths import RunPaths
from launcher.sections import RunSpec


class NodeStates(Protocol):
    """Asked again and again by the supervisor; answers at once, from what it last learned.

    `ends_at`: when the allocation does; `away_since`: since when nobody answers. Unix seconds, None if not so.
    `job_state`: in the scheduler's words, "" where it said nothing.
    """

    job_state: str
    ends_at: float | None

    @property
    def away_since(self) -> float | None: ...

    def read(self) -> dict[str, NodeReport]: ...


class Backend(Protocol):
    """What the rest of the launcher needs of a backend."""

    def submit(self, paths: RunPaths, spec: RunSpec, /) -> None: ...

    def script(self, paths: RunPaths, spec: RunSpec, /) -> str: ...

    def standing(self, paths: RunPaths, /, *, at_once: bool = False) -> Standing: ...

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


def standings(runs: Sequence[RunPaths], *, at_once: bool = False) -> dict[RunPaths, Standing]:
    """How the allocations of these runs stand; `at_once`: now, not as of a moment ago. Slurm is asked once for all."""
    backends = {paths: _backend_of_allocation(paths) for paths in runs}
    found = slurm_jobs.standings([paths for paths in runs if backends[paths] is slurm], at_once=at_once)
    for paths, backend in backends.items():
        if backend not in (None, slurm):
            found[paths] = backend.standing(paths, at_once=at_once)
    return {paths: found.get(paths, Standing(False)) for paths in runs}


def may_live(paths: RunPaths) -> bool:
    """Whether an allocation of the run waits or lives, or nobody knows."""
    return standings([paths])[paths].may_live


def living(runs: Sequence[RunPaths]) -> dict[RunPaths, Standing]:
    """Those of which an allocation waits or lives now. Raises Unreachable where the scheduler does not say."""
    found = standings(runs, at_once=True)
    for paths, one in found.items():
        if one.lives is None:
            told = f"job {one.jobs[0]} is" if len(one.jobs) == 1 else f"jobs {', '.join(one.jobs)} are"
            raise Unreachable(f"Slurm does not answer: whether {told} gone is not known", str(paths.root), "try again")
    return {paths: one for paths, one in found.items() if one.lives}


def waiting(paths: RunPaths) -> Waiting | None:
    """For what the run's allocation waits now, so that no process of it can live; None where it does not."""
    return standings([paths], at_once=True)[paths].waiting


def way_on(paths: RunPaths) -> str:
    """What a person says for a run to go on that has ended, or of which nothing lives."""
    return own.way_on(paths) if _backend_of_allocation(paths) is own else f"opt-launch resume {paths.name}"


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
