"""How well the shipped `numerics` sees loss spikes on labelled real curves, beside published rules, and its cost.

python benchmarks/detectors.py

Two levels, apart: an *onset* opens an incident and pins checkpoints; a *decision* goes back or holds.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import product

from harness import table
from published_rules import llm_foundry, megatron, metaseq, olmo_core, zclip
from scoring import LANGUAGE, Curve, Rule, Score, curves, poisson_limit, score, total, wilson

from launcher.curves import Row
from launcher.events import Decision, Event, IncidentOpened, Judgement, StepDone
from launcher.replay import events_of, replayed
from policies.answer import ENDS
from policies.load import load_policy
from policies.schema import Policy
from policies.schema import Rule as PolicyRule
from policies.watch import WATCHERS
from policies.when import When

ONSET, DECISION = "onset", "decision"
PUBLISHED: dict[str, Rule] = {
    "LLM Foundry KillLossSpike": llm_foundry,
    "Megatron spiky loss": megatron,
    "Megatron spiky loss, NaN": partial(megatron, non_finite=True),
    "metaseq EWM, ratio 1.5": partial(metaseq, ratio=1.5),
    "metaseq EWM, ratio 1.25": partial(metaseq, ratio=1.25),
    "OLMo-core 6 sigma": olmo_core,
    "ZClip as an alarm": zclip,
}
# What is tried in the cross-validation; the shipped values are in the middle.
GRID = {"above": (5, 8, 12), "at_least": (5, 15, 30), "heal_within": (10, 50, 200)}
TIMED_ROWS = 100_000


# ---------------------------------------------------------------- our rules on a curve


def ours(policy: Policy) -> dict[str, Rule]:
    """The rule of each level: the rows at which a policy, run by the engine as in a live run, answers."""
    return {level: partial(_answered, policy, level) for level in (ONSET, DECISION)}


def _answered(policy: Policy, level: str, rows: Sequence[Row]) -> Iterable[int]:
    replay = replayed(policy, "", events_of(rows, 1.0))
    position = {row.step: at for at, row in reversed([*enumerate(rows)])}
    return [position[replay.step_of(one)] for one in replay.judgements if _is_of(one, level)]


def _is_of(judgement: Judgement, level: str) -> bool:
    if isinstance(judgement, Decision):
        return level == DECISION and judgement.mode == "act" and bool(ENDS & judgement.actions.keys())
    return level == ONSET and isinstance(judgement, IncidentOpened)


# ---------------------------------------------------------------- tables


def scored(found: Sequence[Curve], rule: Rule) -> Score:
    return total(score(curve, rule(curve.rows)) for curve in found)


def share(successes: int, trials: int) -> str:
    """As in "0.97 (0.83 to 0.99)": a share with its 95 % interval."""
    low, high = wilson(successes, trials)
    return f"{successes / trials:.2f} ({low:.2f} to {high:.2f})" if trials else "-"


def line(name: str, result: Score) -> list[str]:
    fired = result.hits + len(result.false)
    per, most = 1e5 / result.rows, poisson_limit(len(result.false))
    unasked = sum(kind in ("blip", "bimodal_noise") for kind in result.false)
    return [
        name,
        f"{result.hits} of {result.positives}",
        share(result.hits, fired),
        share(result.hits, result.positives),
        f"{len(result.false)} ({unasked})",
        f"{len(result.false) * per:.1f} (at most {most * per:.1f})",
        "-" if math.isnan(result.delay) else f"{result.delay:g}",
        "-" if math.isnan(result.early) else f"{result.early:.2f}",
    ]


HEAD = ["rule", "hit", "precision", "recall", "false (on blips, two levels)", "false per 100,000 rows", "delay, rows",
        "early"]  # fmt: skip


def overall(found: Sequence[Curve], policy: Policy) -> str:
    rules = {f"numerics, {level}": rule for level, rule in ours(policy).items()} | PUBLISHED
    return table(HEAD, [line(name, scored(found, rule)) for name, rule in rules.items()])


def by_curve(found: Sequence[Curve], policy: Policy) -> str:
    rows = []
    for curve in found:
        levels = {level: score(curve, rule(curve.rows)) for level, rule in ours(policy).items()}
        if not any(one.positives or one.false for one in levels.values()):
            continue
        onset, decision = levels[ONSET], levels[DECISION]
        cells = [f"{one.hits} of {one.positives}, {len(one.false)} false" for one in (onset, decision)]
        rows.append([curve.name, str(len(curve.rows)), *cells, f"{decision.delay:g}"])
    return table(["curve", "rows", "onset", "decision", "delay, rows"], rows)


# ---------------------------------------------------------------- what generalises


def settings() -> list[dict[str, float]]:
    return [dict(zip(GRID, values, strict=True)) for values in product(*GRID.values())]


def with_spike(policy: Policy, setting: dict[str, float]) -> Policy:
    """The spike rule of a policy alone, with other parameters."""
    (rule,) = (rule for rule in policy.rules if rule.when.spike)
    texts = {"above": f"{setting['above']} sigma", "at_least": f"{setting['at_least']} %"}
    when = When.model_validate({"spike": texts | {"heal_within": setting["heal_within"]}})
    return policy.model_copy(update={"rules": (rule.model_copy(update={"when": when}),)})


def cross_validated(found: Sequence[Curve], policy: Policy) -> str:
    """Parameters chosen on all sources but one, judged on that one; and how much the choice matters at all."""
    tried = settings()
    by_setting: list[dict[str, Score]] = []
    for setting in tried:
        rule, scores = ours(with_spike(policy, setting))[DECISION], dict[str, Score]()
        for curve in found:
            scores[curve.source] = scores.get(curve.source, Score()) + score(curve, rule(curve.rows))
        by_setting.append(scores)
    sources = sorted({curve.source for curve in found})
    held_out: list[Score] = []
    for source in sources:

        def on_others(scores: dict[str, Score], out: str = source) -> float:
            return total(one for name, one in scores.items() if name != out).f1

        best = max(map(on_others, by_setting))
        chosen = [at for at, scores in enumerate(by_setting) if on_others(scores) == best]
        held_out.append(by_setting[chosen[len(chosen) // 2]][source])
    f1 = sorted(total(scores.values()).f1 for scores in by_setting)
    false = sorted(len(total(scores.values()).false) for scores in by_setting)
    text = (
        f"Of {len(tried)} settings (`above` {_ends('above')} sigma, `at_least` {_ends('at_least')} %, `heal_within` "
        f"{_ends('heal_within')} steps) F1 is {f1[0]:.3f} to {f1[-1]:.3f}, median {f1[len(f1) // 2]:.3f}, and "
        f"false decisions are {false[0]} to {false[-1]}, median {false[len(false) // 2]}."
    )
    name = f"decision, each of {len(sources)} sources left out once"
    return table(HEAD, [line(name, total(held_out))]) + "\n\n" + text


def _ends(name: str) -> str:
    return f"{GRID[name][0]} to {GRID[name][-1]}"


# ---------------------------------------------------------------- cost


def timed() -> str:
    """CPU time of a calm run of 100,000 steps: each detector by itself, and the engine with all of them."""
    generator = random.Random(1)
    steps = [_calm(step, generator) for step in range(TIMED_ROWS)]
    rows = []
    rules = tuple(_rule(name) for name in WATCHERS)
    for name, (watch, memory) in WATCHERS.items():
        detector = getattr(_rule(name).when, name)
        rows.append([name, f"{best(partial(_watch, watch, detector, memory, steps)) / TIMED_ROWS * 1e6:.1f}"])
    policy = load_policy(["numerics"]).model_copy(update={"rules": rules})
    events: list[Event] = [*events_of([Row(0, {})], 1.0)][:2] + steps
    whole = best(lambda: replayed(policy, "", events))
    rows.append(["the engine with all of them", f"{whole / TIMED_ROWS * 1e6:.1f}"])
    default = best(lambda: replayed(load_policy(["default"]), "", events))
    told = f"Replay of {TIMED_ROWS:,} steps: {whole:.1f} s with all of them, {default:.1f} s under `default`."
    return f"{table(['detector', 'microseconds a step'], rows)}\n\n{told}"


def _calm(step: int, generator: random.Random) -> StepDone:
    metrics = {
        "loss": generator.gauss(2.0, 0.05), "grad_norm": abs(generator.gauss(1.0, 0.1)), "loss_scale": 65536.0,
        "activation_norm": generator.gauss(30.0, 0.1),
    }  # fmt: skip
    times = tuple(generator.gauss(1.0, 0.02) for _ in range(8))
    return StepDone(at=float(step), attempt=1, step=step, metrics=metrics, step_s=1.0, compute_s=times)


def _rule(name: str) -> PolicyRule:
    text = {"name": name.replace("_", "-"), "when": {name: {}}, "do": [{"hold": {}}], "mode": "advise"}
    return PolicyRule.model_validate(text)


def _watch(
    watch: Callable[..., tuple[object, object]], detector: object, memory: object, steps: list[StepDone]
) -> None:
    for step in steps:
        memory, _ = watch(detector, memory, step, learning=False)


def best(work: Callable[[], object], times: int = 3) -> float:
    """The least CPU seconds of some tries: other programs only add to it."""
    taken = []
    for _ in range(times):
        began = time.process_time()
        work()
        taken.append(time.process_time() - began)
    return min(taken)


def main() -> None:
    found, policy = curves(), load_policy(["numerics"])
    language = [curve for curve in found if any(word in curve.name for word in LANGUAGE)]
    print(f"{len(found)} curves, {sum(len(curve.rows) for curve in found):,} rows\n\n{overall(found, policy)}\n")
    print(f"Language models alone, {len(language)} curves\n\n{overall(language, policy)}\n")
    print(f"Left out and chosen anew\n\n{cross_validated(found, policy)}\n")
    print(f"Curves with events, or with a false alarm\n\n{by_curve(found, policy)}\n")
    print(timed())


if __name__ == "__main__":
    main()
