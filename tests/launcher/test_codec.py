"""Whatever a state may hold comes back as it was, from its types alone."""

from __future__ import annotations

import enum
import json
import math
import struct
import typing
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launcher.codec import Undecodable, decode, encode
from launcher.events import EVENT_TYPES, Asked, Json, RunAmended, RunSubmitted
from launcher.fold import Memory, View
from launcher.run import CheckpointId, RunState
from policies.load import load_policy
from policies.schema import Policy, Span

POLICY = load_policy(["default"])


class Colour(enum.StrEnum):
    RED = "red"
    BLUE = "blue"


@dataclass(frozen=True)
class Inner:
    number: float
    texts: tuple[str, ...] = ()
    within: Inner | None = None


@dataclass(frozen=True, slots=True)
class Slotted:
    value: int


@dataclass
class Everything:
    """A field of every kind."""

    numbers: tuple[float, ...]
    pair: tuple[int, str] | None
    by_pair: Mapping[CheckpointId, Inner]
    by_name: Mapping[str, tuple[Inner, ...]]
    by_number: dict[int, int]
    names: frozenset[tuple[str, str]]
    colour: Colour | None
    word: Literal["a", "b"]
    either: Inner | Slotted | None
    scalar: int | float | str | None
    text_or_span: str | Span
    free: Json
    freer: Any
    actions: Mapping[str, object]
    listed: list[Inner]
    some: Sequence[int]
    last: deque[int]
    changed: set[int] = field(default_factory=set)
    flag: bool = False


floats = st.floats(width=64)
numbers = st.integers(-(2**70), 2**70)
inner = st.recursive(
    st.builds(Inner, floats, st.lists(st.text(max_size=3), max_size=2).map(tuple)),
    lambda children: st.builds(Inner, floats, st.just(()), children),
    max_leaves=3,
)
plain = st.recursive(
    st.one_of(st.none(), st.booleans(), numbers, floats, st.text(max_size=3)),
    lambda children: st.one_of(
        st.lists(children, max_size=3),
        st.lists(children, max_size=3).map(tuple),
        st.dictionaries(st.sampled_from(["a", "$", "value"]), children, max_size=3),
    ),
    max_leaves=8,
)
everything = st.builds(
    Everything,
    st.lists(floats, max_size=4).map(tuple),
    st.none() | st.tuples(numbers, st.text(max_size=2)),
    st.dictionaries(st.tuples(numbers, numbers), inner, max_size=3),
    st.dictionaries(st.text(max_size=3), st.lists(inner, max_size=2).map(tuple), max_size=3),
    st.dictionaries(numbers, numbers, max_size=3),
    st.frozensets(st.tuples(st.text(max_size=2), st.text(max_size=2)), max_size=3),
    st.none() | st.sampled_from(Colour),
    st.sampled_from(["a", "b"]),
    st.none() | inner | st.builds(Slotted, numbers),
    st.none() | numbers | floats | st.text(max_size=3),
    st.text(max_size=3) | st.builds(Span, st.integers(0, 9)),
    plain,
    plain,
    st.dictionaries(st.text(max_size=3), plain, max_size=3),
    st.lists(inner, max_size=3),
    st.lists(numbers, max_size=3).map(tuple),
    st.lists(numbers, max_size=3).map(deque),
    st.sets(numbers, max_size=3),
    st.booleans(),
)


def there_and_back(kind: type, value: object) -> Any:
    return decode(kind, json.loads(json.dumps(encode(kind, value), allow_nan=False)))


def exact(value: Any) -> Any:
    """A value that compares equal only if every class and every bit is the same."""
    if isinstance(value, float):
        return "float", struct.pack(">d", value)
    if isinstance(value, Mapping):
        return type(value), [(exact(key), exact(item)) for key, item in value.items()]
    if isinstance(value, (set, frozenset)):
        return type(value), sorted(map(repr, value))
    if isinstance(value, (list, tuple, deque)):
        return type(value), [exact(item) for item in value]
    if hasattr(value, "__dataclass_fields__"):
        return type(value), [(name, exact(getattr(value, name))) for name in value.__dataclass_fields__]
    return type(value), value


@settings(max_examples=200, deadline=None)
@given(everything)
def test_what_is_decoded_is_what_was_encoded_to_the_bit_and_the_class(value: Everything) -> None:
    assert exact(there_and_back(Everything, value)) == exact(value)


@pytest.mark.parametrize("number", [math.inf, -math.inf, math.nan, -math.nan, -0.0, 5e-324, 0.1, 1e308])
def test_every_bit_of_a_float_is_kept_whatever_the_type_says_of_it(number: float) -> None:
    for kind in (float, float | None, int | float, Any, Mapping[str, object]):
        value = {"a": number} if kind == Mapping[str, object] else number
        assert exact(there_and_back(kind, value)) == exact(value)  # type: ignore[arg-type]


def test_a_nan_with_a_payload_stays_this_nan() -> None:
    number = struct.unpack(">d", bytes.fromhex("7ff8000000abcdef"))[0]

    assert struct.pack(">d", there_and_back(Inner, Inner(number)).number).hex() == "7ff8000000abcdef"


def test_a_value_of_a_subclass_comes_back_as_one() -> None:
    asked = {"nodes": 2, "ranks_per_node": 2, "spares": 0, "target_step": None, "probation": 1, "save_every": None}
    for event in (
        RunSubmitted(at=1.0, run="r", **asked),
        RunAmended(at=1.0, author="a", changes={"x": [1, 2]}, **asked),
    ):
        assert exact(there_and_back(Asked, event)) == exact(event)


def test_a_policy_made_of_pydantic_models_comes_back() -> None:
    again = there_and_back(Policy, POLICY)

    assert again == POLICY
    assert again.rules[0].when.detector == POLICY.rules[0].when.detector


def within(kind: Any, seen: set[Any]) -> set[Any]:
    """All types that values of a type may hold."""
    if kind not in seen and not isinstance(kind, (str, typing.ForwardRef)):
        seen.add(kind)
        fields = typing.get_type_hints(kind).values() if hasattr(kind, "__dataclass_fields__") else ()
        for one in (*fields, *typing.get_args(kind)):
            within(one, seen)
    return seen


@pytest.mark.parametrize("kind", [View, Memory, *EVENT_TYPES.values()], ids=lambda kind: kind.__name__)
def test_every_type_in_the_fold_has_a_form(kind: type) -> None:
    """A new field of a type that nobody can write is found here, not in a run."""
    for one in within(kind, set()):
        if hasattr(one, "__dataclass_fields__"):
            with pytest.raises(Undecodable, match="other fields"):
                decode(one, {"none of them": 0})


@pytest.mark.parametrize(
    "broken", [None, 3, "x", [], {}, {"number": 1.0}, {"number": "zz", "texts": [], "within": None}]
)
def test_what_is_no_value_of_the_type_is_refused(broken: Any) -> None:
    with pytest.raises(Undecodable):
        decode(Inner, broken)


def test_a_field_of_another_version_is_refused() -> None:
    with pytest.raises(Undecodable, match="other fields"):
        decode(Slotted, {"value": 1, "colour": "red"})
    with pytest.raises(Undecodable):
        decode(RunState, "DREAMING")


def test_what_a_type_does_not_allow_is_not_written() -> None:
    for kind, value in ((Any, object()), (Inner, Slotted(1)), (Inner | Slotted | int, "text")):
        with pytest.raises(TypeError):
            encode(kind, value)
