"""`opt-launch run` in a user's own batch script: it trains, loses nodes, is requeued and goes on."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import counting
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

    def submit(*flags: str, kind: type[OwnJob] = OwnJob, **options: object) -> OwnJob:
        name = next(name for name in names if not (cluster.runs / f"{name}.asked").exists())
        jobs.append(kind(cluster, name, *flags, **options))  # type: ignore[arg-type]
        return jobs[-1]

    yield submit
    for job in jobs:
        job.clean_up()
    cluster.restore()


def test_a_batch_script_that_said_torchrun_trains_and_its_output_tells(own_job: Make) -> None:
    run = own_job(say="hello from")

    end = run.ends()
    run.becomes("COMPLETED")

    assert (run.decisions(), len(end.attempts), end.job_id) == ([], 1, run.job)
    hello = [line for line in run.output.read_text().splitlines() if line.startswith("hello from ")]
    assert sorted(hello) == [f"hello from {rank} 1" for rank in range(4)]
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

    assert [decision.detector for decision in run.decisions()] == ["node_lost", "node_lost"], run.story()
    assert set(end.attempts[-1].slots) == {run.node(2), run.node(3)}
    run.becomes("CANCELLED")  # else it would stay RUNNING until its time limit


def test_a_job_that_is_requeued_or_cancelled_and_submitted_again_goes_on_until_it_has_succeeded(own_job: Make) -> None:
    run = own_job(steps=120)
    run.saved(20)

    run.cluster.call("scontrol", "requeue", run.job)
    run.begins(".1")
    run.saved(60)
    requeued = run.run
    run.cluster.call("scancel", run.job)
    run.becomes("CANCELLED")
    run.sbatch()
    run.begins()
    end = run.ends()
    run.sbatch()
    run.becomes("COMPLETED")

    assert requeued.job_id.endswith(".1")
    assert run.decisions() == []
    assert [bool(attempt.restore) for attempt in end.attempts] == [False, True, True]
    assert run.told()[-1] == f"run {run.paths.name} has succeeded already: nothing is left to do"


class ElasticJob(OwnJob):
    """The digest at its end depends on how many ranks there were when."""

    def check_history(self) -> None:
        samples = [sample for first, last in self.kept() for sample in range(first, last)]
        assert samples == list(range(self.steps * counting.BATCH))


def test_a_range_of_nodes_goes_on_with_those_that_are_left(own_job: Make) -> None:
    wait = ("--set", "cluster.wait_for_node=2s")
    run = own_job(*wait, kind=ElasticJob, nnodes="1:$SLURM_NNODES", spares=0, steps=120)
    run.saved(20)

    run.cluster.lose(run.node(1))
    end = run.ends()

    assert [len(one.slots) for one in end.attempts] == [2, 1]
    assert [decision.detector for decision in run.decisions()] == ["node_lost"]
    run.becomes("COMPLETED")


def test_the_last_element_of_an_array_is_requeued_and_cancelled_without_the_others(own_job: Make) -> None:
    """Its SLURM_JOB_ID is the number of the whole array."""
    array = own_job("--set", "cluster.continue_by=requeue", spares=0, steps=160, more="#SBATCH --array=0-1")
    other, last = array.element(0), array.element(1)
    for run in (other, last):
        run.saved(10)
    assert (other.run.job_id, last.run.job_id) == (other.job, last.job)

    other.cluster.call("scancel", "--signal=USR2", f"{last.job}.0")
    last.begins(".1")
    requeued = last.run.job_id
    stopped = last.call("stop", "--now", "--yes")
    last.ends("STOPPED")
    end = other.ends()
    other.becomes("COMPLETED")

    assert (requeued, stopped.returncode) == (f"{last.job}.1", 0), stopped.stderr
    assert (len(end.attempts), end.job_id) == (1, other.job)


def test_a_job_warned_of_its_limit_saves_and_begins_anew_if_asked_to(own_job: Make) -> None:
    run = own_job("--set", "cluster.continue_by=requeue", steps=160, save_every=5000)
    run.wait("step 30", lambda now: now.step >= 30)

    run.cluster.call("scancel", "--signal=USR2", f"{run.job}.0")  # as --signal=USR2@120 has it done
    run.begins(".1")
    end = run.ends()

    assert (run.decisions(), end.lost_steps, len(end.attempts)) == ([], 0, 2)
