"""What a sweep comes to: combinations of values, the names of its runs, and how many of each shape go at once. Pure."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from typing import Any

# Of keys whose last part is long, or says too little by itself.
LABELS: dict[str, str] = {
    "trainer.attention_dropout": "attn",
    "trainer.batch_tokens": "bs",
    "trainer.checkpoint.every": "save",
    "trainer.micro_batch": "mb",
    "trainer.parallel.tensor": "tp",
    "trainer.seed": "s",
    "trainer.seq_len": "seq",
    "trainer.warmup_tokens": "warmup",
    "trainer.weight_decay": "wd",
    "cluster.nodes": "n",
    "cluster.ranks_per_node": "rpn",
}
_UNFIT = re.compile(r"[^A-Za-z0-9._-]+")
_PLAIN_FROM, _PLAIN_TO = -2, 6  # powers of ten between which a number is written without an exponent


def combinations(grid: Mapping[str, Sequence[Any]]) -> Iterator[dict[str, int]]:
    """Of each key the position of a value, in every combination; the last key changes fastest."""
    for positions in itertools.product(*(range(len(values)) for values in grid.values())):
        yield dict(zip(grid, positions, strict=True))


def count(grid: Mapping[str, Sequence[Any]]) -> int:
    """How many combinations there are."""
    return math.prod(len(values) for values in grid.values())


def label_of(key: str, labels: Mapping[str, str]) -> str:
    """How a swept key is called in names and tables."""
    return {**LABELS, **labels}.get(key) or key.rsplit(".", maxsplit=1)[-1]


def run_name(prefix: str, swept: Mapping[str, Any], labels: Mapping[str, str], ranks: int) -> str:
    """As in prefix.lr2e-4.bs512.ngpu16. A mapping among the values is named by what is in it."""
    parts = [f"{label_of(key, labels)}{compact(value)}" for key, value in leaves(swept)]
    return ".".join((prefix, *parts, f"ngpu{ranks}"))


def leaves(values: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Each value that is no mapping, with its dotted key."""
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value


def compact(value: Any) -> str:
    """A value as short as it stays itself, and fit for a name: 2.0e-4 is 2e-4, 0.10 is 0.1, "25 steps" is 25steps."""
    if value is None or isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and math.isfinite(value):
        return _number(Decimal(repr(value)).normalize())
    if isinstance(value, (list, tuple)):
        return "-".join(map(compact, value))
    return _UNFIT.sub("-", "".join(str(value).split())).strip("-")


def _number(number: Decimal) -> str:
    sign, digits, _ = number.as_tuple()
    power = number.adjusted() if number else 0
    if _PLAIN_FROM <= power < _PLAIN_TO:
        return format(number, "f")
    first, *rest = map(str, digits)
    return f"{'-' * sign}{first}{'.' * bool(rest)}{''.join(rest)}e{power}"


def shares(counts: Sequence[int], limit: int | None) -> list[int]:
    """How many runs of each shape may go at once, when of all shapes together `limit` may: at least one of each.

    What is left goes one by one to the shape that has the most runs for each place. Raises ValueError when there
    are fewer places than shapes.
    """
    if limit is None:
        return list(counts)
    if limit < len(counts):
        raise ValueError(f"{limit} at once are too few for {len(counts)} resource shapes: at least one run of each")
    places = [1] * len(counts)
    for _ in range(min(limit, sum(counts)) - len(counts)):
        needy = max(range(len(counts)), key=lambda shape: (counts[shape] / places[shape], -shape))
        places[needy] += 1
    return places
