"""Values of frozen dataclasses to JSON and back, driven by their types alone: a new field needs no code here. Pure.

Exact: what is decoded equals what was encoded, to the bit of a float and to the class of each value. Known are numbers,
texts, bools, None, enums, Literal, tuples, lists, sets, mappings with keys of any kind, dataclasses, pydantic models,
unions of these, and where a type says no more (Any, object) whatever JSON or a tuple can hold.
"""

from __future__ import annotations

import enum
import inspect
import math
import struct
import types
import typing
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from typing import Any, Literal, TypeVar, Union

T = TypeVar("T")
_MARK = "$"  # the key of what plain JSON lacks


class Undecodable(ValueError):
    """Not the form of a value of the wanted type."""


def encode(kind: Any, value: object) -> Any:
    """A value of type `kind` as JSON can hold it. Raises TypeError for what the type does not allow."""
    return _coder(kind).encode(value)


def decode(kind: type[T], plain: Any) -> T:
    """The value that was encoded. Raises Undecodable for anything else."""
    try:
        return _coder(kind).decode(plain)
    except (TypeError, ValueError, LookupError, AttributeError, struct.error) as error:
        raise Undecodable(f"no {getattr(kind, '__name__', kind)}: {error!r}") from error


@dataclass(frozen=True)
class _Coder:
    encode: Callable[[Any], Any]
    decode: Callable[[Any], Any]


@cache
def _coder(kind: Any) -> _Coder:
    """How values of a type are written. Types are looked at once."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Annotated:
        return _coder(_bare(kind))
    if origin in (Union, types.UnionType):
        return _union(arguments)
    if origin is Literal or kind in (bool, int, str, type(None)):
        return _Coder(_same, _same)
    if kind is float:
        return _Coder(_plain_float, _rich_float)
    if origin is tuple and not (len(arguments) == 2 and arguments[1] is Ellipsis):
        return _shaped(arguments)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return _mapping(_made_as(origin), arguments)
    if isinstance(origin, type) and issubclass(origin, (Sequence, Set)):
        return _many(_made_as(origin), arguments[0])
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return _Coder(lambda value: value.value, kind)
    if _has_fields(kind):
        return _fielded(kind)
    if kind in (Any, object, dict, list, tuple) or isinstance(kind, typing.ForwardRef):
        return _Coder(_plain, _rich)
    raise TypeError(f"no form for values of {kind}")


def _same(value: Any) -> Any:
    return value


# ---------------------------------------------------------------- numbers


def _plain_float(value: float) -> Any:
    """A float as such if JSON has it, else its bits."""
    return value if math.isfinite(value) else struct.pack(">d", value).hex()


def _rich_float(plain: Any) -> float:
    return struct.unpack(">d", bytes.fromhex(plain))[0] if isinstance(plain, str) else plain


# ---------------------------------------------------------------- several


def _made_as(origin: type) -> Callable[[Any], Any]:
    """What makes a value of this type, or of one that names only what it can do."""
    if not inspect.isabstract(origin):
        return origin
    return dict if issubclass(origin, Mapping) else frozenset if issubclass(origin, Set) else tuple


def _shaped(kinds: tuple[Any, ...]) -> _Coder:
    coders = tuple(map(_coder, kinds))
    return _Coder(
        lambda value: [coder.encode(item) for coder, item in zip(coders, value, strict=True)],
        lambda plain: tuple(coder.decode(item) for coder, item in zip(coders, plain, strict=True)),
    )


def _many(make: Callable[[Any], Any], kind: Any) -> _Coder:
    """Sets in an order of their own, so that equal ones are written alike."""
    coder = _coder(kind)
    return _Coder(
        lambda value: [coder.encode(item) for item in (sorted(value, key=repr) if isinstance(value, Set) else value)],
        lambda plain: make([coder.decode(item) for item in _of(list, plain)]),
    )


def _mapping(make: Callable[[Any], Any], kinds: tuple[Any, ...]) -> _Coder:
    """As an object where the keys are texts, else as pairs."""
    keys, values = map(_coder, kinds)
    if kinds[0] is str:
        return _Coder(
            lambda value: {key: values.encode(item) for key, item in value.items()},
            lambda plain: make({key: values.decode(item) for key, item in plain.items()}),
        )
    return _Coder(
        lambda value: [[keys.encode(key), values.encode(item)] for key, item in value.items()],
        lambda plain: make({keys.decode(key): values.decode(item) for key, item in plain}),
    )


def _of(kind: type, plain: Any) -> Any:
    if not isinstance(plain, kind):
        raise Undecodable(f"{plain!r:.80} is no {kind.__name__}")
    return plain


# ---------------------------------------------------------------- one of several types


def _union(kinds: tuple[Any, ...]) -> _Coder:
    """Without a word on which type it is where there is one beside None, or JSON can tell; else [position, value]."""
    others = [_bare(kind) for kind in kinds if kind is not type(None)]
    if len(others) == 1:
        coder = _coder(others[0])
        return _Coder(
            lambda value: None if value is None else coder.encode(value),
            lambda plain: None if plain is None else coder.decode(plain),
        )
    if all(map(_is_json, others)):
        return _Coder(_plain, _rich)
    coders = [_coder(kind) for kind in others]

    def encode_one(value: Any) -> Any:
        if value is None:
            return None
        position = next((at for at, kind in enumerate(others) if _is_of(value, kind)), None)
        if position is None:
            raise TypeError(f"{value!r:.80} is none of {others}")
        return [position, coders[position].encode(value)]

    return _Coder(encode_one, lambda plain: None if plain is None else coders[plain[0]].decode(plain[1]))


def _bare(kind: Any) -> Any:
    return _bare(typing.get_args(kind)[0]) if typing.get_origin(kind) is typing.Annotated else kind


def _is_json(kind: Any) -> bool:
    """Whether JSON has values of this type, and of no richer one; a reference is to a type that is being looked at."""
    inner = typing.get_args(kind) if typing.get_origin(kind) in (list, dict) else ()
    return (
        kind in (bool, int, float, str)
        or isinstance(kind, typing.ForwardRef)
        or bool(inner and all(map(_is_json, inner)))
    )


def _is_of(value: object, kind: Any) -> bool:
    """Whether a value is of this member of a union, as far as its outermost type tells."""
    if typing.get_origin(kind) is Literal:
        return value in typing.get_args(kind)
    plain = typing.get_origin(kind) or kind
    if isinstance(value, bool) or plain is bool:
        return isinstance(value, bool) and plain is bool
    return not isinstance(plain, type) or isinstance(value, plain)


# ---------------------------------------------------------------- dataclasses and models


def _has_fields(kind: Any) -> bool:
    return is_dataclass(kind) or hasattr(kind, "model_fields")


def _fielded(kind: type) -> _Coder:
    """By the names of the fields; a value of a subclass says which."""
    hints = typing.get_type_hints(kind, include_extras=True)
    names = [f.name for f in fields(kind)] if is_dataclass(kind) else [*getattr(kind, "model_fields", ())]
    # Made on first use: a type may hold values of itself.
    coders: dict[str, _Coder] = {}

    def ready() -> dict[str, _Coder]:
        if not coders:
            coders.update({name: _coder(hints[name]) for name in names})
        return coders

    def encode_one(value: Any) -> Any:
        if type(value) is not kind:
            if not isinstance(value, kind):
                raise TypeError(f"{value!r:.80} is no {kind.__name__}")
            return {_MARK: type(value).__name__, "value": encode(type(value), value)}
        return {name: coder.encode(getattr(value, name)) for name, coder in ready().items()}

    def decode_one(plain: Any) -> Any:
        if _MARK in plain:
            return decode(_subclass(kind, plain[_MARK]), plain["value"])
        if plain.keys() != ready().keys():
            raise Undecodable(f"{kind.__name__} has other fields")
        values = {name: coder.decode(plain[name]) for name, coder in coders.items()}
        return _made(kind, values)

    return _Coder(encode_one, decode_one)


def _made(kind: Any, values: dict[str, Any]) -> Any:
    """An instance with these values in its fields, frozen or not. What was checked once is not checked again."""
    if not is_dataclass(kind):
        return kind.model_construct(**values)
    made: Any = object.__new__(kind)  # pyright: ignore[reportArgumentType]
    for name, value in values.items():
        object.__setattr__(made, name, value)
    return made


def _subclass(kind: type, name: str) -> type:
    for one in kind.__subclasses__():
        if one.__name__ == name:
            return one
        try:
            return _subclass(one, name)
        except Undecodable:
            continue
    raise Undecodable(f"{kind.__name__} has no subclass {name}")


# ---------------------------------------------------------------- where the type says nothing


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return {_MARK: "float", "value": _plain_float(value)}
    if isinstance(value, Mapping):
        if all(isinstance(key, str) for key in value) and _MARK not in value:
            return {key: _plain(item) for key, item in value.items()}
        return {_MARK: "dict", "value": [[_plain(key), _plain(item)] for key, item in value.items()]}
    if isinstance(value, tuple):
        return {_MARK: "tuple", "value": [_plain(item) for item in value]}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if value is not None and not isinstance(value, (bool, int, float, str)):
        raise TypeError(f"no JSON for {value!r:.80}")
    return value


def _rich(plain: Any) -> Any:
    if isinstance(plain, list):
        return [_rich(item) for item in plain]
    if not isinstance(plain, dict):
        return plain
    if _MARK not in plain:
        return {key: _rich(item) for key, item in plain.items()}
    value = plain["value"]
    match plain[_MARK]:
        case "float":
            return _rich_float(value)
        case "tuple":
            return tuple(map(_rich, value))
        case "dict":
            return {_rich(key): _rich(item) for key, item in value}
    raise Undecodable(f"{plain!r:.80} has a mark of its own")
