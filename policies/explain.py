"""Why a rule fired, and why those before it did not, as text for a person. Pure."""

from __future__ import annotations

from launcher.events import Decision, Json
from policies.exits import unmatched
from policies.schema import Policy, Rule
from policies.units import format_duration

_BUILT_IN = {
    "no-rule": "built in: a failure that no rule handles is held",
    "checkpoint-rejected": "built in: a damaged checkpoint is passed over, uncounted",
    "settings-differ": "built in: settings that the trainer did not take are not trained with",
    "hold-retry": "built in: a hold with 'retry' is tried again, uncounted",
    "early-end": "built in: ranks that end before the goal are started again, uncounted, as long as they get further",
    "person": "a person",
}


def explain(policy: Policy, decision: Decision) -> str:
    """The story of a decision: what was seen, which rule, which rung, what is done, at what cost."""
    rule = next((one for one in policy.rules if one.name == decision.rule), None)
    place = f"incident {decision.incident}, attempt {decision.attempt}{_at_step(decision)}"
    lines = [f"{place}: {decision.why or decision.detector}"]
    lines.append(f"  rule:    {_rule(rule, decision)}")
    if decision.ranks or decision.nodes:
        lines.append(f"  about:   {_whom(decision)}")
    numbers = {key: value for key, value in decision.evidence.items() if key not in ("budget", "step")}
    if numbers:
        lines.append(f"  numbers: {', '.join(f'{key} {_short(value)}' for key, value in numbers.items())}")
    deed = {"advise": "would", "ask": "asks"}.get(decision.mode, "does")
    lines.append(
        f"  {deed}:".ljust(11) + (", ".join(_action(*action) for action in decision.actions.items()) or "nothing")
    )
    if decision.mode == "ask":
        left = format_duration(round(decision.due_at - decision.at, 3))
        lines.append(
            f"  answer:  within {left}: incidents RUN approve {decision.incident}, or hold; else {decision.otherwise}"
        )
    if decision.delay_s:
        lines.append(f"  waits:   {format_duration(decision.delay_s)} before the restart")
    if budget := decision.evidence.get("budget"):
        lines.append(f"  budget:  {budget}")
    lines += [f"  not:     {text}" for text in _passed_over(policy, decision)]
    return "\n".join(lines)


def _at_step(decision: Decision) -> str:
    """How many steps were done, as everywhere; trainers count them from 0."""
    step = decision.evidence.get("step")
    return f", at step {step + 1:,}" if isinstance(step, int) and step >= 0 else ""


def _rule(rule: Rule | None, decision: Decision) -> str:
    if rule is None:
        return _BUILT_IN.get(decision.rule, decision.rule)
    place = f" ({rule.place})" if rule.place else ""
    rung = f", rung {decision.rung} of {len(rule.do)}" if decision.rung else ""
    times = rule.do[decision.rung - 1].times if 0 < decision.rung <= len(rule.do) else None
    per = rule.do[decision.rung - 1].per if times else None
    often = f", {times} per {per or 'run'}" if times else ""
    return f"{rule.name}{place}{rung}{often}"


def _whom(decision: Decision) -> str:
    ranks = f"rank {', '.join(map(str, decision.ranks[:8]))}" if decision.ranks else ""
    nodes = f"on {', '.join(decision.nodes[:8])}" if decision.nodes else ""
    blame = "" if decision.blame == "none" else f" ({decision.blame})"
    return f"{ranks} {nodes}".strip() + blame


def _action(name: str, value: Json) -> str:
    if isinstance(value, dict):
        if name == "restart":
            return f"restart from {value.get('from')}" + (" after a save" if value.get("save_first") else "")
        if name == "set":
            return "set " + ", ".join(f"{key} {item}" for key, item in value.items())
        if name == "skip":
            return f"skip {value.get('batches')} batches around the onset"
        return f"{name} {', '.join(str(item) for item in value.values())}".strip()
    return f"{name} if need be" if value is True else f"{name} {_short(value)}"


def _short(value: Json) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    if isinstance(value, dict):
        return "; ".join(f"{key}: {item}" for key, item in value.items())
    return str(value)


def _passed_over(policy: Policy, decision: Decision) -> list[str]:
    """Rules of the same detector, before the one that decided, and why they did not."""
    told: list[str] = []
    for rule in policy.rules:
        if rule.name == decision.rule:
            break
        if rule.when.detector != decision.detector:
            continue
        unmet = unmatched(rule.when.exit, decision.evidence) if rule.when.exit else []
        if unmet:
            reason = f"its {' and '.join(unmet)} did not match"
        else:
            reason = "it only advises" if rule.mode == "advise" else "it was in its cooldown"
        told.append(f"{rule.name} ({rule.place}): {reason}" if rule.place else f"{rule.name}: {reason}")
    return told
