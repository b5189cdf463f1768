"""Runs as Slurm jobs: they train, lose nodes, and are not disturbed by what is none of their business."""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Callable

import psutil
import pytest
from cluster import Cluster
from slurm_run import IN_AN_HOUR, SlurmRun, opt_launch

from launcher.events import NodeBack, NodeSilent

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

Launch = Callable[..., SlurmRun]


def test_a_job_trains_ends_and_leaves_nothing(launch: Launch) -> None:
    run = launch(steps=60)

    end = run.ends()

    run.cluster.wait_for_nodes(run.cluster.nodes, "idle")
    run.becomes("COMPLETED")
    assert (run.decisions(), len(end.attempts), end.job_id) == ([], 1, run.job)


def test_spares_take_the_places_of_lost_nodes_the_first_one_included(launch: Launch) -> None:
    run = launch(steps=400, spares=2)
    run.saved(10)

    run.cluster.lose(run.node(1))
    run.wait("a second attempt", lambda run: len(run.attempts) == 2 and run.state == "RUNNING")
    run.trains_on()
    run.cluster.lose(run.node(0))
    end = run.ends()

    assert [decision.detector for decision in run.decisions()] == ["node_lost", "node_lost"]
    assert set(end.attempts[-1].slots) == {run.node(2), run.node(3)}
    run.becomes("CANCELLED", "COMPLETED")


def test_a_node_that_is_back_before_slurm_has_missed_it_does_not_end_the_job(launch: Launch) -> None:
    """srun then ends all tasks of the step; the job is still there, and begins again on all of its nodes."""
    run = launch(steps=150)
    run.saved(10)
    node, agents = run.node(1), {node.pid for node in run.run.nodes.values()}

    run.cluster.lose(node)
    run.cluster.give_back(node)
    run.wait("agents anew", lambda run: not agents & {node.pid for node in run.nodes.values()})
    end = run.ends()

    assert {decision.detector for decision in run.decisions()} <= {"node_lost", "exit"}  # ranks may die before agents
    assert (end.job_id, set(end.nodes)) == (run.job, {run.node(index) for index in range(3)})
    assert end.attempts[-1].restore is not None
    run.becomes("COMPLETED")


def test_a_silent_node_is_lost_because_steps_stopped_and_its_ranks_end_when_it_is_heard_again(launch: Launch) -> None:
    run = launch(steps=100_000)
    run.saved(10)
    node = run.node(1)

    run.cluster.silence(node)
    run.wait("a second attempt", lambda run: len(run.attempts) == 2 and run.state == "RUNNING")
    run.cluster.give_back(node)
    run.wait("it answers", lambda run: run.nodes[node].state == "ALIVE")
    run.trains_on()
    end = run.stops()

    assert [(one.detector, one.nodes) for one in run.decisions()] == [("node_lost", (node,))]
    assert node not in end.attempts[-1].slots


def test_training_does_not_notice_that_the_controller_is_away(launch: Launch) -> None:
    run = launch(steps=100_000)
    run.saved(10)

    run.cluster.end_controller()
    run.trains_on(60)
    run.cluster.start_controller()
    end = run.stops()

    assert (run.decisions(), end.lost_steps, len(end.attempts)) == ([], 0, 1)


def test_a_suspended_job_goes_on_where_it_was(launch: Launch) -> None:
    run = launch(steps=100_000)
    run.saved(10)

    run.cluster.call("scontrol", "suspend", run.job)
    time.sleep(6)  # longer than any silence is borne
    run.cluster.call("scontrol", "resume", run.job)
    run.trains_on()
    end = run.stops()

    assert (run.decisions(), end.lost_steps, len(end.attempts)) == ([], 0, 1)
    assert len(run.of(NodeBack)) == len(run.of(NodeSilent))


def test_a_stop_from_the_login_node_saves_and_a_resumed_run_loses_no_step(launch: Launch) -> None:
    run = launch(steps=300, save_every=1000)
    run.trains_on(20)

    stopped = run.call("stop", "--yes")
    end = run.ends("STOPPED")
    resumed = run.call("resume", "--partition", "urgent")

    assert (stopped.returncode, resumed.returncode) == (0, 0), (stopped.stderr, resumed.stderr)
    run.job = run.wait("another job", lambda now: now.job_id != run.job).job_id
    assert end.head == (end.step, 1)
    assert run.ends().lost_steps == 0


@pytest.mark.parametrize("by", ["requeue", "chain"])
def test_a_run_that_outlives_its_job_is_saved_before_the_limit_and_goes_on_without_losing_a_step(
    launch: Launch, by: str
) -> None:
    run = launch(steps=100_000, save_every=5000, by=by)
    run.trains_on()

    run.cluster.call("scontrol", "update", f"JobId={run.job}", "TimeLimit=1")
    run.wait("its end", lambda run: run.job_ending, 60)
    run.cluster.call("scontrol", "update", f"JobId={run.job}", "TimeLimit=30", check=by == "requeue")
    run.wait("a second attempt", lambda run: len(run.attempts) == 2 and run.state == "RUNNING", 100)
    run.trains_on()
    end = run.stops()

    assert len(end.attempts) == 2
    assert (run.decisions(), end.lost_steps) == ([], 0)
    assert {one.reason for one in end.attempts[:-1]} == {"the time limit of the job"}
    if by == "requeue":
        assert end.job_id == f"{run.job}.{len(end.attempts) - 1}"
    else:
        assert int(end.job_id) == int(run.job) + len(end.attempts) - 1
        run.cluster.wait_for_nodes(run.cluster.nodes, "idle")
        assert run.cluster.call("squeue", "-h").stdout == ""  # nobody waits for a turn any more


def test_a_job_that_an_admin_requeues_goes_on_from_its_newest_checkpoint(launch: Launch) -> None:
    run = launch(steps=100_000)
    run.saved(20)

    run.cluster.call("scontrol", "requeue", run.job)
    run.begins(".1")
    run.wait("a second attempt", lambda run: len(run.attempts) == 2 and run.state == "RUNNING")
    end = run.stops()

    assert run.decisions() == []
    assert len(end.attempts) == 2
    assert end.attempts[1].restore is not None


def test_a_preempted_job_goes_on_when_nodes_are_free_again(launch: Launch) -> None:
    run = launch(steps=100_000)
    run.saved(20)

    run.cluster.call("sbatch", "-p", "urgent", "-N8", "--exclusive", "-o", "/dev/null", "--wrap", "sleep 5")
    run.begins(".1")
    run.wait("a second attempt", lambda run: len(run.attempts) == 2 and run.state == "RUNNING")
    end = run.stops()

    assert (run.decisions(), len(end.attempts)) == ([], 2)
    assert end.attempts[1].restore is not None


def test_a_cancelled_job_is_an_end_that_a_person_wanted(launch: Launch) -> None:
    run = launch(steps=2000, by="chain")
    run.saved(20)

    run.cluster.call("scancel", run.job)
    end = run.ends("STOPPED")

    assert end.ended_reason == f"Slurm has ended job {run.job} for good"
    assert run.decisions() == []
    run.cluster.wait_for_nodes(run.cluster.nodes, "idle")
    assert run.cluster.call("squeue", "-h").stdout == ""


def test_the_late_twin_of_a_requeued_job_writes_nothing_and_leaves(spoilt: Cluster) -> None:
    """Its nodes fall silent, Slurm begins the job anew elsewhere, and then its processes are heard again.

    Ours only: an srun that wakes up would end the step of the same number in the job's next life.
    """
    run = SlurmRun(spoilt, "twin", steps=100_000, spares=0)
    run.saved(20)
    nodes = [run.node(0), run.node(1)]

    for node in nodes:
        run.cluster.silence(node)
    run.cluster.wait_for_nodes(nodes, "down*", 60)
    run.wait("the job's next life", lambda now: now.job_id != run.job or run.start_soon(), 60)
    run.wait("its first step", lambda run: run.state == "RUNNING")
    taken_over = run.run.epoch
    twin = [process for node in nodes for process in run.cluster.processes_of(node) if process in run.trainers()]
    run.kill(*twin, number=signal.SIGCONT)
    run.wait("the twin's end", lambda _: not set(twin) & set(run.trainers()), 30)
    run.trains_on(20)

    assert run.run.epoch == taken_over
    for node in nodes:
        run.cluster.lose(node)
    end = run.stops()
    assert (run.decisions(), len(end.attempts)) == ([], 2)


def test_the_dry_run_prints_the_very_script(launch: Launch) -> None:
    run = launch(steps=10, waits=True, flags=IN_AN_HOUR)
    asked = run.paths.root.parent / f"{run.paths.name}.asked" / "RUN.yaml"

    shown = opt_launch(run.cluster, "submit", asked, "--name", run.paths.name, *IN_AN_HOUR, "--dry-run").stdout
    (submitted,) = run.paths.submitit.glob("*_submission.sh")

    lines = [line.strip() for line in submitted.read_text().splitlines() if line.strip()]
    assert [line for line in lines if line not in [one.strip() for one in shown.splitlines()]] == []


def test_what_slurm_refuses_is_told_in_its_words_and_leaves_nothing(cluster: Cluster, launch: Launch) -> None:
    asked = launch(steps=5, waits=True, flags=IN_AN_HOUR)
    file = cluster.runs / f"{asked.paths.name}.asked" / "RUN.yaml"

    refused = opt_launch(cluster, "submit", file, "--name", "refused", "--set", "cluster.slurm.partition=nowhere")

    assert refused.returncode == 3
    assert "invalid partition" in refused.stderr.lower()
    assert not (cluster.runs / "refused").exists()


def test_an_interface_that_no_node_has_fails_the_run_with_those_that_there_are(launch: Launch) -> None:
    run = launch(steps=10, section="network: {interface: nope0}")

    end = run.ends("FAILED")

    assert "launch.network.interface: no interface 'nope0' with an IPv4 address here, only" in end.ended_reason
    assert "lo" in end.ended_reason


def test_ranks_that_slurm_itself_starts_as_a_prefix_are_those_of_their_agent(launch: Launch) -> None:
    prefix = ["srun", "--overlap", "--nodes=1", "--ntasks=1", "--nodelist={node}", "--mpi=none", "--cpu-bind=none"]
    run = launch(steps=200, section=f"prefix: {json.dumps(prefix)}, python: {json.dumps(sys.executable)}")
    run.saved(10)
    agents = {name: psutil.Process(node.pid) for name, node in run.run.nodes.items()}
    rank = run.rank(3)
    assert rank not in agents[run.node_of(3)].children(recursive=True)

    run.kill(rank)
    run.wait("a second attempt", lambda run: len(run.attempts) == 2 and run.state == "RUNNING")
    left = [run.rank(2), run.rank(3)]
    run.kill(agents[run.node_of(3)])
    assert psutil.wait_procs(left, timeout=10)[1] == []
    end = run.ends()

    assert [decision.detector for decision in run.decisions()] == ["exit", "node_lost"]
    assert len(end.attempts) == 3
