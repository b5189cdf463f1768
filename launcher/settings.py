"""What a policy has changed of the training: settings, and samples that are left out. Pure.

Settings are kept as absolute values where the run's own are known, so that telling them twice changes nothing; else as
a factor of what the trainer was configured with. Samples are absolute: they are left out in every later attempt.
"""

from __future__ import annotations

from collections.abc import Sequence

from launcher.events import Decision, Json, SettingsApplied
from launcher.evolve import evolve
from launcher.run import Asking, Run

ONCE = "loss_scale"  # it moves by itself: asked for until a checkpoint holds it, and then no more
Span = tuple[int, int]


def asked_to_set(run: Run, decision: Decision) -> Run:
    """The run after a decision that changes settings: with its restart, or by the ranks that train."""
    change = decision.actions["set"]
    assert isinstance(change, dict)
    settings = {**run.settings, **{name: _changed(run, name, value) for name, value in change.items()}}
    run = evolve(run, settings=settings)
    if "restart" in decision.actions or run.live_attempt is None or run.pending is not None:
        return run
    wanted = {**(run.asking.settings if run.asking else {}), **{name: settings[name] for name in change}}
    return evolve(run, asking=Asking(decision.id, decision.at, wanted))


def _changed(run: Run, name: str, value: Json) -> Json:
    if not isinstance(value, str) or not value.startswith("x"):
        return value
    factor, present = float(value[1:]), run.settings.get(name, run.own_settings.get(name))
    if isinstance(present, (int, float)):
        return present * factor
    earlier = float(present[1:]) if isinstance(present, str) and present.startswith("x") else 1.0
    return f"x{earlier * factor:g}"


def applied(run: Run, event: SettingsApplied) -> Run:
    """The trainer has said what it goes on with."""
    live = run.live_attempt
    if live is None or live.number != event.attempt:
        return run
    if run.asking is not None and event.id == run.asking.id:
        run = evolve(run, asking=None)
    told = evolve(live, settings={**live.settings, **event.asked}, told_settings=True)
    return evolve(run, attempts=(*run.attempts[:-1], told))


def asked_by(run: Run, id_: str) -> dict[str, Json]:
    """The settings that the trainer speaks of; none if it has spoken of them before, or of what nobody asks for."""
    if run.asking is not None and id_ == run.asking.id:
        return dict(run.asking.settings)
    live = run.live_attempt
    return dict(live.settings) if live and not id_ and not live.told_settings else {}


def saved(run: Run) -> Run:
    """A checkpoint of the present attempt is there: what was set once is in it."""
    live = run.live_attempt
    if live is None or ONCE not in live.settings or ONCE not in run.settings:
        return run
    return evolve(run, settings={name: value for name, value in run.settings.items() if name != ONCE})


# ---------------------------------------------------------------- samples


def asked_to_skip(run: Run, decision: Decision) -> Run:
    """The run after a decision that leaves batches out: half of them before the onset, and as many from it on.

    Without an onset, those trained on last. Nothing is left out where the trainer tells of no samples.
    """
    asked = decision.actions["skip"]
    if run.newest_samples is None or not isinstance(asked, dict):
        return run
    step, first, end = run.newest_samples
    batches = int(str(asked["batches"]))
    onset = decision.onset_step if 0 <= decision.onset_step <= step else step + 1 - (batches + 1) // 2
    per_batch = end - first - sum(_overlap(span, (first, end)) for span in run.skips)
    start = back(end, (step + 1 - onset + batches // 2) * per_batch, run.skips)
    return evolve(run, skips=merged([*run.skips, (start, forth(start, batches * per_batch, run.skips))]))


def back(position: int, count: int, skips: Sequence[Span]) -> int:
    """The position from which `count` samples, those left out aside, lead to this one; 0 if there are not so many."""
    for first, end in sorted(skips, reverse=True):
        if first >= position or position - end >= count:
            continue
        count -= max(0, position - end)
        position = first
    return max(0, position - count)


def forth(position: int, count: int, skips: Sequence[Span]) -> int:
    """The position to which `count` samples, those left out aside, lead from this one."""
    for first, end in sorted(skips):
        if end <= position or first - position >= count:
            continue
        count -= max(0, first - position)
        position = end
    return position + count


def merged(spans: Sequence[Span]) -> tuple[Span, ...]:
    """Half-open ranges, sorted and joined where they touch."""
    found: list[Span] = []
    for first, end in sorted(span for span in spans if span[0] < span[1]):
        if found and first <= found[-1][1]:
            found[-1] = (found[-1][0], max(end, found[-1][1]))
        else:
            found.append((first, end))
    return tuple(found)


def _overlap(one: Span, other: Span) -> int:
    return max(0, min(one[1], other[1]) - max(one[0], other[0]))
