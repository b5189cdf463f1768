"""One Slurm job of `nodes + spares` nodes, submitted through submitit; srun starts one agent on each.

Of submitit only the submission is used: its task becomes the agent at once, so that neither its signal handlers nor
its results nor its requeue are ever in the way. The job is submitted with --no-kill: losing a node, the first one
too, leaves the others running. A job whose batch host died stays RUNNING until told otherwise, so who ends the run
then also ends the job.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import signal
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from launcher.backends import slurm_calls
from launcher.backends.report import NodeReport
from launcher.backends.scratch import sweep_scratch
from launcher.backends.slurm_calls import call, cancel, plain_id, show_job
from launcher.backends.slurm_hosts import exclude
from launcher.backends.slurm_jobs import POLL_S, jobs_of, standings, write_jobs
from launcher.backends.slurm_words import reports
from launcher.backends.standing import Standing
from launcher.errors import LaunchError, Unreachable
from launcher.network import reachable_address
from launcher.paths import RunPaths
from launcher.place import own_id
from launcher.sections import RunSpec
from launcher.snapshots import read_run

AWAY_POLL_S = 300.0
SLOW_S = 5.0  # who has not answered for so long is said to be away; it answers in a fraction of a second
# What srun must not do: end the step because of one node, or bind what the agent binds itself.
SRUN: tuple[str, ...] = (
    "--no-kill",
    "--kill-on-bad-exit=0",
    "--wait=0",
    "--mpi=none",
    "--gpu-bind=none",
    "--cpu-bind=none",
)
UNLIMITED_MIN = 365 * 24 * 60
# A node may be back before Slurm has missed it, without what ran there (a quick reboot, a step daemon that was killed).
# srun then kills the tasks of all nodes. The job is still there: begin again in it, on the nodes that it has by then.
_SRUN = """\
srun() {
  local job="${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}${SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID}" code=0 nodes
  command srun "$@" || code=$?
  for _ in 1 2 3 4 5; do
    [ "$code" -gt 128 ] || break
    nodes=$(squeue -h -j "$job" -o %D)
    code=0  # --overlap: of the step before, Slurm may never hear an end
    OPT_LAUNCH_AGAIN=1 command srun --overlap ${nodes:+--nodes=$nodes --ntasks=$nodes} "$@" || code=$?
  done
  return "$code"
}"""


# ---------------------------------------------------------------- from outside


def submit(paths: RunPaths, spec: RunSpec) -> None:
    """Submit the job, and where the run goes on by a chain the next ones. Raises LaunchError with Slurm's own words."""
    links = 1 + (spec.cluster.slurm.chain if spec.cluster.continue_by == "chain" else 0)
    token = uuid.uuid4().hex[:6]
    jobs: list[str] = []
    try:
        for _ in range(links):
            jobs.append(submit_job(paths, spec, token, run_node))
    except LaunchError:
        cancel(*jobs) if jobs else None
        raise
    write_jobs(paths, token, jobs)


def submit_job(paths: RunPaths, spec: RunSpec, token: str, task: Callable[[str], None]) -> str:
    """Submit a job that calls `task` with the run folder on each node; its id. Raises LaunchError if it is refused."""
    executor = executor_for(paths.submitit, spec, parameters(spec, token))
    with asking():
        return executor.submit(task, str(paths.root)).job_id


@contextlib.contextmanager
def asking() -> Iterator[None]:
    """What Slurm refuses meanwhile becomes a LaunchError; submitit, which prints it too, is not heard."""
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    except Exception as error:  # submitit's errors have no common parent
        raise refusal(error) from error


def script(paths: RunPaths, spec: RunSpec) -> str:
    """The very script that would be submitted. Touches nothing."""
    executor = executor_for(paths.submitit, spec, parameters(spec, "dry-run"))
    return executor._make_submission_file_text(executor._submitit_command_str, "dry-run")


def standing(paths: RunPaths, *, at_once: bool = False) -> Standing:
    """How the jobs of the run stand."""
    return standings([paths], at_once=at_once).get(paths, Standing(False))


def give_back(paths: RunPaths) -> None:
    """Have Slurm end the jobs, whatever they are doing. Raises Unreachable where it does not."""
    jobs = jobs_of(paths)
    said = call("scancel", *jobs)
    if (said is None or said.returncode != 0) and standing(paths, at_once=True).may_live:
        why = said.stderr.strip() if said else "it does not answer"
        raise Unreachable(f"Slurm did not end the job: {why}", f"scancel {' '.join(jobs)}", "try again later")
    paths.job_state.unlink(missing_ok=True)  # what was said of the job before


def begun(paths: RunPaths, spec: RunSpec, job_id: str) -> str:
    """A job of the run has begun: see to the one that is to go on some day. What went wrong, or ""."""
    if spec.cluster.continue_by != "chain":
        return ""
    try:
        about = json.loads(paths.allocation.read_text())
        jobs = [str(job) for job in about["jobs"]]
        ahead = jobs[jobs.index(job_id) + 1 :] if job_id in jobs else jobs
        if len(ahead) < spec.cluster.slurm.chain:
            write_jobs(paths, about["token"], [*jobs, submit_job(paths, spec, about["token"], run_node)])
    except (OSError, ValueError, KeyError, LaunchError) as error:
        return f"no further job could be submitted from a node: {error}"
    return ""


def ended(paths: RunPaths, job_id: str) -> None:
    """The run is over: the jobs that were to go on are not needed."""
    with contextlib.suppress(OSError, ValueError, KeyError):
        if waiting := [job for job in jobs_of(paths) if job != plain_id(job_id)]:
            cancel(*waiting)


requeue, fate = slurm_calls.requeue, slurm_calls.fate


def end(job_id: str) -> None:
    """The last act of a run whose first node is gone: the batch script went with it, and nobody else ends the job."""
    cancel(job_id)


def executor_for(folder: Path, spec: RunSpec, asked: Mapping[str, Any]) -> Any:
    """submitit's executor that writes into this folder. Raises LaunchError where there is no Slurm."""
    import submitit

    if shutil.which("sbatch") is None:
        hint = "run it on a login node of the cluster, or with --backend local"
        raise LaunchError("this machine has no Slurm: sbatch is not in PATH", "cluster.backend: slurm", hint)
    executor = submitit.SlurmExecutor(folder=folder, python=spec.cluster.slurm.python)
    executor.update_parameters(**asked)
    return executor


def parameters(spec: RunSpec, token: str) -> dict[str, Any]:
    """What submitit is asked for. The jobs of a chain have a name of their own, by which Slurm starts one at a time."""
    slurm, chain = spec.cluster.slurm, spec.cluster.continue_by == "chain"
    asked = {name: value for name in _PLAIN if (value := getattr(slurm, name)) is not None}
    again = "requeue" if spec.cluster.continue_by == "requeue" else "no_requeue"
    extra: dict[str, Any] = {"no_kill": True, again: True}
    if chain:
        extra["dependency"] = "singleton"
    extra |= {name: value for name in ("reservation",) if (value := getattr(slurm, name)) is not None}
    srun = list(SRUN)
    if slurm.cpus_per_task is not None:
        srun.append(f"--cpus-per-task={slurm.cpus_per_task}")  # from Slurm 22.05 on a step does not inherit it
    return asked | {
        "job_name": f"{spec.name}.{token}" if chain else spec.name,
        "nodes": spec.cluster.nodes + spec.cluster.spares,
        "ntasks_per_node": 1,
        "time": max(1, round(slurm.time / 60)) if slurm.time else UNLIMITED_MIN,
        "exclude": exclude(spec),
        "exclusive": True if slurm.exclusive else None,
        "signal_delay_s": round(slurm.lead),
        "setup": ["export PYTHONSAFEPATH=1", *spec.launch.setup, _SRUN],
        "wckey": slurm.wckey,
        "stderr_to_stdout": True,
        "srun_args": srun,
        "additional_parameters": extra | dict(slurm.extra),
    }


_PLAIN = (
    "partition", "account", "qos", "constraint", "nodelist", "comment", "gpus_per_node", "cpus_per_task",
    "mem",
)  # fmt: skip


def refusal(error: Exception) -> LaunchError:
    """What Slurm said, in its own words."""
    lines = [line.strip() for line in str(error).splitlines() if "error" in line.lower()]
    said = "; ".join(dict.fromkeys(line.split("error:")[-1].strip() for line in lines)) or str(error)[-300:]
    refused = LaunchError(f"Slurm refused the job: {said}", "cluster.slurm", "opt-launch submit --dry-run shows it")
    refused.exit_code = 3
    return refused


# ---------------------------------------------------------------- what Slurm says of nodes


class NodeStates:
    """What the controller says of the job and its nodes. It is asked in a thread of its own, and not often."""

    def __init__(self, _paths: RunPaths, job_id: str) -> None:
        self._job_id = job_id
        self._nodes = os.environ.get("SLURM_JOB_NODELIST", "")
        self._states: dict[str, NodeReport] = {}
        self._asked_at = -POLL_S
        self._pause_s = POLL_S
        self._thread: threading.Thread | None = None
        self.job_state = ""
        self.ends_at: float | None = None
        self._asking_since: float | None = None
        self._away_since: float | None = None

    def read(self) -> dict[str, NodeReport]:
        """What was said last; empty until something was."""
        now = time.monotonic()
        if self._nodes and now - self._asked_at >= self._pause_s and not (self._thread and self._thread.is_alive()):
            self._asked_at = now
            self._thread = threading.Thread(target=self._ask, daemon=True)
            self._thread.start()
        return self._states

    @property
    def away_since(self) -> float | None:
        """Since the first question that has had no answer; one that is still waited for counts after `SLOW_S`."""
        since = self._away_since or self._asking_since
        return since if self._away_since or (since and time.time() - since > SLOW_S) else None

    def _ask(self) -> None:
        """Two calls, whatever the number of nodes; less often while nobody answers."""
        self._asking_since = asked_at = time.time()
        said = call("sinfo", "-h", "-N", "-o", "%N %T %E", "-n", self._nodes)
        self._asking_since = None
        if said is None or said.returncode != 0:
            self._away_since = self._away_since or asked_at
            self._pause_s = min(2 * self._pause_s, AWAY_POLL_S)
            return
        self._away_since, self._pause_s = None, POLL_S
        self._states = reports(said.stdout)
        if (job := show_job(self._job_id)) is not None:
            self.job_state, self.ends_at = job.state, job.ends_at


node_states = NodeStates


# ---------------------------------------------------------------- on each node


def run_node(root: str) -> None:
    """submitit's task on one node: becomes the agent. Nothing of submitit is left."""
    from launcher.spec import read_resolved

    paths = RunPaths(Path(root))
    spec, job_id = read_resolved(paths.spec), own_id(os.environ)
    if os.environ.pop("OPT_LAUNCH_AGAIN", ""):
        run = read_run(paths, steps=False)
        if run.state.is_terminal or run.job_ending or run.job_id != job_id:
            return  # that the step before us ended was meant, or the run never began
    elif spec.cluster.continue_by == "chain" and read_run(paths, steps=False).state.is_terminal:
        return  # a job of the chain that is not needed any more
    sweep_scratch()
    os.environ.pop("PYTHONSAFEPATH", None)
    node, index = os.environ["SLURMD_NODENAME"], os.environ["SLURM_PROCID"]
    os.environ["OPT_LAUNCH_JOB"] = job_id
    os.environ["OPT_LAUNCH_HOST"] = reachable_address(spec.launch.network.interface)
    if index == "0":
        os.environ["OPT_LAUNCH_FIRST"] = "1"
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCONT):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # stays so over the exec, until the agent listens
    with paths.agent_log(node).open("ab") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    os.execv(sys.executable, [sys.executable, "-P", "-m", "launcher.agent", root, node, index])
