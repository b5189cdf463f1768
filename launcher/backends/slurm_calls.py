"""What is asked of Slurm, and told to it, about a job. Calls have a time limit; an answer that never came is None."""

from __future__ import annotations

import os
import pwd
import subprocess
import time
from collections.abc import Mapping, Sequence

from launcher.backends.slurm_words import InQueue, Job, Node, is_over, job_of, last_that_ran, nodes_of, queue_of

CALL_LIMIT_S = 20.0
# A requeued job may start two minutes after its last process is gone, unless by then it has been given a later time
# that has not yet come: so much later, which is enough for its processes to go.
ANEW_S = 20
_LOOKS = ("SQUEUE_", "SINFO_", "SACCT_", "SLURM_TIME_FORMAT")
_REQUEUE = """\
trap '' TERM CONT USR2
scontrol requeue "$1" && scontrol update JobId="$1" StartTime="$2" && {
  [ -z "$3" ] || scontrol update JobId="$1" ExcNodeList="$3"
}"""


def call(*command: str) -> subprocess.CompletedProcess[str] | None:
    """One of Slurm's commands; None when it cannot be had or does not answer in time."""
    try:
        return subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=CALL_LIMIT_S, env=plain(os.environ)
        )
    except (OSError, subprocess.TimeoutExpired):
        return None


def plain(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment without what a user may have set to have Slurm's answers look otherwise, or left out."""
    asked_for = {name: value for name, value in environment.items() if not name.startswith(_LOOKS)}
    return asked_for | {"SLURM_TIME_FORMAT": "standard", "LC_ALL": "C"}


# ---------------------------------------------------------------- asked


def queue(job_ids: Sequence[str]) -> dict[str, InQueue] | None:
    """What squeue says of these jobs, nothing of those it knows no more; None when Slurm does not answer."""
    # -r: each element of an array by itself
    said = call("squeue", "-h", "-r", "-j", ",".join(job_ids), "-o", "%i|%T|%S|%r")
    if said is None or (said.returncode != 0 and "Invalid job id" not in said.stderr):
        return None
    return queue_of(said.stdout)


def job_states(job_ids: Sequence[str]) -> dict[str, str] | None:
    """The words of squeue for these jobs, none for those it knows no more; None when Slurm does not answer."""
    said = queue(job_ids)
    return None if said is None else {job: one.state for job, one in said.items()}


def how_ended(job_ids: Sequence[str], states: Sequence[str]) -> str:
    """In words, what became of the last of these jobs that ran; where accounts are kept, also who cancelled it."""
    said = call("sacct", "-n", "-X", "-P", "-o", "JobID,State,Start", "-j", ",".join(map(plain_id, job_ids)))
    if said is not None and said.returncode == 0 and (told := last_that_ran(said.stdout)) is not None:
        job, state = told
        return f"job {job}: {_with_name(state)}"
    return f"job {job_ids[-1]}: {states[-1]}" if states else ""


def _with_name(state: str) -> str:
    word, by, uid = state.partition(" by ")
    try:
        return f"{word}{by}{pwd.getpwuid(int(uid)).pw_name}" if by else state
    except (ValueError, KeyError):
        return state


def show_job(job_id: str) -> Job | None:
    """The job as scontrol shows it; None when Slurm does not answer or knows it no more."""
    said = call("scontrol", "-o", "show", "job", plain_id(job_id))
    return job_of(said.stdout) if said is not None and said.returncode == 0 else None


def show_nodes() -> list[Node] | None:
    """All nodes as scontrol shows them; None when Slurm does not answer."""
    said = call("scontrol", "-o", "show", "node")
    return [*nodes_of(said.stdout)] if said is not None and said.returncode == 0 else None


def running_job(job_id: str) -> tuple[str, str] | None:
    """The number of a job that runs, by which steps are started in it, and its nodes as Slurm lists them.

    None when Slurm does not answer, or has no such job running.
    """
    said = call("squeue", "-h", "-t", "RUNNING", "-j", plain_id(job_id), "-o", "%A %N")
    words = said.stdout.split() if said is not None and said.returncode == 0 else []
    return (words[0], words[1]) if len(words) == 2 else None


def step_is_alive(job_id: str, step: str) -> bool:
    """Whether a step of a job goes on; where the controller does not answer, it does."""
    said = call("squeue", "-h", "--steps", "-j", job_id, "-o", "%i")
    if said is None or (said.returncode != 0 and "Invalid job id" not in said.stderr):
        return True
    return f"{job_id}.{step}" in said.stdout.split()


def is_batch(job_id: str) -> bool:
    """Whether a batch script runs the job; not known, it does not."""
    said = call("scontrol", "show", "job", job_id)
    return said is not None and "BatchFlag=1" in said.stdout.split()


def plain_id(job_id: str) -> str:
    """Without the number of the job's life."""
    return job_id.split(".", maxsplit=1)[0]


def life_of(job_id: str) -> int:
    """How often the job had been requeued when this life of it began."""
    return int(job_id.partition(".")[2] or 0)


# ---------------------------------------------------------------- told


def requeue(job_id: str, exclude: Sequence[str] = ()) -> None:
    """Have the job begin anew, soon and without these nodes. Returns before it is done: it ends us too.

    And it would end what asks for it, before that has asked for all.
    """
    null = subprocess.DEVNULL
    command = ["sh", "-c", _REQUEUE, "sh", plain_id(job_id), _soon(), ",".join(exclude)]
    subprocess.Popen(command, stdin=null, stdout=null, stderr=null)


def fate(job_id: str, exclude: Sequence[str] = ()) -> str | None:
    """What becomes of a job that is being ended: "" if it begins anew (soon, and without these nodes), else why not.

    None when Slurm does not say. While processes are being ended the state tells nothing; a requeued job has a
    higher count of restarts already, one that is over has its end behind it.
    """
    job = show_job(job_id)
    if job is None:
        return None
    if job.restarts > life_of(job_id):
        call("scontrol", "update", f"JobId={plain_id(job_id)}", f"StartTime={_soon()}")
        if exclude:
            call("scontrol", "update", f"JobId={plain_id(job_id)}", f"ExcNodeList={','.join(exclude)}")
        return ""
    if is_over(job.state) or (job.ends_at is not None and job.ends_at <= time.time() + 1):
        return f"Slurm has ended job {plain_id(job_id)} for good"
    return None


def cancel(*job_ids: str) -> None:
    """End these jobs, or take them from the queue."""
    call("scancel", *map(plain_id, job_ids))


def _soon() -> str:
    return f"now+{ANEW_S}"
