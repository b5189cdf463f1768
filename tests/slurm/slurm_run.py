"""A real run of the counting trainer in a real Slurm job, submitted by a user without rights."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
from cluster import ROOT, Cluster
from counting import BATCH
from live_run import LIMIT_S, POLICY, LiveRun

from launcher.backends import slurm_jobs
from launcher.run import Run
from policies.load import load_policy

NOBODY = 65534
IN_AN_HOUR = ("--set", "cluster.slurm.extra={begin: now+1hour}")
UNPRIVILEGED = ROOT / ".ci" / "unprivileged"


def opt_launch(cluster: Cluster, *arguments: object) -> subprocess.CompletedProcess[str]:
    """The command as a user of the cluster gives it."""
    command = [str(UNPRIVILEGED), sys.executable, "-m", "cli", *map(str, arguments)]
    environment = {**cluster.env, "OPT_LAUNCH_ROOT": str(cluster.runs), "PROBED": "1"}
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=100, check=False,
        stdin=subprocess.DEVNULL,
    )  # fmt: skip


class SlurmRun(LiveRun):
    """`job` is Slurm's id of it. `ledger`: of hosts, else one of its own: what tests do to nodes is soon forgotten."""

    _hastened = ""  # the life of the job before that which was last asked to begin soon

    def __init__(
        self,
        cluster: Cluster,
        name: str,
        limit: str = "30m",
        by: str = "requeue",
        waits: bool = False,
        flags: tuple[str, ...] = (),
        ledger: Path | None = None,
        **options: Any,
    ) -> None:
        self.cluster, self._waits, self._flags = cluster, waits, flags
        self._ledger = ledger or cluster.runs / f".hosts.{name}"
        asked = f"slurm: {{partition: train, time: {limit}, lead: 60s, cpus_per_task: 2}}"
        self.backend = f"backend: slurm, continue_by: {by}, {asked}"
        super().__init__(cluster.runs, name, **options)

    def submit(self, file: Path, root: Path) -> None:
        policy = POLICY.replace("FIRST_STEP", self.first_step).replace("include: [infra, numerics]", "include: [infra]")
        (file.parent / "policy.yaml").write_text(policy)
        self.policy = load_policy([str(file.parent / "policy.yaml")])
        text = file.read_text().replace("policy: [infra]", "policy: [./policy.yaml]")
        file.write_text(f"{text}hosts: {{ledger: {self._ledger}}}\n")
        for path in (file.parent, *file.parent.iterdir()):
            path.chmod(0o755)
        done = opt_launch(self.cluster, "submit", file, *self._flags)
        assert (done.returncode, done.stdout.strip()) == (0, self.paths.name), done.stderr
        if self._waits:  # in the queue, and will for longer than a test has time
            self.job = slurm_jobs.jobs_of(self.paths)[0]
        else:
            self.job = self.wait("a job", lambda run: run.job_id).job_id

    def call(self, verb: str, *arguments: object) -> subprocess.CompletedProcess[str]:
        return opt_launch(self.cluster, verb, self.paths.name, *arguments)

    def job_state(self) -> str:
        """Slurm's word for the job."""
        said = self.cluster.call("scontrol", "show", "job", self.job)
        return next(word.removeprefix("JobState=") for word in said.stdout.split() if word.startswith("JobState="))

    def becomes(self, *states: str) -> None:
        """Wait until the job is in one of these states."""
        deadline = time.monotonic() + LIMIT_S
        while self.job_state() not in states:
            assert time.monotonic() < deadline, self.story()
            time.sleep(0.2)

    def lives(self, number: int) -> None:
        """Wait until Slurm has begun the job for the `number`th time, or has that before it."""
        deadline = time.monotonic() + LIMIT_S
        while f"Restarts={number - 1}" not in self.cluster.call("scontrol", "show", "job", self.job).stdout.split():
            assert time.monotonic() < deadline, self.story()
            time.sleep(0.2)

    def begins(self, life: str = "") -> None:
        """Wait until the run is that of this life of the job. What Slurm has a requeued job wait is taken from it."""
        deadline = time.monotonic() + LIMIT_S
        while self.run.job_id != f"{self.job}{life}":
            assert time.monotonic() < deadline, self.story()
            if life:
                self.start_soon()
            time.sleep(0.3)

    def trainers(self) -> list[psutil.Process]:
        """Our own processes of the run: agents, supervisors and all that they started; neither srun nor scripts."""
        return [process for process in self.processes() if process.name().startswith("python")]

    def start_soon(self) -> None:
        """Take from a requeued job most of the two minutes that Slurm has it wait; nobody of the job is left to do so.

        Not all: a node refuses a job of which it has ended the life before within the same second.
        """
        shown = self.cluster.call("scontrol", "show", "job", self.job).stdout.split()
        life = next(word for word in shown if word.startswith("Restarts="))
        if "JobState=PENDING" in shown and life != self._hastened:
            asked = ("scontrol", "update", f"JobId={self.job}", "StartTime=now+3seconds")
            self._hastened = life if self.cluster.call(*asked, check=False).returncode == 0 else ""

    def stops(self) -> Run:
        """Have it stopped, which saves; by then every sample was used once."""
        stopped = self.call("stop", "--yes")
        assert stopped.returncode == 0, stopped.stderr
        end = self.ends("STOPPED")
        samples = [sample for first, last in self.kept() for sample in range(first, last)]
        assert samples == [*range(end.step * BATCH)]
        return end

    def node(self, index: int) -> str:
        """The name of the job's node of this index."""
        run = self.wait(f"node {index}", lambda run: any(node.index == index for node in run.nodes.values()))
        return next(node.name for node in run.nodes.values() if node.index == index)

    def trains_on(self, more: int = 10) -> None:
        """Wait until so many more steps are done."""
        now = self.run.step
        self.wait(f"step {now + more}", lambda run: run.step >= now + more)

    def scratch(self) -> list[Path]:
        left = []
        for folder in Path(tempfile.gettempdir()).glob("opt-launch-*-node*"):
            with contextlib.suppress(OSError):
                owner = int(folder.name.split("-")[2])
                if folder.stat().st_uid == NOBODY and os.path.exists(f"/proc/{owner}"):
                    left.append(folder)
        return [folder for folder in left if self._is_of_ours(folder)]

    def _is_of_ours(self, folder: Path) -> bool:
        with contextlib.suppress(OSError):
            pid = folder.name.split("-")[2]
            return str(self.paths.root) in Path(f"/proc/{pid}/cmdline").read_text()
        return False

    def clean_up(self) -> None:
        self.cluster.call("scancel", self.job, check=False)
        super().clean_up()
