"""What a policy changes of the training: settings told once and answered for, samples that stay left out."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from simulated_fleet import Simulation
from tale import Tale

from launcher.advance import fold
from launcher.checkpoints import choose, tried_before
from launcher.events import ActionDone, RunAmended, SettingsApplied, StepDone, from_json, to_json
from launcher.evolve import evolve
from launcher.moves import Emit, Send
from launcher.recovery import SET_LIMIT_S
from launcher.settings import asked_by, back, forth, merged
from model.data import next_samples

OWN = {"lr": 1e-3, "clip": 1.0}
BATCH = 8


def tale(own: dict[str, float] = OWN, steps: int = 20) -> Tale:
    """A run that knows its own settings and tells of its samples; checkpoints of steps 5, 10, ..."""
    told = Tale()
    submitted = evolve(told.events[0], settings=own)
    told.events[0] = submitted
    told.run = fold(told.events)
    told.start()
    for done in range(1, steps + 1):
        trained(told)
        if done % 5 == 0:
            told.save()
    return told


def trained(told: Tale, steps: int = 1) -> Tale:
    for _ in range(steps):
        step = told.run.step
        samples = (step * BATCH, (step + 1) * BATCH)
        told.tell(StepDone(at=told.at, attempt=told.number, step=step, metrics={"loss": 2.0}, samples=samples))
    return told


def setting(told: Tale, *, restart: str = "", **change: Any) -> Tale:
    actions: dict[str, Any] = {"set": change}
    if restart:
        actions["restart"] = {"from": restart, "save_first": False}
    return told.decide(detector="spike", actions=actions, onset_step=told.run.step - 1)


def restarted(told: Tale) -> Tale:
    """The pending restart is carried out, by agents that do at once what they are told."""
    simulation = Simulation(told)
    number = told.number
    simulation.until(lambda run: len(run.attempts) > number)
    return told


# ---------------------------------------------------------------- settings


def test_a_factor_is_of_what_the_setting_is_now() -> None:
    told = setting(setting(tale(), lr="x0.5"), lr="x0.5", clip=0.3)
    assert told.run.settings == {"lr": 2.5e-4, "clip": 0.3}


def test_factors_of_a_value_that_only_the_trainer_knows_are_multiplied() -> None:
    assert setting(setting(tale({}), lr="x0.5"), lr="x0.5").run.settings == {"lr": "x0.25"}


def test_a_change_without_a_restart_is_asked_of_the_first_rank_until_it_answers() -> None:
    told = setting(tale(), lr="x0.5")
    asking = told.run.asking
    assert asking is not None
    sent = [move for move in Simulation(told).moves() if isinstance(move, Send)]
    wanted = {"type": "set", "id": asking.id, "settings": {"lr": 5e-4}}
    assert [(move.node, move.message["message"]) for move in sent] == [("n0", wanted)]

    told.tell(answer(told, asking.id, lr=5e-4))
    assert told.run.asking is None
    assert not [move for move in Simulation(told).moves() if isinstance(move, Send)]
    assert asked_by(told.run, asking.id) == {}, "said again, it is no news"


def test_two_changes_in_a_row_are_asked_for_together() -> None:
    told = setting(setting(tale(), loss_scale="reset"), lr="x0.5")
    assert told.run.asking is not None
    assert told.run.asking.settings == {"loss_scale": "reset", "lr": 5e-4}


def test_a_change_that_nobody_answers_is_left_for_the_next_attempt() -> None:
    told = setting(tale(), lr="x0.5")
    told.at += SET_LIMIT_S + 1
    (move,) = [move for move in Simulation(told).moves() if isinstance(move, Emit)]
    assert isinstance(move.event, ActionDone)
    assert (move.event.action, move.event.ok) == ("set", False)
    told.tell(move.event)
    assert (told.run.asking, told.run.settings) == (None, {"lr": 5e-4})


def test_a_change_with_a_restart_is_what_the_next_attempts_begin_with() -> None:
    told = restarted(setting(tale(), restart="latest", lr="x0.5"))
    assert told.run.asking is None
    assert told.run.attempts[-1].settings == {"lr": 5e-4}
    told.decide(detector="exit")
    assert restarted(told).run.attempts[-1].settings == {"lr": 5e-4}


def test_a_loss_scale_is_set_until_a_checkpoint_holds_it() -> None:
    told = restarted(setting(tale(), restart="latest", loss_scale="reset"))
    told.decide(detector="exit")
    assert restarted(told).run.attempts[-1].settings == {"loss_scale": "reset"}, "no checkpoint holds it yet"
    trained(told, 3).save().decide(detector="exit")
    assert restarted(told).run.attempts[-1].settings == {}


def test_what_a_person_asks_for_anew_takes_the_place_of_what_a_policy_changed() -> None:
    told = setting(tale(), lr="x0.5", clip=0.3)
    asked = {key: getattr(told.events[0], key) for key in ("nodes", "ranks_per_node", "spares", "target_step")}
    more: dict[str, Any] = {"probation": 3, "save_every": 10, "settings": OWN | {"lr": 2e-4}}
    told.tell(RunAmended(at=told.at, author="ann", **asked, **more))
    assert told.run.settings == {"clip": 0.3}


def answer(told: Tale, id_: str, asked: dict[str, Any] | None = None, **effective: Any) -> SettingsApplied:
    about = asked_by(told.run, id_) if asked is None else asked
    return SettingsApplied(
        at=told.at, attempt=told.number, id=id_, step=told.run.step, asked=about, effective=effective
    )


@pytest.mark.parametrize(
    ("asked", "effective", "differing"),
    [
        ({"lr": 5e-4}, {"lr": 5.0000000001e-4}, ()),
        ({"lr": 5e-4}, {"lr": 1e-3}, ("lr",)),
        ({"lr": 5e-4}, {}, ("lr",)),
        ({"lr": 5e-4}, {"lr": "nan"}, ("lr",)),
        ({"lr": "x0.5"}, {"lr": 1.0}, ()),
        ({"loss_scale": "reset"}, {"loss_scale": 65536}, ()),
        ({"loss_scale": "reset"}, {"loss_scale": None}, ("loss_scale",)),
    ],
)
def test_asked_and_effective_are_compared(asked: Any, effective: Any, differing: tuple[str, ...]) -> None:
    event = SettingsApplied(at=1.0, attempt=1, id="", step=1, asked=asked, effective=effective)
    assert event.differing == differing
    assert from_json(to_json(event)) == event


# ---------------------------------------------------------------- samples


def skipping(told: Tale, batches: int, onset_step: int, origin: str = "before_incident") -> Tale:
    actions = {"skip": {"batches": batches}, "restart": {"from": origin, "save_first": False}}
    return told.decide(detector="spike", actions=actions, onset_step=onset_step)


def test_half_of_the_batches_left_out_are_from_before_the_onset() -> None:
    told = restarted(skipping(tale(steps=20), 6, onset_step=12))
    assert told.run.attempts[-1].skips == ((9 * BATCH, 15 * BATCH),)


def test_samples_stay_left_out_in_every_later_attempt() -> None:
    told = restarted(skipping(tale(steps=20), 6, onset_step=12))
    told.decide(detector="exit")
    assert restarted(told).run.attempts[-1].skips == ((9 * BATCH, 15 * BATCH),)


def test_without_an_onset_the_batches_trained_on_last_are_left_out() -> None:
    assert skipping(tale(steps=20), 4, onset_step=-1).run.skips == ((16 * BATCH, 20 * BATCH),)


def test_a_second_range_counts_without_the_samples_of_the_first() -> None:
    told = restarted(skipping(tale(steps=20), 4, onset_step=12))  # leaves out 80 to 112
    told.tell(StepDone(at=told.at, attempt=2, step=told.run.step, metrics={"loss": 2.0}, samples=(80, 120)))
    assert skipping(told, 2, onset_step=told.run.step - 1).run.skips == ((72, 120),)


def test_nothing_is_left_out_of_what_tells_of_no_samples() -> None:
    assert skipping(Tale().train(20), 4, onset_step=12).run.skips == ()


spans = st.lists(st.tuples(st.integers(0, 60), st.integers(1, 9)).map(lambda t: (t[0], t[0] + t[1])), max_size=5)


@given(position=st.integers(0, 60), count=st.integers(1, 40), left_out=spans)
def test_positions_are_those_of_the_trainer(position: int, count: int, left_out: list[tuple[int, int]]) -> None:
    skips = merged(left_out)
    samples, end = next_samples(position, count, skips)
    assert forth(position, count, skips) == end
    assert back(end, count, skips) == samples[0]


# ---------------------------------------------------------------- further back


def test_a_later_restart_of_one_story_goes_further_back() -> None:
    told = restarted(skipping(tale(steps=20), 2, onset_step=18))
    assert told.run.attempts[-1].restore == (15, 1)
    trained(told, 3)
    again = restarted(skipping(told, 2, onset_step=17))
    assert again.run.attempts[-1].restore == (10, 1)
    trained(again, 8)
    assert restarted(skipping(again, 2, onset_step=17)).run.attempts[-1].restore == (5, 1)


def test_a_node_that_is_lost_in_between_does_not_end_the_story() -> None:
    told = trained(restarted(skipping(tale(steps=20), 2, onset_step=18)), 2).save()
    restarted(told.decide(detector="node_lost", nodes=["n1"]))
    assert told.run.attempts[-1].restore == (17, 2)
    assert restarted(skipping(trained(told), 2, onset_step=17)).run.attempts[-1].restore == (10, 1)


def test_what_has_gone_well_for_a_probation_is_another_story() -> None:
    told = trained(restarted(skipping(tale(steps=20), 2, onset_step=18)), 20).save()
    trained(told, 2)
    assert tried_before(skipping(told, 2, onset_step=36).run) is None


def test_where_nothing_older_is_left_the_oldest_is_tried_again() -> None:
    told = tale(steps=5)
    assert choose(told.run, "before_incident", 5, below=5) == choose(told.run, "before_incident", 5)
