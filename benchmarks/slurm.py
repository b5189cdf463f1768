"""What a lost or silent node costs on Slurm: opt-launch beside a plain job that is requeued, on a real Slurm.

    python benchmarks/slurm.py [--repeats 3] [--faults lost silent]

Needs root and Debian's Slurm: a cluster of eight virtual nodes is started for it, and taken down. The same trainer on
4 nodes with one rank each; opt-launch has 2 spares. The plain job is torchrun under srun, submitted with --requeue and
without --no-kill, and asks for its requeue itself when srun fails. Seconds are counted from the fault:
detected    the decision (opt-launch); the job is no longer RUNNING (plain)
first step  the first step of the ranks that were started again is done
Here SlurmdTimeout is 15 s (300 s unless a site says otherwise); Slurm lets a requeued job wait for 121 s.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness import OptLaunch, Seen, settings, spread, table, wait_for

sys.path.insert(0, str(Path(__file__).parent.parent))
from tests.slurm.cluster import Cluster, missing

NODES, SPARES, SAVE_EVERY = 4, 2, 50
SUBMISSIONS = 5
_STEP = re.compile(r"\bstep (\d+) loss ")
_SCRIPT = """\
#!/bin/bash
#SBATCH -N{nodes} --ntasks-per-node=1 --cpus-per-task=2 --requeue --open-mode=append --output={folder}/out
export OMP_NUM_THREADS=1 GLOO_SOCKET_IFNAME=lo PYTHONUNBUFFERED=1
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -1)
port=$((20000 + RANDOM % 10000))
srun --cpus-per-task=2 {python} -m torch.distributed.run --nnodes {nodes} --nproc-per-node 1 --rdzv-id "$RANDOM" \\
    --rdzv-backend c10d --rdzv-endpoint 127.0.0.1:$port -m model.train --config {folder}/trainer.json \\
    --out {folder}/checkpoints || scontrol requeue "$SLURM_JOB_ID"
"""


class Ours(OptLaunch):
    """A run on the cluster."""

    def __init__(self, cluster: Cluster, folder: Path, trainer: dict[str, Any]) -> None:
        self.cluster = cluster
        super().__init__(folder, trainer, NODES, NODES)

    def cluster_of(self, ranks: int, nodes: int) -> dict[str, Any]:
        slurm = {"partition": "train", "time": "30m", "cpus_per_task": 2}
        per_node = ranks // nodes
        return {"backend": "slurm", "nodes": nodes, "ranks_per_node": per_node, "spares": SPARES, "slurm": slurm}

    def step(self) -> int:
        return self.seen.last()

    def victim(self) -> str:
        """A node that trains, and not the first."""
        return list(self.events("attempt_started")[-1]["slots"])[-1]

    def end(self) -> None:
        self._over.set()
        self.cluster.call("scancel", "-u", "root")


class Plain:
    """A job of torchrun, as Slurm alone looks after it."""

    name = "torchrun, requeued by Slurm"

    def __init__(self, cluster: Cluster, folder: Path, trainer: dict[str, Any]) -> None:
        folder.mkdir(parents=True)
        (folder / "trainer.json").write_text(json.dumps(trainer))
        script = folder / "job.sh"
        script.write_text(_SCRIPT.format(nodes=NODES, folder=folder, python=sys.executable))
        self.cluster, self._out, self._read_bytes = cluster, folder / "out", 0
        self.seen, self.detected_at = Seen(), 0.0
        self.job = cluster.call("sbatch", "--parsable", str(script)).stdout.strip()

    def step(self) -> int:
        """The last step printed; what is new is read."""
        text = self._out.read_bytes()[self._read_bytes :] if self._out.exists() else b""
        whole = text[: text.rfind(b"\n") + 1]
        self._read_bytes += len(whole)
        for match in _STEP.finditer(whole.decode(errors="replace")):
            self.seen.steps.append((time.time(), int(match[1])))
        return self.seen.last()

    def victim(self) -> str:
        said = self.cluster.call("squeue", "-h", "-j", self.job, "-o", "%N").stdout.strip()
        return self.cluster.call("scontrol", "show", "hostnames", said).stdout.split()[-1]

    def is_alive(self) -> bool:
        state = self.cluster.call("squeue", "-h", "-j", self.job, "-o", "%T", check=False).stdout.strip()
        if state != "RUNNING" and self.seen.steps and not self.detected_at:
            self.detected_at = time.time()
        return state in ("PENDING", "RUNNING", "COMPLETING", "CONFIGURING")

    def ended(self) -> bool:
        return False

    def end(self) -> None:
        self.cluster.call("scancel", self.job, check=False)

    def complaint(self) -> str:
        return self._out.read_text()[-3000:] if self._out.exists() else ""


@dataclass(frozen=True)
class Outcome:
    detected_s: float
    first_step_s: float
    lost_steps: int


def recover(launcher: Any, fault: Callable[[str], object]) -> Outcome:
    """Let a node fail half way between two checkpoints, and watch the run come back."""
    wait_for(launcher, "between two checkpoints", lambda: launcher.step() > 1.5 * SAVE_EVERY)
    victim = launcher.victim()
    failed_at = time.time()
    fault(victim)
    wait_for(launcher, "back", lambda: launcher.step() >= 0 and launcher.seen.first_after_going_back() is not None)
    again = launcher.seen.first_after_going_back()
    first_at, first = launcher.seen.steps[again]
    lost = launcher.seen.steps[again - 1][1] + 1 - first
    return Outcome(launcher.detected_at - failed_at, first_at - failed_at, lost)


def submissions(folder: Path, cluster: Cluster) -> dict[str, list[float]]:
    """Seconds of `opt-launch submit`, and of bare submitit doing nothing else, as whole processes."""
    spec = {
        "name": "s",
        "command": ["sleep", "1"],
        "cluster": {"backend": "slurm", "slurm": {"partition": "train", "time": "5m"}},
    }
    (folder / "submit.yaml").write_text(json.dumps(spec))
    bare = f"import submitit, time; e = submitit.SlurmExecutor(folder={str(folder / 'bare')!r}); "
    bare += "e.update_parameters(partition='train', time=5); print(e.submit(time.sleep, 1).job_id)"
    taken: dict[str, list[float]] = {"opt-launch submit": [], "bare submitit": []}
    for number in range(SUBMISSIONS):
        ours = [sys.executable, "-P", "-m", "cli", "submit", str(folder / "submit.yaml"), "--root", str(folder / "s")]
        commands = {"opt-launch submit": [*ours, "--name", f"s{number}"], "bare submitit": [sys.executable, "-c", bare]}
        for name, command in commands.items():
            began = time.perf_counter()
            subprocess.run(command, check=True, capture_output=True, env=cluster.env)
            taken[name].append(time.perf_counter() - began)
    cluster.call("scancel", "-u", "root")
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--faults", nargs="+", choices=["lost", "silent"], default=["lost", "silent"])
    arguments = parser.parse_args()
    if lacks := missing():
        print(f"SLURM NOT MEASURED: missing {', '.join(lacks)}")
        return
    rows = []
    with tempfile.TemporaryDirectory(prefix="opt-launch-bench-") as name:
        folder = Path(name)
        cluster = Cluster(Path(tempfile.mkdtemp(prefix="opt-slurm-")))
        try:
            cluster.up()
            os.environ |= {key: cluster.env[key] for key in ("SLURM_CONF", "PATH")}
            for fault in arguments.faults:
                rows += compared(cluster, folder, fault, arguments.repeats)
            taken = submissions(folder, cluster)
        finally:
            cluster.down()
    print(f"\nmedian (least to most) of {arguments.repeats}, {NODES} nodes + {SPARES} spares on {os.cpu_count()} cores")
    print(table(["", Ours.name, Plain.name, "plain / opt-launch"], rows))
    ours, bare = taken.values()
    ratio = f"{statistics.median(ours) / statistics.median(bare):.2f} x"
    print(table(["submission, s", *taken, "ratio"], [["", spread(ours), spread(bare), ratio]]))


def compared(cluster: Cluster, folder: Path, fault: str, repeats: int) -> list[list[str]]:
    """The rows of one fault: both launchers in turn, each with all nodes back."""
    outcomes: dict[str, list[Outcome]] = {Ours.name: [], Plain.name: []}
    for repeat in range(repeats):
        for kind in (Ours, Plain):
            trainer = settings(NODES, steps=100_000, save_every=SAVE_EVERY)
            launcher = kind(cluster, folder / f"{fault}.{repeat}.{kind.name.split(',')[0]}", trainer)
            try:
                outcome = recover(launcher, cluster.lose if fault == "lost" else cluster.silence)
            finally:
                launcher.end()
                cluster.restore()
            outcomes[kind.name].append(outcome)
            print(f"{fault} {repeat + 1}/{repeats} {kind.name}: {outcome}", flush=True)
    rows = []
    for name in ("detected_s", "first_step_s", "lost_steps"):
        ours, plain = ([float(getattr(one, name)) for one in found] for found in outcomes.values())
        form = ".0f" if name == "lost_steps" else ".1f"
        ratio = statistics.median(plain) / max(statistics.median(ours), 1e-9)
        rows.append([f"node {fault}: {name}", spread(ours, form), spread(plain, form), f"{ratio:.1f} x"])
    return rows


if __name__ == "__main__":
    main()
