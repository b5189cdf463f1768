"""Virtual nodes as processes of one machine.

submitit's local executor starts one task, the *allocation*, which stands for Slurm's controller and srun: it
starts one agent per virtual node in a session of its own, starts a dead one again after a while, and ends them
all when it ends. That executor allows one node, ends its task after a time limit, empties CUDA_VISIBLE_DEVICES and
leaves its task behind when it is killed; each of these is handled here.
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
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from launcher.backends.report import NodeReport
from launcher.backends.scratch import make_scratch, sweep_scratch
from launcher.backends.standing import Standing, Waiting
from launcher.errors import LaunchError, Unreachable
from launcher.network import reachable_address
from launcher.paths import RunPaths, write_atomically
from launcher.sections import RunSpec
from launcher.spec import read_resolved
from launcher.warm import die_with

NEVER_MIN = 60 * 24 * 365 * 10  # the executor wants a time limit; the run has none
LEAVE_S = 5.0
WAITING = ""  # the token of an allocation that is yet to come
_POLL_S = 0.05
_START_LIMIT_S = 30.0
_STARTER = "import sys; from launcher.backends import local; local.start_through_submitit(*sys.argv[1:])"


# ---------------------------------------------------------------- from outside


def submit(paths: RunPaths, spec: RunSpec) -> None:
    """Start the allocation and wait until it stands. Raises OSError, or TimeoutError if it does not.

    It gets a session of its own: neither the caller's terminal nor whoever reads the caller's output is tied to it.
    """
    paths.submitit.mkdir(exist_ok=True)
    token = uuid.uuid4().hex[:8]
    log_path = paths.submitit / "start.log"
    command = [sys.executable, "-P", "-c", _STARTER, str(paths.root), token]
    deadline = time.monotonic() + _START_LIMIT_S
    # Of what a run around us has set, nothing is meant for this one.
    env = {name: value for name, value in os.environ.items() if not name.startswith("OPT_LAUNCH_")}
    with log_path.open("ab") as log:
        starter = subprocess.Popen(
            command, env=env, start_new_session=True, stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
    if starter.wait(_START_LIMIT_S):
        raise OSError(f"submitit failed: {log_path.read_text().strip()[-500:]}")
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError, ValueError):
            if json.loads(paths.allocation.read_text())["token"] == token:
                return
        time.sleep(_POLL_S)
    raise TimeoutError(f"the allocation of {spec.name} did not start in {_START_LIMIT_S:.0f}s: see {paths.submitit}")


def start_through_submitit(root: str, token: str) -> None:
    """Hand the allocation of a run folder to submitit's local executor."""
    import submitit

    paths = RunPaths(Path(root))
    devices = os.environ.get("CUDA_VISIBLE_DEVICES")
    executor = submitit.LocalExecutor(folder=paths.submitit)
    executor.update_parameters(timeout_min=NEVER_MIN, tasks_per_node=1, nodes=1, stderr_to_stdout=True)
    os.environ["PYTHONSAFEPATH"] = "1"  # a `launcher/` in the working folder must not be taken for ours
    executor.submit(allocate, str(paths.root), token, devices)


class NodeStates:
    """What the allocation of a job says of its virtual nodes; read again only when it has changed."""

    job_state = ""
    ends_at: float | None = None
    away_since: float | None = None

    def __init__(self, paths: RunPaths, job_id: str) -> None:
        self._file, self._job_id = str(paths.allocation), job_id
        self._seen: tuple[int, int] | None = None
        self._states: dict[str, NodeReport] = {}

    def read(self) -> dict[str, NodeReport]:
        """What is said of each node; empty if nothing is."""
        with contextlib.suppress(OSError, ValueError):
            about = os.stat(self._file)
            if self._seen != (about.st_ino, about.st_mtime_ns):
                body = json.loads(Path(self._file).read_text())
                self._seen = about.st_ino, about.st_mtime_ns
                of_ours = body["nodes"].items() if body["job_id"] == self._job_id else ()
                self._states = {
                    name: NodeReport("" if node["up"] else "its agent ended", node["pid"]) for name, node in of_ours
                }
        return self._states


node_states = NodeStates


def script(_paths: RunPaths, _spec: RunSpec) -> str:
    """Nothing that a person could submit by hand."""
    return ""


def begun(_paths: RunPaths, _spec: RunSpec, _job_id: str) -> str:
    """No other allocation ever has to go on."""
    return ""


def requeue(_job_id: str, _exclude: Sequence[str]) -> None:
    """Nothing ends this allocation but the run."""


def fate(_job_id: str, _exclude: Sequence[str]) -> str | None:
    """Nobody else decides."""
    return None


def ended(_paths: RunPaths, _job_id: str) -> None:
    """There is only the one allocation."""


def end(_job_id: str) -> None:
    """The allocation leaves by itself when its agents have left."""


def is_alive(paths: RunPaths) -> bool:
    """Whether the run's allocation or any agent of it lives, as far as this machine can tell."""
    try:
        body = json.loads(paths.allocation.read_text())
    except (OSError, ValueError):
        return False
    if body.get("host") != socket.gethostname():
        return True  # nobody here can know, and what may live is not started twice
    return bool(_living(body))


def is_waiting(paths: RunPaths) -> bool:
    """Whether the run's allocation is the queue of a sweep, in which it waits for its turn."""
    with contextlib.suppress(OSError, ValueError):
        return json.loads(paths.allocation.read_text())["token"] == WAITING
    return False


def standing(paths: RunPaths, *, at_once: bool = False) -> Standing:  # noqa: ARG001 - asking costs nothing here
    """How the run's allocation stands."""
    return Standing(is_alive(paths), waiting=Waiting() if is_waiting(paths) else None)


def give_back(paths: RunPaths) -> None:
    """End the allocation and its agents. Raises LaunchError if that cannot be done from here."""
    if is_waiting(paths):
        return paths.allocation.unlink(missing_ok=True)  # the queue starts nothing that waits no more
    body = json.loads(paths.allocation.read_text())
    if body.get("host") != socket.gethostname():
        raise Unreachable(f"its processes are on {body.get('host')}", f"run {paths.name}", "give the command there")
    return end_processes(_living(body), f"run {paths.name}")


def end_processes(processes: Sequence[psutil.Process], where: str) -> None:
    """Have them end, and kill those that do not. Raises LaunchError if they are not ours."""
    try:
        for number, limit_s in ((signal.SIGTERM, 2 * LEAVE_S), (signal.SIGKILL, LEAVE_S)):
            for process in processes:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.send_signal(number)
            _, processes = psutil.wait_procs(processes, limit_s)
    except psutil.AccessDenied as error:
        raise LaunchError(f"process {error.pid} is not yours to end", where) from error


def _living(body: Mapping[str, Any]) -> list[psutil.Process]:
    """The allocation and its agents, as far as they live."""
    found = [living(about["pid"], about["started"]) for about in (body, *body["nodes"].values())]
    return [process for process in found if process]


def living(pid: int, started: float) -> psutil.Process | None:
    """The very process if it lives, not another that got its number."""
    try:
        process = psutil.Process(pid)
        is_it = abs(process.create_time() - started) < 1.0 and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return None
    return process if is_it else None


# ---------------------------------------------------------------- the allocation


@dataclass
class VirtualNode:
    """A virtual node and the agent that stands for it."""

    name: str
    index: int
    process: subprocess.Popen[bytes]
    started: float
    down_since: float | None = None
    left: bool = False  # its agent was told to leave, and did


class Allocation:
    """Keeps one agent per virtual node running until the run is over."""

    def __init__(self, paths: RunPaths, token: str) -> None:
        self.paths, self.token = paths, token
        self.spec = read_resolved(paths.spec)
        self.job_id = f"local-{token}"
        sweep_scratch()
        self.scratch = make_scratch()
        self.nodes: list[VirtualNode] = []
        self.ending = False

    def run(self) -> None:
        """Start the agents and stay until all have left."""
        count = self.spec.cluster.nodes + self.spec.cluster.spares
        try:
            self.nodes = [self._start(f"node{index}", index, first=True) for index in range(count)]
            self._tell()
            while not self._is_over():
                self._watch()
                time.sleep(_POLL_S)
        finally:
            self._end()

    def _is_over(self) -> bool:
        """All agents have left; or one has, and the others (stopped, say) had their time to."""
        if self.ending or all(node.left for node in self.nodes):
            return True
        left = [node.down_since for node in self.nodes if node.left and node.down_since is not None]
        return bool(left) and time.monotonic() - min(left) > LEAVE_S

    def _start(self, name: str, index: int, *, first: bool) -> VirtualNode:
        env = {**os.environ, "OPT_LAUNCH_JOB": self.job_id, "OPT_LAUNCH_SCRATCH": str(self.scratch)}
        env["OPT_LAUNCH_HOST"] = reachable_address(self.spec.launch.network.interface, "127.0.0.1")
        env.pop("OPT_LAUNCH_FIRST", None)
        if first and index == 0:
            env["OPT_LAUNCH_FIRST"] = "1"
        command = [sys.executable, "-P", "-m", "launcher.agent", str(self.paths.root), name, str(index)]
        with self.paths.agent_log(name).open("ab") as log:
            process = subprocess.Popen(
                command, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        return VirtualNode(name, index, process, _created(process.pid))

    def _watch(self) -> None:
        now = time.monotonic()
        changed = False
        someone_left = any(node.left for node in self.nodes)
        for position, node in enumerate(self.nodes):
            code = node.process.poll()
            if code is None or node.left:
                continue
            if node.down_since is None:
                node.down_since, changed = now, True
                node.left = code == 0
            elif someone_left:
                node.left = True  # the run is over: nobody comes back
            elif now - node.down_since >= self.spec.cluster.local.return_after:
                self.nodes[position] = self._start(node.name, node.index, first=False)
                changed = True
        if changed:
            self._tell()

    def _tell(self) -> None:
        nodes = {
            node.name: {"pid": node.process.pid, "started": node.started, "up": node.process.poll() is None}
            for node in self.nodes
        }
        about = {"token": self.token, "job_id": self.job_id, "pid": os.getpid(), "started": _created(os.getpid())}
        about |= {"backend": "local", "host": socket.gethostname()}
        write_atomically(self.paths.allocation, json.dumps({**about, "nodes": nodes}))

    def _end(self) -> None:
        deadline = time.monotonic() + LEAVE_S
        for node in self.nodes:
            if node.process.poll() is None:
                node.process.terminate()
        for node in self.nodes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                node.process.wait(max(0.0, deadline - time.monotonic()))
            if node.process.poll() is None:
                node.process.kill()
                node.process.wait()
        shutil.rmtree(self.scratch, ignore_errors=True)
        with contextlib.suppress(OSError):
            self._tell()


def _created(pid: int) -> float:
    try:
        return psutil.Process(pid).create_time()
    except psutil.Error:
        return 0.0


def allocate(root: str, token: str, devices: str | None) -> None:
    """submitit's task. It keeps the signals for itself: nothing of submitit's own requeue or time limit is used."""
    die_with(os.getppid())
    os.environ.pop("PYTHONSAFEPATH", None)
    if devices is None:
        os.environ.pop("CUDA_VISIBLE_DEVICES", None)
    else:
        os.environ["CUDA_VISIBLE_DEVICES"] = devices
    allocation = Allocation(RunPaths(Path(root)), token)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2, signal.SIGCONT):
        signal.signal(number, signal.SIG_DFL)

    def end(_number: int, _frame: object) -> None:
        allocation.ending = True

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    allocation.run()
