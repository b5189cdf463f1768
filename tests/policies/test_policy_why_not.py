"""Why rules are silent: what they see, in numbers."""

from __future__ import annotations

from pathlib import Path

import pytest
from story import NAN, Story, policy_of

from launcher.events import CommandReceived, RunHeld
from policies.load import load_policy
from policies.why_not import explain_budget, explain_rule

DEFAULT = load_policy(["default"])
HEALTHY = {"loss": 2.0, "grad_norm": 1.0}


def told(story: Story, name: str) -> dict[str, str]:
    """The lines about a rule by their first words."""
    rule = next(one for one in story.policy.rules if one.name == name)
    fired = [one for one in story.decisions if one.rule == name]
    head, *lines = explain_rule(story.policy, rule, story.state, HEALTHY, fired).split("\n")
    return {"head": head, **{line[2:11].strip(" :"): line[11:] for line in reversed(lines)}}


def training() -> Story:
    return Story(DEFAULT).training()


def test_a_rule_is_told_with_its_place_mode_and_ladder() -> None:
    place = next(one.place for one in DEFAULT.rules if one.name == "hang")
    about = told(training(), "hang")
    assert about["head"] == f"hang ({place}): hang, act"
    assert about["fired"] == "never"
    assert about["ladder"] == "1. collect, exclude, shrink, restart: 1 of 1 left per 1d"


@pytest.mark.parametrize(
    ("name", "now"),
    [
        ("user-error", "no rank has failed in attempt 1"),
        ("node-failure", "every node is heard"),
        ("hang", "steps move; 5 x p99 is 5.0s, and at least 2m without a step are a hang"),
        ("draining", "no node is wanted back"),
        ("loss-spike", "loss is 2; above 2.3 is far from its 2"),
        ("activation-drift", "its detector finds nothing"),
        ("non-finite", "loss 2, grad_norm 1 at step 29"),
    ],
)
def test_a_healthy_run_is_told_in_numbers(name: str, now: str) -> None:
    assert told(training(), name)["now"] == now


def test_what_is_not_usual_is_told() -> None:
    story = Story(DEFAULT).training(5)
    assert told(story, "loss-spike")["now"] == "it learns what is usual: 4 of 20 values"
    story.steps(60)
    story.steps(3, loss=9.0)
    assert told(story, "loss-spike")["now"] == "above its level of 2 since step 65, for 3 rows"
    story.steps(60, loss=9.0)
    story.start(restore=60)
    story.steps(9)
    now = "since the run went back to step 60 it is at 2; above 2.1 is worse than it was there"
    assert told(story, "loss-spike")["now"] == now


def test_what_is_near_is_told() -> None:
    story = training()
    story.silent("n1")
    assert told(story, "node-failure")["now"] == "n1 silent, and nothing else says that it is lost"
    story.back("n1")
    story.stopped(story.at - 7)
    assert told(story, "hang")["now"].startswith("nothing has moved for 7.0s; 5 x p99 is 5.0s")


def test_a_used_ladder_and_the_incidents_are_told() -> None:
    story = training()
    story.exits(0, -9)
    assert told(story, "node-failure")["now"] == "nothing is judged: incident 1 is being dealt with"
    story.start()
    story.steps(3)
    about = told(story, "rank-exit")
    assert (about["fired"], about["ladder"]) == ("incident 1", "1. exclude, shrink, restart: 7 of 8 left per 1d")
    assert explain_budget(DEFAULT, story.state) == (
        "budget: restarts 1 of 20 per 1d; without progress 0 of 3; before a first step 0 of 4"
    )


def test_a_run_that_is_not_judged_says_so() -> None:
    assert told(Story(DEFAULT), "hang")["now"] == "nothing is judged: no attempt has begun"
    story = training()
    story.tell(CommandReceived(at=story.at, id="h", verb="hold", author="ann"))
    assert told(story, "hang")["now"] == "nothing is judged: hold was asked for"
    story.tell(RunHeld(at=story.at, reason="x"))
    assert told(story, "hang")["now"] == "nothing is judged: the run is held"


def test_thresholds_cooldowns_and_questions_are_told(tmp_path: Path) -> None:
    text = """
budget: {lost_time: 20 % per 24h}
rules:
  - {name: high, when: {threshold: {metric: loss, above: 8}}, for: 3 steps, do: [{collect: [stacks]}], cooldown: 1h}
  - {name: nan, when: {non_finite: {}}, do: [{restart: {from: last_good}}], mode: {ask: 30m, else: act}}
"""
    story = Story(policy_of(tmp_path, text)).training()
    assert told(story, "high")["now"] == "loss is 2, not above 8"
    story.steps(2, loss=9.0)
    assert told(story, "high")["now"] == "since step 30, for 2 steps, and is to last 3 steps"
    story.steps(1, loss=9.0)
    assert told(story, "high")["now"] == "in its cooldown of 1h"
    story.steps(1, loss=NAN)
    assert told(story, "nan")["now"] == "a person is asked, for 30m more"
    assert explain_budget(story.policy, story.state).endswith("lost 0s of 20 % per 1d")
