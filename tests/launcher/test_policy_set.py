"""A policy that is changed while the run goes on: checked as at submit, for a while or for good, and replayed exactly."""

# ruff: noqa: E501  messages are compared whole
from __future__ import annotations

from typing import Any

import pytest

from launcher.errors import ConfigError
from launcher.events import AttemptStarted, CommandReceived, RunAmended, StepDone, Tick, from_json, to_json
from launcher.policy_set import SET, asked, checked
from policies.amended import policy_now, with_value
from policies.engine import decide, initial
from policies.load import RunFacts, load_policy
from policies.schema import Policy
from policies.state import EngineState

DEFAULT = load_policy(["default"])
FACTS = RunFacts()


def command(text: str, for_s: float | None = None, author: str = "ann") -> CommandReceived:
    args = asked(text) | ({"for_s": for_s} if for_s else {})
    return CommandReceived(at=1000.0, id="c", verb=SET, author=author, args=args)


def result(text: str, policy: Policy = DEFAULT, facts: RunFacts = FACTS, **more: Any) -> dict[str, Any]:
    return dict(checked(command(text, **more), policy, facts, "ann").args)


@pytest.mark.parametrize(
    ("text", "path", "value", "before"),
    [
        ("hang.mode=advise", ["rules", "hang", "mode"], "advise", "act"),
        ("hang.mode={ask: 30m, else: act}", ["rules", "hang", "mode"], {"ask": "30m", "else": "act"}, "act"),
        ("hang.cooldown=1h", ["rules", "hang", "cooldown"], "1h", None),
        ("hang.when.hang.at_least=5m", ["rules", "hang", "when", "hang", "at_least"], "5m", "2m"),
        ("non-finite.do.0.times=2", ["rules", "non-finite", "do", "0", "times"], 2, 1),
        ("draining.counts=true", ["rules", "draining", "counts"], True, False),
        ("budget.restarts=20 per run", ["budget", "restarts"], "20 per run", "20 per 1d"),
    ],
)
def test_a_change_is_journaled_with_its_place_and_what_was_before(
    text: str, path: Any, value: Any, before: Any
) -> None:
    assert result(text) == {"path": path, "value": value, "for_s": None, "before": before}
    with_value(DEFAULT, tuple(path), value)


@pytest.mark.parametrize(
    ("text", "refused"),
    [
        ("hnag.mode=advise", "there is no rule 'hnag' (did you mean 'hang'?)"),
        ("hang=advise", "say what of rule 'hang': for example hang.mode=advise"),
        ("hang.mode=advice", "hang.mode: 'advice' is not one of act, advise (did you mean 'advise'?)"),
        ("hang.mood=act", "hang.mood: unknown key 'mood' (did you mean 'mode'?)"),
        ("hang.name=x", "'name' of a rule does not change"),
        ("hang.place=x", "'place' of a rule does not change"),
        ("hang.when.exit={}", "hang.when.exit: 'when' needs exactly one detector, found hang, exit"),
        ("hang.do.7.times=1", "hang.do.7.times: there is no '7'"),
        ("hang.do=[]", "hang.do: do must not be empty"),
        ("hang.for=3 steps", "hang.for: 'for' counts steps, but in a hang none are done: the rule can never fire"),
        ("hang.when.hang.at_least=60", "hang.when.hang.at_least: 60 has no unit: write 60s, 60m or 60h"),
        ("user-error.when.exit={}", "user-error.when.exit: the rule can never fire: rule 'user-error' before it takes every exit"),
        ("hang.do.0.notify=nobody", "hang.do.0.notify: channel 'nobody' is not in 'notify' of RUN.yaml"),
        ("non-finite.when.non_finite.metrics=[los]", "non-finite.when.non_finite.metrics: our trainer reports no metric 'los' (did you mean 'loss'?)"),
        ("non-finite.do.0.collect=[logs]", "non-finite.do.0.collect: to collect 'logs' (rule 'non-finite') is not built yet"),
        ("budget.restarts=many", "budget.restarts: 'many' is not a rate: write for example 10 per run or 2 per 24h"),
        ("budget.lives=9", "budget.lives: unknown key 'lives'"),
    ],
)  # fmt: skip
def test_what_submit_would_refuse_is_refused(text: str, refused: str) -> None:
    told = result(text)["refused"]
    assert told.startswith(refused), told


@pytest.mark.parametrize("text", ["hang.mode", "=1", ""])
def test_a_change_needs_a_key_and_a_value(text: str) -> None:
    with pytest.raises(ValueError, match="is not KEY=VALUE"):
        asked(text)


def test_a_value_that_is_no_yaml_is_a_mistake() -> None:
    with pytest.raises(ConfigError):
        asked("hang.mode={ask: ")


def test_what_a_rule_runs_only_the_owner_may_change() -> None:
    text = "non-finite.do.0.run=[rm, x]"
    assert "only they may change it" in result(text, author="bob")["refused"]
    assert "refused" not in result(text, author="ann")


def test_a_rule_about_numbers_is_promoted_where_the_command_can_do_it() -> None:
    rules = [
        rule.model_copy(update={"mode": "advise"}) if rule.name == "non-finite" else rule for rule in DEFAULT.rules
    ]
    policy = DEFAULT.model_copy(update={"rules": tuple(rules)})
    unable = RunFacts(own_trainer=False, goes_back=False, saves=True)
    assert "needs 'checkpoints'" in result("non-finite.mode=act", policy, unable)["refused"]
    able = RunFacts(own_trainer=False, goes_back=True, saves=True)
    assert result("non-finite.mode=act", policy, able)["before"] == "advise"


# ---------------------------------------------------------------- in force


def told(state: EngineState, event: Any) -> tuple[EngineState, Any, float | None]:
    return decide(DEFAULT, state, from_json(to_json(event)))


def mode(state: EngineState) -> Any:
    return next(rule.mode for rule in policy_now(DEFAULT, state).rules if rule.name == "hang")


def setting(text: str, for_s: float | None = None) -> CommandReceived:
    return checked(command(text, for_s), DEFAULT, FACTS, "ann")


def test_a_change_counts_at_once_and_goes_back_by_itself() -> None:
    state, _, deadline = told(initial(DEFAULT), setting("hang.mode=advise", 3600))
    assert (mode(state), deadline) == ("advise", 4600.0)
    state, _, _ = told(state, Tick(at=4599.0))
    assert mode(state) == "advise"
    state, _, deadline = told(state, Tick(at=4600.0))
    assert (mode(state), state.amendments, deadline) == ("act", (), None)


def test_the_newest_change_of_a_key_counts_and_the_one_before_comes_back() -> None:
    state, _, _ = told(initial(DEFAULT), setting("hang.mode=advise"))
    state, _, _ = told(state, setting("hang.mode={ask: 30m, else: act}", 60))
    assert str(mode(state)) == "ask 30m, else act"
    state, _, _ = told(state, Tick(at=1060.0))
    assert mode(state) == "advise"


def test_a_refused_change_changes_nothing() -> None:
    state, _, _ = told(initial(DEFAULT), setting("hang.mode=advice"))
    assert policy_now(DEFAULT, state) is DEFAULT


def test_another_policy_forgets_what_was_changed_of_the_former() -> None:
    state, _, _ = told(initial(DEFAULT), setting("hang.mode=advise"))
    about: dict[str, Any] = dict.fromkeys(("nodes", "ranks_per_node", "spares", "probation"), 1)
    about |= {"target_step": None, "save_every": None, "changes": {"policy": [["default"], ["mine"]]}}
    state, _, _ = told(state, RunAmended(at=1001.0, author="ann", **about))
    assert state.amendments == ()


def test_what_no_longer_fits_the_policy_is_left_out() -> None:
    gone = CommandReceived(at=1.0, id="c", verb=SET, author="ann", args={"path": ["rules", "gone", "mode"], "value": 1})
    state, _, _ = told(initial(DEFAULT), gone)
    assert policy_now(DEFAULT, state) == DEFAULT


def test_steps_are_judged_by_the_policy_as_it_is_now() -> None:
    state, _, _ = told(initial(DEFAULT), setting("non-finite.mode=advise"))
    about: dict[str, Any] = {"slots": {"n0": (0,)}, "incarnations": {}, "restore": None, "why": ""}
    state, _, _ = told(state, AttemptStarted(at=1001.0, attempt=1, **about))
    _, decisions, _ = told(state, StepDone(at=1002.0, attempt=1, step=0, metrics={"loss": float("nan")}))
    assert [one.mode for one in decisions] == ["advise"]
