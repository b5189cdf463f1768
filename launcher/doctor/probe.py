"""A short job on two nodes, submitted like a run is, whose tasks tell what it is like there."""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from launcher.backends import slurm
from launcher.backends.slurm_calls import cancel, job_states, show_job
from launcher.backends.slurm_words import is_over
from launcher.doctor import checks, cluster_checks, readings
from launcher.doctor.checks import Verdict
from launcher.doctor.cluster_checks import OnNode
from launcher.doctor.node import ANSWER, ASKED, HELLO, REPORT, examine, read_report
from launcher.paths import RunPaths, write_atomically
from launcher.sections import RunSpec

HEAR_S = 60.0  # from the first process on a node to the last word: network file systems take their time
END_S = 15.0
_POLL_S = 0.1
_ASK_S = 2.0
_LOG_LINES = 3


@dataclass(frozen=True)
class Heard:
    """What became of the probe. `verdict`: why it was given up, None when all nodes have told."""

    readings: tuple[OnNode, ...]
    answered_at: float
    heard_at: dict[str, float]
    verdict: Verdict | None = None


def probe(
    spec: RunSpec, root: Path, settings: Mapping[str, str], timeout_s: float, tell: Callable[[str], None]
) -> list[Verdict]:
    """Submit the job, hear its nodes, and leave nothing behind. Raises LaunchError if Slurm refuses it, or OSError."""
    ledger = Path(spec.hosts.ledger)
    with _made(root), _marked(ledger) as (mark, problem):
        paths = RunPaths(Path(tempfile.mkdtemp(prefix=".doctor.", dir=root.absolute())))
        try:
            asked = {"interface": spec.launch.network.interface, "auth_info": settings.get("AuthInfo", "")}
            write_atomically(paths.root / ASKED, json.dumps({**asked, "mark": str(mark)}))
            job_id = slurm.submit_job(paths, spec, uuid.uuid4().hex[:6], examine)
            tell(f"probe: job {job_id} of {spec.cluster.nodes} nodes; Ctrl-C cancels it")
            try:
                heard = _Watch(paths.root, job_id, spec.cluster.nodes, timeout_s).hear()
            finally:
                cancel(job_id)
                _wait_for_the_end(job_id)
        finally:
            shutil.rmtree(paths.root, ignore_errors=True)
    return [*_verdicts(heard, spec, str(root.absolute()), settings, problem)]


@contextlib.contextmanager
def _made(folder: Path) -> Iterator[None]:
    """The folder is there for as long; what had to be made for it goes again, unless it is in use."""
    made = [one for one in (folder, *folder.parents) if not one.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            for one in made:
                one.rmdir()


@contextlib.contextmanager
def _marked(ledger: Path) -> Iterator[tuple[Path, str]]:
    """A file in the folder of the host ledger, for nodes to look for; and what keeps this machine from writing it."""
    mark, problem = ledger / f".doctor.{uuid.uuid4().hex[:6]}", ""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(_made(ledger))
            mark.touch()
        except OSError as error:
            problem = (error.strerror or str(error)).lower()
        stack.callback(_remove, mark)
        yield mark, problem


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink()


class _Watch:
    """Looks at the folder and, less often, at what Slurm says of the job."""

    def __init__(self, room: Path, job_id: str, nodes: int, timeout_s: float) -> None:
        self._room, self._job_id, self._nodes = room, job_id, nodes
        self._submitted_at = time.monotonic()
        self._timeout_s = timeout_s
        self._runs_since: float | None = None
        self._asked_at = self._submitted_at

    def hear(self) -> Heard:
        """Return when all nodes have reported, or when there is no use in waiting."""
        hellos: dict[str, dict[str, object]] = {}
        while len(hellos) < self._nodes:
            hellos |= {name: json.loads(text) for name, text in self._files(HELLO)}
            if verdict := self._given_up([*hellos]):
                return Heard((), 0, {}, verdict)
        answered_at = time.time()
        write_atomically(self._room / ANSWER, json.dumps([*hellos.values()]))
        reports: dict[str, OnNode] = {}
        heard_at: dict[str, float] = {}
        while len(reports) < self._nodes:
            for name, text in self._files(REPORT):
                reports.setdefault(name, read_report(json.loads(text)))
                heard_at.setdefault(name, time.time())
            if verdict := self._given_up([*reports]):
                return Heard(tuple(reports.values()), answered_at, heard_at, verdict)
        return Heard(tuple(reports.values()), answered_at, heard_at)

    def _files(self, pattern: str) -> Iterator[tuple[str, str]]:
        """(node, text) of each file of this pattern."""
        before, after = pattern.split("{}")
        for path in sorted(self._room.glob(pattern.format("*"))):
            yield path.name.removeprefix(before).removesuffix(after), path.read_text()

    def _given_up(self, heard: Sequence[str]) -> Verdict | None:
        """Why there is no use in waiting, after a moment in which something may have come."""
        if len(heard) == self._nodes:
            return None
        time.sleep(_POLL_S)
        now = time.monotonic()
        if heard and self._runs_since is None:
            self._runs_since = now
        if self._runs_since is not None and now - self._runs_since > HEAR_S:
            return cluster_checks.lost(str(self._room.parent), self._nodes, heard)
        if now - self._asked_at < _ASK_S:
            return None
        self._asked_at = now
        job = show_job(self._job_id)
        state, reason = (job.state, job.reason) if job else ("", "")
        if job and is_over(state):
            return cluster_checks.ended(state, _log(self._room))
        if state == "RUNNING" and self._runs_since is None:
            self._runs_since = now
        if self._runs_since is None and now - self._submitted_at > self._timeout_s:
            return cluster_checks.never_started(state or "not told by Slurm", reason, now - self._submitted_at)
        return None


def _verdicts(
    heard: Heard, spec: RunSpec, root: str, settings: Mapping[str, str], ledger_problem: str
) -> Iterator[Verdict]:
    """What is made of it."""
    if heard.verdict:
        yield heard.verdict
    here = readings.versions()
    yield from cluster_checks.together(
        {
            one.node: [
                cluster_checks.shared_folder(heard.heard_at[one.node] - heard.answered_at, root),
                cluster_checks.host_ledger(spec.hosts.ledger, ledger_problem, one.ledger),
                checks.same_versions(here, one.versions, one.python),
                cluster_checks.node_commands(one.missing),
                cluster_checks.job_requeue(one.job),
                cluster_checks.munge(settings.get("AuthType", ""), one.munge),
                cluster_checks.network(one),
                _clock(heard, one),
                checks.stack(one.stack),
                checks.open_files(one.limits),
                checks.processes(one.limits),
                checks.locked_memory(one.limits),
                checks.temporary_folder(one.temporary),
                checks.gpus(one.gpus, one.gpu_problem, spec.cluster.slurm.gpus_per_node),
            ]
            for one in heard.readings
        }
    )


def _clock(heard: Heard, one: OnNode) -> Verdict:
    """A task told its time after it was answered, and before we heard it."""
    return checks.clock(one.at - heard.heard_at[one.node], one.at - heard.answered_at, "this machine")


def _log(room: Path) -> list[str]:
    """The last lines that the job has written."""
    lines: list[str] = []
    for path in sorted((room / "submitit").glob("*.out")):
        lines += [line.strip() for line in path.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-_LOG_LINES:]


def _wait_for_the_end(job_id: str) -> None:
    """Until no task can write into the folder any more."""
    deadline = time.monotonic() + END_S
    while time.monotonic() < deadline:
        states = job_states([job_id])
        if states is None or all(map(is_over, states.values())):
            return
        time.sleep(_POLL_S * 2)
