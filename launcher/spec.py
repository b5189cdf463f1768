"""RUN.yaml, flags and defaults become one resolved spec in which every value knows where it came from.

What comes first wins: a flag, `--set`, RUN.yaml, built in.
"""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.document import Document, Path_, parse_value, read_document
from launcher.errors import ConfigError, Mistake
from launcher.preflight import problems
from launcher.sections import RunSpec
from launcher.validation import PUT_IN_QUOTES, Finding, validated
from policies.load import RunFacts, Source, is_path, read_policies
from policies.schema import Policy

__all__ = ["FLAGS", "ResolvedSpec", "RunSpec", "dump_resolved", "load_spec", "read_resolved"]

# The flags of `submit` that set a value of the spec.
FLAGS: dict[str, str] = {
    "name": "name",
    "backend": "cluster.backend",
    "nodes": "cluster.nodes",
    "spares": "cluster.spares",
    "policy": "policy",
}
BUILT_IN = "built in"


@dataclass(frozen=True)
class ResolvedSpec:
    """A spec, the policy it names, and where each value of the spec (by dotted key) came from."""

    spec: RunSpec
    origins: Mapping[str, str]
    policy: Policy


@dataclass(frozen=True)
class _Override:
    """A value from the command line that takes the place of what RUN.yaml says."""

    path: Path_
    value: Any
    origin: str


def load_spec(path: Path, overrides: Sequence[str] = (), flags: Mapping[str, Any] | None = None) -> ResolvedSpec:
    """The resolved spec of a RUN.yaml. `overrides` are `key.sub=value`; `flags` go by the names in FLAGS.

    Paths in the file are relative to its folder, those of the command line to the working folder; all are
    absolute afterwards. Raises ConfigError with every mistake found.
    """
    document = read_document(path)
    asked, mistakes = _parsed_overrides(overrides)
    asked += [
        _Override(tuple(FLAGS.get(name, name).split(".")), _plain(value), f"--{name} {_words(value)}")
        for name, value in (flags or {}).items()
        if value is not None and value not in ([], ())
    ]
    values: Any = document.value
    for override in asked:
        values, problem = _with_value(values, override.path, override.value)
        mistakes += [Mistake(override.origin, problem)] if problem else []
    values = _with_absolute_paths(values, asked, path.parent)
    spec, findings = validated(RunSpec, values)
    policy = None
    if spec is not None:
        wrong = [".".join(map(str, place)) for place, _ in findings]
        findings += [
            (_place_of(about[0]), message)
            for message, about in problems(spec, os.environ)
            if not any(_touches(key, place) for key in about for place in wrong)
        ]
        policy, from_policy = read_policies(_policy_sources(spec, document, asked), _facts(spec))
        mistakes += from_policy
    mistakes = [_located(document, asked, finding) for finding in findings] + mistakes
    if mistakes or spec is None or policy is None:
        raise ConfigError(sorted(mistakes, key=lambda one: (one.line == 0, one.where != document.name, one.line)))
    return ResolvedSpec(spec, dict(_origins(spec, document, asked)), policy)


def dump_resolved(resolved: ResolvedSpec) -> str:
    """The spec as YAML that `read_resolved` reads back, each value with its origin beside it."""
    values = resolved.spec.model_dump(exclude_none=True)
    return "\n".join(["# Resolved when the run was submitted.", *_yaml_lines(values, resolved.origins)]) + "\n"


def read_resolved(path: Path) -> RunSpec:
    """The spec of a run folder. Its meaning was checked when the run was submitted."""
    document = read_document(path)
    spec, findings = validated(RunSpec, document.value)
    if spec is None or findings:
        raise ConfigError([_located(document, [], finding) for finding in findings])
    return spec


def _parsed_overrides(overrides: Sequence[str]) -> tuple[list[_Override], list[Mistake]]:
    parsed: list[_Override] = []
    mistakes: list[Mistake] = []
    for text in overrides:
        origin = f"--set {text}"
        key, equals, value = text.partition("=")
        if not equals or not all(key.strip().split(".")):
            mistakes.append(Mistake(origin, "write --set key.sub=value"))
            continue
        try:
            parsed.append(_Override(tuple(key.strip().split(".")), parse_value(value, origin), origin))
        except ConfigError as error:
            mistakes += error.mistakes
    return parsed, mistakes


def _plain(value: Any) -> Any:
    return [str(item) for item in value] if isinstance(value, (list, tuple)) else value


def _words(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def _with_value(values: Any, path: Path_, value: Any) -> tuple[Any, str]:
    """A copy of nested mappings with one value replaced, and what keeps it from being placed."""
    if not path:
        return value, ""
    if values is not None and not isinstance(values, dict):
        return values, f"what comes before {path[0]!r} is not a section"
    values = values or {}
    inner, problem = _with_value(values.get(path[0]), path[1:], value)
    return {**values, path[0]: inner}, problem


def _with_absolute_paths(values: Any, asked: Sequence[_Override], folder: Path) -> Any:
    """Corpus and policy paths made absolute: from the folder of the file, or the working folder for flags."""
    for path, names_a_file in ((("trainer", "data"), lambda text: text != "python"), (("policy",), is_path)):
        given = _get(values, path)
        if not isinstance(given, list):
            continue
        base = Path.cwd() if _override_of(asked, path) else folder.absolute()
        full = [
            str(base / Path(item).expanduser()) if isinstance(item, str) and item and names_a_file(item) else item
            for item in given
        ]
        values, _ = _with_value(values, path, full)
    return values


def _get(values: Any, path: Path_) -> Any:
    for part in path:
        values = values.get(part) if isinstance(values, dict) else None
    return values


def _override_of(asked: Sequence[_Override], path: Path_) -> _Override | None:
    """The override that set this path or something above it; the last one counts."""
    return next((one for one in reversed(asked) if one.path == path[: len(one.path)]), None)


def _located(document: Document, asked: Sequence[_Override], finding: Finding) -> Mistake:
    path, message = finding
    override = _override_of(asked, path)
    if override is None and not document.has(path):
        override = next((one for one in asked if one.path[: len(path)] == path), None)
    if override:
        return Mistake(override.origin, _for_a_shell(override, path, message))
    return document.mistake(path, message, at_key=message.startswith("unknown key"))


def _for_a_shell(override: _Override, path: Path_, message: str) -> str:
    """What is said about a file, said about --set: quotes for the value must get through the shell."""
    flag, _, setting = override.origin.partition(" ")
    key, _, value = setting.partition("=")
    if flag != "--set" or override.path != path or not message.endswith(PUT_IN_QUOTES):
        return message
    quoted = shlex.quote(f'{key}="{value}"')
    return f"{message.removesuffix(PUT_IN_QUOTES)}: write --set {quoted}"


def _place_of(key: str) -> Path_:
    return tuple(int(part) if part.isdigit() else part for part in key.split("."))


def _touches(key: str, wrong: str) -> bool:
    """Whether a key lies in a wrong part, or a wrong part in it."""
    return key == wrong or key.startswith(wrong + ".") or wrong.startswith(key + ".")


def _policy_sources(spec: RunSpec, document: Document, asked: Sequence[_Override]) -> list[Source]:
    """The named policies, each with the place to show when it cannot be found."""
    return [Source(name, _located(document, asked, (("policy", index), ""))) for index, name in enumerate(spec.policy)]


def _facts(spec: RunSpec) -> RunFacts:
    own_trainer = spec.trainer is not None
    return RunFacts(frozenset(spec.notify), own_trainer=own_trainer, first_step_s=spec.launch.first_step)


def _leaves(values: Mapping[str, Any], path: Path_ = ()) -> Iterator[Path_]:
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, (*path, key))
        else:
            yield (*path, key)


def _origins(spec: RunSpec, document: Document, asked: Sequence[_Override]) -> Iterator[tuple[str, str]]:
    for path in _leaves(spec.model_dump(exclude_none=True)):
        override = _override_of(asked, path)
        origin = override.origin if override else document.place(path) if document.has(path) else BUILT_IN
        yield ".".join(map(str, path)), origin


# Characters that JSON leaves as they are and YAML refuses to read.
_UNPRINTABLE = re.compile("[\x7f-\x84\x86-\x9f\ud800-\udfff\ufeff\ufffe\uffff]")


def _yaml_lines(values: Mapping[str, Any], origins: Mapping[str, str], path: tuple[str, ...] = ()) -> Iterator[str]:
    indent = "  " * len(path)
    for key, value in values.items():
        here = (*path, key)
        if isinstance(value, dict) and value:
            yield f"{indent}{_key(key)}:"
            yield from _yaml_lines(value, origins, here)
        else:
            origin = " ".join(origins.get(".".join(here), BUILT_IN).split())
            yield f"{indent}{_key(key)}: {_json(value)}  # {origin}"


def _key(key: str) -> str:
    return key if key.isidentifier() else _json(key)


def _json(value: Any) -> str:
    """JSON is YAML, and unlike a YAML dump it quotes every text."""
    text = json.dumps(value, ensure_ascii=False)
    return _UNPRINTABLE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)
