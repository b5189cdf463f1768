"""What is left of a ladder where the trainer cannot be told of all that it does. Pure."""

from __future__ import annotations

from policies.meaning import RunFacts
from policies.schema import Rule, Rung, Setting


def within_hearing(rule: Rule, facts: RunFacts) -> Rule:
    """The rule without what its command cannot be told; of rungs that then do the same, the first."""
    rungs: list[Rung] = []
    for rung in rule.do:
        heard = {} if rung.set is None else rung.set.model_dump(include={*facts.settings}, exclude_none=True)
        setting = Setting.model_validate(heard) if heard else None
        told = rung.model_copy(update={"skip": rung.skip if facts.skips else None, "set": setting})
        if told == rung or all(told.actions != other.actions for other in rungs):
            rungs.append(told)
    return rule.model_copy(update={"do": tuple(rungs)})
