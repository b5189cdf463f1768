"""What must hold for every sequence of events."""

from __future__ import annotations

import math
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from story import PEER, Story, policy_of, replayed

from launcher.events import (
    AgentJoined,
    AttemptEnded,
    AttemptStarted,
    CheckpointCommitted,
    CommandReceived,
    Decision,
    DiskTold,
    EpochStarted,
    Event,
    JobTold,
    LineMatched,
    NodeBack,
    NodeDown,
    NodeDraining,
    NodeSilent,
    NodeUndrained,
    RankExited,
    RankProgress,
    RunEnded,
    RunHeld,
    RunPaused,
    RunReleased,
    RunResumed,
    RunSubmitted,
    RunUnpaused,
    StepDone,
    StepsMoving,
    StepsStopped,
    StorageBack,
    StorageSilent,
    Tick,
    TrainerDone,
    Warned,
    from_json,
    to_json,
)
from policies.engine import decide, initial
from policies.explain import explain
from policies.load import load_policy

ASKING = """
  - {name: line, when: {log: {match: x}}, do: [{collect: [stacks]}], cooldown: 10s}
  - {name: full, when: {disk: {below: 50 %}}, do: [{hold: {retry: every 20s, at_most: 1m}}]}
  - {name: late, when: {time_left: {below: 90s}}, do: [{save: now}]}
  - {name: state, when: {scheduler: {states: [PREEMPTED]}}, do: [{save: now}]}
  - {name: asked, when: {exit: {}}, do: [{restart: {from: latest}}], mode: {ask: 30s, else: nothing}}
  - name: numbers
    when: {non_finite: {}}
    do: [{set: {lr: x0.5}, restart: {from: last_good}}]
    mode: {ask: 9s, else: act}
"""
POLICIES = {name: load_policy([name]) for name in ("default", "cautious")}
with TemporaryDirectory() as _folder:
    POLICIES["asking"] = policy_of(Path(_folder), f"budget: {{lost_time: 20 % per 1h}}\nrules:{ASKING}")
NODES = ("a", "b", "c", "d")
attempts = st.integers(1, 3)
nodes = st.sampled_from(NODES)
numbers = st.sampled_from([1.0, 2.0, math.nan, math.inf])
places = st.builds(
    RankProgress,
    node=nodes,
    step=st.integers(0, 2),
    section=st.integers(0, 2),
    phase=st.sampled_from(["", "save", "eval"]),
    os_state=st.sampled_from(["R", "T"]),
)
errors = st.sampled_from([("", ""), ("RuntimeError", PEER), ("ValueError", "bad"), ("ImportError", "no x")])
SLOTS = {"a": (0, 1), "b": (2, 3), "c": (4, 5)}


def built(kind: type[Event], **parts: st.SearchStrategy[Any]) -> st.SearchStrategy[tuple[type[Event], dict[str, Any]]]:
    return st.fixed_dictionaries(parts).map(lambda values: (kind, values))


exits = st.tuples(attempts, nodes, st.integers(0, 5), st.sampled_from([0, 1, 79, -9, -11]), errors).map(
    lambda t: (
        RankExited,
        {"attempt": t[0], "node": t[1], "rank": t[2], "code": t[3], "error_type": t[4][0], "error": t[4][1]},
    )
)
silences = st.tuples(nodes, st.floats(0, 5)).map(
    lambda t: (NodeSilent, {"node": t[0], "since": t[1], "cause": "reset"})
)
stops = st.tuples(
    attempts, st.floats(0, 50), st.booleans(), st.dictionaries(st.integers(0, 5), places, max_size=4)
).map(lambda t: (StepsStopped, {"attempt": t[0], "since": t[1], "proof": t[2], "ranks": t[3]}))
starts = attempts.map(
    lambda n: (AttemptStarted, {"attempt": n, "slots": SLOTS, "incarnations": {}, "restore": None, "why": ""})
)
steps = st.tuples(attempts, st.integers(0, 99), numbers, st.floats(0, 2)).map(
    lambda t: (StepDone, {"attempt": t[0], "step": t[1], "metrics": {"loss": t[2]}, "step_s": t[3]})
)
joins = st.tuples(nodes, st.sampled_from("12")).map(
    lambda t: (AgentJoined, {"node": t[0], "index": 0, "incarnation": t[1], "host": "", "port": 0, "pid": 0})
)
others = st.one_of(
    built(NodeBack, node=nodes),
    built(NodeDown, node=nodes, reason=st.just("gone")),
    built(NodeDraining, node=nodes, reason=st.just("new disks")),
    built(NodeUndrained, node=nodes),
    built(StepsMoving, attempt=attempts),
    built(AttemptEnded, attempt=attempts, reason=st.just("")),
    built(TrainerDone, attempt=attempts, step=st.just(1)),
    built(RunHeld, reason=st.just("")),
    built(RunReleased, author=st.just("me")),
    built(RunPaused, reason=st.just("")),
    built(RunUnpaused, author=st.just("me")),
    built(RunResumed, author=st.just("me")),
    built(RunEnded, state=st.just("STOPPED")),
    built(
        CommandReceived,
        id=st.sampled_from("xy"),
        verb=st.sampled_from(["stop", "pause", "unpause"]),
        author=st.just(""),
    ),
    built(EpochStarted, host=st.just(""), pid=st.just(1), node=st.just("a"), job_id=st.just("")),
    built(Warned, text=st.just("x")),
    built(NodeDraining, node=nodes, reason=st.just("new disks")),
    built(StorageSilent, node=nodes, since=st.floats(0, 5)),
    built(StorageBack, node=nodes),
    built(DiskTold, free=st.integers(0, 100), total=st.just(100)),
    built(JobTold, state=st.sampled_from(["RUNNING", "PREEMPTED"]), ends_at=st.sampled_from([None, 1100.0])),
    built(LineMatched, attempt=attempts, node=nodes, rank=st.just(0), rule=st.just("line"), line=st.just("x")),
    built(RunHeld, reason=st.just(""), keeps_ranks=st.just(True)),
    built(
        CommandReceived,
        id=st.just("z"),
        verb=st.sampled_from(["approve", "hold", "release"]),
        author=st.just("ann"),
        args=st.integers(1, 3).map(lambda number: {"incident": number, "rule": "asked"}),
    ),
    built(
        CommandReceived,
        id=st.just("p"),
        verb=st.just("policy_set"),
        author=st.just("ann"),
        args=st.sampled_from(
            [{"path": ["rules", "hang", "mode"], "value": "advise", "for_s": 60}, {"path": ["rules", "gone", "mode"]}]
        ),
    ),
    built(
        RunSubmitted,
        run=st.just("r"),
        nodes=st.just(3),
        ranks_per_node=st.just(2),
        spares=st.just(1),
        target_step=st.none(),
        probation=st.just(2),
        save_every=st.none(),
    ),
    built(
        CheckpointCommitted,
        step=st.integers(0, 99),
        attempt=attempts,
        parent=st.none(),
        manifest_digest=st.just(""),
        bytes=st.just(0),
    ),
)
told = st.lists(
    st.tuples(st.floats(-1, 40), st.one_of(exits, silences, stops, starts, starts, steps, steps, joins, others)),
    max_size=40,
)


def events_of(story: list[tuple[float, tuple[type[Event], dict[str, Any]]]]) -> list[Event]:
    """The events with rising times; `since` is told as so long ago."""
    at, events = 1000.0, []
    for wait, (kind, parts) in story:
        at += wait
        values = {**parts, "since": at - parts["since"]} if "since" in parts else parts
        events.append(kind(at=at, **values))
    return events


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(name=st.sampled_from(sorted(POLICIES)), story=told)
def test_live_and_replayed_runs_decide_the_same_and_ticks_come_to_an_end(
    name: str, story: list[tuple[float, tuple[type[Event], dict[str, Any]]]]
) -> None:
    policy = POLICIES[name]
    state, deadline, journal, decisions = initial(policy), None, [], []

    def tell(event: Event) -> list[Decision]:
        nonlocal state, deadline
        journal.append(event)
        state, found, deadline = decide(policy, state, event)
        assert deadline is None or deadline > state.now
        decisions.extend(found)
        for decision in found:
            journal.append(decision)
            assert from_json(to_json(decision)) == decision
            assert not isinstance(decision, Decision) or explain(policy, decision)
            state, again, deadline = decide(policy, state, decision)
            assert again == ()
        return list(found)

    for event in events_of(story):
        ticks = 0
        while deadline is not None and deadline <= event.at:
            tell(Tick(at=deadline))
            ticks += 1
            assert ticks < 50
        tell(event)
    ticks = 0
    while deadline is not None:
        tell(Tick(at=deadline))
        ticks += 1
        assert ticks < 50
    assert replayed(policy, journal)[1] == decisions
    assert replayed(policy, [from_json(to_json(event)) for event in journal])[1] == decisions
    assert len({one.id for one in decisions}) == len(decisions)


trouble = st.lists(
    st.one_of(
        st.tuples(st.just("steps"), st.integers(1, 5), st.floats(0.1, 5)),
        st.tuples(st.just("silent"), st.integers(0, 2), st.floats(0, 55)),
        st.tuples(st.just("save"), st.integers(0, 5), st.floats(0, 100)),
        st.tuples(st.just("skipped"), st.integers(0, 5), st.floats(0, 1)),
        st.tuples(st.just("slow"), st.integers(0, 5), st.floats(0, 100)),
    ),
    max_size=30,
)


@settings(max_examples=150, deadline=None)
@given(story=trouble)
def test_a_healthy_run_with_silences_saves_and_slow_steps_is_left_alone(story: list[tuple[str, int, float]]) -> None:
    run = Story(POLICIES["default"]).training()
    for what, number, seconds in story:
        if what == "steps":
            run.steps(number, seconds)
        elif what == "silent":
            run.silent(f"n{number}")
            run.wait(seconds / 2)
            run.steps(2, seconds / 4)
            run.back(f"n{number}")
        elif what == "skipped":
            run.steps(1, 1.0, grad_norm=math.inf, skipped=1)
        else:
            run.stopped(run.at, proof=what == "slow", places={0: (1, 1, "save" if what == "save" else "")})
            run.wait(seconds)
            run.moving()
            run.steps(1)
    assert run.decisions == []
