"""`opt-launch run` in a user's own batch script: it trains, loses nodes, is requeued and goes on."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator

import pytest
from cluster import Cluster
from own_job import OwnJob

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

Make = Callable[..., OwnJob]


@pytest.fixture
def own_job(cluster: Cluster) -> Iterator[Make]:
    """Submits jobs; when the test is over, no process of theirs is, and all nodes are back."""
    jobs: list[OwnJob] = []
    names = (f"own{number}" for number in itertools.count())

    def submit(*flags: str, **options: object) -> OwnJob:
        name = next(name for name in names if not (cluster.runs / f"{name}.asked").exists())
        jobs.append(OwnJob(cluster, name, *flags, **options))  # type: ignore[arg-type]
        return jobs[-1]

    yield submit
    for job in jobs:
        job.clean_up()
    cluster.restore()


def wait_for_job(run: OwnJob, state: str, limit_s: float = 60) -> None:
    deadline = time.monotonic() + limit_s
    while (now := run.job_state()) != state:
        assert time.monotonic() < deadline, now
        time.sleep(0.2)


def test_a_batch_script_that_said_torchrun_loses_a_node_and_its_output_tells(own_job: Make) -> None:
    run = own_job(steps=200, say="hello from")
    run.saved(10)

    run.cluster.lose(run.node(1))
    end = run.ends()
    wait_for_job(run, "COMPLETED")

    assert [decision.detector for decision in run.decisions()] == ["node_lost"]
    assert set(end.attempts[-1].slots) == {run.node(0), run.node(2)}
    text = run.output.read_text()
    assert {f"hello from {rank} {attempt}" for rank in range(4) for attempt in (1, 2)} <= {*text.splitlines()}
    assert run.told()[0] == "not used: --node-rank, --rdzv-endpoint, --rdzv-backend"
    assert run.told()[-1] == "SUCCEEDED"
    status = run.call("status", "--once")
    assert (status.returncode, status.stdout.split()[2]) == (0, "SUCCEEDED")


def test_the_first_node_is_lost_and_with_it_srun_and_the_script(own_job: Make) -> None:
    run = own_job(steps=300, spares=2)
    run.saved(10)

    run.cluster.lose(run.node(0))
    run.wait("a second attempt", lambda run: len(run.attempts) == 2 and run.state == "RUNNING")
    run.trains_on()
    run.cluster.lose(run.node(1))
    end = run.ends()

    assert [decision.detector for decision in run.decisions()] == ["node_lost", "node_lost"]
    assert set(end.attempts[-1].slots) == {run.node(2), run.node(3)}
    wait_for_job(run, "CANCELLED")  # else it would stay RUNNING until its time limit


def test_a_requeued_job_goes_on_and_once_it_has_succeeded_it_is_over_at_once(own_job: Make) -> None:
    run = own_job(steps=200)
    run.saved(20)

    run.cluster.call("scontrol", "requeue", run.job)
    run.start_at_once()
    end = run.ends(limit_s=120)

    assert (run.decisions(), len(end.attempts), end.job_id) == ([], 2, f"{run.job}.1")
    assert end.attempts[1].restore is not None
    run.sbatch()
    wait_for_job(run, "COMPLETED")
    assert run.told()[-1] == f"run {run.paths.name} has succeeded already: nothing is left to do"


def test_a_job_warned_of_its_limit_saves_and_begins_anew_if_asked_to(own_job: Make) -> None:
    run = own_job("--set", "cluster.continue_by=requeue", steps=160, save_every=5000)
    run.wait("step 30", lambda now: now.step >= 30)

    run.cluster.call("scancel", "--signal=USR2", f"{run.job}.0")  # as --signal=USR2@120 has it done
    run.wait("the end of the job", lambda now: now.job_ending)
    run.start_at_once()
    end = run.ends(limit_s=120)

    assert (run.decisions(), end.lost_steps, len(end.attempts)) == ([], 0, 2)


def test_a_cancelled_job_is_saved_and_the_same_script_goes_on_with_it(own_job: Make) -> None:
    run = own_job(steps=160, save_every=5000)
    run.wait("step 30", lambda now: now.step >= 30)

    run.cluster.call("scancel", run.job)
    wait_for_job(run, "CANCELLED")
    run.sbatch()
    end = run.ends(limit_s=120)

    assert (run.decisions(), end.lost_steps, end.job_id) == ([], 0, run.job)
