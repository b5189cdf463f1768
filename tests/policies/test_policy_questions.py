"""Modes that ask, holds that are tried again, time that is lost, and one story for what belongs together."""

from __future__ import annotations

from pathlib import Path

import pytest
from story import NAN, Story, ending, policy_of, reason, replayed

from launcher.events import CommandReceived, Decision, RunHeld, StepDone, from_json, to_json
from policies.explain import explain

ASK = "{ask: 30m, else: act}"
LEAVE = "{ask: 30m, else: nothing}"
GO_BACK = "restart: {from: last_good}"


def rule(when: str, *rungs: str, name: str = "mine", **more: str) -> str:
    keys = "".join(f"\n    {key.rstrip('_')}: {value}" for key, value in more.items())
    ladder = "".join(f"\n      - {{{rung}}}" for rung in rungs)
    return f"\n  - name: {name}\n    when: {{{when}}}{keys}\n    do:{ladder}"


def asking(folder: Path, mode: str = ASK, when: str = "non_finite: {}", do: str = GO_BACK, more: str = "") -> Story:
    """A run whose loss is not a number, and a person who has been asked what to do."""
    story = Story(policy_of(folder, f"{more}rules:{rule(when, do, mode=mode)}"), nodes=3).training()
    if "non_finite" in when:
        story.steps(1, loss=NAN)
    return story


def says(story: Story, verb: str, incident: int = 1, rule: str = "mine") -> list[Decision]:
    args = {"incident": incident, "rule": rule}
    return story.tell(CommandReceived(at=story.at, id=f"{verb}{len(story.events)}", verb=verb, author="ann", args=args))


def held(story: Story) -> None:
    story.tell(RunHeld(at=story.at, reason="told"))


# ---------------------------------------------------------------- ask


def test_a_question_is_a_decision_that_does_nothing(tmp_path: Path) -> None:
    story = asking(tmp_path)
    asked = story.last
    assert (asked.mode, asked.incident, asked.due_at - asked.at, asked.otherwise) == ("ask", 1, 1800.0, "act")
    assert asked.actions == {"restart": {"from": "last_good", "save_first": False}}
    assert story.state.pending is None
    assert story.steps(5, loss=NAN) == [], "it is asked once"


def test_a_yes_has_it_done_at_once_and_charged(tmp_path: Path) -> None:
    story = asking(tmp_path)
    (done,) = says(story, "approve")
    assert (done.mode, done.incident, ending(done)) == ("act", 1, "restart")
    assert "restarts 1 of 20" in str(done.evidence["budget"])
    assert story.state.questions == {}


def test_a_no_leaves_the_training_alone_and_ends_the_question(tmp_path: Path) -> None:
    story = asking(tmp_path)
    (left,) = says(story, "hold")
    assert (left.incident, left.actions, left.why) == (1, {}, "ann wants it left")
    assert story.steps(3, loss=NAN) == []
    assert story.wait(7200) == []


def test_what_was_left_may_be_asked_again_when_it_is_released(tmp_path: Path) -> None:
    story = asking(tmp_path)
    says(story, "hold")
    says(story, "release")
    (again,) = story.steps(1, loss=NAN)
    assert (again.mode, again.incident) == ("ask", 2)


@pytest.mark.parametrize(("mode", "does"), [(ASK, "restart"), (LEAVE, "")])
def test_without_an_answer_the_deadline_decides(tmp_path: Path, mode: str, does: str) -> None:
    story = asking(tmp_path, mode)
    assert story.deadline == story.last.due_at
    (done,) = story.wait(1800)
    assert (ending(done), done.at, done.incident) == (does, done.at, 1)
    assert story.wait(7200) == []


def test_a_deadline_outlives_the_supervisor(tmp_path: Path) -> None:
    story = asking(tmp_path)
    journal = [from_json(to_json(event)) for event in story.events]
    state, _ = replayed(story.policy, journal)
    assert state.questions[1].due == story.last.due_at


def test_what_has_gone_by_itself_is_not_done(tmp_path: Path) -> None:
    story = asking(tmp_path)
    (gone,) = story.steps(1)
    assert (gone.actions, gone.why) == ({}, "it has gone by itself")


def test_a_spike_that_heals_while_a_person_is_asked_is_left(tmp_path: Path) -> None:
    story = asking(tmp_path, when="spike: {above: 8 sigma, heal_within: 20 steps}")
    story.training(200)
    asked = story.steps(40, loss=6.0)
    assert [one.mode for one in asked if isinstance(one, Decision)] == ["ask"]
    healed = [one for one in story.steps(80) if isinstance(one, Decision)]
    assert [one.why for one in healed] == ["it has gone by itself"]


def test_an_end_of_the_attempt_answers_the_question(tmp_path: Path) -> None:
    other = rule("exit: {}", "restart: {from: latest}", name="exit")
    story = Story(policy_of(tmp_path, f"rules:{rule('non_finite: {}', GO_BACK, mode=ASK)}{other}")).training()
    story.steps(1, loss=NAN)
    restart, idle = story.exits(0, -9)
    assert (ending(restart), restart.incident) == ("restart", 2)
    assert (idle.incident, idle.why) == (1, "incident 2 has the attempt ended")


def test_lost_nodes_wait_for_the_answer_and_no_other_rule_decides(tmp_path: Path) -> None:
    story = asking(tmp_path, LEAVE, "node_lost: {}", "exclude: blamed, restart: {from: latest}")
    (asked,) = story.down("n1")
    assert (asked.mode, asked.nodes) == ("ask", ("n1",))
    (done,) = says(story, "approve")
    assert (ending(done), "exclude" in done.actions) == ("restart", True)


@pytest.mark.parametrize("answer", ["hold", ""])
def test_an_attempt_that_is_dead_cannot_be_left_alone(tmp_path: Path, answer: str) -> None:
    story = asking(tmp_path, LEAVE, "exit: {}", "restart: {from: latest}")
    story.exits(0, -9)
    (done,) = says(story, answer) if answer else story.wait(1801)
    assert reason(done) == ("ann wants it left" if answer else "nobody answered in time")
    assert done.incident == 1


def test_a_hang_that_is_over_is_no_longer_asked_about(tmp_path: Path) -> None:
    story = asking(tmp_path, ASK, "hang: {}", "restart: {from: latest}")
    story.stopped(story.at)
    (asked,) = story.wait(130)
    assert asked.mode == "ask"
    (gone,) = story.moving()
    assert gone.why == "it has gone by itself"


def test_a_used_up_ladder_asks_nobody(tmp_path: Path) -> None:
    story = asking(tmp_path, do=f"{GO_BACK}, times: 1")
    says(story, "approve")
    story.start()
    story.steps(25)
    (done,) = story.steps(1, loss=NAN)
    assert reason(done) == "rule 'mine' has used up its 1 rung"


def test_the_story_of_a_question_says_how_to_answer(tmp_path: Path) -> None:
    story = asking(tmp_path)
    text = explain(story.policy, story.last)
    assert "asks:    restart from last_good" in text
    assert "answer:  within 30m: incidents RUN approve 1, or hold; else act" in text


# ---------------------------------------------------------------- veto


def test_a_person_turns_a_restart_that_waits_into_a_hold(tmp_path: Path) -> None:
    story = Story(policy_of(tmp_path, f"rules:{rule('exit: {}', 'restart: {from: latest}')}")).training()
    story.exits(0, -9)
    (done,) = says(story, "hold", rule="mine")
    assert (reason(done), done.rule, done.incident) == ("ann does not want the restart", "person", 1)
    assert story.state.pending is not None
    assert not story.state.pending.restart


def test_a_veto_of_what_is_over_does_nothing(tmp_path: Path) -> None:
    story = Story(policy_of(tmp_path, f"rules:{rule('exit: {}', 'restart: {from: latest}')}")).training()
    story.exits(0, -9)
    story.start()
    assert says(story, "hold") == []


# ---------------------------------------------------------------- retry


def retrying(folder: Path, hold: str = "{retry: every 10m, at_most: 25m}") -> Story:
    text = rule("exit: {}", f"hold: {hold}")
    story = Story(policy_of(folder, f"rules:{text}")).training()
    story.exits(0, -9)
    held(story)
    return story


def test_a_hold_is_tried_again_every_so_often(tmp_path: Path) -> None:
    story = retrying(tmp_path)
    (again,) = story.wait(599) + story.wait(1)
    assert (again.rule, again.actions) == ("hold-retry", {"restart": {"from": "latest", "save_first": False}})
    assert (again.incident, again.counts) == (1, False)


def test_at_most_counts_from_the_first_hold_of_the_story(tmp_path: Path) -> None:
    story = retrying(tmp_path)
    for _ in range(2):
        (again,) = story.wait(600)
        assert again.rule == "hold-retry"
        story.start()
        story.steps(3)
        story.exits(0, -9)
        held(story)
    assert story.wait(7200) == []


def test_a_run_that_goes_on_begins_its_retries_anew(tmp_path: Path) -> None:
    story = retrying(tmp_path)
    story.wait(600)
    story.start()
    story.steps(25)
    story.exits(0, -9)
    held(story)
    assert len(story.wait(1300)) == 1  # a second one only when the first has come to something


def test_without_a_limit_it_is_tried_for_ever(tmp_path: Path) -> None:
    story = retrying(tmp_path, "{retry: every 1h}")
    for _ in range(50):
        (again,) = story.wait(3600)
        assert again.rule == "hold-retry"
        held(story)


def test_what_a_person_holds_is_not_tried_again(tmp_path: Path) -> None:
    story = retrying(tmp_path)
    story.tell(CommandReceived(at=story.at, id="h", verb="hold", author="ann"))
    assert story.wait(7200) == []


# ---------------------------------------------------------------- budgets


def test_lost_time_ends_in_a_hold_that_names_it(tmp_path: Path) -> None:
    text = f"budget: {{lost_time: 10 % per 1h, no_progress: 9}}\nrules:{rule('exit: {}', 'restart: {from: latest}')}"
    story = Story(policy_of(tmp_path, text)).training(40)
    for expected in ("restart", "restart", "hold"):
        story.exits(0, -9)
        assert ending(story.last) == expected
        story.at += 200
        story.start(restore=29)  # ten steps of a second are done again
        story.steps(11)
    assert "budget 'lost_time' (10 % per 1h) is used up" in reason(story.last)
    assert [round(loss.seconds) for loss in story.state.losses][:2] == [211, 212], "and the step beyond is new"


def test_steps_to_be_done_again_cost_what_a_step_takes_and_not_what_a_line_stands_for(tmp_path: Path) -> None:
    """Of a trainer that prints every tenth step."""
    story = Story(policy_of(tmp_path, f"rules:{rule('exit: {}', 'restart: {from: latest}')}"))
    story.start()
    for step in range(0, 400, 10):
        story.at += 10
        story.tell(StepDone(at=story.at, attempt=1, step=step, metrics={"loss": 2.0}, step_s=1.0))
    story.exits(0, -9)
    story.at += 100
    story.start(restore=340)
    story.tell(StepDone(at=story.at, attempt=2, step=350, metrics={"loss": 2.0}, step_s=1.0))
    (loss,) = story.state.losses
    assert loss.seconds == 100 + 50


def test_lost_time_leaves_its_window(tmp_path: Path) -> None:
    text = f"budget: {{lost_time: 10 % per 1h, no_progress: 9}}\nrules:{rule('exit: {}', 'restart: {from: latest}')}"
    story = Story(policy_of(tmp_path, text)).training(40)
    for _ in range(4):
        story.exits(0, -9)
        assert ending(story.last) == "restart"
        story.at += 200
        story.start(restore=39)
        story.steps(25)
        story.steps(1, seconds=3600)


# ---------------------------------------------------------------- one story


def test_what_one_event_shows_is_one_incident(tmp_path: Path) -> None:
    first = rule("threshold: {metric: grad_norm, above: 5}", "collect: [stacks]", name="first")
    second = rule("non_finite: {}", GO_BACK, name="second")
    story = Story(policy_of(tmp_path, f"rules:{first}{second}")).training()
    found = story.steps(1, loss=NAN, grad_norm=9.0)
    assert [(one.rule, one.incident) for one in found] == [("first", 1), ("second", 1)]
    story.start()
    story.steps(2)
    assert [one.incident for one in story.steps(1, loss=NAN)] == [2]


def test_a_node_that_is_lost_while_the_numbers_are_cured_joins_the_story(tmp_path: Path) -> None:
    lost = rule("node_lost: {}", "exclude: blamed, restart: {from: latest}", name="lost")
    story = Story(policy_of(tmp_path, f"rules:{rule('non_finite: {}', GO_BACK)}{lost}")).training()
    story.steps(1, loss=NAN)
    (joined,) = story.down("n1")
    assert (joined.incident, joined.actions) == (1, {"exclude": "blamed"})
