"""Which backend a run is on. A backend is a module: submit, script, is_alive, node_states, requeue, end."""

from __future__ import annotations

import json
from typing import Protocol

from launcher.backends import local, slurm
from launcher.backends.report import NodeReport
from launcher.paths import RunPaths
from launcher.sections import RunSpec


class NodeStates(Protocol):
    """Asked again and again by the supervisor; answers at once, from what it last learned."""

    def read(self) -> dict[str, NodeReport]: ...


class Backend(Protocol):
    """What the rest of the launcher needs of a backend."""

    def submit(self, paths: RunPaths, spec: RunSpec, /) -> None: ...

    def script(self, paths: RunPaths, spec: RunSpec, /) -> str: ...

    def is_alive(self, paths: RunPaths, /, *, at_once: bool = False) -> bool: ...

    def node_states(self, paths: RunPaths, job_id: str, /) -> NodeStates: ...

    def requeue(self, job_id: str, /) -> None: ...

    def end(self, job_id: str, /) -> None: ...


def backend_of(spec: RunSpec) -> Backend:
    """The backend that the spec names."""
    return slurm if spec.cluster.backend == "slurm" else local


def is_alive(paths: RunPaths, *, at_once: bool = False) -> bool:
    """Whether an allocation of the run waits or lives; `at_once`: now, not as of a moment ago."""
    try:
        name = json.loads(paths.allocation.read_text()).get("backend")
    except (OSError, ValueError):
        return False
    return (slurm if name == "slurm" else local).is_alive(paths, at_once=at_once)
