"""A run of the counting trainer in a batch script that a user without rights has written by hand."""

from __future__ import annotations

import copy
import shlex
import subprocess
import sys
from typing import Any

from cluster import ROOT, Cluster
from live_run import COUNTING
from own_run import PROGRAM, given
from slurm_run import UNPRIVILEGED, SlurmRun

from launcher.paths import RunPaths

BECOME = "import os, sys; os.execvp(sys.argv[1], sys.argv[1:])"

SCRIPT = """\
#!/bin/bash
#SBATCH --nodes={nodes}
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=2
#SBATCH --no-kill
#SBATCH --requeue
#SBATCH --signal=USR2@120
#SBATCH --time=30
#SBATCH --output={folder}/job.out
#SBATCH --open-mode=append
{more}

srun --no-kill --kill-on-bad-exit=0 --wait=0 --cpus-per-task=2 \\
    {program} run --nnodes {nnodes} --node_rank $SLURM_NODEID --nproc-per-node 2 --spares {spares} \\
    --rdzv-backend c10d --rdzv-endpoint $(hostname):29500 --name {name}$SLURM_ARRAY_TASK_ID {flags} \\
    {trainer}
echo "srun has ended with $?"
"""


class OwnJob(SlurmRun):
    """Two nodes train, `spares` more are in the allocation. `output`: what srun showed."""

    def __init__(
        self,
        cluster: Cluster,
        name: str,
        *flags: str,
        spares: int = 1,
        steps: int = 60,
        nnodes: str = "$SLURM_NNODES",
        more: str = "",
        **options: Any,
    ) -> None:
        self.cluster, self.paths, self.steps = cluster, RunPaths(cluster.runs / name), steps
        self.asked = cluster.runs / f"{name}.asked"
        self.asked.mkdir()
        self.asked.chmod(0o1777)
        self.output = self.asked / "job.out"
        script = SCRIPT.format(
            nodes=2 + spares, folder=self.asked, program=PROGRAM, spares=spares, name=name, flags=shlex.join(flags),
            trainer=shlex.join(self.script_and_arguments(**options)), nnodes=nnodes, more=more,
        )  # fmt: skip
        self.script = self.asked / "job.sh"
        self.script.write_text(script)
        self.sbatch()

    def script_and_arguments(self, **options: Any) -> list[str]:
        """What opt-launch run is to run."""
        return [str(COUNTING), "--run", str(self.paths.root), "--steps", str(self.steps), *given(options)]

    def sbatch(self) -> None:
        """Submit the script, for the first time or again."""
        command = [str(UNPRIVILEGED), sys.executable, "-c", BECOME, "sbatch", "--parsable", str(self.script)]
        environment = {**self.cluster.env, "OPT_LAUNCH_ROOT": str(self.cluster.runs)}
        said = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=100, check=True,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
        self.job = said.stdout.strip()

    def element(self, index: int) -> OwnJob:
        """The run of one element, where the script is an array of jobs."""
        one = copy.copy(self)
        one.paths, one.job = RunPaths(self.cluster.runs / f"{self.paths.name}{index}"), f"{self.job}_{index}"
        return one

    def story(self) -> str:
        shown = self.output.read_text(errors="replace") if self.output.exists() else "no output"
        return f"{super().story()}\n--- job {self.job}: {self.job_state()}\n{shown}"

    def told(self) -> list[str]:
        """The launcher's own lines in the output."""
        lines = self.output.read_text(errors="replace").splitlines()
        return [line.removeprefix("opt-launch: ") for line in lines if line.startswith("opt-launch: ")]
