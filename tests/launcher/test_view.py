"""Snapshots and screens of an invented run, read back from a real journal."""

import io
import json
import math
import os
import re
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from tale import Tale

from launcher.errors import RunNotFound
from launcher.events import (
    AgentJoined,
    AttemptEnded,
    AttemptStarted,
    CheckpointCommitted,
    CheckpointVerified,
    Decision,
    EnvironmentChanged,
    EpochStarted,
    Event,
    NodeDown,
    RankExited,
    RunHeld,
    RunSubmitted,
    StepDone,
    Warned,
)
from launcher.fold import View
from launcher.journal import JournalWriter, claim_epoch, read_journal, seal, write_first_epoch
from launcher.paths import RunPaths
from launcher.snapshots import read_view
from launcher.view.locate import find_run, list_runs
from launcher.view.logs import Follower, Wanted, merged
from launcher.view.plain import plain
from launcher.view.screens import screen
from launcher.view.snapshot import next_action, snapshot, snapshot_of
from launcher.view.terminal import visible
from launcher.view.watch import live_picture
from launcher.view.words import cost, counted, duration, size, sparkline, steps_of
from launcher.view.words import number as number_text

BORN = 1_700_000_000.0
KEYS = {
    "schema", "run", "state", "attempt", "step", "target_step", "loss", "ettr", "goodput", "restarts", "lost_steps",
    "job_id", "updated_at", "supervisor", "next_action", "nodes", "incidents", "checkpoints",
}  # fmt: skip


@pytest.fixture(autouse=True)
def utc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()


def epoch_started(at: float, node: str = "node0") -> EpochStarted:
    return EpochStarted(at=at, host="login", pid=41, node=node, job_id="81234" if node else "")


def submitted(name: str) -> RunSubmitted:
    return RunSubmitted(
        at=BORN, run=name, nodes=2, ranks_per_node=2, spares=1, target_step=50, probation=2, save_every=4
    )


def steps(attempt: int, first: int, last: int, at: float) -> list[Event]:
    return [
        StepDone(
            at=at + i, attempt=attempt, step=index, step_s=1.0, samples=(index * 8, index * 8 + 8),
            metrics={"loss": 5.5 - 0.1 * index, "grad_norm": 0.41, "lr": 5.8e-5},
        )
        for i, index in enumerate(range(first, last))
    ]  # fmt: skip


def story() -> list[Event]:
    """Two nodes and a spare; node1 is lost after six steps; the spare takes over from the checkpoint at step 4."""
    joined = [
        AgentJoined(at=BORN + 2, node=f"node{i}", index=i, incarnation=f"i{i}", host="h", port=1, pid=100 + i)
        for i in range(3)
    ]
    both = {"node0": (0, 1), "node1": (2, 3)}
    spare = {"node0": (0, 1), "node2": (2, 3)}
    lost = Decision(
        at=BORN + 19, id="d1", incident=1, attempt=1, rule="node-failure", detector="node_lost", nodes=("node1",),
        actions={"exclude": "failed", "restart": {"from": "latest"}}, why="node1 fell silent", blame="certain",
        onset_at=BORN + 17,
    )  # fmt: skip
    return [
        epoch_started(BORN + 1),
        *joined,
        AttemptStarted(at=BORN + 3, attempt=1, slots=both, incarnations={}, restore=None, why="first"),
        *steps(1, 0, 6, BORN + 10),
        CheckpointCommitted(at=BORN + 14.5, step=4, attempt=1, parent=None, manifest_digest="d", bytes=2_200_000),
        CheckpointVerified(at=BORN + 14.6, step=4, attempt=1),
        NodeDown(at=BORN + 18.9, node="node1", reason="agent died"),
        lost,
        AttemptEnded(at=BORN + 20, attempt=1, reason="node-failure"),
        AttemptStarted(at=BORN + 21, attempt=2, slots=spare, incarnations={}, restore=(4, 1), why="latest"),
        *steps(2, 4, 9, BORN + 25),
        CheckpointCommitted(at=BORN + 29.5, step=8, attempt=2, parent=(4, 1), manifest_digest="e", bytes=2_200_000),
    ]


def in_journal_order(events: list[Event]) -> list[Event]:
    return sorted(events, key=lambda event: event.at)


def write_run(root: Path, name: str = "demo", events: list[Event] | None = None) -> RunPaths:
    """A run folder as submit and a supervisor leave it."""
    paths = RunPaths(root / name)
    paths.make_folders()
    write_first_epoch(paths, [replace(epoch_started(BORN, ""), host="login"), submitted(name)])
    epoch = claim_epoch(paths)
    failed: list[Exception] = []
    writer = JournalWriter(paths, epoch, lambda _: None, failed.append)
    for event in in_journal_order(story() if events is None else events):
        writer.put(replace(event, sealed=seal(paths, epoch)) if isinstance(event, EpochStarted) else event)
    writer.close()
    assert not failed
    return paths


def live(epoch: int = 2, at: float = BORN + 30) -> dict[str, Any]:
    def rank(pid: int) -> dict[str, Any]:
        return {"pid": pid, "alive": True, "step": 9, "phase": "train", "phase_s": 0.1, "moved_s": 0.1, "os_state": "S"}

    nodes = {
        "node0": {"beat_s": 0.2, "ranks": {"0": rank(11), "1": rank(12)}},
        "node2": {"beat_s": 0.3, "ranks": {"2": rank(13), "3": rank(14)}},
    }
    return {"schema": 1, "epoch": epoch, "at": at, "next_action": "checkpoint at step 12", "nodes": nodes}


def test_the_snapshot_of_a_recovered_run(tmp_path: Path) -> None:
    paths = write_run(tmp_path)
    paths.live.write_text(json.dumps(live()))
    snap = snapshot(paths, now=BORN + 31)
    assert snap.keys() >= KEYS
    assert (snap["state"], snap["attempt"], snap["step"], snap["restarts"], snap["lost_steps"]) == (
        "RUNNING", 2, 9, 1, 2,
    )  # fmt: skip
    assert snap["updated_at"] == "2023-11-14T22:13:50.000+00:00"
    assert snap["supervisor"] == {"pid": 41, "host": "login", "epoch": 2}
    assert {node["name"]: node["role"] for node in snap["nodes"]} == {
        "node0": "active", "node1": "lost", "node2": "active",
    }  # fmt: skip
    assert [rank["pid"] for rank in snap["nodes"][2]["ranks"]] == [13, 14]
    assert snap["incidents"][0]["detected_s"] == 2.0
    assert snap["incidents"][0]["recovered_s"] == 8.0
    assert snap["incidents"][0]["lost_steps"] == 2
    assert [(one["step"], one["good"], one["lineage"]) for one in snap["checkpoints"]] == [
        (4, True, "kept"), (8, False, "kept"),
    ]  # fmt: skip
    assert snap["next_action"] == "checkpoint at step 12"


def test_a_scheduler_that_does_not_answer_and_the_end_of_the_job_are_seen(tmp_path: Path) -> None:
    paths = write_run(tmp_path)
    job = {"ends_at": BORN + 31 + 7200, "away_since": BORN + 31 - 90}
    paths.live.write_text(json.dumps(live() | {"job": job}))
    snap = snapshot(paths, now=BORN + 31)
    assert snap["job"] == {"left_s": 7200.0, "scheduler_away_s": 90.0, "waiting": None}
    assert "ends in 2h00m  Slurm has not answered for 1m30s" in "\n".join(plain(snap))
    lines = drawn(snap).splitlines()
    assert lines[2].endswith("  ends in 2h00m")
    assert " WARN  Slurm has not answered for 1m30s" in lines


def test_the_end_of_the_job_is_seen_at_80_columns_whatever_else_is_told(tmp_path: Path) -> None:
    told = {"loss": 2.71828, "grad_norm": 2.574, "lr": 3.24e-4, "scale": 65536.0}
    more = StepDone(at=BORN + 31, attempt=2, step=9, step_s=0.31, metrics=told)
    paths = write_run(tmp_path, events=[*story(), more])
    paths.live.write_text(json.dumps(live() | {"job": {"ends_at": BORN + 32 + 86_000}}))
    line = drawn(snapshot(paths, now=BORN + 32)).splitlines()[2]
    assert line == " loss 2.718  gnorm 2.574  lr 0.000324  step time 1.0s  scale 6.5… ends in 23h53m"


def test_what_a_superseded_supervisor_left_in_live_json_is_ignored(tmp_path: Path) -> None:
    paths = write_run(tmp_path)
    paths.live.write_text(json.dumps(live(epoch=1)))
    snap = snapshot(paths, now=BORN + 31)
    assert snap["nodes"][0]["ranks"][0]["pid"] is None
    assert snap["next_action"] == "checkpoint at step 12; done at step 50"


def test_ranks_of_an_earlier_attempt_are_not_shown(tmp_path: Path) -> None:
    paths = write_run(tmp_path)
    paths.live.write_text(json.dumps(live(at=BORN + 20)))
    assert snapshot(paths, now=BORN + 31)["nodes"][0]["ranks"][0]["pid"] is None


def test_a_dead_rank_and_a_dead_node_are_not_shown_as_alive(tmp_path: Path) -> None:
    exited = RankExited(at=BORN + 30, attempt=2, node="node2", rank=3, code=-9)
    paths = write_run(tmp_path, events=[*story(), exited])
    beats = live()
    beats["nodes"]["node1"] = {"beat_s": 12.0, "ranks": {}}
    paths.live.write_text(json.dumps(beats))
    nodes = {node["name"]: node for node in snapshot(paths, now=BORN + 31)["nodes"]}
    assert nodes["node1"]["beat_s"] is None
    assert [(rank["alive"], rank["phase"]) for rank in nodes["node2"]["ranks"]] == [
        (True, "train"), (False, "killed by signal 9"),
    ]  # fmt: skip


@pytest.mark.parametrize("broken", ["", "{", "[]", '{"epoch": "x"}', '{"epoch": 2, "nodes": [1], "at": "y"}'])
def test_a_broken_live_file_hides_nothing(tmp_path: Path, broken: str) -> None:
    paths = write_run(tmp_path)
    paths.live.write_text(broken)
    assert snapshot(paths, now=BORN + 31)["step"] == 9


def test_json_never_holds_what_is_no_number(tmp_path: Path) -> None:
    bad = StepDone(at=BORN + 40, attempt=2, step=9, metrics={"loss": math.nan, "grad_norm": math.inf})
    paths = write_run(tmp_path, events=[*story(), bad])
    snap = snapshot(paths, now=BORN + 41)
    json.dumps(snap, allow_nan=False)
    assert snap["loss"] is None
    assert snap["losses"][-1] is None


def test_a_held_run_names_the_reason_and_the_way_on(tmp_path: Path) -> None:
    paths = write_run(tmp_path, events=[*story(), RunHeld(at=BORN + 31, reason="two nodes are needed")])
    paths.live.write_text(json.dumps(live(at=BORN + 32)))
    snap = snapshot(paths, now=BORN + 33)
    assert (snap["state"], snap["reason"]) == ("HELD", "two nodes are needed")
    assert snap["next_action"] == "waits for a person: opt-launch release demo"


def test_a_run_held_for_its_numbers_tells_where_it_would_go_on() -> None:
    tale = Tale().train(10).save().steps(10).save()
    tale.decide(detector="spike", onset_step=12, actions={"hold": {}}).end_attempt().hold()
    told = "waits for a person: opt-launch release tale goes on from step 10, before the trouble"
    assert next_action(tale.run) == told


# ---------------------------------------------------------------- screens


def drawn(snap: dict[str, Any], width: int = 80, height: int = 24) -> str:
    console = Console(width=width, height=height, record=True, file=io.StringIO(), color_system=None)
    console.print(screen(snap, width, height))
    return "\n".join(line.rstrip() for line in console.export_text().splitlines())


GOLDEN = """\
 demo   RUNNING   attempt 2   job 81234   up 31s                    live, 1s ago
 step 9 / 50  18.0% [##--------]  eta 41s  ettr 35.5%  goodput 32.1%
 loss 4.7  gnorm 0.41  lr 5.8e-05  step time 1.0s
 loss █▇▆▅▄▄▃▂▁  min 4.7
 NEXT  checkpoint at step 12
-- NODES 3: 2 active, 1 lost ------------------------------------ worst first --
 x node1  lost    LOST
   node0  active  ALIVE  beat 0.20s  ranks 0,1  step 9  train
   node2  active  ALIVE  beat 0.30s  ranks 2,3  step 9  train
-- INCIDENTS 1, 1 restart, 2 steps lost ------------------------ newest first --
 #1  22:13:37  node-failure  node1  RECOVERED  +8.0s, 2 steps lost: exclude, re…
-- CHECKPOINTS ------------------------------------------------- newest first --
   step 8  attempt 2  22:13:49  2.2 MB  complete
   step 4  attempt 1  22:13:34  2.2 MB  good
"""


def test_the_screen_at_80_by_24(tmp_path: Path) -> None:
    paths = write_run(tmp_path)
    paths.live.write_text(json.dumps(live()))
    assert drawn(snapshot(paths, now=BORN + 31)) == GOLDEN.rstrip("\n")


def test_a_frozen_supervisor_is_visible(tmp_path: Path) -> None:
    paths = write_run(tmp_path)
    assert "STALE, 1m32s ago" in drawn(snapshot_of("demo", read_view(paths), {}, BORN + 121))


@pytest.mark.parametrize(("width", "height"), [(60, 15), (80, 24), (140, 50)])
@pytest.mark.parametrize("many", [0, 200])
def test_the_screen_fits(width: int, height: int, many: int) -> None:
    more = [
        AgentJoined(at=BORN + 2, node=f"x{i}", index=9 + i, incarnation="i", host="h", port=1, pid=1)
        for i in range(many)
    ]
    incidents = [
        Decision(
            at=BORN + 30 + i, id=f"x{i}", incident=5 + i, attempt=2, rule="loss-spike", detector="spike", mode="advise",
            why="a very long reason " * 20, actions={"restart": {"from": "last_good"}},
        )
        for i in range(many)
    ]  # fmt: skip
    warnings = [Warned(at=BORN + 30, text=f"{i} " * 100) for i in range(many)]
    snap = snapshot_of(
        "demo",
        View().taken(in_journal_order([submitted("demo"), *story(), *more, *incidents, *warnings])),
        {},
        BORN + 31,
    )
    lines = drawn(snap, width, height).splitlines()
    assert len(lines) <= height
    assert all(len(line) <= width for line in lines)


@pytest.mark.parametrize(("width", "height"), [(40, 8), (60, 15), (80, 24)])
def test_the_live_screen_says_how_to_leave_it(tmp_path: Path, width: int, height: int) -> None:
    console = Console(width=width, height=height, file=io.StringIO(), color_system=None, force_terminal=True)
    picture = live_picture(snapshot(write_run(tmp_path), now=BORN + 31), console)
    lines = ["".join(part.text for part in line).rstrip() for line in console.render_lines(picture)]
    assert lines[-1].startswith(" q or Ctrl-C leaves; the run goes on")
    assert len(lines) <= height


def test_what_is_cut_off_a_small_screen_is_the_oldest(tmp_path: Path) -> None:
    text = "\n".join(plain(snapshot(write_run(tmp_path), now=BORN + 31)))
    assert text.index("checkpoint step 8") < text.index("checkpoint step 4")


def test_what_changes_no_decision_and_should_be_known_is_shown(tmp_path: Path) -> None:
    told = [Warned(at=BORN + 3 + i, text=text) for i, text in enumerate(["no ledger", "disk full", "no ledger"])]
    differs = EnvironmentChanged(at=BORN + 30, attempt=2, changes={"torch": [1, 2]})
    snap = snapshot(write_run(tmp_path, events=[submitted("demo"), *story(), *told, differs]), now=BORN + 40)

    assert [one["text"] for one in snap["warnings"]] == ["disk full", "no ledger"]
    assert [line.split("  ")[-1] for line in plain(snap) if line.startswith("warning")] == ["no ledger", "disk full"]
    shown = [line.split()[-2:] for line in drawn(snap).splitlines() if line.startswith((" WARN", " NOTE"))]
    assert shown == [["no", "ledger"], ["before:", "torch"]]


def test_the_worst_node_comes_first(tmp_path: Path) -> None:
    lines = drawn(snapshot(write_run(tmp_path), now=BORN + 31)).splitlines()
    first = next(index for index, line in enumerate(lines) if "worst first" in line) + 1
    assert "x node1" in lines[first]


def test_a_run_that_has_barely_begun_can_be_shown() -> None:
    snap = snapshot_of("demo", View().taken([submitted("demo")]), {}, BORN)
    assert "none has answered" in drawn(snap)
    assert "run demo  PENDING" in plain(snap)[0]
    assert snapshot_of("empty", View(), {}, BORN)["run"] == "empty"


def test_plain_lines_tell_nodes_incidents_and_checkpoints(tmp_path: Path) -> None:
    lines = plain(snapshot(write_run(tmp_path), now=BORN + 31))
    text = "\n".join(lines)
    assert (
        "incident 1  22:13:37  node-failure  node1  recovered  exclude, restart from latest  +8.0s, 2 steps lost"
        in text
    )
    assert "checkpoint step 8  attempt 2  complete  2.2 MB" in text
    assert "node node1  lost\n" in text


# ---------------------------------------------------------------- words


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "-"), (0.314, "0.31s"), (4.25, "4.2s"), (59.7, "1m00s"), (3900, "1h05m"), (183_600, "2d03h")],
)
def test_durations(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text


def test_one_is_not_many() -> None:
    assert counted(1, "step") == "1 step"
    assert cost({"recovered_s": None, "lost_steps": 1}) == "1 step lost"


@pytest.mark.parametrize(
    ("steps", "text"),
    [([], "-"), ([None], "-"), ([-1], "-"), ([-1, 7], "-..7"), ([7, 1200], "7..1,200"), ([3, 3], "3")],
)
def test_the_step_of_a_node_is_that_of_its_ranks(steps: list[int | None], text: str) -> None:
    assert steps_of({"ranks": [{"step": step} for step in steps]}) == text


def test_sparklines_and_sizes() -> None:
    assert sparkline([1.0, None, 3.0], 10) == "▁·█"
    assert len(sparkline([float(i) for i in range(500)], 40)) == 40
    assert sparkline([2.0, 2.0], 5) == "▁▁"
    assert sparkline([], 5) == ""
    assert (size(999), size(14_200_000_000), number_text(None)) == ("999 B", "14.2 GB", "-")


# ---------------------------------------------------------------- finding runs, logs


def test_runs_are_found_by_name_prefix_and_dash(tmp_path: Path) -> None:
    for index, name in enumerate(("alpha", "alpha-2", "beta")):
        folder = tmp_path / name / "journal"
        folder.mkdir(parents=True)
        (folder / "000001.jsonl").touch()
        os.utime(folder / "000001.jsonl", (index, index))
    (tmp_path / "not-a-run").mkdir()
    assert [run.name for run in list_runs(tmp_path)] == ["alpha", "alpha-2", "beta"]
    assert find_run(tmp_path, "alpha").name == "alpha"
    assert find_run(tmp_path, "b").name == "beta"
    assert find_run(tmp_path, "-").name == "beta"
    for name in ("al", "gamma", "", "../alpha"):
        with pytest.raises(RunNotFound):
            find_run(tmp_path, name)
    with pytest.raises(RunNotFound, match="no run here"):
        find_run(tmp_path / "nowhere", "-")


def write_logs(paths: RunPaths) -> None:
    for attempt, node, lines in (
        (1, "node0", ["10:00:01.000 rank 0 out first", "10:00:03.000 rank 1 err third"]),
        (1, "node1", ["10:00:02.000 rank 2 out second", "torn"]),
        (2, "node1", ["10:00:04.000 rank 2 out fourth"]),
    ):
        file = paths.log(attempt, node)
        file.parent.mkdir(exist_ok=True)
        file.write_text("".join(f"2026-01-02T{line}\n" if " rank " in line else f"{line}\n" for line in lines))
    paths.log(1, "node0").with_name("node0.rank1.failed.log").write_text("third\n")


def test_logs_of_all_nodes_are_merged_by_time(tmp_path: Path) -> None:
    paths = RunPaths(tmp_path)
    paths.make_folders()
    write_logs(paths)
    assert [line.text for line in merged(paths, Wanted())] == ["first", "second", "third", "fourth"]
    assert [line.text for line in merged(paths, Wanted(node="node1"))] == ["second", "fourth"]
    assert [line.text for line in merged(paths, Wanted(rank=2, attempt=1))] == ["second"]
    assert next(merged(paths, Wanted(rank=1))).shown() == "10:00:03.000 node0 rank 1 ! third"


def test_a_line_that_is_written_over_shows_its_last_state(tmp_path: Path) -> None:
    paths = RunPaths(tmp_path)
    paths.log(1, "node0").parent.mkdir(parents=True)
    texts = ["\rprogress 1\rprogress 2", " 50%|##\r100%|####\r", "before\r"]
    stamped = [f"2026-01-02T10:00:0{index}.000 rank 0 err {text}\n" for index, text in enumerate(texts)]
    paths.log(1, "node0").write_bytes("".join(stamped).encode())
    expected = ["progress 2", "100%|####", "before"]
    assert [line.shown().partition(" ! ")[2] for line in merged(paths, Wanted())] == expected
    assert [line.shown().partition(" ! ")[2] for line in Follower(paths, Wanted()).read()] == expected


@pytest.mark.parametrize(
    ("text", "plainly", "coloured"),
    [
        ("a\tb é", "a\tb é", "a\tb é"),
        ("\x1b[1;31mred\x1b[0m", "red", "\x1b[1;31mred\x1b[0m\x1b[0m"),
        ("\x1b[31mnever ends", "never ends", "\x1b[31mnever ends\x1b[0m"),
        ("\x1b[2J\x1b[10;10Hx\x1b[K\x1b[?25l\x9b2J", "x", "x"),
        ("\x1b]0;a title\x07x\x1b]8;;http://y\x1b\\link\x1b]8;;\x1b\\", "xlink", "xlink"),
        ("\x1bP a device string \x1b\\x\x1b(B\x1bc", "x", "x"),
        ("bell\x07 back\x08 nul\0 del\x7f \x1b", "bell back nul del ", "bell back nul del "),
        ("\x1b]0;without an end", "0;without an end", "0;without an end"),
        ("done\r\x1b[K", "done", "done"),
        ("done\r\x1b[32m\x1b[0m", "done", "done"),
        ("\x1b[\x1b[31m2J", "2J", "\x1b[31m2J\x1b[0m"),
        ("\r", "", ""),
    ],
)
def test_ranks_cannot_steer_the_terminal(text: str, plainly: str, coloured: str) -> None:
    assert (visible(text), visible(text, colours=True)) == (plainly, coloured)


@given(st.text("a\r\x1b[]0;1mKJ\x07\\\x9b\x9d\x9c\x90P(B", max_size=30))
def test_no_text_leaves_a_control_sequence(text: str) -> None:
    assert not re.search(r"[\x00-\x08\x0a-\x1f\x7f-\x9f]", visible(text))
    assert "\x1b" not in re.sub(r"\x1b\[[0-9;:]*m", "", visible(text, colours=True))


def test_a_follower_shows_each_line_once_and_no_torn_one(tmp_path: Path) -> None:
    paths = RunPaths(tmp_path)
    paths.make_folders()
    write_logs(paths)
    follower = Follower(paths, Wanted())
    assert len(follower.read()) == 4
    with paths.log(2, "node1").open("a") as file:
        file.write("2026-01-02T10:00:05.000 rank 2 out half")
        file.flush()
        assert follower.read() == []
        file.write(" and half\n")
    assert [line.text for line in follower.read()] == ["half and half"]


def test_the_snapshot_reads_what_the_journal_says(tmp_path: Path) -> None:
    paths = write_run(tmp_path)
    assert not read_journal(paths).damage
