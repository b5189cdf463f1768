"""One Slurm job of `nodes + spares` nodes, submitted through submitit; srun starts one agent on each.

Of submitit only the submission is used: its task becomes the agent at once, so that neither its signal handlers nor
its results nor its requeue are ever in the way. The job is submitted with --no-kill: losing a node, the first one
too, leaves the others running. A job whose batch host died stays RUNNING until told otherwise, so who ends the run
then also ends the job.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil

from launcher.backends.report import NodeReport
from launcher.backends.scratch import sweep_scratch
from launcher.errors import LaunchError
from launcher.paths import RunPaths, write_atomically
from launcher.sections import RunSpec

CALL_LIMIT_S = 20.0
POLL_S = 30.0  # sites ask for no more
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

_OVER = frozenset(
    {"BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "REVOKED", "TIMEOUT"}
)
_DOWN = frozenset({"down", "fail", "failing", "error", "powered_down", "powering_down", "no_respond"})


# ---------------------------------------------------------------- from outside


def submit(paths: RunPaths, spec: RunSpec) -> None:
    """Submit the job. Raises LaunchError with Slurm's own words if it is refused."""
    executor = _executor(paths, spec)
    try:
        job = executor.submit(run_node, str(paths.root))
    except Exception as error:  # submitit's errors have no common parent
        raise _refusal(error) from error
    write_atomically(paths.allocation, json.dumps({"backend": "slurm", "job_id": job.job_id}))


def script(paths: RunPaths, spec: RunSpec) -> str:
    """The very script that would be submitted. Touches nothing."""
    executor = _executor(paths, spec)
    return executor._make_submission_file_text(executor._submitit_command_str, "dry-run")


def is_alive(paths: RunPaths, *, at_once: bool = False) -> bool:
    """Whether the run's job waits or runs; where the controller does not answer, it does.

    Many may look at many runs: what Slurm said is kept beside the run, and Slurm asked again after `POLL_S`, or
    `at_once`.
    """
    try:
        job_id = str(json.loads(paths.allocation.read_text())["job_id"])
    except (OSError, ValueError, KeyError):
        return False
    with contextlib.suppress(OSError, ValueError, KeyError):
        known = json.loads(paths.job_state.read_text())
        if not at_once and known["job_id"] == job_id and 0 <= time.time() - known["at"] < POLL_S:
            return not is_over(known["state"])
    state = job_state(job_id)
    if state is None:
        return True
    with contextlib.suppress(OSError):
        write_atomically(paths.job_state, json.dumps({"job_id": job_id, "state": state, "at": time.time()}))
    return not is_over(state)


def job_state(job_id: str) -> str | None:
    """The word of squeue for a job, "" when it knows it no more; None when Slurm does not answer."""
    said = _call("squeue", "-h", "-j", job_id, "-o", "%T")
    if said is None or (said.returncode != 0 and "Invalid job id" not in said.stderr):
        return None
    return said.stdout.strip()


def is_over(state: str) -> bool:
    """Whether a job in this state will never run again; an unknown state is not over."""
    return state == "" or state.split(maxsplit=1)[0] in _OVER


def requeue(job_id: str) -> None:
    """Have the job begin anew. Returns before it is done: it ends us too.

    Slurm lets two minutes pass before a requeued job may start, and sets that time when the last of us is gone:
    only from outside can it be shortened (scontrol update JobId=... StartTime=now).
    """
    null = subprocess.DEVNULL
    subprocess.Popen(["scontrol", "requeue", _slurm_id(job_id)], stdin=null, stdout=null, stderr=null)


def end(job_id: str) -> None:
    """The last act of a run whose first node is gone: the batch script went with it, and nobody else ends the job."""
    _call("scancel", _slurm_id(job_id))


def _slurm_id(job_id: str) -> str:
    """Without the number of the job's life."""
    return job_id.split(".", maxsplit=1)[0]


def _executor(paths: RunPaths, spec: RunSpec) -> Any:
    import submitit

    if shutil.which("sbatch") is None:
        hint = "run it on a login node of the cluster, or with --backend local"
        raise LaunchError("this machine has no Slurm: sbatch is not in PATH", "cluster.backend: slurm", hint)
    executor = submitit.SlurmExecutor(folder=paths.submitit, python=spec.cluster.slurm.python)
    executor.update_parameters(**parameters(spec))
    return executor


def parameters(spec: RunSpec) -> dict[str, Any]:
    """What submitit is asked for."""
    slurm = spec.cluster.slurm
    asked = {name: value for name in _PLAIN if (value := getattr(slurm, name)) is not None}
    extra: dict[str, Any] = {"no_kill": True, "requeue": True}
    extra |= {name: value for name in ("reservation",) if (value := getattr(slurm, name)) is not None}
    srun = list(SRUN)
    if slurm.cpus_per_task is not None:
        srun.append(f"--cpus-per-task={slurm.cpus_per_task}")  # from Slurm 22.05 on a step does not inherit it
    return asked | {
        "job_name": spec.name,
        "nodes": spec.cluster.nodes + spec.cluster.spares,
        "ntasks_per_node": 1,
        "time": max(1, round(slurm.time / 60)) if slurm.time else UNLIMITED_MIN,
        "exclusive": True if slurm.exclusive else None,
        "signal_delay_s": round(slurm.lead),
        "setup": ["export PYTHONSAFEPATH=1", *spec.launch.setup],
        "wckey": slurm.wckey,
        "stderr_to_stdout": True,
        "srun_args": srun,
        "additional_parameters": extra | dict(slurm.extra),
    }


_PLAIN = (
    "partition", "account", "qos", "constraint", "nodelist", "exclude", "comment", "gpus_per_node", "cpus_per_task",
    "mem",
)  # fmt: skip


def _refusal(error: Exception) -> LaunchError:
    lines = [line.strip() for line in str(error).splitlines() if "error" in line.lower()]
    said = "; ".join(dict.fromkeys(line.split("error:")[-1].strip() for line in lines)) or str(error)[-300:]
    refused = LaunchError(f"Slurm refused the job: {said}", "cluster.slurm", "opt-launch submit --dry-run shows it")
    refused.exit_code = 3
    return refused


def _call(*command: str) -> subprocess.CompletedProcess[str] | None:
    """One of Slurm's commands; None when it cannot be had or does not answer in time."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=CALL_LIMIT_S)
    except (OSError, subprocess.TimeoutExpired):
        return None


# ---------------------------------------------------------------- what Slurm says of nodes


class NodeStates:
    """What the controller says of the job's nodes. It is asked in a thread of its own, and not often."""

    def __init__(self, _paths: RunPaths, _job_id: str) -> None:
        self._nodes = os.environ.get("SLURM_JOB_NODELIST", "")
        self._states: dict[str, NodeReport] = {}
        self._asked_at = -POLL_S
        self._thread: threading.Thread | None = None

    def read(self) -> dict[str, NodeReport]:
        """What was said last; empty until something was."""
        now = time.monotonic()
        if self._nodes and now - self._asked_at >= POLL_S and not (self._thread and self._thread.is_alive()):
            self._asked_at = now
            self._thread = threading.Thread(target=self._ask, daemon=True)
            self._thread.start()
        return self._states

    def _ask(self) -> None:
        said = _call("sinfo", "-h", "-N", "-o", "%N %T", "-n", self._nodes)
        if said is not None and said.returncode == 0:
            self._states = reports(said.stdout)


node_states = NodeStates


def reports(text: str) -> dict[str, NodeReport]:
    """The lines "NODE STATE" of sinfo. A state may carry marks: down* does not answer, mixed- is about to be used."""
    found: dict[str, NodeReport] = {}
    for line in text.splitlines():
        name, _, state = line.strip().partition(" ")
        word = state.strip().rstrip("*~#!%$@^-+").lower()
        if name:
            found[name] = NodeReport(f"Slurm says: {state.strip()}" if word in _DOWN else "")
    return found


# ---------------------------------------------------------------- on each node


def run_node(root: str) -> None:
    """submitit's task on one node: becomes the agent. Nothing of submitit is left."""
    from launcher.spec import read_resolved

    paths = RunPaths(Path(root))
    spec = read_resolved(paths.spec)
    sweep_scratch()
    os.environ.pop("PYTHONSAFEPATH", None)
    node, index = os.environ["SLURMD_NODENAME"], os.environ["SLURM_PROCID"]
    os.environ["OPT_LAUNCH_JOB"] = _incarnation()
    os.environ["OPT_LAUNCH_HOST"] = own_address(spec.launch.network.interface)
    if index == "0":
        os.environ["OPT_LAUNCH_FIRST"] = "1"
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCONT):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # stays so over the exec, until the agent listens
    with paths.agent_log(node).open("ab") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    os.execv(sys.executable, [sys.executable, "-P", "-m", "launcher.agent", root, node, index])


def _incarnation() -> str:
    """The job's id, and how often it was requeued: agents of the job as it was before are not ours."""
    count = os.environ.get("SLURM_RESTART_COUNT", "0")
    return os.environ["SLURM_JOB_ID"] + (f".{count}" if count != "0" else "")


def own_address(interface: str) -> str:
    """The address by which other nodes reach this one: that of the interface, or of the way to where srun was started.

    The name of the host will not do: Debian maps it to a loopback address.
    """
    if interface != "auto":
        for address in psutil.net_if_addrs().get(interface, ()):
            if address.family == socket.AF_INET:
                return address.address
        raise LaunchError(f"no interface {interface!r} with an IPv4 address on {socket.gethostname()}")
    starter = os.environ.get("SLURM_LAUNCH_NODE_IPADDR", "127.0.0.1")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((starter, 9))  # sends nothing
        return probe.getsockname()[0]
