"""A changed copy of a frozen dataclass, ten times as fast as `dataclasses.replace`: the folds live on it."""

from __future__ import annotations

from typing import Any, TypeVar

T = TypeVar("T")


_new, _set = object.__new__, object.__setattr__


def evolve(value: T, /, **changes: Any) -> T:
    """A copy with some fields changed. Raises TypeError for a field there is not. `__post_init__` is not called."""
    fields = value.__dict__
    changed = fields | changes
    if len(changed) != len(fields):
        raise TypeError(f"{type(value).__name__} has no {', '.join(sorted(changes.keys() - fields.keys()))}")
    copy: T = _new(value.__class__)
    _set(copy, "__dict__", changed)
    return copy
