"""What a policy would have made of old runs: read from files of all kinds, and never with a crash."""

from __future__ import annotations

import contextlib
import itertools
import random
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launcher.curves import Row, curve_files, metric_name, read_curve
from launcher.errors import LaunchError
from launcher.events import (
    AgentJoined,
    AttemptStarted,
    CheckpointCommitted,
    Decision,
    Event,
    IncidentClosed,
    StepDone,
    to_json,
)
from launcher.replay import Costs, bill, deed, events_of, gpu_hours, replay, replayed, sources
from policies.load import load_policy

POLICY = load_policy(["numerics"])
DEFAULT = load_policy(["default"])


def losses(*parts: tuple[int, float]) -> list[float]:
    draw = random.Random(1)
    return [draw.gauss(level, 0.03) for count, level in parts for _ in range(count)]


SPIKE = losses((200, 2.0), (120, 5.0), (100, 2.0))


def csv_of(path: Path, values: Iterable[float], head: str = "step,loss,grad_norm") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([head, *(f"{step},{loss},1.2" for step, loss in enumerate(values))]) + "\n")
    return path


# ---------------------------------------------------------------- reading


def test_names_of_others_are_understood(tmp_path: Path) -> None:
    file = csv_of(tmp_path / "a.csv", [2.0], head="Iteration,train/Loss,gradient norm")
    assert read_curve(file) == [Row(0, {"loss": 2.0, "grad_norm": 1.2})]
    assert [metric_name(name) for name in ("lm loss", "learning-rate", "mfu")] == ["loss", "lr", "mfu"]


def test_cells_that_are_no_numbers_are_left_out_and_nan_stays(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_text('step,loss,grad_norm,note\n1,2.5,,"a,b"\n2,nan,inf,\nx,1,1,\n3\n\n1e3,"3",-inf,x\n-7,1,1,\n')
    assert repr(read_curve(file)) == repr(
        [
            Row(1, {"loss": 2.5}),
            Row(2, {"loss": float("nan"), "grad_norm": float("inf")}),
            Row(1000, {"loss": 3.0, "grad_norm": float("-inf")}),
        ]
    )


def test_lines_of_json_are_flat_or_those_of_a_run(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    ours = to_json(StepDone(at=5.0, attempt=1, step=7, metrics={"loss": 2.0}))
    file.write_text(f'{{"step": 1, "train_loss": 3}}\nnot json\n[1]\n{{"step": 2}}\n{ours}\n' + "[" * 100_000 + "\n")
    rows = read_curve(file)
    assert [(row.step, row.metrics["loss"]) for row in rows] == [(1, 3.0), (7, 2.0)]


@pytest.mark.parametrize("between", [";", "\t"])
def test_a_table_as_spreadsheets_write_it_is_read(tmp_path: Path, between: str) -> None:
    file = tmp_path / "a.csv"
    file.write_bytes("\ufeffStep,train/loss\r\n1,3.5\r\n2,2.5\r\n".replace(",", between).encode())
    assert [(row.step, row.metrics["loss"]) for row in read_curve(file)] == [(1, 3.5), (2, 2.5)]


def test_a_folder_is_all_the_curves_in_it_each_by_its_path(tmp_path: Path) -> None:
    for name in ("a.csv", "b/c.csv", "b/d.e.jsonl"):
        csv_of(tmp_path / name, [2.0])
    (tmp_path / "notes.txt").write_text("step,loss\n")
    assert [name for name, _ in sources(tmp_path)] == ["a", "b/c", "b/d.e"]
    assert [name for name, _ in sources(tmp_path / "a.csv")] == ["a"]


def test_where_no_curve_is_the_error_says_what_one_is(tmp_path: Path) -> None:
    with pytest.raises(LaunchError, match="no training curve is here"):
        curve_files(tmp_path)
    with pytest.raises(LaunchError, match="no such file"):
        sources(tmp_path / "nothing")
    (tmp_path / "a.csv").write_text("name,rows\nx,3\n")
    with pytest.raises(LaunchError, match="no row with a step and a number"):
        replay(POLICY, "a", tmp_path / "a.csv", Costs())


def test_event_files_of_tensorboard_are_read(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.compat.proto.event_pb2 import Event as Record
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    writer = EventFileWriter(str(tmp_path))
    for step, loss in enumerate(SPIKE):
        values = [Summary.Value(tag="train/loss", simple_value=loss), Summary.Value(tag="gnorm", simple_value=1.2)]
        writer.add_event(Record(step=step, wall_time=1e9 + step, summary=Summary(value=values)))
    writer.close()
    ((name, file),) = sources(tmp_path)
    rows = read_curve(file)
    assert (len(rows), rows[3].at) == (len(SPIKE), 1e9 + 3)
    assert rows[3].metrics["grad_norm"] == pytest.approx(1.2)
    assert [deed(one) for one in replay(POLICY, name, file, Costs()).decisions] == ["restart"]


def test_without_tensorboard_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "events.out.tfevents.1.host"
    file.write_bytes(b"")
    monkeypatch.setitem(sys.modules, "tensorboard.backend.event_processing", None)
    with pytest.raises(LaunchError, match="tensorboard is needed") as caught:
        read_curve(file)
    assert "pip install" in caught.value.hint


# ---------------------------------------------------------------- what would have been seen and decided


def test_a_spike_that_did_not_heal_in_time_costs_more_or_less_than_going_back() -> None:
    rows = [Row(step, {"loss": loss, "grad_norm": 1.2}) for step, loss in enumerate(SPIKE)]
    one = replayed(POLICY, "a", events_of(rows, 20.0))
    (onset,), (decision,) = one.opened, one.decisions
    assert (onset.onset_step, decision.onset_step, deed(decision)) == (200, 200, "restart")
    assert one.step_of(onset) - 200 <= 2
    assert one.step_of(decision) - 200 in range(50, 60)
    cost = bill(one, decision, Costs(save_every=50))
    assert cost.acting == one.step_of(decision) - 200
    assert cost.waiting in range(120, 125)
    assert gpu_hours(cost.waiting, one, Costs(gpus=992, step_s=20.0)) == pytest.approx(cost.waiting * 992 * 20 / 3600)
    assert gpu_hours(cost.waiting, one, Costs()) is None


def test_the_record_goes_on_whatever_is_decided_and_each_trouble_is_decided_upon_once() -> None:
    story = losses((200, 2.0), (120, 5.0), (400, 2.0), (120, 5.0), (100, 2.0))
    rows = [Row(100 * step, {"loss": loss, "grad_norm": 1.2}) for step, loss in enumerate(story)]
    one = replayed(DEFAULT, "a", events_of(rows, 1.0))
    assert [(decision.onset_step, deed(decision)) for decision in one.decisions] == [
        (20000, "restart"),
        (72000, "restart"),
    ]
    assert [closed.outcome for closed in one.judgements if isinstance(closed, IncidentClosed)] == ["healed", "healed"]


def test_of_a_run_its_own_checkpoints_steps_and_ranks_are_counted() -> None:
    def run() -> Iterable[Event]:
        yield AgentJoined(at=0.0, node="n0", index=0, incarnation="1", host="", port=0, pid=0)
        slots, incarnations = {"n0": (0, 1, 2, 3)}, {"n0": "1"}
        yield AttemptStarted(at=0.0, attempt=1, slots=slots, incarnations=incarnations, restore=None, why="")
        for step, loss in enumerate(SPIKE):
            yield StepDone(at=float(step), attempt=1, step=step, metrics={"loss": loss, "grad_norm": 1.2}, step_s=9.0)
            if step % 90 == 0:
                yield CheckpointCommitted(
                    at=float(step), step=step, attempt=1, parent=None, manifest_digest="", bytes=1
                )

    one = replayed(POLICY, "a", run())
    (decision,) = one.decisions
    assert bill(one, decision, Costs()).acting == one.step_of(decision) - 180
    assert gpu_hours(400, one, Costs()) == pytest.approx(4.0)


def test_steps_that_go_back_are_a_new_attempt_and_rows_told_twice_count_once() -> None:
    steps = [*range(50), 49, 49, *range(30, 80), 10, *range(5000, 5010)]
    events = [*events_of([Row(step, {"loss": 2.0}) for step in steps], 1.0)]
    started = [event for event in events if isinstance(event, AttemptStarted)]
    assert [(one.attempt, one.restore) for one in started] == [(1, None), (2, (30, 1)), (3, (10, 2))]
    assert [event.step for event in events if isinstance(event, StepDone)].count(49) == 2
    assert all(a.at <= b.at for a, b in itertools.pairwise(events))


numbers = st.one_of(st.floats(), st.floats(0, 10), st.sampled_from([1e308, -1e308, 0.0]))
rows = st.lists(
    st.builds(
        Row,
        step=st.one_of(st.integers(-1, 60), st.integers(-1, 2**53)),
        metrics=st.dictionaries(st.sampled_from(["loss", "grad_norm", "lr", "loss_scale", "skipped"]), numbers),
        at=st.none() | st.floats(),
    ),
    max_size=150,
)


@settings(max_examples=120, deadline=None)
@given(rows=rows, calm=st.booleans())
def test_no_curve_makes_a_replay_fail(rows: list[Row], calm: bool) -> None:
    before = [Row(step, {"loss": loss, "grad_norm": 1.2}) for step, loss in enumerate(SPIKE[:150])] if calm else []
    one = replayed(DEFAULT, "a", events_of(before + rows, 1.0))
    for decision in one.decisions:
        assert isinstance(decision, Decision)
        assert min(vars(bill(one, decision, Costs())).values()) >= 0


@settings(max_examples=60, deadline=None)
@given(
    text=st.text(max_size=300) | st.binary(max_size=300).map(lambda raw: raw.decode("latin-1")),
    suffix=st.sampled_from([".csv", ".jsonl"]),
)
def test_no_file_makes_the_reader_fail(tmp_path_factory: pytest.TempPathFactory, text: str, suffix: str) -> None:
    file = tmp_path_factory.mktemp("curve") / f"a{suffix}"
    file.write_text(f"step,loss\n{text}\n" if suffix == ".csv" else text, encoding="utf-8", errors="replace")
    with contextlib.suppress(LaunchError):
        read_curve(file)
