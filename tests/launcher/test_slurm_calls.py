"""What is asked of Slurm."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from launcher.backends import slurm
from launcher.backends.slurm import NodeStates
from launcher.backends.slurm_calls import life_of, plain, plain_id
from launcher.paths import RunPaths
from launcher.place import own_id


def test_a_job_and_its_lives() -> None:
    assert [(plain_id(one), life_of(one)) for one in ("8", "8.2")] == [("8", 0), ("8", 2)]


@pytest.mark.parametrize(
    ("variables", "job"),
    [
        ({"SLURM_JOB_ID": "8"}, "8"),
        ({"SLURM_JOB_ID": "8", "SLURM_RESTART_COUNT": "0"}, "8"),
        ({"SLURM_JOB_ID": "8", "SLURM_RESTART_COUNT": "2"}, "8.2"),
        ({"SLURM_JOB_ID": "9", "SLURM_ARRAY_JOB_ID": "8", "SLURM_ARRAY_TASK_ID": "0"}, "8_0"),
        # The last element of an array has the number of the whole: who cancels 8 cancels all of them.
        ({"SLURM_JOB_ID": "8", "SLURM_ARRAY_JOB_ID": "8", "SLURM_ARRAY_TASK_ID": "3"}, "8_3"),
        (
            {"SLURM_JOB_ID": "8", "SLURM_ARRAY_JOB_ID": "8", "SLURM_ARRAY_TASK_ID": "3", "SLURM_RESTART_COUNT": "1"},
            "8_3.1",
        ),
    ],
)
def test_a_job_knows_the_id_that_is_its_own(variables: dict[str, str], job: str) -> None:
    assert own_id(variables) == job


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


def test_what_a_user_has_set_does_not_change_slurms_answers() -> None:
    mine = {"PATH": "/bin", "SLURM_CONF": "/x", "SQUEUE_FORMAT": "%i", "SQUEUE_STATES": "R", "SINFO_FORMAT": "%P"}
    asked = plain(mine | {"SLURM_TIME_FORMAT": "relative"})
    assert asked == {"PATH": "/bin", "SLURM_CONF": "/x", "SLURM_TIME_FORMAT": "standard", "LC_ALL": "C"}


def test_who_is_asked_and_says_nothing_is_away_before_the_question_is_given_up(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    asked = tmp_path / "sinfo"
    asked.write_text(f"#!/bin/sh\nread answer < {gate}\necho node0 idle none\n")
    asked.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("SLURM_JOB_NODELIST", "node0")
    monkeypatch.setattr(slurm, "SLOW_S", 0.2)
    states, begun = NodeStates(RunPaths(tmp_path), "8"), time.time()

    states.read()
    since = until(lambda: states.away_since)
    gate.write_text("\n")  # it answers
    until(lambda: states.away_since is None)

    assert since is not None
    assert begun <= since < begun + 5
    assert until(states.read).keys() == {"node0"}


def until(look: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + 10
    while not (answer := look()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return answer
