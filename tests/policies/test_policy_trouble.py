"""Trouble with numbers, from its onset to its end, as the engine tells it."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from story import NAN, Story, ending, policy_of

from launcher.codec import decode, encode
from launcher.events import ActionDone, Decision, IncidentClosed, IncidentOpened, RunAmended, RunHeld, StepDone
from policies.load import load_policy
from policies.spike import SpikeMemory, gone_back, spike
from policies.state import EngineState
from policies.when import Spike


def calm(story: Story, steps: int = 100) -> Story:
    draw = random.Random(story.step)
    for _ in range(steps):
        story.steps(1, loss=draw.gauss(2.0, 0.03), grad_norm=draw.uniform(0.9, 1.1))
    return story


@pytest.fixture
def story() -> Story:
    story = Story(load_policy(["numerics"]))
    story.start()
    return calm(story)


def states(story: Story) -> list[str]:
    return [one.outcome if isinstance(one, IncidentClosed) else "opened" for one in story.trouble]


def test_a_spike_is_an_incident_at_its_onset_and_nothing_is_decided(story: Story) -> None:
    assert story.steps(5, loss=5.0, grad_norm=4.0) == []
    (opened,) = story.trouble
    assert isinstance(opened, IncidentOpened)
    assert (opened.rule, opened.onset_step, opened.incident) == ("loss-spike", 100, 1)


def test_one_that_heals_is_closed_and_nothing_was_done(story: Story) -> None:
    story.steps(20, loss=5.0, grad_norm=4.0)
    calm(story)
    assert states(story) == ["opened", "healed"]
    assert story.decisions == []


def test_one_that_does_not_is_gone_back_before_in_the_same_incident(story: Story) -> None:
    story.steps(60, loss=5.0, grad_norm=4.0)
    (decision,) = story.decisions
    back = {"restart": {"from": "before_incident", "save_first": False}}
    assert decision.actions == {"skip": {"batches": 200}, **back}
    assert (decision.incident, decision.onset_step) == (1, 100)
    assert story.step - 100 in range(50, 70)
    story.start(restore=90)
    assert states(story) == ["opened", "left"]
    assert calm(story).decisions == [decision]


def test_what_a_restart_does_not_leave_behind_goes_on(story: Story) -> None:
    story.steps(10, loss=5.0, grad_norm=4.0)
    story.start(restore=105)
    story.steps(60, loss=5.0, grad_norm=4.0)
    (decision,) = story.decisions
    assert (decision.onset_step, states(story)) == (100, ["opened"])


def test_a_spike_that_comes_again_goes_on_along_the_ladder(story: Story) -> None:
    for restore in (90, 80, 70, 60, 50):
        story.steps(60, loss=5.0, grad_norm=4.0)
        story.start(restore=restore)
        calm(story, 5)
    assert [list(one.actions) for one in story.decisions] == [
        ["skip", "restart"], *[["set", "skip", "restart"]] * 3, ["hold"],
    ]  # fmt: skip
    assert [one.actions["set"] for one in story.decisions[1:4]] == [{"lr": "x0.5"}, {"lr": "x0.1"}, {"lr": "x0.1"}]


def worse(story: Story, steps: int, above: float = 0.15) -> list[Decision]:
    """A loss that is too high, and far from a spike."""
    draw = random.Random(story.step)
    return [one for _ in range(steps) for one in story.steps(1, loss=draw.gauss(2.0 + above, 0.03))]


def went_back(story: Story) -> Story:
    """For a spike that did not heal."""
    story.steps(60, loss=5.0, grad_norm=4.0)
    story.start(restore=90)
    return story


def test_a_run_that_then_does_worse_than_the_checkpoint_goes_on_along_the_ladder(story: Story) -> None:
    """Smaller steps may keep the loss from jumping, and be too large for it to come down."""
    (decision,) = worse(went_back(story), 60)
    assert decision.actions["set"] == {"lr": "x0.5"}
    assert (decision.onset_step, decision.incident) == (92, 2)
    assert decision.evidence["step"] in range(140, 150)
    story.start(restore=80)
    assert states(story) == ["opened", "left"] * 2
    assert calm(story).decisions[2:] == worse(story, 60) == []  # it has done as well: that is the end of it


def test_one_that_is_on_its_way_back_there_is_given_time(story: Story) -> None:
    went_back(story)
    for step in range(150):
        story.steps(1, loss=2.0 + 0.4 * 2 ** (-step / 25))
    assert len(story.decisions) == 1


def test_a_restart_for_another_reason_is_held_to_nothing(story: Story) -> None:
    story.start(restore=90)
    assert worse(story, 200) == []


def test_a_restart_in_between_does_not_forgive_it(story: Story) -> None:
    worse(went_back(story), 30)
    story.start(restore=110)
    (decision,) = worse(story, 60)
    assert decision.onset_step == 92


def test_after_a_release_nobody_asks_for_the_level_of_before(story: Story) -> None:
    worse(went_back(story), 30)
    story.tell(RunHeld(at=story.at, reason="a person"))
    story.released()
    story.start(restore=110)
    assert worse(story, 200) == []


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("every", [1, 10, 100])
def test_a_run_that_goes_back_and_is_well_is_left_alone(every: int, seed: int) -> None:
    draw, told = random.Random(seed), 0
    memory, word = SpikeMemory(), None

    def tell(level: float) -> str:
        nonlocal memory, word, told
        told += every
        event = StepDone(at=0.0, attempt=1, step=told, metrics={"loss": draw.gauss(level, 0.1)})
        memory, word = spike(Spike(), memory, event, learning=False)
        return word.kind if word else ""

    assert [tell(level) for level in [2.0] * 100 + [5.0] * 60][-1] == "finding"
    told = 90 * every
    memory = gone_back(memory, told)
    assert memory.back is not None
    assert "finding" not in [tell(2.0) for _ in range(300)]
    assert memory.back is None


@pytest.mark.parametrize(("loss", "after"), [(2.0, []), (5.0, ["hold"])])
def test_after_a_release_only_what_is_seen_from_then_on_is_a_reason_to_act(tmp_path: Path, loss, after) -> None:
    """A held run goes on from a checkpoint that may be younger than the onset."""
    story = Story(policy_of(tmp_path, "rules: [{name: s, when: {spike: {}}, do: [{hold: {}}]}]"))
    story.start()
    calm(story).steps(60, loss=5.0, grad_norm=4.0)
    story.tell(RunHeld(at=story.at, reason="the loss is too high"))
    story.released()
    story.start(restore=150)
    decisions = story.steps(1, loss=loss, grad_norm=2 * loss - 3) + story.steps(9, loss=loss, grad_norm=2 * loss - 3)
    assert [ending(one) for one in decisions] == after
    assert states(story) == (["opened"] if after else ["opened", "healed"])


def falling(story: Story, until: int) -> Story:
    """A loss as at the beginning of a run: from 5 to 2, fast at first."""
    while story.step < until:
        draw, step = random.Random(story.step), story.step + 1
        story.steps(1, loss=2.0 + 3.0 * 2 ** (-step / 80) + draw.gauss(0, 0.03), grad_norm=draw.uniform(0.9, 1.1))
    return story


@pytest.mark.parametrize("restore", [None, 0, 10, 60, 150, 300])
def test_who_goes_back_far_is_not_blamed_for_the_loss_it_had_then(restore: int | None) -> None:
    story = Story(load_policy(["numerics"]))
    story.start()
    falling(story, 400)
    story.start(restore=restore)
    falling(story, 500)
    assert (story.decisions, story.trouble) == ([], [])


@pytest.mark.parametrize("steps", [1, 5, 30])
def test_a_spike_soon_after_going_back_far_is_seen_all_the_same(steps: int) -> None:
    story = Story(load_policy(["numerics"]))
    story.start()
    falling(story, 400)
    story.start(restore=60)
    falling(story, 60 + steps)
    story.steps(60, loss=7.0, grad_norm=4.0)
    (decision,) = story.decisions
    assert decision.onset_step == 61 + steps


def test_a_number_that_is_not_finite_in_a_spike_belongs_to_its_incident_and_its_onset(story: Story) -> None:
    story.steps(5, loss=5.0, grad_norm=4.0)
    (decision,) = story.steps(1, loss=NAN)
    assert (decision.rule, decision.incident, decision.onset_step) == ("non-finite", 1, 100)


def test_two_rules_that_see_trouble_at_once_tell_one_story(story: Story) -> None:
    story.steps(250, skipped=0.0, loss_scale=4.0)
    for _ in range(5):
        story.steps(1, loss=5.0, grad_norm=4.0, skipped=1.0, loss_scale=4.0)
    assert states(story) == ["opened"]
    for _ in range(20):
        story.steps(1, loss=2.0, grad_norm=1.0, skipped=1.0, loss_scale=4.0)
    assert "healed" not in states(story)


@pytest.mark.parametrize(("scale", "updates"), [(4.0, 8), (65536.0, 0)])
def test_a_scale_that_goes_on_as_it_was_is_judged_from_the_first_update_of_an_attempt(scale, updates) -> None:
    """One that a restart begins anew has to find its size first."""
    story = Story(load_policy(["numerics"]))
    story.start()
    story.steps(250, loss_scale=4.0)
    for at in range(8):
        story.steps(1, loss_scale=4.0 / 2**at, skipped=1.0)
    (decision,) = story.decisions
    assert decision.rule == "scale-collapse"
    story.start(restore=240)
    for at in range(14):
        story.steps(1, loss_scale=scale / 2**at, skipped=1.0)
    assert [one.evidence["updates skipped in a row"] for one in story.decisions[1:]] == [updates] * (updates > 0)


def test_what_the_engine_remembers_of_trouble_survives_a_snapshot(story: Story) -> None:
    for metrics in (
        {"loss": 5.0, "grad_norm": 4.0},
        {"loss": 1e300},
        {"loss_scale": 4.0, "skipped": 1.0},
        {"loss": NAN},
    ):
        story.steps(1, **metrics)
        assert decode(EngineState, json.loads(json.dumps(encode(EngineState, story.state)))) == story.state


def test_lost_nodes_come_before_the_numbers_of_the_same_moment(story: Story) -> None:
    story.steps(45, loss=5.0, grad_norm=4.0)
    story.exits(0, -9)
    story.steps(30, loss=5.0, grad_norm=4.0)
    assert [one.detector for one in story.decisions] == ["exit"]


MUTED = """quiet: {after: [resume, lr_change, batch_change, data_stage], for: 200 steps}
rules:
  - {name: s, when: {spike: {}}, do: [{restart: {from: before_incident}}]}
  - {name: t, when: {threshold: {metric: loss, above: 4}}, do: [{hold: {}}]}
  - {name: n, when: {non_finite: {}}, do: [{restart: {from: last_good}}]}
"""


@pytest.mark.parametrize("key", ["trainer.lr", "trainer.batch_tokens", "trainer.data", "resume", "set"])
def test_a_declared_change_explains_what_numbers_do_then(tmp_path: Path, key: str) -> None:
    story = Story(policy_of(tmp_path, MUTED))
    story.start()
    calm(story)
    if key == "resume":
        story.start(restore=100)
    elif key == "set":
        story.tell(ActionDone(at=story.at, decision="d0001", action="set", ok=True))
    else:
        story.tell(
            RunAmended(
                at=story.at, nodes=2, ranks_per_node=2, spares=1, target_step=None, probation=1, save_every=None,
                author="ann", changes={key: [1, 2]},
            )
        )  # fmt: skip
    assert story.steps(199, loss=5.0, grad_norm=4.0) == []
    assert story.trouble == []
    (decision,) = story.steps(1, loss=NAN)
    assert decision.rule == "n"


def test_after_the_quiet_what_was_learned_in_it_is_what_is_usual(tmp_path: Path) -> None:
    policy = MUTED.replace("  - {name: t, when: {threshold: {metric: loss, above: 4}}, do: [{hold: {}}]}\n", "")
    story = Story(policy_of(tmp_path, policy))
    story.start()
    calm(story).start(restore=100)
    story.steps(300, loss=5.0, grad_norm=4.0)
    assert (story.decisions, story.trouble) == ([], [])
    assert story.steps(60, loss=9.0, grad_norm=9.0) != []


def test_a_straggler_is_blamed_with_its_node(tmp_path: Path) -> None:
    rules = "rules:\n  - {name: s, when: {straggler: {}}, do: [{save: now, replace: blamed}]}\n"
    story = Story(policy_of(tmp_path, rules))
    story.start()
    decisions: list[Decision] = []
    for _ in range(60):
        story.compute_s = (1.0, 1.0, 1.6, 1.0)
        decisions += story.steps(1)
    (decision,) = decisions
    assert (decision.ranks, decision.nodes, decision.blame) == ((2,), ("n1",), "likely")
    assert [*decision.actions] == ["save", "replace"]


def test_what_only_advises_is_told_once(tmp_path: Path) -> None:
    story = Story(policy_of(tmp_path, "mode: advise\n" + MUTED.split("\n", 1)[1]))
    story.start()
    calm(story).steps(150, loss=3.9, grad_norm=4.0)
    assert [(one.rule, one.mode) for one in story.decisions] == [("s", "advise")]
    assert states(calm(story)) == ["opened", "healed"]
