"""How hosts are reached: by steps of a Slurm job of ours, or over ssh."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from launcher.backends.slurm_calls import running_job
from launcher.backends.slurm_jobs import jobs_of
from launcher.errors import Unreachable, WrongUse
from launcher.health.here import node_name
from launcher.hosts.deeds import refuse_unknown
from launcher.hosts.names import folded, unfolded
from launcher.paths import RunPaths
from launcher.place import own_id, slurm_job
from launcher.remote.ask import Transport
from launcher.remote.steps import Here, Steps
from launcher.snapshots import read_run
from launcher.spec import read_resolved


@dataclass(frozen=True)
class Way:
    """The hosts, and what runs commands on them. `by`: in words."""

    hosts: tuple[str, ...]
    transport: Transport
    by: str


@dataclass(frozen=True)
class OfRun:
    """A run whose hosts are meant: its folder, all the jobs that it ever had, and the one that it has."""

    folder: Path
    jobs: tuple[str, ...]
    job: str
    nodes: tuple[str, ...]
    is_virtual: bool = False  # the nodes are processes of one machine
    trains: bool = False  # ranks need its nodes

    @property
    def named(self) -> dict[str, object]:
        """By what its processes are known on the hosts."""
        return {"run": str(self.folder), "jobs": list(self.jobs)}


def of_run(paths: RunPaths) -> OfRun:
    """What the run's journal says. Raises LaunchError where it cannot be read."""
    run, backend = read_run(paths), read_resolved(paths.spec).cluster.backend
    jobs = {slurm_job(job) for job in (run.job_id, *run.past_jobs, *_submitted(paths))} - {""}
    trains = run.live_attempt is not None and not run.state.is_terminal
    is_virtual = backend == "local" or (backend == "own" and not jobs)
    if is_virtual:  # it may have been started in a job, which it does not know
        return OfRun(paths.root.absolute(), (), "", (), is_virtual=True, trains=trains)
    nodes = tuple(sorted(run.nodes))
    return OfRun(paths.root.absolute(), tuple(sorted(jobs)), slurm_job(run.job_id), nodes, trains=trains)


def find_way(
    nodes: Sequence[str],
    run: OfRun | None,
    via: Literal["srun", "ssh"] | None,
    ssh_config: Path | None,
    environment: Mapping[str, str],
) -> Way:
    """By srun where a job of ours is meant that has all the hosts: the run's, or the one that we are in; else by ssh.

    Without `nodes`, those of the run. Raises WrongUse, Unreachable, LaunchError.
    """
    if run and run.is_virtual:
        if nodes or via:
            raise WrongUse(
                "its nodes are virtual, and all on one machine", f"run {run.folder.name}", "leave NODES and --via out"
            )
        return Way((node_name(),), Here(), "processes of this machine")
    named = tuple(unfolded(nodes))
    job = run.job if run else own_id(environment) if "SLURM_JOB_ID" in environment else ""
    if via != "ssh" and job and (way := _by_steps(job, named, must=via == "srun")):
        return way
    if via == "srun":
        raise WrongUse("srun needs a job", "--via srun", "--run RUN, or call it in a job; or --via ssh")
    if names := named or (run.nodes if run else ()):
        from launcher.remote.ssh import Ssh  # paramiko takes its time to be imported

        return Way(names, Ssh(ssh_config), "ssh")
    raise WrongUse("no hosts are meant", "hosts", "name them, or a run that has nodes: --run RUN")


def _by_steps(job: str, named: tuple[str, ...], *, must: bool) -> Way | None:
    """To the named nodes of the job, or to all that it has; None where it has not all of them, and need not."""
    found = running_job(job)
    if found is None:
        if must:
            raise Unreachable(f"job {job} does not run, or Slurm does not answer", "srun", "--via ssh needs no job")
        return None
    has = unfolded([found[1]])
    if must:
        refuse_unknown(named, has, f"job {job} has {folded(has)} and not")
    if not set(has).issuperset(named):
        return None
    return Way(named or tuple(has), Steps(found[0]), f"srun in job {found[0]}")


def _submitted(paths: RunPaths) -> list[str]:
    try:
        return jobs_of(paths)
    except (OSError, ValueError, KeyError):
        return []
