"""A person changes the policy of a run that goes on: checked as at submit before it is journaled."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import ValidationError

from launcher.document import parse_value
from launcher.events import CommandReceived, Json
from launcher.evolve import evolve
from launcher.validation import did_you_mean, validated
from policies.amended import SET, changed, plain, value_at, with_value
from policies.load import RunFacts, flaws_of
from policies.schema import Budget, Policy, Rule

__all__ = ["SET", "asked", "checked"]
FIXED = ("name", "place")  # of a rule


def asked(text: str) -> dict[str, Json]:
    """The args of a command from `KEY=VALUE`. Raises ConfigError, ValueError."""
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise ValueError(f"{text!r} is not KEY=VALUE: write for example hang.mode=advise")
    return {"key": key.strip(), "value": parse_value(value, f"value of {key.strip()}")}


def checked(command: CommandReceived, policy: Policy, facts: RunFacts, owner: str) -> CommandReceived:
    """The command with the `path` of what it changes and the value `before`; `refused` if it cannot be so."""
    key, value, for_s = str(command.args.get("key", "")), command.args.get("value"), command.args.get("for_s")
    if for_s is not None and (isinstance(for_s, bool) or not isinstance(for_s, (int, float)) or for_s <= 0):
        return evolve(command, args={"key": key, "refused": f"{for_s!r} is no time to change something for"})
    path = path_of(key, policy)
    if isinstance(path, str):
        return evolve(command, args={"key": key, "refused": path})
    if refused := _why_not(policy, path, value, facts, command.author, owner):
        return evolve(command, args={"key": key, "refused": f"{key}: {refused}"})
    before = value_at(plain(_part(policy, path)), _within(path))
    return evolve(command, args={"path": [*path], "value": value, "for_s": for_s, "before": before})


def path_of(key: str, policy: Policy) -> tuple[str, ...] | str:
    """The path of `RULE.KEY...` or `budget.KEY`, or what is wrong with it. The names of rules may have dots."""
    names = sorted((rule.name for rule in policy.rules), key=len, reverse=True)
    parts = key.split(".")
    if name := next((name for name in names if key.startswith(f"{name}.")), None):
        inner = tuple(key.removeprefix(f"{name}.").split("."))
        return f"'{inner[0]}' of a rule does not change" if inner[0] in FIXED else ("rules", name, *inner)
    if parts[0] == "budget" and len(parts) > 1:
        return tuple(parts)
    if key in names:
        return f"say what of rule '{key}': for example {key}.mode=advise"
    near = did_you_mean(parts[0], names) or f" (there are: {', '.join(sorted(names))})"
    return f"there is no rule '{parts[0]}'{near}"


def _within(path: Sequence[str]) -> tuple[str, ...]:
    return tuple(path[2:] if path[0] == "rules" else path[1:])


def _part(policy: Policy, path: Sequence[str]) -> Budget | Rule:
    return policy.budget if path[0] == "budget" else next(rule for rule in policy.rules if rule.name == path[1])


def _why_not(policy: Policy, path: tuple[str, ...], value: Json, facts: RunFacts, author: str, owner: str) -> str:
    part = _part(policy, path)
    try:
        values: Any = changed(plain(part), _within(path), value)
    except KeyError as error:
        return f"there is no {error}"
    _, findings = validated(type(part), values)
    if findings:
        return "; ".join(message for _, message in findings)
    try:
        new = with_value(policy, path, value)
    except (KeyError, ValidationError) as error:
        return f"it does not fit: {error}"
    known = flaws_of(policy, facts)
    if flaws := [message for name, (place, message) in flaws_of(new, facts) if (name, (place, message)) not in known]:
        return "; ".join(flaws)
    after = _part(new, path)
    if isinstance(after, Rule) and isinstance(part, Rule) and after.when.log != part.when.log:
        return "agents read it when they start: resume with another --policy"
    if isinstance(after, Rule) and any(rung.run for rung in after.do) and author != owner:
        return f"the rule runs a command as {owner}: only they may change it"
    return ""
