"""Runs as Slurm jobs, steered from the login node: out of the queue, to another partition, away from dead nodes."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable

import pytest
from slurm_run import IN_AN_HOUR, SlurmRun

from launcher.events import RunAmended

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

Launch = Callable[..., SlurmRun]


def partition(run: SlurmRun) -> str:
    return run.cluster.call("squeue", "-h", "-j", run.job, "-o", "%P").stdout.strip()


def test_a_run_is_taken_out_of_the_queue_and_resumed_on_another_partition(
    launch: Launch,
) -> None:
    run = launch(waits=True, flags=IN_AN_HOUR, steps=60)
    assert run.job_state() == "PENDING"

    stopped = run.call("stop", "--yes")
    assert stopped.returncode == 0, stopped.stderr
    assert stopped.stderr.endswith(f"{run.paths.name}: ended: its job was waiting in the queue\n")
    assert (run.run.state, run.job_state()) == ("STOPPED", "CANCELLED")
    nowhere = run.call("resume", "--partition", "nowhere")
    assert (nowhere.returncode, "invalid partition" in nowhere.stderr.lower()) == (3, True)
    assert (run.run.state, "nowhere" in run.paths.spec.read_text()) == ("STOPPED", False)
    resumed = run.call("resume", "--partition", "urgent", "--time", "20m", "--set", "cluster.slurm.extra={}")

    assert resumed.returncode == 0, resumed.stderr
    run.job = run.wait("a job", lambda now: now.job_id).job_id
    assert partition(run) == "urgent"
    assert run.of(RunAmended)[-1].changes["cluster.slurm.partition"] == ["train", "urgent"]
    assert len(run.ends().attempts) == 1


def test_a_run_in_the_queue_says_so_at_once_and_nobody_guesses_while_the_controller_is_away(launch: Launch) -> None:
    run = launch(waits=True, flags=IN_AN_HOUR, steps=60)
    begun = time.monotonic()
    shown, saved, logs = (run.call(*words) for words in (("status", "--once"), ("save",), ("logs",)))
    waits = f"job {run.job} waits in the queue: BeginTime; expected to start "

    assert time.monotonic() - begun < 20  # of three commands; nobody waits for an answer
    assert f"next: {waits}" in shown.stdout
    assert (saved.returncode, waits in saved.stderr) == (1, True), saved.stderr
    assert (logs.returncode, logs.stdout, waits in logs.stderr) == (0, "", True), logs.stderr
    told = json.loads(run.call("status", "--json").stdout)
    assert (told["job_id"], told["job"]["waiting"]["reason"]) == (run.job, "BeginTime")

    assert run.call("stop", "--yes").returncode == 0
    run.becomes("CANCELLED")
    run.cluster.end_controller()
    resumed = run.call("resume")
    run.cluster.start_controller()
    assert (resumed.returncode, f"whether job {run.job} is gone is not known" in resumed.stderr) == (5, True)
    assert run.run.state == "STOPPED"


def test_what_does_not_answer_any_more_is_ended_through_slurm(launch: Launch) -> None:
    run = launch(steps=4000)
    run.trains_on(20)
    run.kill(*run.processes(), number=signal.SIGSTOP)

    stopped = run.call("stop", "--now", "--yes")

    assert stopped.returncode == 0, stopped.stderr
    assert "no supervisor answered 'stop' within 15s: its allocation is ended without one\n" in stopped.stderr
    # Slurm wakes what it ends, so that the supervisor may come to say so itself.
    reason = run.run.ended_reason
    assert reason.endswith("no supervisor answered") or reason == f"Slurm has ended job {run.job} for good"
    run.becomes("CANCELLED")


def test_a_paused_run_stays_so_when_it_is_requeued_and_ends_at_its_time_limit_with_nothing_lost(
    launch: Launch,
) -> None:
    run = launch(steps=200)
    run.saved(10)

    paused = run.call("pause", "--reason", "a look")
    halted = run.run
    assert (paused.returncode, halted.state, run.job_state()) == (0, "PAUSED", "RUNNING"), paused.stderr
    run.cluster.call("scontrol", "requeue", run.job)
    deadline = time.monotonic() + 90
    while run.run.job_id != f"{run.job}.1" or run.run.state != "PAUSED":
        assert time.monotonic() < deadline, run.story()
        run.start_soon()
        time.sleep(0.3)
    run.cluster.call("scontrol", "update", f"JobId={run.job}", "TimeLimit=1")
    ended = run.ends("STOPPED")
    resumed = run.call("resume", "--time", "20m")

    assert ended.ended_reason.endswith(": a look, until the time limit of the job")
    assert (len(ended.attempts), ended.head) == (1, halted.head)
    assert resumed.returncode == 0, resumed.stderr
    run.job = run.wait("a job", lambda now: now.job_id not in ("", f"{run.job}.1")).job_id
    assert (run.ends().lost_steps, run.decisions()) == (0, [])
