"""The incidents of OPT-175B through shipped policies: what is decided follows from what sensors saw, and is told so."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

import pytest
from opt175b import AGREES, DIFFERS, PAGE, PERSON, UNDECIDABLE, VERDICTS, judged, page, shipped
from opt175b_record import FILE, Row, read_rows
from opt175b_replay import Outcome, outcomes
from opt175b_signs import NOTHING, signs_of

from launcher.events import Decision
from policies.schema import Policy, Rule

Verdicts = dict[str, dict[int, tuple[str, str]]]


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    return read_rows()


@pytest.fixture(scope="module")
def verdicts(rows: list[Row]) -> Verdicts:
    return judged(shipped(), rows)


@pytest.fixture(scope="module")
def found(rows: list[Row]) -> dict[str, dict[int, tuple[Outcome, ...]]]:
    return {name: outcomes(policy, rows) for name, policy in shipped().items()}


def without(policy: Policy, *names: str) -> Policy:
    return policy.model_copy(update={"rules": tuple(rule for rule in policy.rules if rule.name not in names)})


def with_ladder(policy: Policy, name: str, *rungs: dict[str, object]) -> Policy:
    rules = [
        Rule.model_validate({**rule.model_dump(by_alias=True, exclude_none=True), "do": list(rungs)})
        if rule.name == name
        else rule
        for rule in policy.rules
    ]
    return policy.model_copy(update={"rules": tuple(rules)})


def said(found: dict[int, tuple[Outcome, ...]]) -> list[tuple[object, ...]]:
    """All that was found and decided, in full."""
    return [(number, one.sign.name, *one.judgements) for number, each in found.items() for one in each]


def test_the_page_in_docs_is_what_the_command_makes(rows: list[Row]) -> None:
    made = page(shipped(), rows)
    assert PAGE.read_text(encoding="utf-8") == made, "run: python benchmarks/opt175b.py"


def test_each_row_ends_in_one_of_four_verdicts_and_says_why(verdicts: Verdicts, rows: list[Row]) -> None:
    for of_policy in verdicts.values():
        assert of_policy.keys() == {row.number for row in rows}
        assert {kind for kind, _ in of_policy.values()} == set(VERDICTS)
        assert all(because for _, because in of_policy.values())


def test_so_many_rows_end_in_each_verdict(verdicts: Verdicts) -> None:
    counts = {name: Counter(kind for kind, _ in of.values()) for name, of in verdicts.items()}
    assert counts["default"] == {AGREES: 36, DIFFERS: 8, UNDECIDABLE: 26, PERSON: 25}
    assert counts["opt175b"] == {AGREES: 36, DIFFERS: 8, UNDECIDABLE: 24, PERSON: 27}


def test_causes_and_actions_of_the_record_are_not_shown_to_the_engine(rows: list[Row], found, tmp_path: Path) -> None:
    """With all of them exchanged, and all that came of them, the same is decided to the last word."""
    with FILE.open(newline="") as lines:
        table = [*csv.DictReader(lines)]
    for cells, other in zip(table, reversed([dict(cells) for cells in table]), strict=True):
        cells |= {name: other[name] for name in ("cause", "action", "downtime_minutes", "lost_steps", "hosts_excluded")}
    changed = tmp_path / "changed.csv"
    with changed.open("w", newline="") as file:
        writer = csv.DictWriter(file, table[0])
        writer.writeheader()
        writer.writerows(table)
    others = read_rows(changed)
    assert [row.actions for row in others] != [row.actions for row in rows]
    for name, policy in shipped().items():
        assert said(outcomes(policy, others)) == said(found[name])


def test_verdicts_follow_from_what_is_decided(verdicts: Verdicts, rows: list[Row]) -> None:
    default = shipped()["default"]
    kinds = {row.number: row.seen.kind for row in rows}
    collapse = {number for number, kind in kinds.items() if kind == "loss_scale_collapse"}

    resets = {"set": {"loss_scale": "reset"}, "restart": {"from": "before_incident"}}
    (after,) = judged({"": with_ladder(default, "scale-collapse", resets)}, rows).values()
    before = verdicts["default"]
    assert {before[number][0] for number in collapse} == {AGREES, DIFFERS}
    assert all(before[number][0] != after[number][0] for number in collapse)

    (held,) = judged({"": without(default, "node-failure", "rank-exit", "hang", "user-error")}, rows).values()
    failed = [number for number, kind in kinds.items() if kind == "node_failure"]
    assert not [number for number in failed if held[number][0] == AGREES]


def test_of_machines_that_failed_the_decision_is_theirs(verdicts: Verdicts, rows: list[Row]) -> None:
    failed = [row for row in rows if row.seen.kind == "node_failure" and not row.by_people]
    assert len(failed) == 15
    for of_policy in verdicts.values():
        assert {of_policy[row.number][0] for row in failed} == {AGREES}


def test_the_fifth_start_in_a_row_that_fails_calls_a_person(verdicts: Verdicts, rows: list[Row]) -> None:
    night = [row.number for row in rows if row.run in {f"12.{number}" for number in range(24, 31)}]
    for of_policy in verdicts.values():
        kinds = [of_policy[number][0] for number in night]
        assert kinds == [AGREES] * 4 + [PERSON] + [AGREES] * 2
        assert "first_step" in of_policy[night[4]][1]


def test_where_no_sensor_saw_anything_nothing_is_done(rows: list[Row], found) -> None:
    unseen = [row.number for row in rows if signs_of(row.seen) == (NOTHING,)]
    assert len(unseen) == 14
    for of_policy in found.values():
        assert not [number for number in unseen for one in of_policy[number] if one.judgements]


def test_what_ends_an_attempt_is_decided_once_a_row(found) -> None:
    for of_policy in found.values():
        for each in of_policy.values():
            for one in each:
                acts = [of for of in one.judgements if isinstance(of, Decision) and of.mode == "act"]
                assert len(acts) <= 1
