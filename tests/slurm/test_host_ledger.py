"""The host ledger on a cluster: jobs are not given excluded nodes, and runs tell each other of bad ones."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from cluster import Cluster
from slurm_run import SlurmRun, opt_launch

from launcher.events import NodeExcluded, Warned

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

Launch = Callable[..., SlurmRun]


@pytest.fixture
def hosts(cluster: Cluster, ledger: Path) -> Callable[..., str]:
    """What `opt-launch hosts` prints."""

    def call(*arguments: str) -> str:
        done = opt_launch(cluster, "hosts", *arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return call


def excluded(hosts: Callable[..., str]) -> dict[str, dict[str, Any]]:
    told = json.loads(hosts("list", "--json"))["hosts"]
    return {one["host"]: one["exclusion"] for one in told if one["state"] == "excluded"}


def test_a_job_is_not_given_a_node_that_a_person_has_excluded(
    launch: Launch, cluster: Cluster, hosts: Callable[..., str], ledger: Path
) -> None:
    hosts("exclude", "node[0-3]", "--reason", "bad fans", "--for", "1h")
    run = launch(steps=40, ledger=ledger)
    assert not set(run.ends().attempts[0].slots) & {f"node{index}" for index in range(4)}
    assert opt_launch(cluster, "hosts", "exclude", "node99", "--reason", "x").returncode == 2


def test_who_is_excluded_while_a_run_trains_is_left_out_when_its_job_begins_anew(
    launch: Launch, hosts: Callable[..., str], ledger: Path
) -> None:
    run = launch(steps=100_000, spares=0, ledger=ledger)
    run.saved(10)
    node = run.node(1)
    hosts("exclude", node, "--reason", "slow")
    seen = run.wait_for(NodeExcluded, node=node)
    assert (seen.reason, run.run.state) == ("excluded by nobody: slow", "RUNNING")

    run.cluster.call("scontrol", "requeue", run.job)
    again = run.wait("the job's next life", lambda now: len(now.attempts) == 2 or run.start_soon(), 90)
    assert node not in again.attempts[1].slots


def test_a_node_on_which_two_runs_fail_is_excluded_and_the_third_does_without(
    launch: Launch, hosts: Callable[..., str], ledger: Path
) -> None:
    ask = partial(launch, ledger=ledger, spares=1, steps=40, flags=("--set", "cluster.slurm.nodelist=node[0-2]"))
    fails = partial(ask, raise_at_import=True, raise_on_node="node1")

    first = fails().ends()
    assert (first.attempts[1].slots.keys(), excluded(hosts)) == ({"node0", "node2"}, {})

    second = fails()
    second.ends()
    [told] = [one.text for one in second.of(Warned) if "excluded" in one.text]
    assert told.startswith("node1 is excluded from all runs for 30 minutes: ")
    assert told.endswith("undo: opt-launch hosts allow node1")
    assert [*excluded(hosts)] == ["node1"]

    third = launch(ledger=ledger, steps=40, spares=1, flags=("--set", "cluster.slurm.partition=train"))
    assert "node1" not in third.run.nodes
    third.ends()


def test_a_ledger_that_cannot_be_written_is_told_and_disturbs_no_run(launch: Launch, cluster: Cluster) -> None:
    (cluster.folder / "locked").mkdir(mode=0o755, exist_ok=True)
    run = launch(steps=40, ledger=cluster.folder / "locked" / "hosts")
    run.ends()
    assert [one.text.split(":")[0] for one in run.of(Warned)] == ["the host ledger cannot be written"]
    assert run.decisions() == []
