"""What Slurm said of a run's jobs, kept for all who look."""

from __future__ import annotations

from pathlib import Path

import pytest

from launcher.backends import slurm_jobs
from launcher.backends.choice import living
from launcher.backends.slurm_jobs import Said, write_jobs
from launcher.backends.slurm_words import InQueue
from launcher.backends.standing import Waiting
from launcher.errors import Unreachable
from launcher.paths import RunPaths

RUNNING, OVER = InQueue("RUNNING"), InQueue("CANCELLED")
QUEUED = InQueue("PENDING", "Priority", 1_700_000_000.0)


@pytest.mark.parametrize(
    ("told", "lives", "waits"),
    [
        ({"7": RUNNING, "8": QUEUED}, True, False),
        ({"7": OVER, "8": QUEUED}, True, True),
        ({"8": QUEUED}, True, True),
        ({"8": InQueue("COMPLETING")}, True, False),
        ({"8": InQueue("SOMETHING_NEW")}, True, False),
        ({"7": OVER, "8": OVER}, False, False),
        ({}, False, False),
        ({"9": RUNNING}, False, False),
    ],
)
def test_a_run_stands_as_its_jobs_do(told: dict[str, InQueue], lives: bool, waits: bool) -> None:
    standing = Said(("7", "8")).after(told, 5.0).standing(at_once=True)
    assert (standing.lives, standing.told_at) == (lives, 5.0)
    assert standing.waiting == (Waiting("8", "Priority", 1_700_000_000.0) if waits else None)


@pytest.mark.parametrize("at_once", [True, False])
def test_who_does_not_answer_leaves_open_whether_a_run_lives(at_once: bool) -> None:
    silent = Said(("8",)).after({"8": QUEUED}, 5.0).after(None, 40.0).after(None, 80.0)
    standing = silent.standing(at_once=at_once)
    assert (standing.lives, standing.may_live, standing.away_since, standing.told_at) == (None, True, 40.0, 5.0)
    assert bool(standing.waiting) is not at_once


def test_what_was_over_stays_over_for_viewers_but_is_not_known_at_once() -> None:
    silent = Said(("8",)).after({}, 5.0).after(None, 40.0)
    assert [silent.standing(at_once=at_once).lives for at_once in (False, True)] == [False, None]


def test_who_answers_again_is_no_longer_away() -> None:
    assert Said(("8",)).after(None, 5.0).after({"8": RUNNING}, 40.0).standing(at_once=False).away_since is None


@pytest.fixture
def run(tmp_path: Path) -> RunPaths:
    write_jobs(RunPaths(tmp_path), "t", ["8"])
    return RunPaths(tmp_path)


def test_slurm_is_not_asked_again_for_a_while_when_it_did_not_answer(
    run: RunPaths, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    first = slurm_jobs.standings([run])[run]
    noted = run.job_state.read_text()

    assert (first.lives, slurm_jobs.standings([run])[run]) == (None, first)
    assert run.job_state.read_text() == noted
    slurm_jobs.standings([run], at_once=True)
    assert run.job_state.read_text() != noted


@pytest.mark.parametrize("broken", ["", "[]", "{}", '{"told": 1}', '{"jobs": ["8"], "states": ["PENDING"], "at": 1}'])
def test_a_note_that_cannot_be_read_is_none(
    run: RunPaths, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, broken: str
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    run.job_state.write_text(broken)
    assert slurm_jobs.standings([run])[run].lives is None


def test_nothing_is_started_where_nobody_knows_whether_it_lives(
    run: RunPaths, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Unreachable, match="Slurm does not answer: whether job 8 is gone is not known") as refused:
        living([run])
    assert (refused.value.exit_code, refused.value.hint) == (5, "try again")
