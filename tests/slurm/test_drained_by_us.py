"""Nodes that a run drains: where Slurm lets it, and never against another's word."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import pytest
from cluster import Cluster
from slurm_run import SlurmRun

from launcher.backends.slurm_drain import Answer, drain, undrain
from launcher.events import DrainDone, DrainUndone

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

DRAIN = ("--set", "cluster.slurm.drain=true")


def reason(cluster: Cluster, node: str) -> str:
    return cluster.call("sinfo", "-h", "-N", "-p", "train", "-n", node, "-o", "%E").stdout.strip()


@pytest.fixture
def run(accounted: Cluster) -> Iterator[SlurmRun]:
    """Of a user who may do what Slurm's admins may; Operator is not enough for nodes in 22.05."""
    accounted.call("sacctmgr", "-i", "add", "account", "lab")
    accounted.call("sacctmgr", "-i", "add", "user", "nobody", "account=lab", "adminlevel=admin")
    # A busy machine is not to have a node drained that only was late, nor a hang found before the silence.
    patient = ("--set", "cluster.silence=5s", "--policy", "infra")
    drains = SlurmRun(accounted, "drains", steps=100_000, spares=1, flags=(*DRAIN, *patient))
    yield drains
    drains.clean_up()
    accounted.restore()
    accounted.call("sacctmgr", "-i", "delete", "user", "nobody")


def test_a_lost_node_is_drained_with_the_run_s_name_and_opened_when_it_takes_part_again(run: SlurmRun) -> None:
    cluster = run.cluster
    run.saved(10)
    first, second, third = run.node(0), run.node(1), run.node(2)

    cluster.silence(second)
    seen = run.wait_for(DrainDone)
    said = reason(cluster, second)
    run.wait("a second attempt", lambda run: len(run.attempts) == 2 and run.state == "RUNNING")
    cluster.give_back(second)
    run.wait("it answers", lambda run: run.nodes[second].state == "ALIVE")
    cluster.lose(third)
    undone = run.wait_for(DrainUndone)
    left = run.wait_for(DrainDone, node=third)
    run.wait("a third attempt", lambda run: len(run.attempts) == 3 and run.state == "RUNNING")
    report = json.loads(run.call("report", "--format", "json").stdout)
    cluster.call("scancel", run.job)  # srun would wait for the task of the lost node until Slurm has missed it
    run.ends("STOPPED")

    assert (seen.node, seen.ok, seen.detail, seen.reason) == (second, True, "drained", said), run.story()
    assert said.startswith(f"opt-launch drains: {second}: silent")
    assert [decision.detector for decision in run.decisions()] == ["node_lost", "node_lost"]
    assert set(run.run.attempts[-1].slots) == {first, second}
    assert (undone.node, undone.ok, undone.detail) == (second, True, "opened again")
    assert reason(cluster, second) == "none"
    assert (left.ok, left.detail) == (False, "left as it is: enough were drained within the hour")
    assert {(one["node"], one["detail"]) for one in report["drains"]} == {
        (one.node, one.detail) for one in (seen, undone, left)
    }


def test_a_user_without_the_right_is_told_once_and_nothing_else_happens(launch: Callable[..., SlurmRun]) -> None:
    run = launch(steps=400, spares=2, flags=DRAIN)
    run.saved(10)

    run.cluster.lose(run.node(1))
    run.wait("a second attempt", lambda run: len(run.attempts) == 2 and run.state == "RUNNING")
    refused = run.wait_for(DrainDone)
    told = run.call("status", "--once").stdout
    run.cluster.lose(run.node(0))
    run.ends()

    assert (refused.ok, refused.refused) == (False, True)
    assert "no node is drained: Slurm refuses: Invalid user id" in told
    assert [decision.detector for decision in run.decisions()] == ["node_lost", "node_lost"]
    assert len(run.of(DrainDone)) == 1
    assert reason(run.cluster, run.node(1)) in ("none", "Not responding")


def test_only_what_nobody_else_has_a_hand_on_is_drained_and_opened(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("SLURM_CONF", "PATH"):
        monkeypatch.setenv(name, cluster.env[name])
    ours, disks, gone = cluster.nodes[:3]
    cluster.drain(disks, "new disks")
    cluster.call("scontrol", "update", f"NodeName={gone}", "State=DOWN", "Reason=fire")

    assert [drain(node, "opt-launch a: hot") for node in (ours, ours, disks, gone, "nowhere")] == [
        Answer(True, "drained"),
        Answer(True, "drained"),
        Answer(False, "left as it is: Slurm says IDLE+DRAIN (new disks)"),
        Answer(False, "left as it is: Slurm says DOWN (fire)"),
        Answer(False, "Node nowhere not found"),
    ]
    assert reason(cluster, ours) == "opt-launch a: hot"
    assert undrain(ours, "opt-launch b: hot") == Answer(
        False, "left as it is: the reason is another's by now (opt-launch a: hot)"
    )
    assert [undrain(ours, "opt-launch a: hot") for _ in range(2)] == [
        Answer(True, "opened again"),
        Answer(True, "was opened by somebody else"),
    ]
    assert reason(cluster, ours) == "none"
    cluster.call("scontrol", "update", f"NodeName={gone}", "State=RESUME")
    cluster.restore()
