"""Every event survives its line of JSON."""

from __future__ import annotations

import ast
import contextlib
import json
import math
from dataclasses import fields
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher import events
from launcher.events import EVENT_TYPES, Event, StepDone, TrainerDone, UnknownEvent, from_json, to_json

finite = st.floats(allow_nan=False, allow_infinity=False)
texts = st.text(max_size=20)
numbers = st.dictionaries(texts, st.floats(), max_size=4)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | finite | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
checkpoint_ids = st.tuples(st.integers(0), st.integers(1))
sealed = st.builds(events.Sealed, file=texts, length=st.integers(0), digest=texts)
progress = st.builds(
    events.RankProgress, node=texts, step=st.integers(), section=st.integers(), phase=texts, os_state=texts
)

findings = st.builds(
    events.CheckFinding, code=texts, verdict=st.sampled_from(["ok", "warn", "fail"]), summary=texts, subject=texts,
    evidence=st.dictionaries(texts, st.none() | finite | texts, max_size=3), limit=st.none() | st.integers(),
)  # fmt: skip

# Field annotation, as written in events.py -> values of that type.
trials = st.builds(
    events.TrialResult,
    nodes=st.lists(texts, max_size=3).map(tuple),
    outcome=st.sampled_from(["passed", "failed", "timed_out"]),
    absent=st.lists(texts, max_size=3).map(tuple),
    bandwidth=st.none() | st.floats(allow_nan=False, allow_infinity=False),
    said=st.dictionaries(texts, texts, max_size=2),
)
places = st.builds(events.TrialPlace, host=texts, port=st.integers(0, 65535), devices=st.integers(1))
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "bool": st.booleans(),
    "int": st.integers(),
    "int | None": st.none() | st.integers(),
    "float": finite,
    "float | None": st.none() | finite,
    "str": texts,
    "str | None": st.none() | texts,
    "dict[str, float]": numbers,
    "dict[str, Json]": st.dictionaries(texts, json_values, max_size=3),
    "dict[str, str]": st.dictionaries(texts, texts, max_size=3),
    "dict[str, tuple[int, ...]]": st.dictionaries(texts, st.lists(st.integers()).map(tuple), max_size=3),
    "dict[str, dict[int, int]]": st.dictionaries(
        texts, st.dictionaries(st.integers(), st.integers(), max_size=3), max_size=3
    ),
    "dict[int, RankProgress]": st.dictionaries(st.integers(), progress, max_size=3),
    "tuple[int, ...]": st.lists(st.integers(), max_size=3).map(tuple),
    "tuple[float, ...]": st.lists(finite, max_size=3).map(tuple),
    "tuple[str, ...]": st.lists(texts, max_size=3).map(tuple),
    "tuple[int, int] | None": st.none() | st.tuples(st.integers(), st.integers()),
    "tuple[tuple[int, int], ...]": st.lists(st.tuples(st.integers(), st.integers()), max_size=3).map(tuple),
    "tuple[Sealed, ...]": st.lists(sealed, max_size=3).map(tuple),
    "tuple[CheckFinding, ...]": st.lists(findings, max_size=3).map(tuple),
    "tuple[TrialResult, ...]": st.lists(trials, max_size=3).map(tuple),
    "dict[str, TrialPlace]": st.dictionaries(texts, places, max_size=3),
    "Tier": st.sampled_from(["fast", "standard", "deep"]),
    "Verdict": st.sampled_from(["ok", "warn", "fail", "unknown", "skipped"]),
    "CheckpointId | None": st.none() | checkpoint_ids,
    "Branch | None": st.none() | st.builds(events.Branch, run=texts, step=st.integers(0), attempt=st.integers(1)),
}


def values_of(annotation: str) -> st.SearchStrategy[Any]:
    if annotation.startswith("Literal["):
        return st.sampled_from(ast.literal_eval(annotation.removeprefix("Literal")))
    return VALUES[annotation]


def events_of(cls: type[Event]) -> st.SearchStrategy[Event]:
    return st.builds(cls, **{field.name: values_of(str(field.type)) for field in fields(cls)})


def same(one: Any, other: Any) -> bool:
    """Equal, where not-a-number equals itself."""
    return repr(one) == repr(other)


@pytest.mark.parametrize("name", sorted(EVENT_TYPES))
def test_every_event_survives_its_line_of_json(name: str) -> None:
    @given(events_of(EVENT_TYPES[name]))
    def survives(event: Event) -> None:
        line = to_json(event)
        assert "\n" not in line
        assert same(from_json(line), event)

    survives()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_that_json_lacks_stay_what_they_are(value: float) -> None:
    step = from_json(to_json(StepDone(at=1, attempt=1, step=2, metrics={"loss": value})))
    done = from_json(to_json(TrainerDone(at=1, attempt=1, step=2, result={"loss": value})))

    assert isinstance(step, StepDone)
    assert isinstance(done, TrainerDone)
    assert same(step.metrics["loss"], value)
    assert same(done.result["loss"], value)


def test_a_line_is_json_for_everyone() -> None:
    line = to_json(StepDone(at=1, attempt=1, step=2, metrics={"loss": math.nan}))

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    assert json.loads(line, parse_constant=refuse)["metrics"] == {"loss": "nan"}


def test_a_newer_journal_can_be_read_without_its_new_fields() -> None:
    event = from_json('{"type":"run_held","at":1.0,"reason":"x","mood":"bad"}')

    assert event == events.RunHeld(at=1.0, reason="x")


@pytest.mark.parametrize("line", ['{"type":"coffee_break","at":1}', "{}", "[]", "3", "null"])
def test_an_unknown_type_is_told_apart_from_damage(line: str) -> None:
    with pytest.raises(UnknownEvent):
        from_json(line)


@pytest.mark.parametrize("line", ["", "{", '{"type":"run_held","at":1.0}', "\x00\x00", '{"type":"run_held"}'])
def test_a_malformed_line_is_an_error(line: str) -> None:
    with pytest.raises((ValueError, TypeError)):
        from_json(line)


@given(st.binary(max_size=60))
def test_any_bytes_are_an_event_or_one_of_the_named_errors(line: bytes) -> None:
    with contextlib.suppress(ValueError, TypeError):
        assert isinstance(from_json(line), Event)
