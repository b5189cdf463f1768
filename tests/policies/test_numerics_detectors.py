"""The detectors of numbers, fed step by step: what each says, and when it is over."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launcher.events import StepDone
from policies.finding import Word
from policies.watch import WATCHERS
from policies.when import When

Metrics = Mapping[str, float]
INF, NAN = math.inf, math.nan


class Watch:
    """One detector and what it has said: (kind, step it was said, step the trouble began)."""

    def __init__(self, name: str, **parameters: Any) -> None:
        self.watch, self.memory = WATCHERS[name]
        self.detector = getattr(When.model_validate({name: parameters}), name)
        self.step, self.said, self.words = -1, list[tuple[str, int, int]](), list[Word]()

    def tell(self, rows: Iterable[Metrics], every: int = 1, *, learning: bool = False, **of_step: Any) -> Watch:
        for metrics in rows:
            self.step += every
            event = StepDone(at=float(self.step), attempt=1, step=self.step, metrics=dict(metrics), **of_step)
            self.memory, word = self.watch(self.detector, self.memory, event, learning=learning)
            if word:
                self.words.append(word)
                self.said.append((word.kind, self.step, word.step))
        return self

    @property
    def kinds(self) -> list[str]:
        """What was said, each once as long as it was said again and again."""
        kinds = [kind for kind, _, _ in self.said]
        return [kind for at, kind in enumerate(kinds) if at == 0 or kinds[at - 1] != kind]

    def first(self, kind: str) -> int:
        return next(step for said, step, _ in self.said if said == kind)


def noisy(
    count: int, level: float = 2.0, noise: float = 0.03, norm: float = 1.0, seed: int = 1
) -> list[dict[str, float]]:
    draw = random.Random(seed)
    return [{"loss": draw.gauss(level, noise), "grad_norm": norm * math.exp(draw.gauss(0, 0.1))} for _ in range(count)]


def rows(*losses: float, norm: float | None = 1.0) -> list[dict[str, float]]:
    return [{"loss": loss} if norm is None else {"loss": loss, "grad_norm": norm} for loss in losses]


def calm(name: str = "spike", every: int = 1, **parameters: Any) -> Watch:
    return Watch(name, **parameters).tell(noisy(100), every)


# ---------------------------------------------------------------- spikes


@pytest.mark.parametrize("every", [1, 10, 100, 500])
def test_a_spike_that_stays_is_seen_at_once_and_acted_upon_when_it_has_not_healed(every: int) -> None:
    watch = calm(every=every)
    onset = watch.step + every
    watch.tell(rows(*[5.0] * 120, norm=1.4), every)
    assert watch.kinds == ["onset", "finding"]
    assert watch.first("onset") - onset <= every
    assert watch.first("finding") - onset in range(50, 50 + 3 * every)
    assert {step for _, _, step in watch.said} == {onset}


def test_a_spike_whose_norm_did_not_rise_has_to_last_longer() -> None:
    with_norm, without = (calm(every=100).tell(rows(*[5.0] * 20, norm=norm), 100) for norm in (1.4, 0.7))
    assert 200 <= without.first("finding") - with_norm.first("finding") <= 600


@pytest.mark.parametrize("every", [1, 10])
def test_a_spike_that_heals_in_time_is_told_and_left_alone(every: int) -> None:
    watch = calm(every=every).tell(rows(*[5.0] * (40 // every)), every).tell(noisy(100, seed=2), every)
    assert watch.kinds == ["onset", "healed"]


def test_a_spike_that_is_on_its_way_back_is_given_time() -> None:
    decaying = [2.0 + 4.0 * 2 ** (-step / 25) for step in range(200)]
    assert calm().tell(rows(*decaying)).kinds == ["onset", "healed"]


@pytest.mark.parametrize("every", [1, 10, 100])
@pytest.mark.parametrize("norm", [1.0, 0.5, None])
def test_a_bad_batch_now_and_then_is_no_spike(every: int, norm: float | None) -> None:
    watch = calm(every=every)
    for seed in range(30):
        watch.tell(rows(6.0, norm=norm), every).tell(noisy(11, seed=seed), every)
    assert watch.said == []


@pytest.mark.parametrize("every", [1, 100, 500])
@pytest.mark.parametrize("upper", [0.05, 0.2, 0.35, 0.5])
def test_a_batch_loss_of_two_levels_is_never_acted_upon(every: int, upper: float) -> None:
    for seed in range(10):
        draw = random.Random(seed)
        watch = Watch("spike")
        for at in range(600):
            gap = min(1.0, at / 200)  # the levels part as training goes on
            loss = draw.gauss(3.0, 0.1) + (2.5 * gap if draw.random() < upper else 0.0)
            watch.tell(rows(loss, norm=draw.uniform(0.8, 1.2)), every)
        assert "finding" not in watch.kinds, (seed, watch.said[:3])


def test_what_was_two_levels_from_the_first_step_is_what_is_usual() -> None:
    draw = random.Random(3)
    losses = [draw.gauss(3.0, 0.1) + (2.5 if draw.random() < 0.3 else 0.0) for _ in range(2000)]
    assert Watch("spike").tell(rows(*losses)).said == []


def test_loss_and_norm_together_are_an_onset_in_their_first_row() -> None:
    watch = calm().tell([{"loss": 5.0, "grad_norm": 20.0}])
    assert watch.said == [("onset", watch.step, watch.step)]
    assert calm().tell([{"loss": 5.0, "grad_norm": 1.0}]).said == []


def test_norms_alone_are_an_onset_before_the_loss_moves_and_no_reason_to_act() -> None:
    """As in the run of BLOOM: the norm rose four steps before the loss did."""
    watch = calm().tell({"loss": 2.0, "grad_norm": norm} for norm in (8.0, 16.0, 80.0))
    assert watch.kinds == ["onset"]
    assert calm().tell([{"loss": 2.0, "grad_norm": 50.0}] * 150).kinds == ["onset"]


@pytest.mark.parametrize("loss", [1e3, 1e30, 1e308])
def test_a_loss_that_has_left_all_measure_is_acted_upon_at_once(loss: float) -> None:
    watch = calm().tell(rows(loss))
    assert watch.said == [("finding", watch.step, watch.step)]


def test_what_has_lasted_for_very_long_becomes_what_is_usual() -> None:
    watch = calm().tell(rows(*[5.0] * 300))
    assert watch.kinds == ["onset", "finding", "stayed"]
    assert watch.tell(rows(9.0, 9.0)).kinds[-1] == "onset"


def test_a_loss_that_falls_fast_hides_no_spike() -> None:
    falling = [10.0 * 0.98**step + 2.0 for step in range(150)]
    assert Watch("spike").tell(rows(*falling)).said == []
    assert "finding" in Watch("spike").tell(rows(*falling, *[12.0] * 60)).kinds


def test_while_learning_everything_is_usual() -> None:
    watch = calm().tell(rows(*[5.0] * 60), learning=True).tell(rows(*[5.0] * 60))
    assert watch.said == []


def test_a_loss_without_a_number_neither_heals_nor_moves_anything() -> None:
    watch = calm().tell(rows(5.0, 5.0)).tell([{"loss": NAN}, {"loss": INF}, {}])
    assert watch.kinds == ["onset"]
    assert len(watch.said) == 4


# ---------------------------------------------------------------- loss scales


def scales(*values: float) -> list[dict[str, float]]:
    return [{"loss_scale": value} for value in values]


SKIPPED = {"skipped": 1.0, "loss_scale": 4.0, "grad_norm": INF}
APPLIED = {"skipped": 0.0, "loss_scale": 4.0, "grad_norm": 1.0}


def test_the_first_updates_are_how_a_scale_finds_its_size() -> None:
    halving = [65536.0 / 2**at for at in range(14)]
    assert Watch("scale_collapse").tell(scales(*halving)).tell([APPLIED] * 400).said == []


@pytest.mark.parametrize("each", [1, 2])
def test_a_scale_that_is_stuck_at_its_floor_is_found_while_it_finds_its_size_too(each: int) -> None:
    """Not finite from the beginning on: no scale helps. `each`: overflows until it is halved, as with a hysteresis."""
    falling = [dict(SKIPPED, loss_scale=2.0**-at) for at in range(30) for _ in range(each)]
    assert Watch("scale_collapse").tell(falling).tell([APPLIED] * 400).said == []
    watch = Watch("scale_collapse").tell([APPLIED] * 20).tell(falling).tell([dict(SKIPPED, loss_scale=2.0**-29)] * 8)
    assert watch.kinds == ["onset", "finding"]
    assert {step for _, _, step in watch.said} == {20}, "trouble begins with the first of the skipped updates"


def test_updates_skipped_at_a_scale_that_is_not_told_are_how_it_finds_its_size() -> None:
    assert Watch("scale_collapse").tell([{"skipped": 1.0}] * 14).tell([{"skipped": 0.0}] * 400).said == []


def test_an_overflow_now_and_then_is_no_collapse() -> None:
    watch = Watch("scale_collapse").tell([APPLIED] * 250)
    for _ in range(30):
        watch.tell([SKIPPED, SKIPPED]).tell([APPLIED] * 40)
    assert watch.said == []


def test_updates_skipped_in_a_row_are_told_and_then_acted_upon() -> None:
    watch = Watch("scale_collapse").tell([APPLIED] * 250).tell([SKIPPED] * 8)
    assert watch.kinds == ["onset", "finding"]
    assert watch.tell([APPLIED] * 150).kinds[-1] == "healed"


def test_a_scale_that_keeps_being_halved_has_collapsed() -> None:
    """As in OPT-175B: lower with every few steps, though not in a row."""
    falling = [value for at in range(12) for value in [4.0 / 2**at] * 5]
    watch = Watch("scale_collapse", below=None).tell([APPLIED] * 250).tell(scales(*falling))
    assert watch.kinds == ["onset", "finding"]


@pytest.mark.parametrize(("scale", "parameters"), [(0.25, {}), (16.0, {"above": 8.0})])
def test_a_scale_that_stays_too_small_or_too_large_is_found(scale: float, parameters: dict[str, float]) -> None:
    usual = Watch("scale_collapse", **parameters).tell(scales(*[4.0] * 300))
    assert usual.said == []
    assert usual.tell(scales(*[scale] * 120)).kinds[-1] == "finding"


def test_a_row_that_stands_for_many_steps_is_skipped_only_if_all_were() -> None:
    some, every = {"skipped": 2.0, "loss_scale": 4.0}, {"skipped": 10.0, "loss_scale": 4.0}
    assert Watch("scale_collapse").tell([APPLIED] * 40, 10).tell([some] * 40, 10).said == []
    assert "finding" in Watch("scale_collapse").tell([APPLIED] * 40, 10).tell([every], 10).kinds


# ---------------------------------------------------------------- slow changes


def drifting(count: int, rise: float, loss: float = 0.0, seed: int = 1) -> list[dict[str, float]]:
    draw = random.Random(seed)
    return [
        {
            "loss": 2.0 * (1 + loss * at / count) + draw.gauss(0, 0.01),
            "activation_norm": 3400.0 * (1 + rise * at / count) * math.exp(draw.gauss(0, 0.05)),
        }
        for at in range(count)
    ]


@pytest.mark.parametrize("every", [1, 10])
def test_norms_that_rise_under_a_calm_loss_are_found(every: int) -> None:
    assert "finding" in Watch("drift", window=4000).tell(drifting(4800 // every, 0.6), every).kinds


@pytest.mark.parametrize(("rise", "loss"), [(0.0, 0.0), (0.1, 0.0), (0.6, 0.3), (0.6, -0.3), (-0.5, 0.0)])
def test_norms_that_do_not_rise_or_rise_while_the_loss_changes_are_no_drift(rise: float, loss: float) -> None:
    assert Watch("drift", window=4000).tell(drifting(12000, rise, loss)).said == []


def test_a_drift_that_ends_is_over() -> None:
    watch = Watch("drift", window=2000).tell(drifting(2400, 0.6)).tell(drifting(3000, 0.0, seed=2))
    assert watch.kinds == ["finding", "healed"]


def test_a_loss_that_has_stopped_to_fall_is_a_plateau_and_a_falling_one_is_none() -> None:
    def falling(by: float, noise: float) -> list[dict[str, float]]:
        draw = random.Random(1)
        return [{"loss": 2.0 - by * at / 1000 + draw.gauss(0, noise)} for at in range(4000)]

    assert "finding" in Watch("plateau", window=2000).tell(falling(0.0, 0.01)).kinds
    assert Watch("plateau", window=2000).tell(falling(0.05, 0.01)).said == []
    assert Watch("plateau", window=2000).tell(falling(0.0, 0.5)).said == [], "the noise could hide it"


# ---------------------------------------------------------------- pace


def pace(watch: Watch, count: int, seconds: float, blocked: float = 0.0) -> Watch:
    draw = random.Random(watch.step)
    for _ in range(count):
        watch.tell([{}], step_s=seconds * draw.uniform(0.95, 1.05) + blocked, blocked_s=blocked)
    return watch


def test_steps_that_take_longer_than_before_are_found_and_told_to_be_over() -> None:
    watch = pace(pace(Watch("slow"), 300, 1.0), 150, 1.6)
    assert watch.kinds == ["finding"]
    assert pace(watch, 100, 1.0).kinds == ["finding", "healed"]


def test_a_slow_step_now_and_then_and_a_long_save_are_not_slow() -> None:
    watch = pace(Watch("slow"), 300, 1.0)
    for _ in range(20):
        pace(pace(watch, 1, 30.0), 20, 1.0)
    assert pace(watch, 100, 1.0, blocked=5.0).said == []


def ranks(watch: Watch, count: int, **slower: float) -> Watch:
    draw = random.Random(watch.step)
    factors = {int(rank.removeprefix("rank")): factor for rank, factor in slower.items()}
    for _ in range(count):
        times = tuple(draw.uniform(0.95, 1.05) * factors.get(rank, 1.0) for rank in range(8))
        watch.tell([{}], compute_s=times)
    return watch


def test_a_rank_that_is_slower_than_its_peers_in_most_steps_is_a_straggler() -> None:
    watch = ranks(ranks(Watch("straggler"), 100), 120, rank5=1.5)
    assert watch.kinds == ["finding"]
    assert watch.words[0].ranks == (5,)
    assert ranks(watch, 100).kinds == ["finding", "healed"]


def test_ranks_that_take_turns_or_are_many_are_no_stragglers() -> None:
    watch = Watch("straggler")
    for at in range(300):
        ranks(watch, 1, **{f"rank{at % 8}": 3.0})
    assert watch.said == []
    assert ranks(watch, 200, rank1=2.0, rank2=2.0, rank3=2.0).said == []


# ---------------------------------------------------------------- whatever comes

numbers = st.one_of(st.floats(), st.floats(-10, 10), st.sampled_from([0.0, -0.0, 1e308, -1e308, 5e-324, INF, NAN]))
names = ("loss", "grad_norm", "loss_scale", "skipped", "activation_norm")
any_rows = st.lists(
    st.tuples(st.integers(-(2**53), 2**53) | st.integers(0, 50), st.dictionaries(st.sampled_from(names), numbers)),
    max_size=120,
)


@pytest.mark.parametrize("name", WATCHERS)
@settings(max_examples=60, deadline=None)
@given(rows=any_rows, times=st.lists(numbers, max_size=5), calm_first=st.booleans(), learning=st.booleans())
def test_no_input_makes_a_detector_raise(
    name: str, rows: list[tuple[int, Metrics]], times: list[float], calm_first: bool, learning: bool
) -> None:
    watch = Watch(name)
    if calm_first:
        watch.tell(noisy(60))
    for step, metrics in rows:
        watch.step = step - 1
        step_s = times[0] if times else 0.0
        watch.tell([metrics], step_s=step_s, compute_s=tuple(times), learning=learning)


def size(value: Any) -> int:
    """The numbers a memory holds."""
    if isinstance(value, (tuple, list)):
        return sum(map(size, value))
    if isinstance(value, Mapping):
        return sum(map(size, value.values()))
    return sum(map(size, vars(value).values())) if hasattr(value, "__dict__") else 1


@pytest.mark.parametrize("name", WATCHERS)
def test_a_memory_stops_to_grow(name: str) -> None:
    watch, sizes = Watch(name), list[int]()
    draw = random.Random(1)
    for _ in range(4):
        for _ in range(5000):
            spiky = 6.0 if draw.random() < 0.05 else 2.0
            metrics = {
                "loss": draw.gauss(spiky, 0.1),
                "grad_norm": draw.random() + 0.1,
                "loss_scale": draw.choice([1.0, 2.0]),
            }
            watch.tell([metrics], step_s=draw.random(), compute_s=tuple(draw.random() for _ in range(4)))
        sizes.append(size(watch.memory))
    assert max(sizes) <= 1000
    assert sizes[-1] <= sizes[0] + 500


@pytest.mark.parametrize("scale", [1e-6, 1e-3, 7.0, 1e6])
def test_what_is_said_of_a_loss_does_not_depend_on_its_unit(scale: float) -> None:
    story = noisy(100) + rows(*[5.0] * 20) + noisy(60, seed=2) + rows(*[5.0] * 80)
    scaled = [{"loss": row["loss"] * scale, "grad_norm": row["grad_norm"] / scale} for row in story]
    assert Watch("spike").tell(scaled).said == Watch("spike").tell(story).said


@settings(max_examples=40, deadline=None)
@given(every=st.integers(1, 500), level=st.floats(0.1, 10), seed=st.integers(0, 999))
def test_a_calm_run_is_left_alone_at_any_cadence(every: int, level: float, seed: int) -> None:
    assert Watch("spike").tell(noisy(400, level, level * 0.03, seed=seed), every).said == []
