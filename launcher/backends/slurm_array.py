"""Many runs as one Slurm array: one element for each, supervised by itself, at most so many of them at once."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from launcher.backends import slurm
from launcher.backends.slurm_calls import cancel, job_states
from launcher.backends.slurm_jobs import write_jobs
from launcher.backends.slurm_words import is_over
from launcher.paths import RunPaths
from launcher.sections import RunSpec

Run = tuple[RunPaths, RunSpec]
_GONE_S = 60.0  # Slurm's own KillWait is 30 s
_POLL_S = 0.5


def submit(folder: Path, name: str, runs: Sequence[Run], at_once: int) -> list[str]:
    """Submit the array, all of one shape; the job of each run. Raises LaunchError with Slurm's own words."""
    executor = _executor(folder, name, runs, at_once)
    with slurm.asking():
        jobs = [job.job_id for job in executor.map_array(slurm.run_node, [str(paths.root) for paths, _ in runs])]
    for (paths, _), job in zip(runs, jobs, strict=True):
        write_jobs(paths, uuid.uuid4().hex[:6], [job])
    return jobs


def script(folder: Path, name: str, runs: Sequence[Run], at_once: int) -> str:
    """The very script that would be submitted. Touches nothing."""
    executor = _executor(folder, name, runs, at_once)
    if len(runs) > 1:
        executor.parameters["map_count"] = len(runs)
    return executor._make_submission_file_text(executor._submitit_command_str, "dry-run")


def by_shape(specs: Sequence[RunSpec]) -> list[list[int]]:
    """Which of these (their positions) ask Slurm for the same, and so can be one array."""
    shapes: dict[str, list[int]] = {}
    for position, spec in enumerate(specs):
        shapes.setdefault(json.dumps(_asked(spec, ""), sort_keys=True), []).append(position)
    return list(shapes.values())


def take_back(jobs: Sequence[str]) -> None:
    """Cancel these jobs, and wait until nothing of them runs any more, or Slurm has had its time for it."""
    cancel(*jobs)
    deadline = time.monotonic() + _GONE_S
    while time.monotonic() < deadline:
        states = job_states(jobs)
        if states is not None and all(map(is_over, states.values())):
            return
        time.sleep(_POLL_S)


def _executor(folder: Path, name: str, runs: Sequence[Run], at_once: int) -> Any:
    _, spec = runs[0]
    return slurm.executor_for(folder, spec, {**_asked(spec, name), "array_parallelism": at_once})


def _asked(spec: RunSpec, name: str) -> dict[str, Any]:
    return slurm.parameters(spec, "") | {"job_name": name}
