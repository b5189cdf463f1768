"""The logbook of an invented run, as JSON and as text."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from launcher.accounting import PARTS
from launcher.advance import fold
from launcher.events import (
    AttemptEnded,
    AttemptStarted,
    Decision,
    DrainDone,
    DrainUndone,
    EpochStarted,
    Event,
    RunEnded,
    RunSubmitted,
    StepDone,
    TrainerDone,
    Warned,
)
from launcher.journal import JournalWriter, claim_epoch, write_first_epoch
from launcher.paths import RunPaths
from launcher.report import comparability, report
from launcher.view.logbook import to_markdown

BORN = 1_700_000_000.0
SLOTS = {"node0": (0, 1), "node1": (2, 3)}


def submitted() -> RunSubmitted:
    return RunSubmitted(
        at=BORN, run="demo", nodes=2, ranks_per_node=2, spares=0, target_step=6, probation=1, save_every=2
    )


def step(at: float, attempt: int, index: int) -> StepDone:
    return StepDone(
        at=BORN + at, attempt=attempt, step=index, metrics={"loss": 5.0 - index}, step_s=1.0,
        samples=(index * 8, index * 8 + 8),
    )  # fmt: skip


def story() -> list[Event]:
    crash = Decision(
        at=BORN + 5, id="d1", incident=1, attempt=1, rule="rank-exit", detector="exit", nodes=("node1",), ranks=(2,),
        actions={"restart": {"from": "latest"}}, why="rank 2 was killed | by signal 9", onset_at=BORN + 4,
        blame="certain",
    )  # fmt: skip
    return [
        AttemptStarted(at=BORN + 1, attempt=1, slots=SLOTS, incarnations={}, restore=None, why="first start"),
        step(3, 1, 0),
        step(4, 1, 1),
        crash,
        AttemptEnded(at=BORN + 6, attempt=1, reason="rank-exit"),
        AttemptStarted(at=BORN + 7, attempt=2, slots=SLOTS, incarnations={}, restore=None, why="no checkpoint"),
        *(step(9 + index, 2, index) for index in range(6)),
        TrainerDone(at=BORN + 15, attempt=2, step=6, final_digest="abc123"),
        AttemptEnded(at=BORN + 15.5, attempt=2, reason="done"),
        RunEnded(at=BORN + 16, state="SUCCEEDED"),
    ]


@pytest.fixture
def paths(tmp_path: Path) -> RunPaths:
    paths = RunPaths(tmp_path / "demo")
    paths.make_folders()
    epoch = EpochStarted(at=BORN, host="login", pid=4, node="", job_id="")
    write_first_epoch(paths, [epoch, submitted()])
    tell(paths, *story())
    return paths


def tell(paths: RunPaths, *events: Event) -> None:
    writer = JournalWriter(paths, claim_epoch(paths), lambda _: None, lambda _: None)
    for event in events:
        writer.put(event)
    writer.close()


def test_the_parts_of_the_time_sum_to_the_whole(paths: RunPaths) -> None:
    time = report(paths)["time"]
    assert sum(time["seconds"][part] for part in PARTS) == pytest.approx(time["total_s"])
    assert sum(time["gpu_hours"].values()) == pytest.approx(time["total_gpu_hours"])
    assert time["total_s"] == 16.0
    assert time["total_gpu_hours"] == pytest.approx(sum(time["gpu_hours"].values()))


def test_the_report_holds_the_snapshot_and_the_history(paths: RunPaths) -> None:
    body = report(paths)
    json.dumps(body, allow_nan=False)
    assert body["final_digest"] == "abc123"
    assert [one["attempt"] for one in body["effective_loss"]] == [2] * 6
    assert [(one["attempt"], one["from_step"], one["last_step"]) for one in body["attempts"]] == [(1, 0, 2), (2, 0, 6)]
    assert body["samples"] == {"ranges": 6, "faults": []}
    assert body["state"] == "SUCCEEDED"
    assert body["restarts"] == 1


def test_the_logbook_tells_what_was_seen_decided_and_paid(paths: RunPaths) -> None:
    text = to_markdown(report(paths))
    assert text.startswith("# demo: SUCCEEDED\n")
    assert "| the whole | 16s | 0.0167 | 100.0% |" in text
    assert "### 1. rank-exit on node1, at step 2" in text
    assert "- Seen: rank 2 was killed | by signal 9 (blame certain), decided after 1.0s." in text
    assert "- Cost: +5.0s, 2 steps lost." in text
    assert "- Cured: yes." in text
    assert "Final digest `abc123`, comparability unknown" in text
    rows = [line for line in text.splitlines() if line.startswith("| 1 |")]
    assert len(rows) == 1
    assert rows[0].endswith("| 0 to 2 | 2.0s | node0, node1 | rank-exit |")


def test_a_rule_needed_again_at_the_same_step_has_not_held(paths: RunPaths) -> None:
    body = report(paths)
    body["incidents"].append(body["incidents"][0] | {"id": 2})
    assert "- Cured: not for long: the same again as 2." in to_markdown(body)


def test_what_came_of_drains_is_a_table_of_its_own(paths: RunPaths) -> None:
    assert "## Nodes drained" not in to_markdown(report(paths))
    why = "opt-launch demo: silent"
    drained = DrainDone(at=BORN + 9, node="node1", decision="d0001", ok=True, reason=why, detail="drained")
    tell(paths, drained, DrainUndone(at=BORN + 10, node="node1", ok=True, detail="opened again"))

    body = report(paths)
    assert [(one["node"], one["detail"]) for one in body["drains"]] == [("node1", "drained"), ("node1", "opened again")]
    assert f"| node1 | drained | {why} |" in to_markdown(body)


def test_warnings_are_in_the_logbook_the_newest_in_full(paths: RunPaths) -> None:
    tell(paths, *(Warned(at=BORN + 20 + i, text=f"slow disk {i}") for i in range(23)))
    body = report(paths)
    assert [one["text"] for one in body["warnings"]] == [f"slow disk {i}" for i in range(23)]
    section = to_markdown(body).split("## Warnings\n\n")[1].splitlines()
    assert section[0] == "- 3 older ones before these"
    assert [line.rsplit(" ", 1)[1] for line in section[1:21]] == [str(i) for i in range(3, 23)]


def test_a_run_without_an_attempt_has_a_report(tmp_path: Path) -> None:
    paths = RunPaths(tmp_path / "early")
    paths.make_folders()
    write_first_epoch(paths, [EpochStarted(at=BORN, host="l", pid=1, node="", job_id=""), submitted()])
    text = to_markdown(report(paths, now=BORN + 5))
    assert "None was started." in text


def test_digests_are_comparable_only_when_all_attempts_had_the_same_hardware() -> None:
    run = fold([submitted(), *story()])
    same = {"cpu": "x", "nodes": ["a"]}
    assert comparability(run, {})["comparable"] is None
    assert comparability(run, {1: same})["comparable"] is None
    assert comparability(run, {1: same, 2: same | {"nodes": ["b"]}})["comparable"] is True
    answer = comparability(run, {1: same, 2: {"cpu": "y"}})
    assert answer == {"comparable": False, "why": "these changed between attempts: cpu"}
    shrunk = [replace(one, slots={"node0": (0, 1)}) if one.number == 2 else one for one in run.attempts]
    assert comparability(replace(run, attempts=tuple(shrunk)), {1: same, 2: same})["comparable"] is False
