"""The incidents of OPT-175B through shipped policies: what they would have decided, beside what people did.

python benchmarks/opt175b.py

It prints the page docs/opt175b.md, and writes it anew. The engine is shown what sensors would have seen, never what a
row says of cause and action (`Row.seen`); each verdict follows from what it decided.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from harness import table
from opt175b_record import EXCLUDE, RESTART, SKIP, Row, read_rows
from opt175b_replay import Outcome, outcomes
from opt175b_signs import NOTHING

from launcher.events import Decision
from policies.answer import ENDS
from policies.load import load_policy
from policies.schema import Policy, Rung

PAGE = Path(__file__).parent.parent / "docs" / "opt175b.md"
POLICIES = ("default", "opt175b")

AGREES, DIFFERS = "decision agrees", "differs"
UNDECIDABLE, PERSON = "not decidable from the record", "needs a person"
_OF_RULE = re.compile(r" [(]rule '[^']*'[)]$")
VERDICTS = (AGREES, DIFFERS, UNDECIDABLE, PERSON)

WORDS = {RESTART: "go back", EXCLUDE: "leave the node out", "lr": "lower the rate", "clip": "clip at less",
         "loss_scale": "begin the loss scale anew", SKIP: "leave data out"}  # fmt: skip
# What people may have done too without the record saying so: it does not tell of every restart that a change took.
UNSAID = frozenset({RESTART, EXCLUDE})
# Why people are needed for what they changed without a sign.
UNSEEN = "it was changed on purpose, and the record tells of nothing that a sensor saw"


# ---------------------------------------------------------------- what was decided


def deeds_of(decision: Decision | None) -> frozenset[str]:
    """What is done, in the words in which it is compared. Nothing of advice is done."""
    if decision is None or decision.mode != "act":
        return frozenset()
    changed = decision.actions.get("set")
    return frozenset(changed if isinstance(changed, dict) else ()) | (
        decision.actions.keys() & {RESTART, EXCLUDE, SKIP}
    )


def told(decision: Decision | None) -> str:
    """A decision in a few words."""
    if decision is None:
        return "nothing"
    done = [_told(name, value) for name, value in decision.actions.items() if name not in ("collect", "shrink")]
    return ("advise: " if decision.mode == "advise" else "") + " + ".join(done)


def _told(name: str, value: object) -> str:
    match name, value:
        case "restart", {"from": from_}:
            return f"restart from {from_}"
        case "set", dict():
            return " + ".join(f"set {key} {change}" for key, change in value.items())
        case "skip", {"batches": batches}:
            return f"skip {batches} batches"
        case "exclude", _:
            return "exclude the node"
        case "save", _:
            return "save"
        case _:
            return name


# ---------------------------------------------------------------- verdicts


def verdict(policy: Policy, row: Row, found: Sequence[Outcome]) -> tuple[str, str]:
    """The verdict on a row and its because: that of every sign that fits, or else it cannot be decided."""
    each = [_compared(policy, row, one) for one in found]
    if len({kind for kind, _ in each}) > 1:
        return UNDECIDABLE, _by_sign(found)
    because = "; or ".join(dict.fromkeys(because for _, because in each))
    done = dict.fromkeys(told(one.decision) for one in found if deeds_of(one.decision))
    if each[0][0] == PERSON and row.by_people and done:
        because += f"; until then: {', or '.join(done)}"
    return each[0][0], because


def _by_sign(found: Sequence[Outcome]) -> str:
    """What is decided under which sign."""
    by_answer: dict[str, list[str]] = {}
    for one in found:
        ends = [name for name in one.decision.actions if name in ENDS] if one.decision else []
        by_answer.setdefault(ends[0] if ends else told(one.decision), []).append(one.sign.name)
    return "; ".join(f"{answer} if {_listed(signs, 'or')}" for answer, signs in by_answer.items())


def _compared(policy: Policy, row: Row, outcome: Outcome) -> tuple[str, str]:
    """The verdict if this is what was seen."""
    decision = outcome.decision
    did = deeds_of(decision)
    held = decision.actions.get("hold") if decision and decision.mode == "act" else None
    if isinstance(held, dict):
        reason = _OF_RULE.sub("", str(held["reason"]))
        return PERSON, f"it is held: {reason}"
    if row.by_people:
        return PERSON, f"no rule can {_listed(row.by_people, 'or')}"
    if row.deeds <= did and did - row.deeds <= UNSAID:
        return AGREES, told(decision)
    if outcome.sign == NOTHING and not did:
        return PERSON, UNSEEN
    return DIFFERS, _difference(policy, row, outcome)


def _difference(policy: Policy, row: Row, outcome: Outcome) -> str:
    """Why what was decided is not what people did."""
    decision = outcome.decision
    if decision is None:
        return f"nothing is done: {_why_unseen(policy, outcome)}"
    did = deeds_of(decision)
    if not did:
        return f"it would only {told(decision)}"
    missing = [deed for deed in WORDS if deed in row.deeds - did]
    by_rung: dict[int, list[str]] = {}
    for deed in missing:
        by_rung.setdefault(_rung_with(policy, decision, deed), []).append(WORDS[deed])
    never = by_rung.pop(0, [])
    parts = [f"to {_listed(words, 'and')} is rung {rung} of {decision.rule}" for rung, words in by_rung.items()]
    parts += [f"no rung of {decision.rule} would {_listed(never, 'or')}"] if never else []
    more = [WORDS[deed] for deed in WORDS if deed in did - row.deeds - UNSAID]
    parts += [f"people did not {_listed(more, 'or')}"] if more else []
    return f"it would {told(decision)}; {'; '.join(parts)}"


def _rung_with(policy: Policy, decision: Decision, deed: str) -> int:
    """The next rung of the rule that decided which does this; 0 where none does."""
    (rule,) = (rule for rule in policy.rules if rule.name == decision.rule)
    later = enumerate(rule.do[decision.rung :], start=decision.rung + 1)
    return next((at for at, rung in later if _has(rung, deed)), 0)


def _has(rung: Rung, deed: str) -> bool:
    return deed in rung.actions or bool(rung.set and deed in rung.set.model_dump(exclude_none=True))


def _why_unseen(policy: Policy, outcome: Outcome) -> str:
    drifts = [(rule.name, rule.when.drift) for rule in policy.rules if rule.when.drift]
    if "norm" in outcome.sign.name and drifts:
        name, drift = drifts[0]
        return f"{name} looks for {drift.above:.0%} within {drift.window:,} steps, and this rose less"
    return "no rule sees this"


def _listed(words: Sequence[str], last: str) -> str:
    """As in "a, b or c"."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} {last} {words[-1]}"


# ---------------------------------------------------------------- the page


def judged(policies: Mapping[str, Policy], rows: Sequence[Row]) -> dict[str, dict[int, tuple[str, str]]]:
    """By policy and number of a row, verdict and because."""
    verdicts: dict[str, dict[int, tuple[str, str]]] = {}
    for name, policy in policies.items():
        found = outcomes(policy, rows)
        verdicts[name] = {row.number: verdict(policy, row, found[row.number]) for row in rows}
    return verdicts


def page(policies: Mapping[str, Policy], rows: Sequence[Row]) -> str:
    """The whole of docs/opt175b.md."""
    verdicts = judged(policies, rows)
    counts = {name: Counter(kind for kind, _ in of.values()) for name, of in verdicts.items()}
    summary = table(["", *policies], [[kind, *(f"{counts[name][kind]}" for name in policies)] for kind in VERDICTS])
    lines = [_line(row, [verdicts[name][row.number] for name in policies]) for row in rows]
    head = ["", "run", "step", "kind", "what people did", *(f"`{name}`" for name in policies)]
    every = "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *lines))
    return f"{INTRODUCTION}\n{summary}\n{READING}\n{every}\n"


def _line(row: Row, verdicts: Sequence[tuple[str, str]]) -> list[str]:
    joins = {AGREES: ": ", DIFFERS: ", because ", UNDECIDABLE: ": ", PERSON: ", because "}
    cells = [f"**{kind}**{joins[kind]}{because}" for kind, because in verdicts]
    step = "" if row.seen.step is None else f"{row.seen.step:,}"
    actions = ", ".join(row.actions).replace("_", " ")
    return [
        str(row.number),
        f"{row.run} {row.day or ''}".strip(),
        step,
        row.seen.kind.replace("_", " "),
        actions,
        *cells,
    ]


INTRODUCTION = """\
# OPT-175B, replayed

Made by `python benchmarks/opt175b.py`; do not edit. 95 incidents, restarts and interventions of two months, as far as
the public record tells of them ([where it comes from](../tests/data/opt175b/README.md)), through two shipped
[policies](policies.md): what they would have decided, beside what people did then.

The engine of a live run is shown what a sensor would have seen, and nothing else: steps with their numbers, ranks that
end, nodes that vanish, silence. It is never shown what the record says of cause and action. How big and how long a
trouble was the record seldom states: `benchmarks/opt175b_signs.py` says what was chosen. Where it leaves open *what*
was to be seen, each sign that fits is tried; only where all of them lead to the same is there a verdict.

The rows of a lineage are one run, so budgets and ladders count from row to row; rows without a date stand alone. The
record goes on whatever is decided: after a restart the next attempt begins ten minutes later (a restart that failed,
when it did), and where a run would have been held a person releases it.
"""

READING = """
- **decision agrees**: all that people did, as far as rules can do it; a restart, or a node left out, may come with it,
  since the record does not tell of each.
- **differs**: something of it is missing, or training would have been changed in another way.
- **not decidable from the record**: signs that fit lead to different answers. Most are restarts of which nothing is
  told: perhaps a machine had failed, and perhaps people had stopped the run.
- **needs a person**: the policy holds the run and calls one; or people did what no rule can; or nothing was to be seen.

The record gives no cause for 52 of the rows, so this does not say how many incidents a policy would have settled. What
it does say: where a machine is known to have failed, each decision is theirs. Where the numbers went wrong, `default`
goes back with the same settings and never lowers a rate; `opt175b` does so on a later rung, when it has come to the
same end before. In the night of 27 November both call a person at the fifth start in a row that fails; people tried
seven. What took weeks, another optimizer, initialisation or activation function, is for people. And the drift of
5 December neither sees as early as they did.
"""


def shipped() -> dict[str, Policy]:
    return {name: load_policy([name]) for name in POLICIES}


def main() -> None:
    text = page(shipped(), read_rows())
    PAGE.write_text(text, encoding="utf-8")
    print(text, end="")


if __name__ == "__main__":
    main()
