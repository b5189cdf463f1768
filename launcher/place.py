"""Where a task of `opt-launch run` stands: alone on a machine, or as one of the tasks of a job. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from launcher.errors import WrongUse
from launcher.torchrun import COMMAND, Asked

_ONE_A_NODE = f"srun --ntasks-per-node=1 {COMMAND} ...: it starts all ranks of its node"


@dataclass(frozen=True)
class Place:
    """One of `count` nodes, with Slurm's id of the `job`, if there is one.

    `life` tells the job from the same one requeued, `step` one start in it from the next; where Slurm gives none, the
    first node makes one up.
    """

    node: str
    index: int = 0
    count: int = 1
    job: str = ""
    life: str = ""
    step: str = ""

    @property
    def job_id(self) -> str:
        """By which the processes of a start know each other: 123 or 123_7; 123.1 requeued; 123+4 as its fifth step."""
        return (self.life or "own") + (f"+{self.step}" if self.step != "0" else "")


def slurm_life(job_id: str) -> str:
    """The job and its life in a `job_id`."""
    return job_id.partition("+")[0]


def slurm_job(job_id: str) -> str:
    """Slurm's id of the job in a `job_id`; "" where Slurm has no part."""
    job = slurm_life(job_id).partition(".")[0]
    return job if job[:1].isdigit() else ""


def own_id(environment: Mapping[str, str]) -> str:
    """The id of the job we are in, with the number of its life if it was requeued.

    An element of an array goes by ARRAY_INDEX: the number in SLURM_JOB_ID is the whole array's for one of them.
    """
    array, life = environment.get("SLURM_ARRAY_JOB_ID"), environment.get("SLURM_RESTART_COUNT", "0")
    job = f"{array}_{environment['SLURM_ARRAY_TASK_ID']}" if array else environment["SLURM_JOB_ID"]
    return job if life == "0" else f"{job}.{life}"


def place_of(asked: Asked, environment: Mapping[str, str], host: str) -> Place:
    """The place of a task with this environment on this host. Raises WrongUse."""
    if "SLURM_STEP_ID" in environment or ("SLURM_JOB_ID" in environment and asked.node_rank is None):
        place = _in_a_job(environment, host)
    else:
        place = _by_flags(asked, host)
    spares = asked.spares or 0
    if spares >= place.count:
        raise WrongUse(f"{spares} of {place.count} nodes cannot be spares", f"--spares {spares}", "start more tasks")
    least, most = asked.nodes or (1, place.count)
    fits = least <= place.count - spares if least < most else place.count in (least, least + spares)
    if asked.nodes and not fits:
        told = f"{least}" if least == most else f"{least}:{most}"
        where = f"in job {place.job}" if place.job else f"on {host}"
        raise WrongUse(f"--nnodes is {told}, and this is one of {place.count} tasks", where, _ONE_A_NODE)
    return place


def training(asked: Asked, count: int) -> int:
    """How many of `count` nodes train. Of a range at most its end: what is beyond it waits, as with torchrun."""
    nodes = count - (asked.spares or 0)
    return min(nodes, asked.nodes[1]) if asked.is_elastic and asked.nodes else nodes


def _in_a_job(environment: Mapping[str, str], host: str) -> Place:
    """One task of a step; or the batch script itself, or the shell of salloc, in a job of one node."""
    life, step = own_id(environment), environment.get("SLURM_STEP_ID", "")
    job = slurm_job(life)
    nodes = int(environment.get("SLURM_STEP_NUM_NODES" if step else "SLURM_JOB_NUM_NODES", "1"))
    tasks = int(environment.get("SLURM_STEP_NUM_TASKS", nodes)) if step else 1
    if tasks != nodes:
        told = f"{tasks} tasks on {nodes} nodes" if step else f"one task in a job of {nodes} nodes"
        raise WrongUse(f"{told}: one a node is needed", f"in job {job}", _ONE_A_NODE)
    index = int(environment.get("SLURM_NODEID", "0")) if step else 0
    return Place(environment.get("SLURMD_NODENAME", host), index, nodes, job, life, step)


def _by_flags(asked: Asked, host: str) -> Place:
    _, count = asked.nodes or (1, 1)
    index = asked.node_rank or 0
    if index >= count:
        raise WrongUse(f"--node-rank {index} of {count} nodes", f"on {host}", "count from 0, and give --nnodes")
    if count == 1:
        return Place(host)
    if asked.node_rank is None or not asked.first_host:
        hint = "--nnodes N --node-rank I --master-addr HOST_OF_NODE_0, on each of them"
        raise WrongUse(f"{count} nodes: which of them this is, or where they meet, is missing", f"on {host}", hint)
    if not asked.name and not asked.meeting_id:
        raise WrongUse(f"{count} nodes need to agree on a name", f"on {host}", "--name NAME, the same on each of them")
    return Place(f"{host}-{index}", index, count)
