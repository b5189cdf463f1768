"""Settings that change while a run goes on: at one step on all ranks, kept, and never half understood."""

import json

import pytest
from rank_harness import TRAINER, Training

from launcher.reporter import STOP
from model import live
from model.config import TrainerConfig
from model.optim import learning_rate
from model.scaler import LossScale

CONFIG = TrainerConfig.from_mapping(TRAINER | {"data": "unused", "lr": 0.01})
FP16 = TrainerConfig.from_mapping(TRAINER | {"data": "unused", "dtype": "fp16"})


@pytest.mark.parametrize(
    ("asked", "lr", "clip"),
    [
        ({}, 0.01, 1.0),
        ({"lr": "x0.5"}, 0.005, 1.0),
        ({"lr": "x 1e-1", "clip": 0.3}, 0.001, 0.3),
        ({"lr": 0.02}, 0.02, 1.0),
        ({"lr": "2e-3"}, 0.002, 1.0),
    ],
)
def test_a_number_is_the_value_and_a_factor_is_of_what_the_run_was_begun_with(asked, lr, clip):
    config = live.changed(CONFIG, asked)
    assert (config.lr, config.clip) == (pytest.approx(lr), clip)
    assert live.changed(CONFIG, asked) == config


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"lr": 0}, ["lr: 0 is no number above 0", "x0.5"]),
        ({"lr": "x-1"}, ["'x-1'"]),
        ({"lr": "half"}, ["'half'"]),
        ({"lr": None}, ["None"]),
        ({"lr": True}, ["True"]),
        ({"lr": float("inf")}, ["inf"]),
        ({"lr": "x0.."}, ["'x0..'"]),
        ({"clip": "x0.5"}, ["clip: 'x0.5' is no number above 0"]),
        ({"loss_scale": "reset"}, ["there is none with dtype fp32"]),
        ({"betas": [0.9, 0.98], "clip": -1}, ["'betas' cannot be set; lr, clip, loss_scale can", "clip: -1"]),
    ],
)
def test_what_cannot_be_set_is_refused_with_all_that_is_wrong(asked, words):
    with pytest.raises(ValueError, match="settings") as caught:
        live.changed(CONFIG, asked)
    assert all(word in str(caught.value) for word in words)


@pytest.mark.parametrize(
    ("asked", "result"),
    [("reset", LossScale(4.0, 256)), (16, LossScale(16.0, 256)), (None, LossScale(0.5, 8, 3))],
)
def test_the_loss_scale_is_set_once_and_then_goes_its_own_way(asked, result):
    asked = {} if asked is None else {"loss_scale": asked}
    live.changed(FP16, asked)
    assert live.rescaled(LossScale(0.5, 8, 3), FP16, asked) == result
    assert live.lasting({"clip": 0.3}, asked) == {"clip": 0.3}
    assert live.rescaled(None, CONFIG, {"loss_scale": "reset"}) is None


def test_a_loss_scale_below_its_floor_is_refused():
    for wrong in (0.01, "resett"):
        with pytest.raises(ValueError, match="loss_scale"):
            live.changed(FP16, {"loss_scale": wrong})


def rates(agent) -> dict[int, float]:
    return {message["step"]: message["metrics"]["lr"] for message in agent.of("step_done")}


def scheduled(config: TrainerConfig, step: int) -> float:
    return learning_rate(config, (step + 1) * config.batch_tokens)


@pytest.mark.slow
def test_a_change_told_to_one_rank_holds_from_one_step_on_for_all_and_after_restarts(training: Training):
    steps = 400  # ended by a stop
    agent = training.start(steps=steps, checkpoint={"every": 5})
    agent.wait_for("step_done", 3)
    agent.tell(2, {"type": "set", "id": "d1", "settings": {"lr": "x0.5", "clip": 0.01}})
    (answer,) = agent.wait_for("settings_applied")
    first = answer["step"]
    assert (answer["id"], answer["rank"], answer["problem"]) == ("d1", 2, "")
    assert answer["effective"] == {"lr": 1.5e-3, "clip": 0.01}
    agent.tell(0, {"type": "set", "id": "d2", "settings": {"betas": 1}})
    agent.tell(2, {"type": "set", "id": "d1", "settings": {"lr": "x0.5", "clip": 0.01}})
    again = agent.wait_for("settings_applied", 3)
    refused = next(one for one in again if one["id"] == "d2")
    assert "'betas' cannot be set" in refused["problem"]
    assert [one["step"] for one in again if one["id"] == "d1"] == [first, first]
    agent.wait_for("step_done", refused["step"] + 2)
    agent.tell(3, {"type": "wanted", "bits": STOP})
    assert training.ranks.wait() == [0, 0, 0, 0], training.log()

    config = TrainerConfig.from_mapping(TRAINER | {"data": "unused", "steps": steps})
    told = rates(agent)
    assert all(lr == scheduled(config, step) for step, lr in told.items() if step < first)
    halved = live.changed(config, {"lr": "x0.5"})
    assert all(lr == scheduled(halved, step) for step, lr in told.items() if step >= first)

    last = max(agent.commits)
    resumed, statuses = training.run(restore=agent.commits[last], steps=last + 2)
    assert statuses == [0, 0, 0, 0], training.log()
    shorter = live.changed(TrainerConfig.from_mapping(TRAINER | {"data": "unused", "steps": last + 2}), {"lr": "x0.5"})
    assert rates(resumed) == {step: scheduled(shorter, step) for step in (last, last + 1)}
    assert not resumed.of("settings_applied")


@pytest.mark.slow
def test_an_attempt_begins_with_what_is_asked_of_it_and_never_trains_on_what_it_shall_skip(training: Training):
    whole, _ = training.run(steps=4, checkpoint={"every": 2})
    env = {"OPT_LAUNCH_SETTINGS": json.dumps({"lr": "x0.1"}), "OPT_LAUNCH_SKIPS": json.dumps([[40, 56]])}
    agent = training.start(restore=whole.commits[2], steps=4, env=env)
    assert training.ranks.wait() == [0, 0, 0, 0], training.log()
    (answer,) = agent.of("settings_applied")
    assert (answer["id"], answer["step"], answer["rank"]) == (None, 2, 0)
    assert answer["effective"]["lr"] == pytest.approx(3e-4)
    assert rates(agent)[2] == pytest.approx(0.1 * rates(whole)[2])
    assert [message["samples"] for message in agent.of("step_done")] == [[32, 64], [64, 80]]
    state = agent.of("save_part")
    assert next(part["state"] for part in state if part["rank"] == 0)["skip"] == [[40, 56]]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("env", "words"),
    [
        ({"OPT_LAUNCH_SETTINGS": '{"lr": "x0", "optimizer": "sgd"}'}, ["lr: 'x0'", "'optimizer' cannot be set"]),
        ({"OPT_LAUNCH_SKIPS": "[[56, 40]]"}, ["skip", "56"]),
    ],
)
def test_an_attempt_does_not_begin_with_settings_that_make_no_sense(training: Training, env, words):
    agent = training.start(steps=2, env=env)
    assert training.ranks.wait() == [1, 1, 1, 1]
    message = agent.of("error")[0]["message"]
    assert all(word in message for word in words)
    assert not agent.of("step_done")
