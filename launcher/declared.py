"""What a run declares of a trainer that is not ours: mistakes in it, and what the policy may count on."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from launcher.abilities import SETTINGS
from launcher.foreign import Telemetry
from launcher.sections import RunSpec
from launcher.sizes import smaller
from launcher.telemetry import PRESETS, flaw, tells_steps
from policies.meaning import RunFacts
from policies.schema import Rule

Problem = tuple[str, tuple[str, ...]]  # the message, and the dotted keys it is about

DECLARED = ("telemetry", "capabilities", "checkpoints")
# A trainer that only prints cannot say that it saves or evaluates: so long nothing it does not print is a hang.
UNDECLARED_S = 1800.0


def facts_of(spec: RunSpec) -> RunFacts:
    """What a policy must fit."""
    about: dict[str, Any] = {"channels": frozenset(spec.notify), "first_step_s": spec.launch.first_step}
    about["settings"] = spec.abilities.settings
    about["shrinks"] = bool(smaller(spec))
    about["has_scheduler"] = spec.cluster.backend != "local"
    about["requeues"] = spec.cluster.backend == "slurm" and spec.cluster.continue_by != "none"
    if spec.trainer:
        return RunFacts(**about, checksum_every=spec.trainer.checksum_every)
    told = spec.telemetry
    return RunFacts(
        **about,
        own_trainer=False,
        goes_back=spec.checkpoints is not None,
        skips=spec.abilities.skips,
        saves=not spec.abilities.refusal and (bool(spec.abilities.signal) or told is not None),
        metrics=told.metrics if told else None,
        least_hang_s=UNDECLARED_S if told and told.by_lines else None,
    )


def exit_rules(spec: RunSpec) -> list[Rule]:
    """What the exit codes of the trainer mean, as rules that come before those of the policy."""
    hold = {"hold": {"reason": "the trainer asks to be run again and again"}}
    again = [{"restart": {"from": "latest"}, "times": 8, "per": "24h"}, hold]
    rungs: dict[int, list[dict[str, object]]] = dict.fromkeys(spec.can.codes("rerun_same"), again)
    rungs |= {code: [{"stop": f"exit code {code} of the trainer means stop"}] for code in spec.can.codes("stop")}
    return [
        Rule.model_validate(
            {
                "name": f"exit-code-{code}",
                "when": {"exit": {"codes": [code]}},
                "do": do,
                "counts": False,
                "mode": "act",
                "place": "capabilities.exit_codes",
            }
        )
        for code, do in sorted(rungs.items())
    ]


def foreign_problems(spec: RunSpec) -> Iterator[Problem]:
    """What is wrong with what is declared."""
    if spec.trainer:
        for key in DECLARED:
            if getattr(spec, key) is not None:
                yield f"'{key}' is for a command: our own trainer needs none", (key,)
        return
    if spec.telemetry:
        yield from _patterns(spec.telemetry)
    yield from _told(spec)
    yield from _goal(spec, spec.telemetry)
    yield from _resume(spec)
    if spec.checkpoints:
        yield from _glob(spec.checkpoints.glob)


def _patterns(told: Telemetry) -> Iterator[Problem]:
    if told.from_ and not told.by_lines:
        yield "every rank that uses the reporter is heard: leave 'from' out", ("telemetry.from",)
    patterns = told.pattern or ()
    keys = [
        f"telemetry.pattern.{index}" if len(patterns) > 1 else "telemetry.pattern" for index in range(len(patterns))
    ]
    flaws = [flaw(pattern) for pattern in patterns]
    yield from ((message, (key,)) for message, key in zip(flaws, keys, strict=True) if message)
    if patterns and not any(flaws) and not any(map(tells_steps, patterns)):
        message = "no group tells the step: write (?P<step>\\d+) counted from 0, or (?P<steps_done>\\d+) counted from 1"
        yield message, (keys[0],)


def _told(spec: RunSpec) -> Iterator[Problem]:
    """What is told through the reporter needs a trainer that uses it."""
    by_lines = spec.telemetry is not None and spec.telemetry.by_lines
    for name in ("skip", *sorted(SETTINGS)) if by_lines else ():
        if getattr(spec.can, name) == "reporter":
            message = f"'capabilities.{name}: reporter' needs a trainer that uses it: 'telemetry: {{preset: reporter}}'"
            yield message, (f"capabilities.{name}", "telemetry")


def _goal(spec: RunSpec, told: Telemetry | None) -> Iterator[Problem]:
    preset = PRESETS.get(told.preset or "") if told else None
    if preset and preset.needs_goal and not spec.can.done:
        yield (
            "its progress bar is told from others by the number of steps: say it in capabilities: {done: {step: N}}",
            ("telemetry.preset",),
        )
    if spec.can.done and not told:
        yield "whether that step was reached is not known: say how in 'telemetry'", ("capabilities.done", "telemetry")


def _resume(spec: RunSpec) -> Iterator[Problem]:
    resume = spec.can.resume
    if spec.checkpoints and resume in (None, "none"):
        message = "'checkpoints' are of use only if the trainer can begin from one: say how in 'capabilities.resume'"
        yield message, ("checkpoints", "capabilities.resume")
    if not spec.checkpoints and resume not in (None, "none", "newest"):
        yield (
            "what to resume from is not known: say where the checkpoints are in 'checkpoints'",
            ("capabilities.resume",),
        )


def _glob(pattern: str) -> Iterator[Problem]:
    key = ("checkpoints.glob",)
    if "{step}" not in pattern:
        yield "{step} is missing: the name of a checkpoint must tell its step, as in out/ckpt-{step}", key
    elif unknown := re.search(r"\{(?!step\})[^}]*\}?", pattern):
        yield f"{unknown[0]} is not known here: write {{step}} for the step, * for anything", key
    elif "**" in pattern:
        yield "** is not known here: * stands for a part of one name", key
