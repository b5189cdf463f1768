"""A live run, folded again from its journal and metrics, is the same run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from live_run import LiveRun

from launcher.events import JUDGEMENTS, Decision, EpochStarted, Tick
from policies.engine import decide, initial
from policies.load import read_policy


@pytest.mark.timeout(240)
def test_replaying_a_run_that_lost_rank_node_and_supervisor_gives_its_decisions(
    launch: Callable[..., LiveRun],
) -> None:
    run = launch(steps=160).reaches(15)
    run.kill(run.rank(1))
    run.reaches(25, attempt=2).kill(run.supervisor())
    run.new_epoch(run.epoch())
    run.lose(run.node_of(3))
    run.reaches(35, attempt=3)
    run.ends()

    policy = read_policy(run.paths.policy)
    state, replayed, late = initial(policy), [], []
    deadline = None
    for event in run.events():
        if deadline is not None and event.at > deadline + 5 and not isinstance(event, EpochStarted):
            late.append(event)
        state, decisions, deadline = decide(policy, state, event)
        replayed += decisions

    assert replayed == [replace(one, epoch=0, seq=0) for one in run.of(JUDGEMENTS)]
    assert [one.detector for one in replayed if isinstance(one, Decision)] == ["exit", "node_lost"]
    assert policy.model_dump(exclude={"rules": {"__all__": {"place"}}}) == run.policy.model_dump(
        exclude={"rules": {"__all__": {"place"}}}
    )
    assert len(run.of(Tick)) < 50, "only ticks that were asked for are journaled"
    assert late == [], "a deadline passed without a tick"
