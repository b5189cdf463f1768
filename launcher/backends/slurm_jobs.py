"""Which jobs a run has, and what Slurm said of them.

Many may look at many runs: what Slurm said, or that it said nothing, is kept beside the run, and Slurm is not asked
again for a while.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace

from launcher.backends.slurm_calls import how_ended, queue
from launcher.backends.slurm_words import InQueue, is_over, is_queued
from launcher.backends.standing import Standing, Waiting
from launcher.paths import RunPaths, write_atomically

POLL_S = 30.0  # sites ask for no more


def write_jobs(paths: RunPaths, token: str, jobs: Sequence[str]) -> None:
    """The run has these jobs."""
    write_atomically(paths.allocation, json.dumps({"backend": "slurm", "token": token, "jobs": list(jobs)}))


def jobs_of(paths: RunPaths) -> list[str]:
    """The jobs of the run in their order; all but one wait, or are over. Raises OSError, ValueError, KeyError."""
    return [str(job) for job in json.loads(paths.allocation.read_text())["jobs"]]


@dataclass(frozen=True)
class Said:
    """What Slurm said of a run's jobs, at `told_at`; those it knows no more are left out. Times are Unix seconds.

    `asked_at`: when it was asked last; `away_since`: since when it has not answered. `how`: how the last job ended.
    """

    jobs: tuple[str, ...]
    told: Mapping[str, InQueue] = field(default_factory=dict)
    told_at: float | None = None
    asked_at: float = 0.0
    away_since: float | None = None
    how: str = ""

    def after(self, answer: Mapping[str, InQueue] | None, asked_at: float) -> Said:
        """The same after one more question; None is no answer."""
        if answer is None:
            return replace(self, asked_at=asked_at, away_since=self.away_since or asked_at)
        told = {job: answer[job] for job in self.jobs if job in answer}
        return Said(self.jobs, told, told_at=asked_at, asked_at=asked_at)

    @property
    def is_over(self) -> bool:
        """Whether Slurm said of all the jobs that they are."""
        return self.told_at is not None and all(is_over(one.state) for one in self.told.values())

    def standing(self, *, at_once: bool) -> Standing:
        """How the allocation stands; `at_once`: what was said before Slurm went away does not count."""
        if self.is_over and not (at_once and self.away_since):
            return Standing(False, self.jobs, told_at=self.told_at, away_since=self.away_since, how=self.how)
        if self.away_since is not None:
            waiting = None if at_once else self._waiting
            return Standing(None, self.jobs, waiting, self.told_at, self.away_since)
        return Standing(True, self.jobs, self._waiting, self.told_at)

    @property
    def _waiting(self) -> Waiting | None:
        """The first job that waits, where none runs."""
        left = {job: one for job, one in self.told.items() if not is_over(one.state)}
        if not left or not all(is_queued(one.state) for one in left.values()):
            return None
        job, one = next(iter(left.items()))
        return Waiting(job, one.reason, one.starts_at)


def standings(runs: Sequence[RunPaths], *, at_once: bool = False) -> dict[RunPaths, Standing]:
    """How the jobs of these runs stand; a run that has none is not in it. Slurm is asked once for all."""
    jobs: dict[RunPaths, Sequence[str]] = {}
    for paths in runs:
        with contextlib.suppress(OSError, ValueError, KeyError):
            jobs[paths] = jobs_of(paths)
    return standings_of(jobs, at_once=at_once)


def standings_of(jobs: Mapping[RunPaths, Sequence[str]], *, at_once: bool = False) -> dict[RunPaths, Standing]:
    """How these jobs of the runs stand. What Slurm was asked within `POLL_S` is not asked again, unless `at_once`."""
    now = time.time()
    known = {paths: _noted(paths, ids) for paths, ids in jobs.items()}
    asked = [paths for paths, said in known.items() if at_once or not 0 <= now - said.asked_at < POLL_S]
    answer = queue([job for paths in asked for job in jobs[paths]]) if asked else None
    for paths in asked:
        said = known[paths].after(answer, now)
        known[paths] = replace(said, how=_how(said)) if answer is not None and said.is_over else said
        _note(paths, known[paths])
    return {paths: said.standing(at_once=at_once) for paths, said in known.items()}


def _how(said: Said) -> str:
    return how_ended(said.jobs, [one.state for one in said.told.values()])


def _noted(paths: RunPaths, jobs: Sequence[str]) -> Said:
    """What Slurm said of these jobs when it was asked last."""
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError, AttributeError):
        body = json.loads(paths.job_state.read_text())
        told = {str(job): InQueue(**one) for job, one in body["told"].items()}
        said = Said(**{**body, "jobs": tuple(body["jobs"]), "told": told})
        if said.jobs == tuple(jobs):
            return said
    return Said(tuple(jobs))


def _note(paths: RunPaths, said: Said) -> None:
    with contextlib.suppress(OSError):
        write_atomically(paths.job_state, json.dumps(asdict(said)))
