"""A model from the values of a document, or every mistake in it in the words of the document.

pydantic finds the mistakes; this module gives each its line and column, says it in plain words, and looks
for the key that was meant.
"""

from __future__ import annotations

import difflib
import math
import types
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.json_schema import SkipJsonSchema

from launcher.document import Path_

M = TypeVar("M", bound=BaseModel)
Finding = tuple[Path_, str]  # where in the values, and what is wrong

PUT_IN_QUOTES = ": put it in quotes"
_OF_WORDS = ("command", "prefix", "run")  # lists of the words of a command
_UNQUOTED = ": write it without quotes"
_MAX_ROUNDS = 8  # more than any grammar of ours is deep in required keys
_EXPECTED = {
    "int_type": "a whole number is expected",
    "int_from_float": "a whole number is expected",
    "float_type": "a number is expected",
    "bool_type": "true or false is expected",
    "string_type": "a text is expected",
    "list_type": "a list is expected",
    "tuple_type": "a list is expected",
    "dict_type": "a mapping of keys to values is expected",
    "model_type": "a mapping of keys to values is expected",
    "model_attributes_type": "a mapping of keys to values is expected",
}
_BOUNDS = {
    "greater_than": ("gt", "must be greater than"),
    "greater_than_equal": ("ge", "must be at least"),
    "less_than": ("lt", "must be less than"),
    "less_than_equal": ("le", "must be at most"),
}


def validated(model: type[M], values: Mapping[str, Any]) -> tuple[M | None, list[Finding]]:
    """The model of these values and all mistakes of shape.

    Where there are mistakes the model is made without the parts they are in, so that what depends on the
    others can still be checked; None when nothing can be made.
    """
    try:
        return model.model_validate(values), []
    except ValidationError as error:
        findings: dict[Path_, str] = {}
        details = [(_real_path(values, detail["loc"]), detail) for detail in error.errors(include_url=False)]
        misspelt = {_meant_path(model, path) for path, detail in details if detail["type"] == "extra_forbidden"}
        for path, detail in details:
            # What is missing because it is misspelt, or because what is there is wrong, would be said twice.
            if not (detail["type"] == "missing" and path in misspelt) and not (
                detail["type"] == "too_short" and detail["input"]
            ):
                findings.setdefault(path, _message(model, path, dict(detail)))
        return _made_of_the_rest(model, values, [*findings]), [*findings.items()]


def _made_of_the_rest(model: type[M], values: Any, wrong: list[Path_]) -> M | None:
    """The model without its wrong parts, and without the parts that cannot do without those."""
    for _ in range(_MAX_ROUNDS):
        gone = [path if _is_at(values, path) else path[:-1] for path in wrong]
        if () in gone:
            return None
        values = without(values, gone)
        try:
            return model.model_validate(values)
        except ValidationError as error:
            wrong = [_real_path(values, detail["loc"]) for detail in error.errors(include_url=False)]
    return None


def _is_at(values: Any, path: Path_) -> bool:
    for part in path:
        if not (part in values if isinstance(values, dict) else isinstance(values, list)):
            return False
        values = values[part]
    return True


def without(values: Any, paths: Iterable[Path_]) -> Any:
    """A copy of these values with the parts at these paths left out."""
    paths = [path for path in paths if path]
    gone = {path[0] for path in paths if len(path) == 1}
    deeper = {first: [path[1:] for path in paths if path[0] == first] for first in {path[0] for path in paths}}
    if isinstance(values, dict):
        return {key: without(value, deeper.get(key, [])) for key, value in values.items() if key not in gone}
    if isinstance(values, list):
        return [without(item, deeper.get(i, [])) for i, item in enumerate(values) if i not in gone]
    return values


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """` (did you mean 'x'?)` when something known is near, else nothing."""
    near = difflib.get_close_matches(word, [*known], n=1, cutoff=0.6)
    return f" (did you mean {near[0]!r}?)" if near else ""


def fields_at(model: type[BaseModel], path: Path_) -> list[str]:
    """The keys that may be written at a path of a model."""
    found: list[str] = []
    for kind in _kinds_at(model, path):
        found += [field.alias or name for name, field in kind.model_fields.items() if not _is_ours(field)]
    return found


def _is_ours(field: Any) -> bool:
    """Whether a field is for programs only."""
    return any(type(one) is SkipJsonSchema for one in field.metadata)


def _kinds_at(kind: Any, path: Path_) -> Iterator[type[BaseModel]]:
    """The models found by following a path of keys and positions through annotations."""
    origin = get_origin(kind)
    if origin is Annotated:
        yield from _kinds_at(get_args(kind)[0], path)
    elif origin in (Union, types.UnionType):
        for option in get_args(kind):
            yield from _kinds_at(option, path)
    elif origin in (list, tuple, dict) and path:
        yield from _kinds_at(get_args(kind)[1 if origin is dict else 0], path[1:])
    elif isinstance(kind, type) and issubclass(kind, BaseModel):
        if not path:
            yield kind
        for name, field in kind.model_fields.items():
            if path and path[0] == (field.alias or name):
                yield from _kinds_at(field.annotation, path[1:])


def _real_path(values: Any, loc: tuple[str | int, ...]) -> Path_:
    """The part of a location that exists in the values; pydantic adds names of union members to it."""
    path: list[str | int] = []
    for index, part in enumerate(loc):
        is_there = (
            part in values if isinstance(values, dict) else isinstance(values, list) and part in range(len(values))
        )
        is_missing = isinstance(values, dict) and index == len(loc) - 1
        if is_there or is_missing:
            path.append(part)
            inner: Any = values
            values = inner[part] if is_there else None
    return tuple(path)


def _meant_path(model: type[BaseModel], path: Path_) -> Path_:
    """The path that a misspelt one was meant to be, as far as it can be told."""
    return (*path[:-1], *difflib.get_close_matches(str(path[-1]), fields_at(model, path[:-1]), n=1))


def _message(model: type[BaseModel], path: Path_, error: Mapping[str, Any]) -> str:
    kind, given, context = error["type"], error["input"], error.get("ctx", {})
    key = path[-1] if path else ""
    if kind == "extra_forbidden":
        return f"unknown key {key!r}" + _meant(str(key), fields_at(model, path[:-1]), given)
    if kind == "missing":
        return f"{key!r} is missing"
    if kind == "literal_error":
        options = _literals(context["expected"])
        near = _UNQUOTED if str(given) in options and isinstance(given, str) else did_you_mean(str(given), options)
        return f"{shown(given)} is not one of {', '.join(options)}" + near
    if kind == "not_one_of":  # of a validator of ours, which may know what was meant
        options, meant = context["options"], context["meant"]
        near = f" (did you mean {meant!r}?)" if meant else did_you_mean(str(given), options)
        return f"{shown(given)} is not one of {', '.join(options)}{near}"
    if kind in _EXPECTED:
        return f"{_EXPECTED[kind]}, not {shown(given)}" + (_quote(kind, key, given) or _written(model, path, given))
    if kind in _BOUNDS:
        name, words = _BOUNDS[kind]
        return f"{key} {words} {context[name]:g}, not {shown(given)}"
    if kind == "finite_number":
        return f"{key} must be a finite number, not {shown(given)}"
    if kind in ("too_short", "string_too_short"):
        return f"{key} must not be empty"
    text = str(error["msg"]).removeprefix("Value error, ")
    return text[0].lower() + text[1:] if text[:5] == "Input" else text


def _meant(key: str, known: list[str], given: object) -> str:
    near = did_you_mean(key, known)
    if near:
        return near
    # In {stop: one, two} the comma makes 'two' a key without a value.
    if given is None:
        return ": quote the text if a comma belongs to it"
    return f" (known here: {', '.join(known)})" if 0 < len(known) <= 24 else ""


def _written(model: type[BaseModel], path: Path_, given: Any) -> str:
    """How a mapping is written where a single word stands."""
    keys = fields_at(model, path)
    if not keys or not isinstance(given, str):
        return ""
    return f": write {{{given if given in keys else keys[0]}: ...}}"


def _literals(expected: str) -> list[str]:
    return [word.strip().strip("'") for word in expected.replace(" or ", ", ").split(",")]


def _quote(kind: str, key: object, given: object) -> str:
    if kind == "string_type" and isinstance(given, (int, float, bool)):
        return PUT_IN_QUOTES
    if kind in ("int_type", "float_type") and isinstance(given, str) and (number := _number(given)) is not None:
        return f": write {number:g}"
    if kind in ("list_type", "tuple_type") and isinstance(given, (str, int)) and not isinstance(given, bool):
        items = str(given).split() if key in _OF_WORDS else [given]
        return f": write [{', '.join(map(str, items))}]" if len(str(given)) < 40 else ": put it in [ ]"
    if kind == "bool_type" and str(given).lower() in ("yes", "no", "on", "off"):
        return f": write {'true' if str(given).lower() in ('yes', 'on') else 'false'}"
    return ""


def _number(text: str) -> float | None:
    """What a text means, if it is a number that is not written as one."""
    try:
        return number if math.isfinite(number := float(text)) else None
    except ValueError:
        return None


def shown(value: object) -> str:
    """A value in a message, as short as it stays recognizable."""
    if value is None:
        return "nothing"
    if isinstance(value, (dict, list)):
        return "a mapping" if isinstance(value, dict) else "a list"
    text = repr(value) if isinstance(value, str) else str(value).lower() if isinstance(value, bool) else str(value)
    return text if len(text) <= 60 else text[:57] + "..."
