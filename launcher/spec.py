"""RUN.yaml, flags and defaults become one resolved spec in which every value knows where it came from.

What comes first wins: a flag, `--set`, RUN.yaml, the site's defaults, built in.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from launcher.declared import exit_rules, facts_of
from launcher.document import Document, Path_, read_document
from launcher.errors import ConfigError, Mistake
from launcher.preflight import problems
from launcher.sections import BYTES, RunSpec
from launcher.site import LEDGER, for_backend, read_site
from launcher.sources import BUILT_IN, Override, Sources, merged, parsed_overrides, value_of, with_value
from launcher.validation import Finding, validated
from policies.load import RunFacts, Source, is_path, read_policies
from policies.schema import Policy

__all__ = [
    "FLAGS", "OF_RUN", "ResolvedSpec", "RunSpec", "dump_resolved", "flat", "from_command_line", "load_spec",
    "read_resolved", "resolve", "resolve_again", "resolve_asked",
]  # fmt: skip

# The flags of the command line that set a value of the spec.
FLAGS: dict[str, str] = {
    "name": "name",
    "backend": "cluster.backend",
    "nodes": "cluster.nodes",
    "spares": "cluster.spares",
    "policy": "policy",
    "partition": "cluster.slurm.partition",
    "account": "cluster.slurm.account",
    "time": "cluster.slurm.time",
}
PolicyFor = Callable[[RunFacts], tuple[Policy | None, list[Mistake]]]
OF_RUN = "opt-launch run"  # the origin of what only that command may set


@dataclass(frozen=True)
class ResolvedSpec:
    """A spec, the policy it names, and where each value of the spec (by dotted key) came from."""

    spec: RunSpec
    origins: Mapping[str, str]
    policy: Policy


def load_spec(path: Path, overrides: Sequence[str] = (), flags: Mapping[str, Any] | None = None) -> ResolvedSpec:
    """The resolved spec of a RUN.yaml. `overrides` are `key.sub=value`; `flags` go by the names in FLAGS.

    Paths in a file are relative to its folder, those of the command line to the working folder; all are
    absolute afterwards. Raises ConfigError with every mistake found.
    """
    return resolve(read_document(path), overrides, flags)


def resolve(file: Document, overrides: Sequence[str] = (), flags: Mapping[str, Any] | None = None) -> ResolvedSpec:
    """As `load_spec`, of a RUN.yaml that has been read."""
    return resolve_asked(file, *from_command_line(overrides, flags or {}))


def resolve_again(
    file: Document,
    overrides: Sequence[str],
    flags: Mapping[str, Any],
    policy_for: PolicyFor | None,
    known: Mapping[str, str],
) -> ResolvedSpec:
    """As `load_spec`, of a spec that was resolved before: the site has nothing to add to it.

    `policy_for` gives the policy in place of those that are named. `known`: variables of the environment that need not
    be set any more.
    """
    asked, mistakes = from_command_line(overrides, flags)
    return _resolved(Sources(file, asked), mistakes, policy_for, known)


def from_command_line(overrides: Sequence[str], flags: Mapping[str, Any]) -> tuple[list[Override], list[Mistake]]:
    """What the command line asks for, and the mistakes in it."""
    asked, mistakes = parsed_overrides(overrides)
    asked += [
        Override(tuple(FLAGS.get(name, name).split(".")), _plain(value), f"--{name} {_words(value)}")
        for name, value in flags.items()
        if value is not None and value not in ([], ())
    ]
    return asked, mistakes


def resolve_asked(
    file: Document,
    asked: Sequence[Override],
    found: Sequence[Mistake] = (),
    built_in: Mapping[str, Any] | None = None,
) -> ResolvedSpec:
    """As `load_spec`, of what was asked for beside the file, with the mistakes `found` in it.

    `built_in`: what counts where not even the site says something.
    """
    site, mistakes = read_site(os.environ)
    site = for_backend(site, Sources(file, asked, site).values()[0])
    sources = Sources(file, asked, replace(site, value=merged(built_in or {}, site.value)))
    return _resolved(sources, [*mistakes, *found])


def _resolved(
    sources: Sources,
    found: Sequence[Mistake],
    policy_for: PolicyFor | None = None,
    known: Mapping[str, str] = MappingProxyType({}),
) -> ResolvedSpec:
    """What all of it comes to. Raises ConfigError with every mistake, those `found` before among them."""
    values, misplaced = sources.values()
    mistakes = [*found, *misplaced]
    spec, findings = validated(RunSpec, _with_absolute_paths(values, sources))
    if spec is None and isinstance(values, dict) and any(place == ("name",) for place, _ in findings):
        spec, _ = validated(RunSpec, _with_absolute_paths({**values, "name": "stand-in"}, sources))
    policy = None
    if spec is not None:
        wrong = [".".join(map(str, place)) for place, _ in findings]
        findings += [
            (_pointed_at(about, sources.overrides), message)
            for message, about in problems(spec, {**known, **os.environ})
            if not any(_touches(key, place) for key in about for place in wrong)
        ]
        findings += _not_by_hand(spec, sources)
        facts = facts_of(spec)
        policy, from_policy = policy_for(facts) if policy_for else read_policies(_policy_sources(spec, sources), facts)
        mistakes += from_policy
    mistakes = [sources.mistake(finding) for finding in findings] + mistakes
    if mistakes or spec is None or policy is None:
        raise ConfigError(sorted(mistakes, key=lambda one: (one.line == 0, one.where != sources.file.name, one.line)))
    policy = policy.model_copy(update={"rules": (*exit_rules(spec), *policy.rules)})
    return ResolvedSpec(spec, dict(_origins(spec, sources)), policy)


def dump_resolved(resolved: ResolvedSpec) -> str:
    """The spec as YAML that `read_resolved` reads back, each value with its origin beside it."""
    values = resolved.spec.model_dump(exclude_none=True, by_alias=True)
    head = "# Resolved: behind each value is where it came from."
    return "\n".join([head, *_yaml_lines(values, resolved.origins)]) + "\n"


def read_resolved(path: Path) -> RunSpec:
    """The spec of a run folder. Its meaning was checked when the run was submitted."""
    document = read_document(path)
    spec, findings = validated(RunSpec, document.value)
    if spec is None or findings:
        raise ConfigError([Sources(document).mistake(finding) for finding in findings])
    return spec


def _not_by_hand(spec: RunSpec, sources: Sources) -> Iterator[Finding]:
    path = ("cluster", "backend")
    if spec.cluster.backend == "own" and sources.origin(path) != OF_RUN:
        yield path, "'cluster.backend: own' is for runs that 'opt-launch run' starts: give it the script"


def _plain(value: Any) -> Any:
    return [str(item) for item in value] if isinstance(value, (list, tuple)) else value


def _words(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


_FILES: tuple[tuple[Path_, Callable[[str], bool]], ...] = (
    (("trainer", "data"), lambda text: text != "python"),
    (("trainer", "tokenizer"), lambda text: text != BYTES),
    (("policy",), is_path),
    (LEDGER, bool),
)


def _with_absolute_paths(values: Any, sources: Sources) -> Any:
    """Paths of corpus, tokenizer, policies and host ledger made absolute."""
    for path, names_a_file in _FILES:
        given = value_of(values, path)
        if not isinstance(given, (list, str)):
            continue
        base = sources.folder(path)
        full = [
            str(base / Path(item).expanduser()) if isinstance(item, str) and item and names_a_file(item) else item
            for item in (given if isinstance(given, list) else [given])
        ]
        values, _ = with_value(values, path, full if isinstance(given, list) else full[0])
    return values


def _pointed_at(about: Sequence[str], asked: Sequence[Override]) -> Path_:
    """Where to show a problem with these keys: at the first, or rather at one by which the run differs from others."""
    for one in asked:
        for key in about:
            if one.written and _touches(key, ".".join(map(str, one.path))):
                return max(_place_of(key), one.path, key=len)
    return _place_of(about[0])


def _place_of(key: str) -> Path_:
    return tuple(int(part) if part.isdigit() else part for part in key.split("."))


def _touches(key: str, wrong: str) -> bool:
    """Whether a key lies in a wrong part, or a wrong part in it."""
    return key == wrong or key.startswith(wrong + ".") or wrong.startswith(key + ".")


def _policy_sources(spec: RunSpec, sources: Sources) -> list[Source]:
    """The named policies, each with the place to show when it cannot be found."""
    return [Source(name, sources.mistake((("policy", index), ""))) for index, name in enumerate(spec.policy)]


def flat(spec: RunSpec) -> dict[str, Any]:
    """Every value that is set, by its dotted key, as JSON has it."""
    values = spec.model_dump(mode="json", exclude_none=True, by_alias=True)
    return {".".join(map(str, path)): value_of(values, path) for path in _leaves(values)}


def _leaves(values: Mapping[str, Any], path: Path_ = ()) -> Iterator[Path_]:
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, (*path, key))
        else:
            yield (*path, key)


def _origins(spec: RunSpec, sources: Sources) -> Iterator[tuple[str, str]]:
    for path in _leaves(spec.model_dump(exclude_none=True, by_alias=True)):
        yield ".".join(map(str, path)), sources.origin(path)


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
