"""What is around the ranks: storage that stalls, disks that fill, the scheduler, and what is printed."""

from __future__ import annotations

from pathlib import Path

import pytest
from story import NAN, Story, ending, policy_of, reason

from launcher.events import DiskTold, JobTold, LineMatched, RunHeld, StorageBack, StorageSilent
from policies.load import load_policy

DEFAULT = load_policy(["default"])
GB = 10**9


def rule(when: str, *rungs: str, name: str = "mine", **more: str) -> str:
    keys = "".join(f"\n    {key.rstrip('_')}: {value}" for key, value in more.items())
    ladder = "".join(f"\n      - {{{rung}}}" for rung in rungs)
    return f"\n  - name: {name}\n    when: {{{when}}}{keys}\n    do:{ladder}"


def story_of(folder: Path, *rules: str) -> Story:
    return Story(policy_of(folder, f"rules:{''.join(rules)}")).training()


# ---------------------------------------------------------------- storage

WAITING = {0: (30, 7, "data"), 1: (30, 7, "data"), 2: (30, 7, "save"), 3: (30, 7)}


def stalled(phases: dict[int, tuple[object, ...]] | None = None) -> Story:
    story = Story(DEFAULT).training()
    story.stopped(story.at, proof=False, places=WAITING if phases is None else phases)
    return story


def test_a_stall_of_the_storage_is_held_and_its_ranks_are_left_waiting() -> None:
    story = stalled()
    (held,) = story.wait(700)
    assert (held.rule, held.detector, held.nodes) == ("storage-stall", "storage_stall", ())
    assert held.actions == {"hold": {"reason": "the storage does not answer", "keeps_ranks": True}}
    assert held.why == "3 of 4 ranks wait in data and save for 600 s"
    assert story.state.pending is None


def test_what_is_held_so_is_no_hang_however_long_it_takes() -> None:
    story = stalled()
    story.wait(700)
    story.tell(RunHeld(at=story.at, reason="x", keeps_ranks=True))
    assert story.wait(100_000) == []
    story.moving()
    story.steps(3)
    story.stopped(story.at, places={0: (33, 7), 1: (33, 7), 2: (33, 5), 3: (33, 7)})
    assert [one.rule for one in story.wait(200)] == ["hang"]


def test_a_rank_that_fails_meanwhile_is_dealt_with() -> None:
    story = stalled()
    story.wait(700)
    story.tell(RunHeld(at=story.at, reason="x", keeps_ranks=True))
    (decision,) = story.exits(0, -9)
    assert ending(decision) == "restart"


@pytest.mark.parametrize("phases", [{0: (30, 7, "data"), 1: (30, 7), 2: (30, 7), 3: (30, 7)}, {0: (30, 7, "eval")}, {}])
def test_few_ranks_that_wait_are_no_stall(phases: dict[int, tuple[object, ...]]) -> None:
    story = stalled(phases)
    assert "storage-stall" not in {one.rule for one in story.wait(100_000)}


def test_a_run_folder_that_answers_on_few_nodes_is_a_stall_and_on_most_is_none() -> None:
    story = Story(DEFAULT, nodes=3).training()
    story.tell(StorageSilent(at=story.at, node="n0", since=story.at - 20))
    assert story.wait(10_000) == []
    story.tell(StorageSilent(at=story.at, node="n1", since=story.at - 20))
    (held,) = story.wait(600)
    assert held.why.startswith("the run folder does not answer on 2 of 3 nodes for 600 s")
    story.tell(StorageBack(at=story.at, node="n1"))
    assert story.wait(10_000) == []


# ---------------------------------------------------------------- disk


def disk(story: Story, free: int) -> list[str]:
    return [one.why for one in story.tell(DiskTold(at=story.at, free=free * GB, total=1000 * GB))]


@pytest.mark.parametrize(("below", "enough", "low"), [("5 %", 51, 49), ("20 GB", 21, 19)])
def test_a_disk_that_fills_is_told_once_an_attempt(tmp_path: Path, below: str, enough: int, low: int) -> None:
    story = story_of(tmp_path, rule(f"disk: {{below: {below}}}", "save: now"))
    assert disk(story, enough) == []
    assert disk(story, low) == [f"{low}.0 GB of 1000.0 GB are free, less than {below}"]
    assert disk(story, low - 1) == []
    story.start()
    assert [(one.rule, one.attempt) for one in story.decisions] == [("mine", 1), ("mine", 2)]


# ---------------------------------------------------------------- the scheduler


def test_the_end_of_the_job_is_seen_in_time(tmp_path: Path) -> None:
    story = story_of(tmp_path, rule("time_left: {below: 10m}", "save: now"))
    story.tell(JobTold(at=story.at, state="RUNNING", ends_at=story.at + 3600))
    assert story.deadline == story.at + 3000
    (told,) = story.wait(3600)
    assert (told.actions, told.why) == ({"save": {"when": "now"}}, "the job ends in 600 s")
    story.tell(JobTold(at=story.at, state="RUNNING", ends_at=story.at + 7200))  # its limit was raised
    assert len(story.wait(7200)) == 1


def test_a_job_without_a_limit_has_always_time_left(tmp_path: Path) -> None:
    story = story_of(tmp_path, rule("time_left: {below: 10m}", "save: now"))
    story.tell(JobTold(at=story.at, state="RUNNING"))
    assert story.wait(100_000) == []


def test_a_state_of_the_job_is_answered_each_time_it_comes(tmp_path: Path) -> None:
    story = story_of(tmp_path, rule("scheduler: {states: [PREEMPTED, SUSPENDED]}", "save: now"))
    told = []
    for state in ("RUNNING", "PREEMPTED", "RUNNING", "PREEMPTED"):
        story.at += 1
        told += story.tell(JobTold(at=story.at, state=state))
    assert [one.why for one in told] == ["the job is PREEMPTED"] * 2


# ---------------------------------------------------------------- lines


def line(story: Story, text: str = "Xid 79", rank: int = 2, attempt: int = 0) -> list[str]:
    about = {"node": f"n{rank // 2}", "rank": rank, "rule": "mine", "line": text}
    found = story.tell(LineMatched(at=story.at, attempt=attempt or story.attempt, **about))
    return [one.why for one in found]


def test_a_line_is_answered_once_an_attempt_and_blames_its_node(tmp_path: Path) -> None:
    story = story_of(tmp_path, rule("log: {match: Xid}", "exclude: blamed, restart: {from: latest}"))
    assert line(story) == ["rank 2 on n1: Xid 79"]
    assert (story.last.nodes, story.last.blame, "exclude" in story.last.actions) == (("n1",), "likely", True)
    story.start()
    assert story.steps(2) == []
    assert line(story, attempt=1) == [], "of the attempt before"
    assert line(story) != []


def test_after_a_cooldown_only_a_new_line_counts(tmp_path: Path) -> None:
    story = story_of(tmp_path, rule("log: {match: slow}", "collect: [stacks]", cooldown="1m"))
    assert len(line(story, "slow")) == 1
    story.at += 90
    assert story.steps(1) == []
    assert len(line(story, "slow")) == 1


def test_infrastructure_comes_before_numerics(tmp_path: Path) -> None:
    numbers = rule("non_finite: {}", "restart: {from: last_good}", name="numbers")
    story = story_of(tmp_path, numbers, rule("log: {match: x}", "hold: {reason: a line}"))
    line(story, "x")
    assert reason(story.last) == "a line"
    assert story.steps(1, loss=NAN) == []
