"""What is made of Slurm's words about a job."""

from __future__ import annotations

import time
from datetime import datetime
from pathlib import Path

import pytest

from launcher.backends.slurm import NodeStates
from launcher.backends.slurm_calls import Job, is_over, job_of, life_of, plain_id
from launcher.paths import RunPaths

LINE = (
    "JobId=8 JobName=r UserId=nobody(65534) JobState={state} Reason=None Dependency=(null) Requeue=1 "
    "Restarts={restarts} BatchFlag=1 Reboot=0 ExitCode=0:0 StartTime=2026-11-25T00:06:31 EndTime={end} Deadline=N/A"
)


@pytest.mark.parametrize(
    ("state", "restarts", "end", "job"),
    [
        ("RUNNING", "0", "2026-11-25T02:00:00", Job("RUNNING", 0, datetime(2026, 11, 25, 2).timestamp())),
        ("COMPLETING", "1", "Unknown", Job("COMPLETING", 1, None)),
        ("PENDING", "2", "N/A", Job("PENDING", 2, None)),
        ("A_STATE_OF_2030", "many", "when it is done", Job("A_STATE_OF_2030", 0, None)),
    ],
)
def test_a_job_as_scontrol_shows_it(state: str, restarts: str, end: str, job: Job) -> None:
    assert job_of(LINE.format(state=state, restarts=restarts, end=end)) == job


@pytest.mark.parametrize("text", ["", "slurm_load_jobs error: Invalid job id specified", "JobId=8"])
def test_what_is_no_job_is_none(text: str) -> None:
    assert job_of(text) is None


@pytest.mark.parametrize(
    ("state", "over"),
    [("PENDING", False), ("REQUEUED", False), ("SOMETHING_NEW", False), ("", True), ("CANCELLED by 1000", True)],
)
def test_only_what_is_known_to_be_over_is(state: str, over: bool) -> None:
    assert is_over(state) is over


def test_a_job_and_its_lives() -> None:
    assert [(plain_id(one), life_of(one)) for one in ("8", "8.2")] == [("8", 0), ("8", 2)]


def test_nodes_are_asked_about_in_vain_where_no_slurm_answers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("SLURM_JOB_NODELIST", "node[0-3]")
    states = NodeStates(RunPaths(tmp_path), "8")

    deadline = time.monotonic() + 10
    while states.away_since is None and time.monotonic() < deadline:
        assert states.read() == {}
        time.sleep(0.01)

    assert states.away_since is not None
    assert states.ends_at is None
