"""The allocation is the user's own: `opt-launch run`, alone on a machine or started by the srun of their job.

We neither start it nor end it, but for a batch job that lost its first node: nobody else would.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import psutil

from launcher import wire
from launcher.backends import slurm, slurm_calls, slurm_jobs
from launcher.backends.local import end_processes, living
from launcher.backends.report import NodeReport
from launcher.backends.standing import Standing
from launcher.errors import LaunchError, Unreachable
from launcher.paths import RunPaths, write_atomically
from launcher.place import Place, slurm_job, slurm_life
from launcher.sections import RunSpec

SRUN_ANSWERS_S = 5.0

# ---------------------------------------------------------------- from outside


def submit(paths: RunPaths, _spec: RunSpec) -> None:
    """Never possible from here. Raises LaunchError."""
    raise cannot_start(paths)


def cannot_start(paths: RunPaths) -> LaunchError:
    """Only who has an allocation can have it do something."""
    return LaunchError(f"run '{paths.name}' was started by opt-launch run", str(paths.root), way_on(paths))


def way_on(paths: RunPaths) -> str:
    """What a person gives for a run of ours to go on."""
    script = "the same script, or " if allocation(paths).get("job") else ""
    return f"{script}the same command again, with --name {paths.name}"


def script(_paths: RunPaths, _spec: RunSpec) -> str:
    """The script is the user's."""
    return ""


def standing(paths: RunPaths, *, at_once: bool = False) -> Standing:
    """How the run's job stands, whose place in the queue is not ours; without Slurm, the process of its first node."""
    about = allocation(paths)
    if not about.get("job"):
        return Standing(bool(about) and _first_lives(about))
    found = slurm_jobs.standings_of({paths: [about["job"]]}, at_once=at_once)[paths]
    return replace(found, waiting=replace(found.waiting, is_ours=False)) if found.waiting else found


def is_at_work(paths: RunPaths, place: Place) -> bool:
    """Whether another start of the run than this one still works on it; of the same job only its processes count."""
    about = allocation(paths)
    if not about or (about["job"] and about["job"] != place.job):
        return standing(paths, at_once=True).may_live
    if about["life"] != place.life:
        return False  # the job as it was before it was requeued
    return slurm_calls.step_is_alive(place.job, about["step"]) if about["step"].isdigit() else _first_lives(about)


def _first_lives(about: dict[str, Any]) -> bool:
    if about["host"] != socket.gethostname():
        return True  # nobody here can know, and what may live is not started twice
    return living(about["pid"], about["started"]) is not None


def give_back(paths: RunPaths) -> None:
    """End what was started, not the user's job: its step, or the process of its first node. Raises LaunchError."""
    about = allocation(paths)
    if about["job"]:
        step = f"{about['job']}.{about['step']}" if about["step"].isdigit() else about["job"]
        if slurm_calls.call("scancel", step) is None:
            raise Unreachable("Slurm does not answer", f"scancel {step}", "try again later")
    elif about["host"] != socket.gethostname():
        raise Unreachable(f"its first node is {about['host']}", f"run {paths.name}", "give the command there")
    elif process := living(about["pid"], about["started"]):
        end_processes([process], f"run {paths.name}")


# ---------------------------------------------------------------- for agents and supervisor


def begun(_paths: RunPaths, _spec: RunSpec, _job_id: str) -> str:
    """The next job is the user's to submit."""
    return ""


def requeue(job_id: str, _exclude: Sequence[str]) -> None:
    """Have the user's job begin anew. What nodes it may get, the user has said."""
    if job := slurm_job(job_id):
        slurm.requeue(job)


def fate(job_id: str, _exclude: Sequence[str]) -> str | None:
    """What becomes of the user's job when it is being ended."""
    return slurm.fate(slurm_life(job_id)) if slurm_job(job_id) else None


def ended(_paths: RunPaths, _job_id: str) -> None:
    """The rest of the script is the user's."""


def end(job_id: str) -> None:
    """End the user's job if nobody else will: srun is gone, and so is the batch script, which ran beside it."""
    job = slurm_job(job_id)
    if job and not _srun_answers() and slurm_calls.is_batch(job):
        slurm.end(job)


def _srun_answers() -> bool:
    """Whether the srun that started us still listens."""
    try:
        address = os.environ["SLURM_SRUN_COMM_HOST"], int(os.environ["SLURM_SRUN_COMM_PORT"])
        with socket.create_connection(address, SRUN_ANSWERS_S):
            return True
    except (KeyError, ValueError):
        return True  # not started by srun, or not so that we could know
    except OSError:
        return False


class _NobodyKnows:
    """Without a scheduler nothing is known of nodes but what they say themselves."""

    job_state = ""
    ends_at: float | None = None
    away_since: float | None = None

    def read(self) -> dict[str, NodeReport]:
        return {}


def node_states(paths: RunPaths, job_id: str) -> _NobodyKnows | slurm.NodeStates:
    """What Slurm says of the job and its nodes, if there is one."""
    job = slurm_job(job_id)
    return slurm.node_states(paths, job) if job else _NobodyKnows()


# ---------------------------------------------------------------- what the first node says


def allocation(paths: RunPaths) -> dict[str, Any]:
    """What the first node last said of the allocation; empty before it did."""
    with contextlib.suppress(OSError, ValueError):
        return json.loads(paths.allocation.read_text())
    return {}


def announce(paths: RunPaths, place: Place) -> None:
    """From now on the run is that of this allocation. Raises OSError."""
    us = psutil.Process()
    about = {"backend": "own", "job_id": place.job_id, "job": place.job, "life": place.life, "step": place.step}
    about |= {"host": socket.gethostname(), "pid": us.pid, "started": us.create_time()}
    write_atomically(paths.allocation, json.dumps(about))


def is_of_us(paths: RunPaths, about: dict[str, Any], place: Place) -> bool:
    """Whether the first node has said so of this start, not of one before."""
    return about["job_id"] == place.job_id if place.job else asyncio.run(_first_answers(paths, about["job_id"]))


async def _first_answers(paths: RunPaths, job_id: str) -> bool:
    """Whether the agent of the first node lives."""
    for file in paths.agents.glob("*.json"):
        with contextlib.suppress(OSError, ValueError):
            agent = json.loads(file.read_text())
            if agent["index"] == 0 and agent["job_id"] == job_id:
                link = await wire.dial(agent["host"], agent["port"], paths.secret.read_bytes(), timeout_s=2.0)
                link.close()
                return True
    return False
