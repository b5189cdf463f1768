"""The story of a decision, as text."""

from story import NAN, Story

from policies.explain import explain
from policies.load import load_policy


def test_a_hang_tells_its_rule_place_numbers_rung_and_budget() -> None:
    policy = load_policy(["default"])
    story = Story(policy).training()
    story.stopped(story.at, places={0: (30, 7), 1: (30, 7), 2: (30, 5), 3: (30, 7)})
    (decision,) = story.wait(200)
    place = next(one.place for one in policy.rules if one.name == "hang")
    assert explain(policy, decision) == (
        "incident 1, attempt 1, at step 30: no rank moved for 120.0 s, limit 120.0 s; rank 2 on n1 is behind (likely)\n"
        f"  rule:    hang ({place}), rung 1 of 3, 1 per 1d\n"
        "  about:   rank 2 on n1 (likely)\n"
        "  numbers: stood_s 120.0, limit_s 120.0\n"
        "  does:    collect stacks, shrink if need be, restart from latest\n"
        "  budget:  restarts 1 of 20 per 1d; without progress 0"
    )


def test_rules_that_were_passed_over_say_why() -> None:
    policy = load_policy(["default"])
    story = Story(policy).training()
    (decision,) = story.exits(0, -9)
    text = explain(policy, decision)
    assert "not:     user-error" in text
    assert "its before_first_step and everywhere did not match" in text


def test_advice_says_what_would_have_been_done() -> None:
    policy = load_policy(["cautious"])
    (advice,) = Story(policy).training().steps(1, loss=NAN)
    assert "would:   restart from last_good" in explain(policy, advice)


def test_a_failure_without_a_rule_is_explained_as_built_in() -> None:
    policy = load_policy(["numerics"])
    (decision,) = Story(policy).training().exits(0, -9)
    assert "built in: a failure that no rule handles is held" in explain(policy, decision)


def test_a_wait_before_a_restart_is_told() -> None:
    policy = load_policy(["default"])
    story = Story(policy)
    for _ in range(2):
        story.start()
        story.exits(0, -9)
    assert "waits:   30s before the restart" in explain(policy, story.last)
