"""The real trainer under faults: the tensors it ends with are, bit for bit, those of an undisturbed run."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from live_run import LiveRun
from schedule import Schedule
from trained_run import TrainedRun

from launcher.events import CheckpointFailed

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

Train = Callable[..., TrainedRun]
FIRST = int(os.environ.get("OPT_LAUNCH_CHAOS_SEED", "1"))
SEEDS = range(FIRST, FIRST + int(os.environ.get("OPT_LAUNCH_CHAOS", "4")))
STEPS = 60


@pytest.fixture(scope="module")
def undisturbed(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TrainedRun]:
    """The run that nothing happens to."""
    run = TrainedRun(tmp_path_factory.mktemp("runs"), "undisturbed", steps=STEPS, corpus=corpus)
    run.ends(limit_s=240)
    assert run.decisions() == []
    yield run
    run.clean_up()


@pytest.fixture
def train(tmp_path: Path, corpus: Path) -> Iterator[Train]:
    runs: list[LiveRun] = []

    def submit(root: Path = tmp_path / "runs", **options: str) -> TrainedRun:
        runs.append(run := TrainedRun(root, "disturbed", steps=STEPS, corpus=corpus, **options))
        return run

    yield submit
    for run in runs:
        run.clean_up()


@pytest.mark.parametrize("seed", SEEDS)
def test_under_any_mixture_of_faults_training_ends_in_the_same_bits(
    seed: int, train: Train, undisturbed: TrainedRun
) -> None:
    schedule = Schedule(seed, run := train())

    schedule.play()

    print(f"seed {seed}: {'; '.join(schedule.hit)}; held {schedule.held} times")
    run.ends()
    assert run.kept() == undisturbed.kept()
    assert run.digest() == undisturbed.digest()


def test_a_disk_that_fills_up_during_a_save_costs_the_checkpoint_and_nothing_else(
    train: Train, undisturbed: TrainedRun, small_disk: Path
) -> None:
    run = train(root=small_disk)
    first = run.saved(8)

    with run.full(small_disk):
        failed = run.wait_for(CheckpointFailed)
        run.reaches(failed.step + 3)
        assert run.paths.manifest(first.step, 1).exists()
    run.saved(failed.step + 8)
    end = run.ends()

    assert "No space left on device" in failed.reason
    assert run.decisions() == []
    assert len(end.attempts) == 1
    assert run.digest() == undisturbed.digest()
