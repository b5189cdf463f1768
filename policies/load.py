"""Policies from YAML: shipped names and files become one policy, or every mistake with its place.

Several policies are concatenated in order. `include` takes in others, one level deep, and `override`
changes rules of what came before; a rule name twice is a mistake otherwise.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic.json_schema import GenerateJsonSchema

from launcher.document import Document, Path_, read_document
from launcher.errors import ConfigError, Mistake
from launcher.validation import did_you_mean, validated
from policies.hearing import within_hearing
from policies.meaning import (
    TRAINER_METRICS,
    Flaw,
    RunFacts,
    any_of,
    rule_flaws,
    watched_metrics,
)
from policies.schema import BY_CHECKS, FACTS, Budget, Mode, Policy, Rule

__all__ = [
    "RunFacts",
    "Source",
    "dump_policy",
    "flaws_of",
    "json_schema",
    "load_policy",
    "read_policies",
    "read_policy",
    "refit",
    "shipped",
]

FOLDER = Path(__file__).parent
MERGED = ("budget", "reset_after", "quiet")


@dataclass(frozen=True)
class Source:
    """A shipped name or a path, and where it was named (a mistake without a message)."""

    name: str
    named_at: Mistake


@dataclass(frozen=True)
class _Written:
    """A rule and the documents its parts were written in. `by_us`: a policy of ours has brought it in."""

    rule: Rule
    document: Document
    path: Path_
    by_us: bool = False
    changed: dict[str, tuple[Document, Path_]] = field(default_factory=dict)
    flawed: bool = False

    def mistake(self, path: Path_, message: str) -> Mistake:
        document, base = self.changed.get(str(path[0]) if path else "", (self.document, self.path))
        rest = path[1:] if path and str(path[0]) in self.changed else path
        return document.mistake((*base, *rest), message)


@dataclass
class _Collected:
    """What has been read so far."""

    rules: dict[str, _Written] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    names: list[str] = field(default_factory=list)
    taken: set[Path] = field(default_factory=set)
    mistakes: list[Mistake] = field(default_factory=list)


def load_policy(names: Sequence[str], facts: RunFacts | None = None) -> Policy:
    """The policy of these names and paths. Raises ConfigError with every mistake."""
    policy, mistakes = read_policies([Source(name, Mistake("policy", "")) for name in names], facts)
    if mistakes or policy is None:
        raise ConfigError(mistakes)
    return policy


def read_policies(sources: Sequence[Source], facts: RunFacts | None = None) -> tuple[Policy | None, list[Mistake]]:
    """The policy of these sources, fit for a run where its facts are given, and every mistake found."""
    collected = _Collected()
    for source in sources:
        if path := _find(source, Path.cwd(), collected):
            _take_in(path, source, collected, nested=False)
    written = [_with_mode(one, "act") for one in collected.rules.values()]
    if not written and not collected.mistakes:
        collected.mistakes.append(replace(sources[0].named_at, message="the policy holds no rule"))
    if facts:
        written = [fit for one in written if (fit := _fit(one, facts))]
    for index, one in enumerate(written):
        before = [other.rule for other in written[:index]]
        flaws = [] if one.flawed else [*rule_flaws(one.rule, before, facts)]
        flaws += _unknown_metrics(one.rule, facts)
        # Rungs of a rule that could not be read whole may have moved.
        collected.mistakes += [one.mistake(*flaw) for flaw in flaws if not one.flawed or flaw[0][0] != "do"]
    if collected.mistakes:
        return None, sorted({*collected.mistakes}, key=lambda one: (one.where, one.line, one.column))
    body: dict[str, Any] = {"version": 1, "name": "+".join(collected.names)}
    policy = Policy.model_validate(body | {"rules": []})
    return policy.model_copy(update={"rules": tuple(one.rule for one in written), **collected.settings}), []


def _unknown_metrics(rule: Rule, facts: RunFacts | None) -> Iterator[Flaw]:
    """What the trainer never reports, as far as that is known."""
    known = _known_metrics(facts) if facts else None
    for place, name in watched_metrics(rule) if known is not None else ():
        base = "grad_norm" if name.startswith("grad_norm.") else name  # those of layers, with trainer.layer_norms
        if known is not None and base not in known:
            near = did_you_mean(name, known) or f" (it reports: {', '.join(known) or 'none'})"
            who = "our trainer reports" if facts and facts.own_trainer else "the telemetry of this run gives"
            yield place, f"{who} no metric {name!r}{near}"
    if facts and _is_deaf(rule, facts):
        yield ("when",), f"the telemetry of this run gives none of {', '.join(any_of(rule))}: the rule can never fire"


def _is_deaf(rule: Rule, facts: RunFacts) -> bool:
    """Whether a command tells nothing of what a rule listens for."""
    return facts.metrics is not None and bool(any_of(rule)) and facts.metrics.isdisjoint(any_of(rule))


def _known_metrics(facts: RunFacts) -> Sequence[str] | None:
    return TRAINER_METRICS if facts.own_trainer else None if facts.metrics is None else sorted(facts.metrics)


def shipped() -> list[str]:
    """The names of the policies that come with the program."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def dump_policy(policy: Policy) -> str:
    """A loaded policy as YAML that `read_policy` reads back, each rule with its place."""
    body = policy.model_dump(by_alias=True, exclude_none=True)
    rules = body.pop("rules")
    lines = ["# Resolved when the run was submitted.", *(f"{key}: {json.dumps(value)}" for key, value in body.items())]
    return "\n".join([*lines, "rules:", *(f"  - {json.dumps(rule)}" for rule in rules)]) + "\n"


def read_policy(path: Path) -> Policy:
    """The policy of a run folder. Its meaning was checked when the run was submitted."""
    document = read_document(path)
    policy, findings = validated(Policy, document.value)
    if policy is None or findings:
        raise ConfigError([document.mistake(*finding) for finding in findings])
    return policy


def refit(policy: Policy, before: RunFacts, facts: RunFacts, name: str) -> tuple[Policy, list[Mistake]]:
    """The policy of a run that is asked for in another way, and what of it no longer fits. `name`: of its file."""
    known = {flaw for rule in policy.rules for flaw in rule_flaws(rule, (), before)}
    rules = tuple(_following(rule, before, facts) for rule in policy.rules)
    asked = [rule for rule in rules if not (_is_ours(rule) and _is_idle(rule, facts))]
    flaws = [flaw for rule in asked for flaw in rule_flaws(rule, (), facts) if flaw not in known]
    return policy.model_copy(update={"rules": rules}), [Mistake(name, message) for _, message in flaws]


def flaws_of(policy: Policy, facts: RunFacts) -> list[tuple[str, Flaw]]:
    """What is wrong with the rules of a whole policy, each with the name of its rule."""
    found: list[tuple[str, Flaw]] = []
    for index, rule in enumerate(policy.rules):
        flaws = [*rule_flaws(rule, policy.rules[:index], facts), *_unknown_metrics(rule, facts)]
        found += [(rule.name, flaw) for flaw in flaws]
    return found


def json_schema() -> dict[str, Any]:
    """The grammar as JSON Schema draft-07, the newest that YAML editors understand."""
    schema = Policy.model_json_schema(by_alias=True, ref_template="#/definitions/{model}", schema_generator=_Draft7)
    schema["definitions"] = schema.pop("$defs")
    return {"$schema": "http://json-schema.org/draft-07/schema#", "title": "opt-launch policy", **schema}


class _Draft7(GenerateJsonSchema):
    schema_dialect = "http://json-schema.org/draft-07/schema#"


def is_path(name: str) -> bool:
    """Whether a policy is named by its file; a bare word is a shipped one."""
    return "/" in name or name.endswith((".yaml", ".yml"))


def _find(source: Source, folder: Path, collected: _Collected) -> Path | None:
    """The file of a source; a bare word is a shipped policy."""
    if is_path(source.name):
        return folder / source.name
    if source.name in shipped():
        return FOLDER / f"{source.name}.yaml"
    near = did_you_mean(source.name, shipped()) or f" (shipped: {', '.join(shipped())}; a path ends in .yaml)"
    message = f"no shipped policy is called '{source.name}'{near}"
    collected.mistakes.append(replace(source.named_at, message=message))
    return None


def _shown(path: Path) -> str:
    return path.name if path.parent == FOLDER else str(path)


def _take_in(path: Path, source: Source, collected: _Collected, *, nested: bool) -> None:
    """Read one file and what it includes into the collection."""
    if path.resolve() in collected.taken:
        message = f"'{source.name}' is taken in already: leave it out here"
        collected.mistakes.append(replace(source.named_at, message=message))
        return
    collected.taken.add(path.resolve())
    try:
        document = read_document(path, _shown(path))
    except ConfigError as error:
        # What cannot be found is a mistake of the place that names it.
        collected.mistakes += [
            one if one.line else replace(source.named_at, message=f"{one.where}: {one.message}")
            for one in error.mistakes
        ]
        return
    policy, findings = validated(Policy, document.value)
    collected.mistakes += [
        document.mistake(place, message, at_key=message.startswith("unknown key")) for place, message in findings
    ]
    if policy is None:
        return
    wrong = [place for place, _ in findings]
    first = len(collected.rules)
    _include(policy, document, path.parent, collected, nested=nested)
    by_us = source.named_at.where in _shipped_files()
    _append_rules(policy, document, wrong, collected, by_us=by_us)
    _override(policy, document, wrong, collected)
    _give_mode(policy, collected, first)
    collected.settings |= _settings(policy, collected.settings)
    collected.names += [] if nested else [policy.name]


def _include(policy: Policy, document: Document, folder: Path, collected: _Collected, *, nested: bool) -> None:
    if policy.include and nested:
        message = "an included policy cannot include others: name them in the outer one"
        collected.mistakes.append(document.mistake(("include",), message))
        return
    for index, name in enumerate(policy.include or ()):
        source = Source(name, document.mistake(("include", index), ""))
        if path := _find(source, folder, collected):
            _take_in(path, source, collected, nested=True)


def _append_rules(
    policy: Policy, document: Document, wrong: Sequence[Path_], collected: _Collected, *, by_us: bool
) -> None:
    for index, rule in _numbered(policy, document):
        path = ("rules", index)
        if other := collected.rules.get(rule.name):
            message = f"rule '{rule.name}' exists already ({other.document.place(other.path)}): use 'override'"
            collected.mistakes.append(document.mistake((*path, "name"), message))
            continue
        flawed = any(place[:2] == path for place in wrong)
        if document.has((*path, "place")):
            collected.mistakes.append(document.mistake((*path, "place"), "unknown key 'place'", at_key=True))
        placed = rule.model_copy(update={"place": document.place((*path, "name"))})
        collected.rules[rule.name] = _Written(placed, document, path, by_us, flawed=flawed)


def _numbered(policy: Policy, document: Document) -> Iterator[tuple[int, Rule]]:
    """The rules with their positions in the file; those too wrong to be made are missing in the policy."""
    written = document.value.get("rules")
    names = [rule.get("name") if isinstance(rule, dict) else None for rule in written or []]
    at = -1
    for rule in policy.rules:
        at = names.index(rule.name, at + 1)
        yield at, rule


def _override(policy: Policy, document: Document, wrong: Sequence[Path_], collected: _Collected) -> None:
    for name, change in policy.override.items():
        path = ("override", name)
        one = collected.rules.get(name)
        if one is None:
            message = f"there is no rule '{name}' to override{did_you_mean(name, collected.rules)}"
            collected.mistakes.append(document.mistake(path, message, at_key=True))
            continue
        update = {key: getattr(change, key) for key in change.model_fields_set}
        aliases = {key: (document, (*path, key.rstrip("_"))) for key in update}
        changed = one.changed | {key.rstrip("_"): place for key, place in aliases.items()}
        flawed = one.flawed or any(place[:2] == path for place in wrong)
        collected.rules[name] = replace(one, rule=one.rule.model_copy(update=update), changed=changed, flawed=flawed)


def _give_mode(policy: Policy, collected: _Collected, first: int) -> None:
    """Rules without a mode of their own take that of the file; an inner file passes it on to the outer one."""
    if "mode" not in policy.model_fields_set:
        return
    for name, one in [*collected.rules.items()][first:]:
        collected.rules[name] = _with_mode(one, policy.mode)


def _with_mode(one: _Written, mode: Mode) -> _Written:
    return one if one.rule.mode else replace(one, rule=one.rule.model_copy(update={"mode": mode}))


def _settings(policy: Policy, before: dict[str, Any]) -> dict[str, Any]:
    """What a file sets beside its rules; what it leaves out stays as set by those before."""
    given = {key: getattr(policy, key) for key in MERGED if key in policy.model_fields_set}
    if "budget" in given:
        budget: Budget = before.get("budget", Budget())
        update = {key: getattr(policy.budget, key) for key in policy.budget.model_fields_set}
        given["budget"] = budget.model_copy(update=update)
    return given


def _shipped_files() -> set[str]:
    return {f"{name}.yaml" for name in shipped()}


def _fit(one: _Written, facts: RunFacts) -> _Written | None:
    """A rule for this run, with the limits that the run itself sets.

    Of a command, what a policy of ours brings in about its numbers only advises; without such numbers it is left out.
    """
    rule, as_shipped = one.rule, one.document.name in _shipped_files() and "when" not in one.changed
    if not facts.own_trainer and as_shipped and rule.when.non_finite and facts.metrics is not None:
        rule = _with_detector(rule, "non_finite", metrics=_given(rule.when.non_finite.metrics, facts.metrics))
    if (as_shipped and _is_idle(rule, facts)) or (one.by_us and _lacks_its_object(rule, facts)):
        return None
    if as_shipped and rule.when.sdc and facts.checksum_every:
        rule = _with_detector(rule, "sdc", every=facts.checksum_every)
    if not facts.own_trainer and one.by_us and rule.when.detector not in FACTS:
        if any(_unknown_metrics(rule, facts)):
            return None
        rule = rule.model_copy(update={"mode": "advise"})
    if as_shipped and rule.when.draining and not (facts.own_trainer or facts.saves) and "mode" not in one.changed:
        rule = rule.model_copy(update={"mode": "advise"})  # nobody could tell it to save
    if as_shipped and rule.when.detector in BY_CHECKS and not (facts.own_trainer or facts.saves):
        rungs = (rung.model_copy(update={"replace": None}) for rung in rule.do)  # nobody could tell it to save
        rule = rule.model_copy(update={"do": tuple(rung for rung in rungs if rung.actions)})
    if not facts.own_trainer and as_shipped and "do" not in one.changed:
        rule = within_hearing(rule, facts)
    if not facts.shrinks:  # what cannot happen is not to be read in every decision
        rule = rule.model_copy(update={"do": tuple(rung.model_copy(update={"shrink": None}) for rung in rule.do)})
    if (hang := rule.when.hang) and hang.first_step is None and facts.first_step_s:
        rule = _with_detector(rule, "hang", first_step=facts.first_step_s)
    is_open = as_shipped or (hang is not None and "at_least" not in hang.model_fields_set)
    if hang and is_open and facts.least_hang_s and hang.at_least < facts.least_hang_s:
        rule = _with_detector(rule, "hang", at_least=facts.least_hang_s)
    return replace(one, rule=rule)


def _is_idle(rule: Rule, facts: RunFacts) -> bool:
    """Whether the trainer tells nothing of what a rule listens for."""
    return _is_deaf(rule, facts) or bool(rule.when.sdc and not facts.compares)


def _lacks_its_object(rule: Rule, facts: RunFacts) -> bool:
    """Whether there is no loss scale, or no scheduler, that a rule could be about."""
    if rule.when.scale_collapse:
        return facts.own_trainer and "loss_scale" not in facts.settings
    return rule.when.detector in ("scheduler", "time_left") and not facts.has_scheduler


def _following(rule: Rule, before: RunFacts, facts: RunFacts) -> Rule:
    """The rule with the limits set anew that the run had set in it."""
    hang, sdc = rule.when.hang, rule.when.sdc
    if hang and hang.first_step == before.first_step_s:
        return _with_detector(rule, "hang", first_step=facts.first_step_s)
    if sdc and _is_ours(rule) and facts.checksum_every and before.checksum_every in (0, sdc.every):
        return _with_detector(rule, "sdc", every=facts.checksum_every)
    return rule


def _is_ours(rule: Rule) -> bool:
    return rule.place.split(":")[0] in _shipped_files()


def _given(wanted: Sequence[str], given: frozenset[str]) -> tuple[str, ...]:
    """Of the metrics that a rule looks at, those there are; all of them when there is none."""
    return tuple(name for name in wanted if name in given) or tuple(wanted)


def _with_detector(rule: Rule, name: str, **changes: object) -> Rule:
    detector = getattr(rule.when, name).model_copy(update=changes)
    return rule.model_copy(update={"when": rule.when.model_copy(update={name: detector})})
