"""Which jobs a run has, and what Slurm said of them.

Many may look at many runs: what Slurm said is kept beside the run, and Slurm is not asked again for a while.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Mapping, Sequence

from launcher.backends.slurm_calls import how_ended, job_states
from launcher.backends.slurm_words import is_over
from launcher.paths import RunPaths, write_atomically

POLL_S = 30.0  # sites ask for no more


def write_jobs(paths: RunPaths, token: str, jobs: Sequence[str]) -> None:
    """The run has these jobs."""
    write_atomically(paths.allocation, json.dumps({"backend": "slurm", "token": token, "jobs": list(jobs)}))


def jobs_of(paths: RunPaths) -> list[str]:
    """The jobs of the run in their order; all but one wait, or are over. Raises OSError, ValueError, KeyError."""
    return [str(job) for job in json.loads(paths.allocation.read_text())["jobs"]]


def are_alive(paths: RunPaths, jobs: Sequence[str], *, at_once: bool = False) -> bool:
    """Whether one of these jobs of the run waits or runs."""
    return bool(_living({paths: jobs}, at_once=at_once))


def living(runs: Sequence[RunPaths], *, at_once: bool = False) -> set[RunPaths]:
    """The runs of which a job waits or runs. Slurm is asked once for all."""
    jobs: dict[RunPaths, Sequence[str]] = {}
    for paths in runs:
        with contextlib.suppress(OSError, ValueError, KeyError):
            jobs[paths] = jobs_of(paths)
    return _living(jobs, at_once=at_once)


def _living(jobs: Mapping[RunPaths, Sequence[str]], *, at_once: bool) -> set[RunPaths]:
    """Where the controller does not answer, they live. What it said within `POLL_S` counts, unless `at_once`."""
    known = {paths: None if at_once else _known_states(paths, ids) for paths, ids in jobs.items()}
    asked = [paths for paths, states in known.items() if states is None]
    said = job_states([job for paths in asked for job in jobs[paths]]) if asked else None
    for paths in asked if said is not None else ():
        known[paths] = [said[job] for job in jobs[paths] if said is not None and job in said]
        _note_states(paths, jobs[paths], known[paths] or [])
    return {paths for paths, states in known.items() if states is None or not all(map(is_over, states))}


def _known_states(paths: RunPaths, jobs: Sequence[str]) -> list[str] | None:
    """What Slurm said of these jobs a moment ago; None if it was not asked."""
    with contextlib.suppress(OSError, ValueError, KeyError):
        known = json.loads(paths.job_state.read_text())
        if known["jobs"] == [*jobs] and 0 <= time.time() - known["at"] < POLL_S:
            return known["states"]
    return None


def _note_states(paths: RunPaths, jobs: Sequence[str], states: Sequence[str]) -> None:
    how = how_ended(jobs, states) if all(map(is_over, states)) else ""
    with contextlib.suppress(OSError):
        write_atomically(
            paths.job_state, json.dumps({"jobs": [*jobs], "states": states, "at": time.time(), "how": how})
        )
