"""A policy as people have changed it while the run goes on, for ever or for a while. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import ValidationError

from launcher.events import CommandReceived, Event, Json, RunAmended
from launcher.evolve import evolve
from policies.schema import Budget, Policy, Rule
from policies.state import Amendment, EngineState

SET = "policy_set"  # the verb of the command; its args: path, value, and how long, or no end
Path = tuple[str, ...]  # ("rules", NAME, KEY, ...) or ("budget", KEY)


def with_amendments(state: EngineState, event: Event) -> EngineState:
    """The state with what an event changes of the policy, and without what has had its time."""
    if not state.amendments and not isinstance(event, CommandReceived):
        return state
    amendments = tuple(one for one in state.amendments if one.until is None or state.now < one.until)
    if isinstance(event, RunAmended) and "policy" in event.changes:
        amendments = ()  # of another policy than this one
    if isinstance(event, CommandReceived) and event.verb == SET and isinstance(event.args.get("path"), list):
        amendments = (*amendments, amendment_of(event))
    return state if amendments == state.amendments else evolve(state, amendments=amendments)


def policy_now(policy: Policy, state: EngineState) -> Policy:
    """The policy with the amendments that are in force."""
    if not state.amendments:
        return policy
    if not _last or _last[0] is not policy or _last[1] != state.amendments:
        _last[:] = policy, state.amendments, amended(policy, state.amendments)
    return _last[2]


_last: list[Any] = []  # policy, amendments, and what they come to: asked for at every event


def amendment_of(event: CommandReceived) -> Amendment:
    """What a person wants changed, as it was checked when the command was taken."""
    path, for_s = event.args["path"], event.args.get("for_s")
    assert isinstance(path, list)
    until = event.at + float(for_s) if isinstance(for_s, (int, float)) else None
    return Amendment(tuple(map(str, path)), event.args.get("value"), until)


def key_of(event: CommandReceived) -> str:
    """How the person called what they wanted changed."""
    path = event.args["path"]
    assert isinstance(path, list)
    return ".".join(map(str, path[1:] if path[0] == "rules" else path))


def amended(policy: Policy, amendments: Sequence[Amendment]) -> Policy:
    """The policy with these changes; one that does not fit it is left out."""
    for one in amendments:
        try:
            policy = with_value(policy, one.path, one.value)
        except (KeyError, ValidationError):
            continue
    return policy


def with_value(policy: Policy, path: Path, value: Json) -> Policy:
    """The policy with another value at a path. Raises KeyError, ValidationError where it does not fit."""
    if path[0] == "budget":
        budget = Budget.model_validate(changed(plain(policy.budget), path[1:], value))
        return policy.model_copy(update={"budget": budget})
    index = next((index for index, rule in enumerate(policy.rules) if rule.name == path[1]), None)
    if index is None:
        raise KeyError(path[1])
    rule = Rule.model_validate(changed(plain(policy.rules[index]), path[2:], value))
    return policy.model_copy(update={"rules": (*policy.rules[:index], rule, *policy.rules[index + 1 :])})


def plain(part: Budget | Rule) -> dict[str, Any]:
    """As values of JSON, as they are written."""
    return part.model_dump(by_alias=True, exclude_none=True)


def changed(values: Any, path: Path, value: Json) -> Any:
    """A copy of nested mappings and lists with another value at a path. Raises KeyError where there is none."""
    if not path:
        return value
    if isinstance(values, (list, tuple)):
        if not path[0].isdigit() or int(path[0]) >= len(values):
            raise KeyError(path[0])
        at = int(path[0])
        return [changed(one, path[1:], value) if index == at else one for index, one in enumerate(values)]
    if not isinstance(values, dict):
        raise KeyError(path[0])
    return {**values, path[0]: changed(values.get(path[0], {}), path[1:], value)}


def value_at(values: Any, path: Path) -> Any:
    """What is there now; None if nothing is."""
    for key in path:
        if isinstance(values, (list, tuple)):
            values = values[int(key)] if key.isdigit() and int(key) < len(values) else None
        else:
            values = values.get(key) if isinstance(values, dict) else None
    return values
