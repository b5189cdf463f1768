"""Steps and metrics from what trainers print."""

# ruff: noqa: E501  lines as trainers print them
from __future__ import annotations

import math

import pytest

from launcher.telemetry import PRESETS, Telemetry, compiled, flaw, metrics_of, read_line

MEGATRON = (
    " [2025-03-01 12:00:00] iteration      {i}/     500 | consumed samples:        {n} | elapsed time per iteration (ms): 812.3 |"
    " throughput per GPU (TFLOP/s/GPU): 123.4 | learning rate: 1.500000E-04 | global batch size:    16 |{loss} loss scale: 1.0 |"
    " grad norm: {norm} | number of skipped iterations: {skipped:3d} | number of nan iterations:   0 |"
)
TITAN = "\x1b[32m[titan] 2025-03-01 12:00:00,123 - root - INFO - \x1b[31mstep: {step:2}  \x1b[32mloss: {loss}  \x1b[38;2;180;60;0mgrad_norm: {norm}  \x1b[38;2;54;234;195mmemory: 12.66GiB(13.3%)  \x1b[34mtps: 12,345  \x1b[36mtflops: 71.5  \x1b[35mmfu: 22.91%\x1b[39m"


@pytest.mark.parametrize(
    ("preset", "line", "step", "metrics"),
    [
        ("nanogpt", "iter 10: loss 3.2012, time 123.45ms, mfu 17.20%", 10, {"loss": 3.2012, "time_ms": 123.45, "mfu": 17.2}),
        ("nanogpt", "iter 0: loss 10.9886, time 43546.07ms, mfu -100.00%", 0, {"loss": 10.9886, "time_ms": 43546.07, "mfu": -100.0}),
        ("nanogpt", "iter 7: loss nan, time 1.00ms, mfu 1.00%", 7, {"loss": math.nan, "time_ms": 1.0, "mfu": 1.0}),
        ("nanogpt", "step 250: train loss 2.1042, val loss 2.2013", 249, {"val_loss": 2.2013}),
        ("nanogpt", "saving checkpoint to out", None, {}),
        ("nanogpt", "number of parameters: 10.65M", None, {}),
        ("megatron", MEGATRON.format(i=10, n=160, loss=" lm loss: 1.036E+01 |", norm="5.312", skipped=0), 9, {"loss": 10.36, "grad_norm": 5.312, "lr": 1.5e-4, "loss_scale": 1.0, "skipped": 0.0}),
        ("megatron", MEGATRON.format(i=11, n=176, loss="", norm="inf", skipped=1), 10, {"grad_norm": math.inf, "lr": 1.5e-4, "loss_scale": 1.0, "skipped": 1.0}),
        ("megatron", " validation loss at iteration 100 | lm loss value: 6.123E+00 | lm loss PPL: 4.56E+02 |", 99, {"val_loss": 6.123}),
        ("megatron", " validation loss at iteration 100 on validation set | lm loss value: 6.5E+00 | lm loss PPL: 1.0E+02 |", 99, {"val_loss": 6.5}),
        ("megatron", "  successfully saved checkpoint from iteration     100 to out", None, {}),
        ("hf_trainer", "  2%|▏         | 10/500 [00:05<04:05,  2.00it/s]", 9, {}),
        ("hf_trainer", " 10%|█         | 5/50 [00:01<00:09,  4.90it/s]", None, {}),
        ("hf_trainer", "{'loss': '3.204', 'grad_norm': '1.25', 'learning_rate': '4.9e-05', 'epoch': '0.02'}", None, {"loss": 3.204, "grad_norm": 1.25, "lr": 4.9e-5}),
        ("hf_trainer", "{'loss': 3.2041, 'grad_norm': nan, 'learning_rate': 4.9e-05, 'epoch': 0.02}", None, {"loss": 3.2041, "grad_norm": math.nan, "lr": 4.9e-5}),
        ("hf_trainer", "{'eval_loss': '2.9', 'eval_runtime': '1.2', 'epoch': '0.1'}", None, {"val_loss": 2.9}),
        ("hf_trainer", "Map: 100%|██████████| 500/1000 [00:00<00:00, 9.8 examples/s]", None, {}),
        ("torchtitan", TITAN.format(step=10, loss=" 8.1234", norm=" 1.2500"), 9, {"loss": 8.1234, "grad_norm": 1.25, "tokens_per_s": 12345.0, "mfu": 22.91}),
        ("torchtitan", "[titan] 2025-03-01 12:00:00,123 - root - INFO - validate step: 10  loss:  7.9  memory: 1.0GiB(1%)  tps: 1,000", 9, {"val_loss": 7.9, "tokens_per_s": 1000.0}),
        ("torchtitan", "[titan] 2025-03-01 12:00:00,123 - root - INFO - Training starts at step 1", None, {}),
    ],
)  # fmt: skip
def test_the_presets_read_what_their_trainers_print(
    preset: str, line: str, step: int | None, metrics: dict[str, float]
) -> None:
    patterns = compiled(PRESETS[preset].for_goal(500))
    found_step, found = read_line(patterns, line)
    assert found_step == step
    assert found == pytest.approx(metrics, nan_ok=True)
    assert found.keys() <= metrics_of(patterns)


def test_every_preset_can_tell_steps_and_a_loss() -> None:
    for name, preset in PRESETS.items():
        assert not any(map(flaw, preset.for_goal(1))), name
        assert "loss" in metrics_of(compiled(preset.for_goal(1)))


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        (r"step (?P<step>\d+)", ""),
        (r"loss (?P<loss>\S+)", ""),
        (r"step (?P<step>\d+", "not a regular expression: missing ), unterminated subpattern at character 6"),
        (r"step (\d+)", "names no group: write (?P<step>...) or (?P<loss>...) around what is to be read"),
        (
            r"(?P<step>\d+) (?P<steps_done>\d+)",
            "'step' (counted from 0) and 'steps_done' are the same count: keep one of them",
        ),
    ],
)
def test_what_is_wrong_with_a_pattern(pattern: str, said: str) -> None:
    assert flaw(pattern) == said


# ---------------------------------------------------------------- in the course of time


def telemetry(*patterns: str) -> Telemetry:
    return Telemetry(
        0, compiled(patterns or (r"step (?P<step>\d+)", r"(?<!val_)loss (?P<loss>\S+)", r"val_loss (?P<val_loss>\S+)"))
    )


def told(reader: Telemetry, now: float) -> list[tuple[int, dict[str, float], float]]:
    return [(one.step, one.metrics, round(one.step_s, 6)) for one in reader.look(now)]


def test_a_step_takes_the_time_since_the_last_one_told_shared_by_all_between() -> None:
    reader = telemetry()
    reader.take("out", b"step 0 loss 3\n", 10.0)
    assert told(reader, 10.5) == [(0, {"loss": 3.0}, 0.0)]
    reader.take("out", b"step 500 loss 2\n", 110.0)
    assert told(reader, 110.5) == [(500, {"loss": 2.0}, 0.2)]
    reader.take("out", b"step 501\nstep 502\nstep 504\n", 112.0)
    assert told(reader, 112.5) == [(501, {}, 0.5), (502, {}, 0.5), (504, {}, 0.5)]


def test_metrics_without_a_step_belong_to_the_step_before_them() -> None:
    reader = telemetry()
    reader.take("out", b"step 3\n", 1.0)
    assert told(reader, 1.1) == []  # what follows may still be on its way
    reader.take("out", b"loss 2.5\n", 1.15)
    assert told(reader, 1.3) == [(3, {"loss": 2.5}, 0.0)]


def test_metrics_that_come_late_go_with_the_next_step() -> None:
    reader = telemetry()
    reader.take("out", b"step 3\n", 1.0)
    assert told(reader, 2.0) == [(3, {}, 0.0)]
    reader.take("out", b"val_loss 7\n", 30.0)
    assert told(reader, 31.0) == []
    reader.take("out", b"step 4 loss 2\n", 32.0)
    assert told(reader, 33.0) == [(4, {"loss": 2.0, "val_loss": 7.0}, 31.0)]


def test_a_step_is_told_at_once_when_the_next_has_come_or_no_more_will() -> None:
    reader = telemetry()
    reader.take("out", b"step 1\nstep 2\n", 1.0)
    assert [step for step, _, _ in told(reader, 1.0)] == [1]
    assert [step for step, _, _ in told(reader, math.inf)] == [2]


def test_a_step_seen_before_is_progress_but_no_new_step() -> None:
    reader = telemetry()
    reader.take("out", b"step 900\n", 1.0)
    assert [step for step, _, _ in told(reader, 2.0)] == [900]
    reader.take("out", b"step 5\nstep 5\nstep 6\n", 3.0)
    assert told(reader, 4.0) == []
    assert (reader.moves, reader.moved_at) == (3, 3.0)


def test_a_line_that_arrives_in_pieces_is_one_line() -> None:
    reader = telemetry()
    for piece in (b"st", b"ep 1", b"2 loss", b" 3\r", b"\n"):
        reader.take("out", piece, 1.0)
    assert told(reader, 2.0) == [(12, {"loss": 3.0}, 0.0)]


def test_the_streams_of_a_rank_do_not_tear_each_others_lines() -> None:
    reader = telemetry()
    reader.take("out", b"step 1", 1.0)
    reader.take("err", b"a warning\n", 1.0)
    reader.take("out", b"7\n", 1.0)
    assert told(reader, 2.0) == [(17, {}, 0.0)]


def test_a_progress_bar_tells_its_steps_though_it_ends_no_line() -> None:
    reader = Telemetry(0, compiled(PRESETS["hf_trainer"].for_goal(500)))
    bar = "\r  1%|▏         | {n}/500 [00:05<04:05,  2.00it/s]"
    reader.take("err", "".join(bar.format(n=n) for n in (0, 1, 2, 3)).encode(), 1.0)
    reader.take("out", b"{'loss': '3.2', 'epoch': '0.1'}\n", 1.0)
    assert told(reader, 2.0) == [(0, {}, 0.0), (1, {"loss": 3.2}, 0.0)]  # 3/500 may still be overwritten


@pytest.mark.parametrize("text", ["12", "1,2345", "x", "", "1e3", "99999999999999999999999999", "-5", "2.5", "nan"])
def test_what_is_no_step_is_none(text: str) -> None:
    step, _ = read_line(compiled([r"step (?P<step>\S*)"]), f"step {text}")
    assert step == {"12": 12, "1,2345": 12345, "1e3": 1000, "-5": -5}.get(text)


def test_a_value_that_is_no_number_is_left_out() -> None:
    patterns = compiled([r"step (?P<step>\d+) phase (?P<phase>\w+) loss (?P<loss>\S+)"])
    assert read_line(patterns, "step 1 phase warmup loss 1,234.5") == (1, {"loss": 1234.5})


def test_a_line_without_end_is_kept_short() -> None:
    reader = telemetry()
    for _ in range(100):
        reader.take("out", b"x" * 1000, 1.0)
    reader.take("out", b"\nstep 3\n", 1.0)
    assert told(reader, 2.0) == [(3, {}, 0.0)]
    assert all(len(rest) <= 4096 for rest in reader._rests.values())
