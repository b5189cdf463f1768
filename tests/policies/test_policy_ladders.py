"""Ladders, budgets, cooldowns and modes: how often something is done, and what happens then."""

from pathlib import Path

import pytest
from story import NAN, Story, ending, policy_of, reason

from launcher.events import CommandReceived, Decision, Json, RunHeld, StepDone
from policies.load import RunFacts, load_policy

RESTART = "restart: {from: latest}"


def rule(when: str, *rungs: str, **more: str) -> str:
    keys = "".join(f"\n    {key.rstrip('_')}: {value}" for key, value in more.items())
    ladder = "".join(f"\n      - {{{rung}}}" for rung in rungs)
    return f"\n  - name: mine\n    when: {{{when}}}{keys}\n    do:{ladder}"


def killed(story: Story, steps: int = 25) -> Decision:
    """One more attempt that does some steps, commits, and loses a rank."""
    story.start()
    story.steps(steps)
    if steps:
        story.committed()
    story.exits(0, -9)
    return story.last


def rungs_of(story: Story, times: int, steps: int = 25) -> list[int]:
    return [killed(story, steps).rung for _ in range(times)]


def test_used_up_rungs_give_way_to_the_next_and_the_end_is_a_hold(tmp_path: Path) -> None:
    text = rule("exit: {}", f"{RESTART}, times: 2", f"{RESTART}, times: 1")
    story = Story(policy_of(tmp_path, f"rules:{text}"))
    assert rungs_of(story, 3) == [1, 1, 2]
    last = killed(story)
    assert last.rung == 0
    assert reason(last) == "rule 'mine' has used up its 2 rungs"
    assert last.counts is False


def test_uses_leave_a_window_of_time(tmp_path: Path) -> None:
    text = rule("exit: {}", f"{RESTART}, times: 1, per: 1h", RESTART)
    story = Story(policy_of(tmp_path, f"rules:{text}"))
    assert rungs_of(story, 2) == [1, 2]
    story.at += 3600
    assert killed(story).rung == 1


def test_uses_leave_a_window_of_steps(tmp_path: Path) -> None:
    text = rule("exit: {}", f"{RESTART}, times: 1, per: 60 steps", RESTART)
    story = Story(policy_of(tmp_path, f"rules:{text}"))
    assert rungs_of(story, 4, steps=25) == [1, 2, 2, 1]


def test_a_ladder_begins_anew_after_enough_good_steps(tmp_path: Path) -> None:
    text = rule("exit: {}", f"{RESTART}, times: 1", f"{RESTART}, times: 1")
    story = Story(policy_of(tmp_path, f"reset_after: 50 steps\nrules:{text}"))
    assert rungs_of(story, 2) == [1, 2]
    assert killed(story, steps=50).rung == 1


def test_a_release_gives_back_ladders_and_budgets(tmp_path: Path) -> None:
    story = Story(policy_of(tmp_path, f"budget: {{restarts: 1 per run}}\nrules:{rule('exit: {}', RESTART)}"))
    assert [ending(killed(story)) for _ in range(2)] == ["restart", "hold"]
    story.released()
    assert ending(killed(story)) == "restart"


def test_the_same_error_at_the_same_step_goes_to_the_next_rung(tmp_path: Path) -> None:
    story = Story(policy_of(tmp_path, f"rules:{rule('exit: {}', RESTART, 'stop: give up')}"))
    for expected in (1, 2):
        story.start()
        story.steps(25)
        story.exits(0, 1, "index 7 is out of range\nat line 3", "IndexError", step=24)
        story.wait(5)
        assert story.last.rung == expected


@pytest.mark.parametrize("other", [{"step": 23}, {"error": "index 8 is out of range"}, {"kind": "KeyError"}])
def test_another_error_or_step_does_not(tmp_path: Path, other: dict[str, object]) -> None:
    story = Story(policy_of(tmp_path, f"rules:{rule('exit: {}', RESTART, 'stop: give up')}"))
    told: dict[str, object] = {"step": 24, "error": "index 7 is out of range", "kind": "IndexError"}
    for one in (told, told | other):
        story.start()
        story.steps(25)
        story.exits(0, 1, **one)  # type: ignore[arg-type]
        story.wait(5)
    assert story.last.rung == 1


def test_two_kills_at_the_same_step_are_not_the_same_error(tmp_path: Path) -> None:
    story = Story(policy_of(tmp_path, f"rules:{rule('exit: {}', RESTART, 'stop: give up')}"))
    assert rungs_of(story, 2) == [1, 1]


def test_the_last_rung_with_the_same_error_again_holds(tmp_path: Path) -> None:
    story = Story(policy_of(tmp_path, f"rules:{rule('exit: {}', RESTART)}"))
    for _ in range(2):
        story.start()
        story.steps(25)
        story.exits(0, 1, "boom", "ValueError", step=24)
        story.wait(5)
    assert reason(story.last) == "the same error at step 24 again, and rule 'mine' has no further rung"


# ---------------------------------------------------------------- budgets


def test_the_restart_budget_ends_in_a_hold_that_names_it(tmp_path: Path) -> None:
    story = Story(policy_of(tmp_path, f"budget: {{restarts: 2 per 24h}}\nrules:{rule('exit: {}', RESTART)}"))
    assert [ending(killed(story)) for _ in range(2)] == ["restart", "restart"]
    assert story.last.evidence["budget"] == "restarts 2 of 2 per 1d; without progress 1"
    assert reason(killed(story)) == "budget 'restarts' (2 per 1d) is used up (rule 'mine')"


def test_uncounted_restarts_use_no_budget(tmp_path: Path) -> None:
    text = rule("exit: {}", RESTART, counts="false")
    story = Story(policy_of(tmp_path, f"budget: {{restarts: 1 per run}}\nrules:{text}"))
    decisions = [killed(story) for _ in range(5)]
    assert {ending(one) for one in decisions} == {"restart"}
    assert not any(one.counts for one in decisions)


def test_attempts_without_progress_end_in_a_hold(tmp_path: Path) -> None:
    story = Story(policy_of(tmp_path, f"budget: {{no_progress: 2}}\nrules:{rule('exit: {}', RESTART)}"))
    killed(story)
    for expected in ("restart", "restart", "hold"):
        story.start(restore=24)
        story.steps(5)
        story.exits(0, -9)
        assert ending(story.last) == expected
    assert "no_progress" in reason(story.last)


@pytest.mark.parametrize("progress", ["checkpoint", "steps"])
def test_progress_clears_the_count_of_attempts_without(tmp_path: Path, progress: str) -> None:
    story = Story(policy_of(tmp_path, f"budget: {{no_progress: 1}}\nrules:{rule('exit: {}', RESTART)}"))
    killed(story)
    for round_ in range(6):
        story.start(restore=24)
        story.step = 24 + round_ * 50
        story.steps(30 if progress == "steps" and round_ % 2 else 5)
        if progress == "checkpoint" and round_ % 2:
            story.committed()
        story.exits(0, -9)
        assert ending(story.last) == "restart"


def test_a_checkpoint_of_a_step_that_was_saved_before_is_no_progress(tmp_path: Path) -> None:
    story = Story(policy_of(tmp_path, f"budget: {{no_progress: 1}}\nrules:{rule('exit: {}', RESTART)}"))
    killed(story)
    endings = []
    for _ in range(2):
        story.start(restore=4)
        story.steps(20)
        story.committed()
        story.exits(0, -9)
        endings.append(ending(story.last))
    assert endings == ["restart", "hold"]


def test_failures_before_the_first_step_wait_longer_and_longer_and_then_hold(tmp_path: Path) -> None:
    text = f"budget: {{restarts: 1 per run, no_progress: 1}}\nrules:{rule('exit: {}', RESTART)}"
    story = Story(policy_of(tmp_path, text))
    decisions = [killed(story, steps=0) for _ in range(5)]
    assert [one.delay_s for one in decisions] == [0, 30, 120, 600, 0]
    assert [ending(one) for one in decisions] == ["restart"] * 4 + ["hold"]
    assert "first_step" in reason(decisions[-1])


def test_a_first_step_ends_the_back_off(tmp_path: Path) -> None:
    story = Story(policy_of(tmp_path, f"rules:{rule('exit: {}', RESTART)}"))
    assert [killed(story, steps).delay_s for steps in (0, 0, 25, 0)] == [0, 30, 0, 0]


# ---------------------------------------------------------------- one attempt, one restart


def test_while_a_restart_is_pending_other_failures_are_ignored(tmp_path: Path) -> None:
    story = Story(load_policy(["default"])).training()
    story.exits(0, -9)
    assert story.exits(2, -9) == story.loses_peer(3) == story.steps(1, loss=NAN) == []
    story.stopped(story.at)
    assert story.wait(4000) == []


@pytest.mark.parametrize("how", ["silence", "down", "restarted agent"])
def test_a_node_lost_meanwhile_joins_the_incident(tmp_path: Path, how: str) -> None:
    story = Story(load_policy(["default"])).training()
    story.exits(0, -9)
    if how == "silence":
        assert story.silent("n1") == []
        (joined,) = story.wait(30)
    else:
        (joined,) = story.down("n1") if how == "down" else story.joined("n1", "2")
    assert (joined.incident, joined.rule, joined.nodes, joined.counts) == (1, "node-failure", ("n1",), False)
    assert joined.actions == {"exclude": "blamed"}
    assert story.wait(600) == story.down("n1") == []
    story.start()
    assert story.state.restarts == story.state.restarts[:1]


def test_nothing_joins_a_hold(tmp_path: Path) -> None:
    story = Story(policy_of(tmp_path, f"rules:{rule('exit: {}', 'hold: {}')}")).training()
    story.exits(0, -9)
    assert story.down("n1") == story.silent("n0") == story.wait(600) == []


def do(story: Story, **actions: Json) -> list[Decision]:
    asked: dict[str, Json] = {"actions": actions, "why": "the loss looks odd"}
    return story.tell(CommandReceived(at=story.at, id=f"c{len(story.events)}", verb="do", author="ann", args=asked))


def test_what_a_person_has_done_is_a_decision_like_a_rules() -> None:
    story = Story(load_policy(["default"])).training()
    restart: Json = {"from": "last_good", "save_first": False}

    (decision,) = do(story, restart=restart)

    assert (decision.rule, decision.mode, decision.actions) == ("person", "act", {"restart": restart})
    assert (decision.incident, decision.why, decision.counts) == (1, "ann: the loss looks odd", False)
    assert story.exits(0, -9) == []  # pending: nothing else is judged
    story.start()
    story.steps(30)
    assert [one.incident for one in story.exits(0, -9)] == [2]
    assert len(story.state.restarts) == 1


def test_a_person_goes_before_what_a_rule_is_having_done() -> None:
    story = Story(load_policy(["default"])).training()
    (first,) = story.down("n1")

    (second,) = do(story, restart={"from": "latest", "save_first": False})

    assert (first.rule, second.rule, second.incident) == ("node-failure", "person", 2)
    assert story.wait(600) == []  # and what is known to be lost is not found lost again


def test_what_a_person_asks_of_a_held_run_begins_its_ladders_anew(tmp_path: Path) -> None:
    once = policy_of(tmp_path, f"rules:{rule('exit: {}', f'{RESTART}, times: 1')}")
    story = Story(once).training()
    story.exits(0, -9)
    story.start()
    story.steps(30)
    (hold,) = story.exits(0, -9)
    story.tell(RunHeld(at=story.at, reason="used up"))

    assert hold.actions.keys() == {"hold"}
    assert do(story, restart={"from": "latest", "save_first": False})
    story.start()
    story.steps(30)
    (again,) = story.exits(0, -9)
    assert again.actions.keys() == {"restart"}


@pytest.mark.parametrize("args", [{"why": "x", "refused": "nothing to save"}, {"why": "x"}])
def test_what_was_refused_to_a_person_is_not_done(args: dict[str, Json]) -> None:
    story = Story(load_policy(["default"])).training()
    assert story.tell(CommandReceived(at=story.at, id="c", verb="do", author="ann", args=args)) == []


def test_nothing_is_begun_for_a_person_while_the_run_is_being_stopped() -> None:
    story = Story(load_policy(["default"])).training()
    story.tell(CommandReceived(at=story.at, id="s", verb="stop", author="bob"))
    assert do(story, restart={"from": "latest", "save_first": False}) == []


def test_a_lost_node_and_bad_numbers_at_once_are_one_restart_for_the_node() -> None:
    story = Story(load_policy(["default"])).training()
    silent_at = story.at
    story.silent("n1")
    story.at += 5
    (decision,) = story.stopped(silent_at)
    assert decision.detector == "node_lost"
    assert story.steps(1, loss=NAN) == []


@pytest.mark.parametrize("failure", ["exit", "node_lost"])
def test_a_failure_no_rule_handles_is_held(tmp_path: Path, failure: str) -> None:
    story = Story(policy_of(tmp_path, f"rules:{rule('non_finite: {}', 'notify: me')}")).training()
    (decision,) = story.exits(0, -9) if failure == "exit" else story.down("n1")
    assert (decision.rule, decision.detector) == ("no-rule", failure)
    assert f"no rule handles this {failure}" in reason(decision)


def test_a_hang_no_rule_handles_is_left_alone(tmp_path: Path) -> None:
    story = Story(policy_of(tmp_path, f"rules:{rule('exit: {}', RESTART)}")).training()
    assert story.stopped(story.at) == story.wait(9000) == []


def test_rules_are_tried_in_order_and_their_conditions_all_hold(tmp_path: Path) -> None:
    first = rule("exit: {codes: [3], exception: [MemoryError]}", "stop: out of memory").replace("mine", "memory")
    story = Story(policy_of(tmp_path, f"rules:{first}{rule('exit: {}', RESTART)}")).training()
    story.exits(0, 4, "", "MemoryError")
    story.wait(5)
    assert story.last.rule == "mine"
    story.start()
    story.steps(25)
    story.exits(0, 3, "", "torch.cuda.MemoryError")
    story.wait(5)
    assert story.last.rule == "memory"


# ---------------------------------------------------------------- for, cooldown, advise


def test_for_counts_steps_without_a_break(tmp_path: Path) -> None:
    text = rule("threshold: {metric: loss, above: 9}", "notify: me", for_="3 steps")
    story = Story(policy_of(tmp_path, f"rules:{text}")).training()
    assert story.steps(2, loss=10) == story.steps(1) == story.steps(2, loss=10) == []
    (decision,) = story.steps(1, loss=10)
    assert (decision.onset_step, decision.evidence["steps"]) == (33, 3)
    assert story.steps(20, loss=10) == []
    story.steps(1)
    assert len(story.steps(9, loss=10)) == 1


def test_for_can_be_time(tmp_path: Path) -> None:
    text = rule("threshold: {metric: loss, below: 1}", "notify: me", for_="10s")
    story = Story(policy_of(tmp_path, f"rules:{text}")).training()
    assert story.steps(3, seconds=4, loss=0.5) == []
    assert len(story.steps(1, seconds=4, loss=0.5)) == 1


def test_for_stretches_a_hang(tmp_path: Path) -> None:
    text = rule("hang: {at_least: 60s}", RESTART, for_="30s")
    story = Story(policy_of(tmp_path, f"rules:{text}")).training()
    story.stopped(story.at)
    assert story.deadline == story.at + 90


@pytest.mark.parametrize(("cooldown", "quiet_steps"), [("50 steps", 50), ("80s", 80)])
def test_in_its_cooldown_a_rule_is_silent(tmp_path: Path, cooldown: str, quiet_steps: int) -> None:
    text = rule("threshold: {metric: loss, above: 9}", "notify: me", cooldown=cooldown)
    story = Story(policy_of(tmp_path, f"rules:{text}")).training()
    first = story.steps(1, loss=10)
    story.steps(1)
    assert len(first) == 1
    assert story.steps(quiet_steps - 2, loss=10) == []
    assert len(story.steps(1, loss=10)) == 1


def test_a_ladder_that_only_tells_never_holds_the_run(tmp_path: Path) -> None:
    text = rule("threshold: {metric: loss, above: 9}", "notify: me, times: 1")
    story = Story(policy_of(tmp_path, f"rules:{text}")).training()
    for expected in (1, 0, 0):
        assert len(story.steps(1, loss=10)) == expected
        story.steps(1)


def test_an_attempt_that_starts_ends_a_hold(tmp_path: Path) -> None:
    story = Story(policy_of(tmp_path, f"rules:{rule('exit: {}', 'hold: {}')}")).training()
    story.exits(0, -9)
    story.tell(RunHeld(at=story.at, reason="x"))
    story.training()
    assert len(story.exits(0, -9)) == 1


def test_advice_changes_nothing_and_is_given_once(tmp_path: Path) -> None:
    story = Story(policy_of(tmp_path, f"rules:{rule('non_finite: {}', 'restart: {from: last_good}', mode='advise')}"))
    story.training()
    (decision,) = story.steps(1, loss=NAN)
    assert (decision.mode, decision.rung, ending(decision)) == ("advise", 1, "restart")
    assert story.steps(50, loss=NAN) == []
    assert story.state.pending is None
    assert story.state.restarts == ()


def test_advice_on_a_hang_is_given_once_for_each_stop(tmp_path: Path) -> None:
    text = rule("hang: {at_least: 60s}", RESTART, mode="advise")
    story = Story(policy_of(tmp_path, f"rules:{text}")).training()
    for _ in range(2):
        story.stopped(story.at)
        assert len(story.wait(1000)) == 1
        story.moving()
        story.steps(5)


def test_advice_on_a_failure_does_not_keep_the_next_rule_from_acting(tmp_path: Path) -> None:
    first = rule("exit: {}", "stop: x", mode="advise").replace("mine", "adviser")
    story = Story(policy_of(tmp_path, f"rules:{first}{rule('exit: {}', RESTART)}")).training()
    advice, decision = story.exits(0, -9)
    assert (advice.rule, advice.mode, decision.rule, decision.mode) == ("adviser", "advise", "mine", "act")


def test_cautious_advises_on_numbers_asks_about_hangs_and_acts_on_what_is_dead() -> None:
    story = Story(load_policy(["cautious"])).training()
    (advice,) = story.steps(1, loss=NAN)
    story.stopped(story.at)
    (question,) = story.wait(130)
    idle, decision = story.exits(0, -9)
    assert (advice.mode, question.mode, decision.mode) == ("advise", "ask", "act")
    assert (question.otherwise, idle.why) == ("nothing", "it has gone by itself")


@pytest.mark.parametrize("scales", [True, False])
def test_opt175b_begins_a_loss_scale_anew_where_there_is_one(scales: bool) -> None:
    settings = frozenset({"lr", "clip"} | ({"loss_scale"} if scales else set()))
    rules = load_policy(["opt175b"], RunFacts(settings=settings)).rules
    resets = [rung.set.loss_scale for one in rules for rung in one.do if rung.set and rung.set.loss_scale]
    assert resets == ["reset"] * 3 * scales
    assert ("scale-collapse" in {one.name for one in rules}) == scales


def test_opt175b_gets_stronger_each_time_and_then_calls_a_person() -> None:
    story = Story(load_policy(["opt175b"], RunFacts()))
    found: list[Decision] = []
    for _ in range(5):
        story.start()
        story.steps(25)
        story.committed()
        found += story.steps(1, loss=NAN)
    assert [(ending(one), one.actions.get("set")) for one in found] == [
        ("restart", None),
        ("restart", None),
        ("restart", {"lr": "x0.9", "clip": 0.3}),
        ("restart", {"lr": "x0.67"}),
        ("hold", None),
    ]
    assert ["skip" in one.actions for one in found] == [False, True, True, True, False]


def test_actions_come_in_their_fixed_order(tmp_path: Path) -> None:
    rung = "notify: me, restart: {from: step 12, save_first: true}, save: now, collect: [stacks]"
    story = Story(policy_of(tmp_path, f"rules:{rule('non_finite: {}', rung)}")).training()
    (decision,) = story.steps(1, loss=NAN)
    assert list(decision.actions) == ["collect", "save", "restart", "notify"]
    assert decision.actions["restart"] == {"from": "step 12", "save_first": True}


def test_the_numerics_ladder_tries_the_same_data_then_without_it_then_smaller_steps_then_calls_a_person() -> None:
    story = Story(load_policy(["default"]))
    did = []
    for _ in range(5):
        story.start()
        story.steps(30)
        story.committed()
        (decision,) = story.steps(1, loss=NAN)
        origin = decision.actions.get("restart")
        did.append([origin["from"] if isinstance(origin, dict) else ending(decision), *decision.actions])
    assert did == [
        ["last_good", "restart"],
        ["before_incident", "skip", "restart"],
        ["before_incident", "set", "skip", "restart"],
        ["before_incident", "set", "skip", "restart"],
        ["hold", "hold"],
    ]


def test_a_metric_line_that_comes_late_does_not_turn_back_time() -> None:
    story = Story(load_policy(["default"])).training()
    late = StepDone(at=story.at - 500, attempt=1, step=30, metrics={"loss": 1.0}, step_s=1.0)
    assert story.tell(late) == []
    assert story.state.now == story.at


def test_a_ladder_that_ends_nothing_falls_silent_when_it_is_used_up(tmp_path: Path) -> None:
    story = Story(policy_of(tmp_path, f"rules:{rule('draining: {}', 'save: now, replace: blamed, times: 1')}"))
    for _ in range(2):
        story.start()
        story.steps(3)
        story.draining("n1")
    assert [list(one.actions) for one in story.decisions] == [["save", "replace"]]
