"""What a policy would have made of old runs, as text and as lines of JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from launcher.errors import LaunchError
from launcher.events import Decision, IncidentClosed, Judgement
from launcher.replay import Bill, Costs, Replay, bill, deed, gpu_hours, replay
from launcher.view.words import counted
from policies.schema import Policy


def replays(policy: Policy, records: Sequence[tuple[str, Path]], costs: Costs) -> Iterator[Replay]:
    """Each record through the policy; a bar on stderr where there are several and that is a terminal.

    A folder may hold tables of other things too: what is no record is left out, and that is said on stderr. Raises
    LaunchError where none is one.
    """
    refused: list[LaunchError] = []
    for name, record in _shown(records):
        try:
            one = replay(policy, name, record, costs)
        except LaunchError as error:
            refused.append(error)
            if len(records) > 1:
                print(f"left out: {error.where}: {error.message}", file=sys.stderr)
            continue
        yield one
    if len(refused) == len(records):
        raise refused[0]


def _shown(records: Sequence[tuple[str, Path]]) -> Iterable[tuple[str, Path]]:
    if len(records) < 2 or not sys.stderr.isatty():
        return records
    from rich.console import Console
    from rich.progress import track

    return track(records, "replaying", console=Console(stderr=True), transient=True)


def lines_of(one: Replay, costs: Costs) -> Iterator[str]:
    """A line of JSON for each onset and each decision: what programs read."""
    return (json.dumps(line, allow_nan=False) for line in _lines(one, costs))


def _lines(one: Replay, costs: Costs) -> Iterator[dict[str, Any]]:
    for judgement in one.judgements:
        if isinstance(judgement, IncidentClosed):
            continue
        common = {
            "curve": one.name,
            "step": one.step_of(judgement),
            "onset": judgement.onset_step,
            "rule": judgement.rule,
            "incident": judgement.incident,
            "why": judgement.why,
        }
        if not isinstance(judgement, Decision):
            yield common | {"kind": "onset", "action": "none", "mode": "watch"}
            continue
        cost = bill(one, judgement, costs)
        yield common | {
            "kind": "decision",
            "action": deed(judgement),
            "mode": judgement.mode,
            "steps_if_done": cost.acting,
            "steps_if_not": cost.waiting,
            "gpu_hours_if_done": gpu_hours(cost.acting, one, costs),
            "gpu_hours_if_not": gpu_hours(cost.waiting, one, costs),
        }


def text_of(one: Replay, costs: Costs) -> list[str]:
    """The story of one record, for a person."""
    lines = [f"{one.name}: {counted(one.rows, 'row')}, {_summary(one)}"]
    for judgement in one.judgements:
        lines.append(f"  step {one.step_of(judgement):>9,}  {_said(one, judgement, costs)}")
    return lines


def _summary(one: Replay) -> str:
    acts = sum(decision.mode == "act" for decision in one.decisions)
    advice = len(one.decisions) - acts
    parts = [counted(len(one.opened), "onset"), counted(acts, "decision")]
    return ", ".join([*parts, counted(advice, "advised one")] if advice else parts)


def _said(one: Replay, judgement: Judgement, costs: Costs) -> str:
    if isinstance(judgement, IncidentClosed):
        return f"{judgement.outcome}: {judgement.why}"
    if not isinstance(judgement, Decision):
        return f"onset of {judgement.rule}: {judgement.why}"
    would = "would only be told" if judgement.mode == "advise" else "decided"
    lines = f"{would}: {judgement.rule}: {deed(judgement)}: {judgement.why}"
    if judgement.detector and deed(judgement) == "restart":
        lines += f"; {_cost(bill(one, judgement, costs), one, costs)}"
    return lines


def _cost(cost: Bill, one: Replay, costs: Costs) -> str:
    def shown(steps: int) -> str:
        hours = gpu_hours(steps, one, costs)
        return f"{counted(steps, 'step')}" + ("" if hours is None else f", {hours:.1f} GPU-hours")

    return f"costs {shown(cost.acting)}; doing nothing {shown(cost.waiting)}"
