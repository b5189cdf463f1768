"""A run asked for in another way: its resolved spec with changes, for a resume or for a branch without a RUN.yaml."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from launcher.declared import exit_rules, facts_of
from launcher.document import read_document
from launcher.errors import ConfigError, Mistake
from launcher.events import Json
from launcher.paths import RunPaths
from launcher.run import Run
from launcher.sections import RunSpec
from launcher.spec import ResolvedSpec, flat, read_resolved, resolve_again
from launcher.variables import read_variables
from policies.load import RunFacts, read_policy, refit
from policies.schema import Policy

# What a checkpoint of our trainer has in common with every run that goes on from it.
IDENTITY = ("size", "tokenizer", "vocabulary", "seq_len", "seed", "data", "text_key", "held_out")
_SECRET = re.compile(r"launch\.env\..*(KEY|TOKEN|SECRET|PASS)", re.IGNORECASE)
_SLURM_FLAGS = ("partition", "time")


@dataclass(frozen=True)
class Amended:
    """A spec with changes; `changes`: key -> what it was, and what it is."""

    resolved: ResolvedSpec
    changes: Mapping[str, Json]


def amend(paths: RunPaths, run: Run, overrides: Sequence[str], flags: Mapping[str, Any], author: str) -> Amended:
    """The run's spec as it is to go on. Raises ConfigError with the mistakes, also for what may not change in a run."""
    old = read_resolved(paths.spec)
    who = f"resume by {author}, {time.strftime('%Y-%m-%d %H:%M:%S')}"
    new = respecified(paths, overrides, flags, who, read_variables(paths))
    refusals = _refusals(run, old, new.spec)
    mistakes = [Mistake(_origin_of(new, key).removesuffix(f"; {who}"), message) for key, message in refusals]
    if mistakes:
        raise ConfigError(mistakes)
    return Amended(new, changes(old, new.spec))


def respecified(
    paths: RunPaths,
    overrides: Sequence[str],
    flags: Mapping[str, Any],
    who: str = "",
    known: Mapping[str, str] = MappingProxyType({}),
) -> ResolvedSpec:
    """The resolved spec of a run folder with changes, checked as at submit. The policy stays unless one is named.

    `known`: variables that were taken from the environment before.
    """
    old = read_resolved(paths.spec)
    given = {name: value for name, value in flags.items() if value not in (None, [], ())}
    names_policy = "policy" in given or any(text.partition("=")[0].strip() == "policy" for text in overrides)

    def kept(facts: RunFacts) -> tuple[Policy, list[Mistake]]:
        stored, of_codes = read_policy(paths.policy), {rule.name for rule in exit_rules(old)}
        own = stored.model_copy(update={"rules": tuple(rule for rule in stored.rules if rule.name not in of_codes)})
        return refit(own, facts_of(old), facts, str(paths.policy))

    overrides = [*_fitting_degrees(old, overrides, given), *overrides]
    policy_for = None if names_policy else kept
    new = resolve_again(read_document(paths.spec), overrides, given, policy_for, known)
    if useless := [flag for flag in _SLURM_FLAGS if flag in given and new.spec.cluster.backend != "slurm"]:
        message = f"the run is on backend {new.spec.cluster.backend}, which has none"
        raise ConfigError([Mistake(f"--{flag} {given[flag]}", message) for flag in useless])
    return ResolvedSpec(new.spec, _origins(paths, new, who), new.policy)


def changes(old: RunSpec, new: RunSpec) -> dict[str, Json]:
    """What differs, by key: the old value and the new one, None where there is none. Secrets are not told."""
    before, after = flat(old), flat(new)
    return {
        key: ["***", "***"] if _SECRET.match(key) else [before.get(key), after.get(key)]
        for key in dict.fromkeys([*before, *after])
        if before.get(key) != after.get(key) and {} not in (before.get(key), after.get(key))
    }


def _fitting_degrees(old: RunSpec, overrides: Sequence[str], flags: Mapping[str, Any]) -> list[str]:
    """With another number of ranks, and no word on how they share the model: fsdp takes what tensor leaves."""
    asked = {key.strip(): value for key, _, value in (text.partition("=") for text in overrides)}
    if old.trainer is None or any(key.startswith("trainer.parallel") for key in asked):
        return []
    try:
        nodes = int(flags.get("nodes") or asked.get("cluster.nodes") or old.cluster.nodes)
        ranks = nodes * int(asked.get("cluster.ranks_per_node") or old.cluster.ranks_per_node)
    except ValueError:
        return []  # a mistake that the checks will tell
    fsdp, rest = divmod(ranks, old.trainer.parallel.tensor)
    changed = fsdp and not rest and fsdp != old.trainer.parallel.fsdp
    return [f"trainer.parallel.fsdp={fsdp}"] if changed else []


def _refusals(run: Run, old: RunSpec, new: RunSpec) -> list[tuple[str, str]]:
    """What may not change in a run that goes on: the key, and why."""
    found: list[tuple[str, str]] = []
    if new.name != old.name:
        hint = f"opt-launch submit --from {old.name}@latest --name {new.name} begins a branch"
        found.append(("name", f"a run keeps its name: {hint}"))
    if (old.trainer is None) != (new.trainer is None):
        return [*found, ("trainer", "its checkpoints are of the other kind of trainer: submit another run")]
    if old.trainer is None or new.trainer is None:
        return found
    for name in IDENTITY:
        before, after = getattr(old.trainer, name), getattr(new.trainer, name)
        if before != after:
            message = f"{name} is {_shown(before)} in the run's checkpoints and cannot become {_shown(after)}"
            found.append((f"trainer.{name}", f"{message}: submit another run"))
    if new.trainer.steps <= run.step and new.trainer.steps != old.trainer.steps:
        hint = f"opt-launch submit --from {old.name}@STEP begins a branch at an earlier step"
        found.append(
            ("trainer.steps", f"{run.step} steps are done, so {new.trainer.steps} leave nothing to do: {hint}")
        )
    return found


def _shown(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _origin_of(resolved: ResolvedSpec, key: str) -> str:
    """The flag that set this, or a part of it."""
    return next((origin for name, origin in resolved.origins.items() if name.startswith(key)), key)


def _origins(paths: RunPaths, new: ResolvedSpec, who: str) -> dict[str, str]:
    """Of what stays, the origin it had; of what was changed, the flag and who gave it."""
    document = read_document(paths.spec)
    known = {".".join(map(str, path)): document.comment(path) for path in document.values if path}
    given = {key: f"{origin}; {who}" if who else origin for key, origin in new.origins.items() if origin[:2] == "--"}
    return {key: given.get(key) or known.get(key, origin) for key, origin in new.origins.items()}
