"""Nodes of a job are examined beside what runs on them, by steps of the job, and a run does not notice."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest
from cluster import Cluster
from slurm_run import SlurmRun, opt_launch

from launcher.control import command

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

Launch = Callable[..., SlurmRun]


def checked(cluster: Cluster, *arguments: str, code: int = 0) -> dict[str, Any]:
    done = opt_launch(cluster, "hosts", "check", "--json", *arguments)
    assert done.returncode == code, done.stderr + done.stdout
    return json.loads(done.stdout)


def test_the_nodes_of_a_run_are_examined_and_it_trains_on(launch: Launch, cluster: Cluster) -> None:
    run = launch(steps=100_000, spares=1)
    run.saved(10)
    before = run.run.step
    found = checked(cluster, "--run", run.paths.name)
    assert [one["host"] for one in found["hosts"]] == sorted(run.run.nodes)
    assert [one["problem"] for one in found["hosts"]] == [None] * 3
    assert all({"cpu-count", "memory-available"} <= {f["code"] for f in one["findings"]} for one in found["hosts"])
    run.wait("more steps", lambda now: now.step > before + 20)
    assert (len(run.run.attempts), run.decisions()) == (1, [])

    [node, other] = sorted(run.run.nodes)[:2]
    text = opt_launch(cluster, "hosts", "check", node, "--run", run.paths.name, "--via", "srun").stdout
    assert f" {node} " in text
    assert other not in text
    told = opt_launch(cluster, "hosts", "check", "node99", "--run", run.paths.name, "--via", "srun")
    assert (told.returncode, told.stdout) == (2, "")
    assert "node99" in told.stderr


def test_the_nodes_of_a_paused_run_are_burnt_in_and_tried_with_each_other(launch: Launch, cluster: Cluster) -> None:
    run = launch(steps=100_000, spares=1)
    run.saved(10)
    refused = opt_launch(cluster, "hosts", "check", "--run", run.paths.name, "--tier", "deep")
    assert "it trains, and a deep check needs its nodes for itself" in refused.stderr
    assert command(run.paths, "pause", {"reason": "to look at the nodes"})[0]
    run.wait("a pause", lambda now: now.state == "PAUSED")

    found = checked(cluster, "--run", run.paths.name, "--tier", "deep")
    told = {one["host"]: {f["code"]: f for f in one["findings"]} for one in found["hosts"]}
    assert [*told] == sorted(run.run.nodes)
    for of in told.values():
        assert (of["burn-in"]["verdict"], of["collective"]["verdict"]) == ("ok", "ok")
        assert of["collective"]["summary"] == "all-reduces with others pass"
    command(run.paths, "unpause", {})
    run.wait("another attempt", lambda now: len(now.attempts) == 2 and now.state == "RUNNING")


def test_a_node_that_does_not_answer_is_named_and_its_step_is_ended(launch: Launch, cluster: Cluster) -> None:
    run = launch(steps=100_000, spares=1)
    run.saved(10)
    silent = sorted(run.run.nodes)[-1]
    program = cluster.runs / "sleepy"
    program.write_text(f'#!/bin/sh\n[ $SLURMD_NODENAME = {silent} ] && exec sleep 600\nexec {sys.executable} "$@"\n')
    program.chmod(0o755)
    found = checked(cluster, "--run", run.paths.name, "--timeout", "15s", "--python", str(program), code=5)
    answered = {one["host"]: one["problem"] for one in found["hosts"]}
    assert answered[silent]["message"] == "no answer within 15 s"
    assert [host for host, problem in answered.items() if problem] == [silent]
    deadline = time.monotonic() + 30
    while any(task.name() == "sleep" for task in cluster.tasks()):
        assert time.monotonic() < deadline
        time.sleep(0.2)


def test_what_is_collected_of_a_run_that_trains_is_its_stacks_and_nothing_is_cleaned(
    launch: Launch, cluster: Cluster
) -> None:
    run = launch(steps=100_000, spares=0)
    run.saved(10)
    done = opt_launch(cluster, "hosts", "collect", "--run", run.paths.name, "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    ranks = {process["rank"] for host in told["hosts"] for process in host["processes"]}
    assert ranks == {"0", "1", "2", "3"}
    assert not any(process["left_over"] for host in told["hosts"] for process in host["processes"])
    done = opt_launch(cluster, "hosts", "clean", "--run", run.paths.name, "--yes")
    assert done.returncode == 0, done.stderr
    # Both nodes are this machine, and each sees the ranks of the other.
    assert [line.partition(": ")[2] for line in done.stdout.splitlines()] == [
        "nothing is left over; 4 processes of a living agent left alone"
    ] * 2
