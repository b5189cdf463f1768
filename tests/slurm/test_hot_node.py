"""A node of a job turns hot: its agent sees it, a spare takes its place, and no run is given it for a while."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from cluster import Cluster
from slurm_run import SlurmRun, opt_launch
from trained_run import TrainedRun

from launcher.events import CheckpointCommitted, Decision, NodeExamined, Warned
from launcher.report import report
from launcher.run import Run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(290)]

SOURCE = Path(__file__).parents[1] / "data" / "nvml" / "fake_nvml.c"
FLAGS = (
    *("--set", "cluster.slurm.gpus_per_node=1", "--set", "cluster.slurm.nodelist=node[0-2]"),
    *("--set", "health.every=1s"),
)


class TrainedJob(SlurmRun, TrainedRun):
    """Our own trainer in a Slurm job: it can save when it is told to."""

    def weights(self, checkpoint: CheckpointCommitted) -> list[tuple[str, int, str]]:
        """The digests of all that is in a checkpoint."""
        manifest = json.loads(self.paths.manifest(checkpoint.step, checkpoint.attempt).read_text())
        return sorted((chunk["path"], chunk["offset"], chunk["digest"]) for chunk in manifest["chunks"])

    def is_stopped(self) -> Run:
        done = self.call("stop", "--yes")
        assert done.returncode == 0, done.stderr
        return self.ends("STOPPED")


class Gpus:
    """A simulated GPU on each node of a cluster, whose driver says what is written for the node."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        compiler = shutil.which("cc") or shutil.which("gcc")
        if compiler is None:
            why = "HOT NODE NOT TESTED: no C compiler to build the simulated driver with"
            (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(why)
        folder.mkdir(exist_ok=True)
        library = folder / "libnvidia-ml.so.1"
        soname = "-Wl,-soname,libnvidia-ml.so.1"
        subprocess.run([compiler, "-shared", "-fPIC", soname, "-o", str(library), str(SOURCE)], check=True)

    def says(self, node: str, celsius: int, reasons: str) -> None:
        told = {
            "count": 1, "0.uuid": f"GPU-{node}", "0.temperature": celsius, "0.threshold.1": 87, "0.reasons": reasons,
            "0.ecc": 0, "0.rows": "0 0 0 0", "0.field.230": 0,
        }  # fmt: skip
        draft = self.folder / f"{node}.draft"
        draft.write_text("".join(f"{key}={value}\n" for key, value in told.items()))
        draft.rename(self.folder / node)

    def healthy(self, *nodes: str) -> None:
        for node in nodes:
            self.says(node, 55, "0x1")


@pytest.fixture
def gpus(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> Gpus:
    """Every node of the cluster has one that is well."""
    gpus = Gpus(cluster.folder / "gpus")
    gpus.healthy(*cluster.nodes)
    monkeypatch.setenv("LD_LIBRARY_PATH", str(gpus.folder))
    monkeypatch.setenv("FAKE_NVML", f"{gpus.folder}/%n")
    return gpus


def test_a_node_that_turns_hot_is_replaced_and_excluded_and_what_is_learnt_is_the_same(
    launch: Callable[..., SlurmRun], cluster: Cluster, gpus: Gpus, ledger: Path
) -> None:
    ask = {"kind": TrainedJob, "steps": 100_000, "spares": 1, "corpus": "python", "every": "50 steps"}
    hurt = launch(**ask, flags=FLAGS, ledger=ledger)
    hurt.wait("some steps", lambda run: run.step >= 5)
    hot, spare = hurt.node(1), hurt.node(2)
    gpus.says(hot, 91, "0x40")
    saved = hurt.wait_for(CheckpointCommitted, attempt=2, limit_s=150)
    end = hurt.is_stopped()

    (out,) = hurt.of(Decision)
    assert (out.rule, out.nodes, [*out.actions], out.counts) == ("gpu-fault", (hot,), ["exclude", "replace"], False)
    assert out.why == (
        f"{hot}: gpu-clocks GPU-{hot}: 91 C, thermal slowdown by the hardware at 3 of the last 5 looks "
        "(limit 87, from the device)"
    )
    first, second = end.attempts
    assert (hot in first.slots, hot in second.slots, spare in second.slots) == (True, False, True)
    assert (end.lost_steps, report(hurt.paths)["samples"]["faults"]) == (0, [])

    (told,) = [one.text for one in hurt.of(Warned) if "excluded from all runs" in one.text]
    assert told.startswith(f"{hot} is excluded from all runs for 30 minutes: gpu-clocks GPU-{hot}: 91 C")
    assert told.endswith(f"undo: opt-launch hosts allow {hot}")
    listed = json.loads(opt_launch(cluster, "hosts", "list", "--json").stdout)["hosts"]
    assert [one["host"] for one in listed if one["state"] == "excluded"] == [hot]

    opt_launch(cluster, "hosts", "allow", hot)
    gpus.healthy(hot)
    calm = launch(**ask, flags=FLAGS, ledger=ledger)
    assert calm.weights(calm.wait_for(CheckpointCommitted, step=saved.step, limit_s=150)) == hurt.weights(saved)
    assert len(calm.is_stopped().attempts) == 1


def test_a_node_that_is_broken_before_the_start_never_trains(
    launch: Callable[..., SlurmRun], gpus: Gpus, ledger: Path
) -> None:
    (gpus.folder / "node1").write_text("count=0\n")
    run = launch(steps=40, spares=1, flags=FLAGS, ledger=ledger)
    end = run.ends()
    assert [set(one.slots) for one in end.attempts] == [{"node0", "node2"}]
    (out,) = run.of(Decision)
    assert (out.rule, out.nodes, out.actions) == ("gpu-fault", ("node1",), {"exclude": "blamed"})
    assert out.why == "node1: gpu-count: 0 GPUs of 1 (limit 1, from the config)"
    assert {one.node for one in run.of(NodeExamined, id="start")} == {"node0", "node1", "node2"}
