"""fp16 as OPT had it: an overflow halves the scale and costs one update, and a restart changes no bit."""

import itertools
import os
import signal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rank_harness import TRAINER, Training

from model.config import TrainerConfig
from model.scaler import LossScale

CONFIG = TrainerConfig.from_mapping(TRAINER | {"data": "unused", "dtype": "fp16"})
HIGH = {"dtype": "fp16", "loss_scale": {"init": 2.0**22, "window": "3 steps"}}  # its first steps overflow


def after(scale: LossScale, steps: str, least: float = 2**-5) -> LossScale:
    """The scale after clean steps (.) and overflows (!)."""
    for step in steps:
        scale = scale.after(overflow=step == "!", least=least)
    return scale


def test_it_begins_as_metaseq_s():
    assert LossScale.of(CONFIG) == LossScale(4.0, 256)
    assert CONFIG.loss_scale_min == 0.03125


@pytest.mark.parametrize(
    ("steps", "scale", "window"),
    [
        ("...", 4.0, 4),
        ("....", 8.0, 8),
        ("." * 7, 8.0, 8),
        ("." * 8, 16.0, 16),  # the clean steps count on: twice the window since the last overflow
        ("!", 2.0, 2),
        ("...!", 2.0, 2),
        ("!..", 4.0, 4),
        ("!" * 3, 0.5, 1),
        ("!" * 30, 0.03125, 1),
        ("!" * 30 + "..", 0.125, 4),
    ],
)
def test_it_doubles_after_a_clean_window_and_halves_at_an_overflow(steps, scale, window):
    result = after(LossScale(4.0, 4), steps)
    assert (result.scale, result.window) == (scale, window)


@given(st.text("....!", max_size=300), st.integers(-5, 20), st.integers(0, 10))
def test_it_stays_between_its_floor_and_what_clean_steps_have_earned(steps, first, window):
    result = after(LossScale(2.0**first, 2**window), steps)
    assert 2**-5 <= result.scale <= 2.0 ** (first + steps.count("."))
    assert result.window >= 1


def test_its_state_is_all_of_it():
    scale = after(LossScale(4.0, 4), "!..!....")
    assert LossScale.from_state(scale.state()) == scale


@pytest.mark.slow
def test_an_overflow_skips_the_update_on_all_ranks_and_a_restart_changes_no_bit(training: Training):
    straight = training.start(**HIGH, steps=14)
    assert training.ranks.wait() == [0, 0, 0, 0], training.log()
    lines = [message["metrics"] for message in straight.of("step_done")]
    skipped = [line for line in lines if "skipped" in line]
    assert 3 <= len(skipped) < 12
    assert all(line["grad_norm"] in ("inf", "nan") for line in skipped)
    assert [line["tokens"] for line in lines] == [
        512 * sum("skipped" not in earlier for earlier in lines[: i + 1]) for i in range(len(lines))
    ]
    pairs = list(itertools.pairwise(lines))
    assert all(two["loss_scale"] == one["loss_scale"] / 2 for one, two in pairs if "skipped" in one)
    assert any(two["loss_scale"] == 2 * one["loss_scale"] for one, two in pairs)
    assert lines[-1]["loss"] < lines[0]["loss"]
    assert [message["samples"] for message in straight.of("step_done")] == [[16 * i, 16 * i + 16] for i in range(14)]

    broken = training.start(**HIGH, steps=14, checkpoint={"every": 6})
    broken.wait_for("step_done", 8)
    broken.wait_for("save_finished")
    for pid in training.ranks.pids:
        os.kill(pid, signal.SIGKILL)
    training.ranks.wait()
    resumed, statuses = training.run(restore=broken.commits[6], **HIGH, steps=14)
    assert statuses == [0, 0, 0, 0], training.log()
    assert resumed.of("done")[0]["final_digest"] == straight.of("done")[0]["final_digest"]
    told = ("loss", "loss_scale", "loss_scale_window", "clip_fraction", "tokens")
    again = [[message["metrics"][name] for name in told] for message in resumed.of("step_done")]
    assert again == [[line[name] for name in told] for line in lines[6:]]


@pytest.mark.slow
def test_a_scale_at_its_floor_goes_on_skipping_and_loses_nothing(training: Training):
    floor = {"dtype": "fp16", "loss_scale": {"init": 2.0**30, "min": 2.0**29}}
    agent, statuses = training.run(**floor, steps=4)
    assert statuses == [0, 0, 0, 0], training.log()
    lines = [message["metrics"] for message in agent.of("step_done")]
    assert [line["loss_scale"] for line in lines] == [2.0**30, 2.0**29, 2.0**29, 2.0**29]
    assert all(line["skipped"] == 1 and line["tokens"] == 0 for line in lines)
    assert len({line["param_norm"] for line in lines}) == 1
