"""Runs long enough that their supervisors start from a snapshot."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from live_run import LiveRun

from launcher.codec import encode
from launcher.events import Decision
from launcher.fold import View
from launcher.journal import read_journal
from launcher.snapshots import EVERY, read_view

FOLDED = re.compile(r"folded (\d+) events after snapshot (\d+)\.(\d+)")


@pytest.mark.timeout(300)
def test_a_successor_goes_on_from_a_snapshot_and_comes_to_the_same_end(launch: Callable[..., LiveRun]) -> None:
    fast = EVERY + 500  # and from there on slowly, so that all the rest can happen to it
    run = launch(steps=fast + 150, step_s=0.001, save_every=500, slow_from=fast, slow_factor=100.0)
    run.kill(run.reaches(600).rank(1))
    run.reaches(fast, attempt=2, limit_s=200)
    run.wait("a snapshot", lambda _: [*run.paths.state.glob("*.json")])
    epoch = run.epoch()
    run.kill(run.supervisor())
    run.new_epoch(epoch)
    run.kill(run.rank(2))
    run.ends()  # in the digest of an undisturbed run; and a replay from the first event gives the same decisions

    logs = "".join(log.read_text() for log in run.paths.logs.glob("supervisor.*.log"))
    (found,) = FOLDED.findall(logs)
    assert int(found[0]) < EVERY
    assert [one.detector for one in run.of(Decision)] == ["exit", "exit"]
    assert [one.id for one in run.of(Decision)] == ["d0001", "d0002"]
    assert encode(View, read_view(run.paths)) == encode(View, View().taken(read_journal(run.paths).events))
