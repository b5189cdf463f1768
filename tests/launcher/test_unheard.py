"""What viewers are told of a run of which nothing is heard."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

sys.path.insert(0, str(Path(__file__).parent))

from test_view import BORN, live, story, submitted, utc  # noqa: F401 - a fixture

from launcher.backends.standing import Standing, Waiting
from launcher.fold import View
from launcher.view.plain import plain
from launcher.view.screens import leaving, screen
from launcher.view.snapshot import snapshot_of
from launcher.view.sweeps import list_lines
from launcher.view.unheard import has_begun, is_quiet, with_standing

LATER = BORN + 121
QUEUED = Standing(True, ("7",), Waiting("7", "PartitionConfig"), told_at=LATER - 12)
GONE = Standing(False, ("7",), told_at=LATER, how="job 7: CANCELLED by ann")
WAY_ON = "opt-launch resume demo"


def seen(standing: Standing, *, begun: bool, at: float = LATER) -> dict[str, Any]:
    events = sorted([submitted("demo"), *(story() if begun else [])], key=lambda event: event.at)
    told = live() if begun else {}
    return with_standing(snapshot_of("demo", View().taken(events), told, at), standing, at, WAY_ON)


def drawn(snap: dict[str, Any], width: int = 80, height: int = 24) -> list[str]:
    console = Console(width=width, height=height, record=True, file=io.StringIO(), color_system=None)
    console.print(screen(snap, width, height))
    return [line.rstrip() for line in console.export_text().splitlines()]


QUEUED_SCREEN = """\
 demo   PENDING   attempt 0   job 7   up 2m01s             in the queue, 12s ago
 step 0 / 50  0.0% [----------]  ettr 0.0%  goodput -
 loss -  step time -
 loss
 NEXT  job 7 waits in the queue: PartitionConfig
-- NODES none has answered -------------------------------------- worst first --
   none has answered yet
-- INCIDENTS 0 ------------------------------------------------- newest first --
   none
-- CHECKPOINTS ------------------------------------------------- newest first --
   none yet"""

GONE_SCREEN = """\
 demo   GONE   attempt 2   job 81234   up 2m01s              last word 1m31s ago
 step 9 / 50  18.0% [##--------]  ettr 7.4%  goodput 7.6%
 loss 4.7  gnorm 0.41  lr 5.8e-05  step time 1.0s
 loss █▇▆▅▄▄▃▂▁  min 4.7
 NEXT  nothing, until a person says: opt-launch resume demo
 WHY   none of its processes lives; job 7: CANCELLED by ann
-- NODES 3: gone ------------------------------------------------ worst first --
 x node1  lost    GONE
   node0  active  GONE    ranks 0,1  step 9  train
   node2  active  GONE    ranks 2,3  step 9  train
-- INCIDENTS 1, 1 restart, 2 steps lost ------------------------ newest first --
 #1  22:13:37  node-failure  node1  RECOVERED  +8.0s, 2 steps lost: exclude, re…
-- CHECKPOINTS ------------------------------------------------- newest first --
   step 8  attempt 2  22:13:49  2.2 MB  complete
   step 4  attempt 1  22:13:34  2.2 MB  good"""


def test_a_run_in_the_queue_shows_its_job_and_what_the_scheduler_says_of_it() -> None:
    snap = seen(QUEUED, begun=False)
    assert "\n".join(drawn(snap)) == QUEUED_SCREEN
    assert plain(snap)[3] == "next: job 7 waits in the queue: PartitionConfig"
    assert list_lines([snap | {"sweep": None}])[0].endswith("job 7 waits in the queue: PartitionConfig")
    assert (snap["job_id"], snap["alive"]) == ("7", True)
    assert snap["job"]["waiting"] == {"job_id": "7", "reason": "PartitionConfig", "starts_at": None, "told_s": 12.0}
    assert leaving(snap).endswith("the run stays in the queue")


def test_a_run_of_which_nothing_lives_is_gone_and_nowhere_said_to_go_on() -> None:
    snap = seen(GONE, begun=True)
    assert "\n".join(drawn(snap)) == GONE_SCREEN
    assert plain(snap)[0] == "run demo  GONE  (none of its processes lives; job 7: CANCELLED by ann)"
    assert " GONE " in list_lines([snap | {"sweep": None}])[0]
    assert (snap["state"], snap["alive"]) == ("RUNNING", False)  # what the journal says is what it says
    assert leaving(snap) == " q or Ctrl-C leaves"


def test_on_a_wide_screen_what_comes_next_and_why_stand_in_one_line() -> None:
    assert f" NEXT  nothing, until a person says: {WAY_ON}   none of its processes lives; job 7: CANCELLED by ann" in (
        drawn(seen(GONE, begun=True), 140, 50)
    )


@pytest.mark.parametrize(("width", "height"), [(60, 15), (80, 24), (140, 50)])
def test_reasons_of_any_length_fit(width: int, height: int) -> None:
    lines = drawn(seen(Standing(False, how="word " * 200), begun=True), width, height)
    assert len(lines) <= height
    assert all(len(line) <= width for line in lines)


def test_what_slurm_said_before_it_went_away_is_shown_with_that_it_is_away() -> None:
    snap = seen(Standing(None, ("7",), QUEUED.waiting, LATER - 90, LATER - 60), begun=False)
    assert "  job 7  Slurm has not answered for 1m00s" in plain(snap)[2]
    assert " WARN  Slurm has not answered for 1m00s" in drawn(snap)
    assert plain(snap)[3] == "next: job 7 waits in the queue: PartitionConfig"


def test_a_run_that_is_about_to_have_an_allocation_is_not_gone() -> None:
    snap = seen(Standing(False), begun=False, at=BORN + 1)
    assert (snap["alive"], has_begun(snap), is_quiet(snap)) == (True, False, False)


@pytest.mark.parametrize(
    ("waiting", "text"),
    [
        (Waiting("7", "Resources"), "job 7 waits in the queue: Resources"),
        (Waiting("7_3"), "job 7_3 waits in the queue"),
        (Waiting("7", "Priority", BORN), "job 7 waits in the queue: Priority; expected to start 2023-11-14 22:13"),
        (Waiting(), "waits for its turn: other runs of its sweep come first"),
    ],
)
def test_waiting_in_words(waiting: Waiting, text: str) -> None:
    assert str(waiting) == text
