"""Training curves from files: CSV, JSON lines, TensorBoard's event files. Whatever can be read of them is.

A row needs a step. What else is a number in it is a metric, under the name that rules use where a usual other one is
known. Cells that are empty or no number are left out; NaN and infinities stay.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from launcher.errors import LaunchError

# The name rules use -> what others call it, in lower case, without a leading `train/` and the like.
NAMES: dict[str, tuple[str, ...]] = {
    "step": ("step", "steps", "_step", "global_step", "iteration", "iter", "num_updates"),
    "loss": ("loss", "lm_loss", "training_loss", "train_loss", "loss/train"),
    "grad_norm": ("grad_norm", "gnorm", "gradient_norm", "global_grad_norm", "total_norm"),
    "lr": ("lr", "learning_rate"),
    "loss_scale": ("loss_scale",),
    "time": ("time", "timestamp", "wall_time", "_timestamp"),
}
_KNOWN = {other: name for name, others in NAMES.items() for other in others}
SUFFIXES = (".csv", ".jsonl")
TENSORBOARD = "events.out.tfevents."
_MOST_STEPS = 2**53


@dataclass(frozen=True)
class Row:
    """What was told of a step. `at`: Unix seconds, None where the file does not say."""

    step: int
    metrics: Mapping[str, float]
    at: float | None = None


def curve_files(source: Path) -> list[Path]:
    """The files of a source that hold curves: itself, or all in the folder and below. Raises LaunchError if none."""
    files = [source] if source.is_file() else sorted(path for path in source.rglob("*") if _is_curve(path))
    if not files:
        hint = "a curve is a .csv or .jsonl with step and loss, or a TensorBoard event file"
        raise LaunchError("no training curve is here", str(source), hint)
    return files


def _is_curve(path: Path) -> bool:
    return path.is_file() and (path.suffix.lower() in SUFFIXES or path.name.startswith(TENSORBOARD))


def read_curve(file: Path) -> list[Row]:
    """The rows of a file, in its order; none of a table without a step and a number.

    Raises LaunchError where it cannot be read at all.
    """
    try:
        if file.name.startswith(TENSORBOARD):
            return _tensorboard(file)
        with file.open(newline="", encoding="utf-8-sig", errors="replace") as lines:
            clean = (line.replace("\0", "") for line in lines)
            rows = _rows(_objects(clean) if file.suffix.lower() == ".jsonl" else _table(clean))
            return [row for row in rows if row is not None]
    except (OSError, csv.Error) as error:
        raise LaunchError("the curve cannot be read", f"{file}: {error}") from error


def _table(lines: Iterator[str]) -> Iterator[Mapping[str, Any]]:
    """The rows of a table whose columns stand apart by what its first line has most of."""
    head = next(lines, "")
    return iter(csv.DictReader(chain([head], lines), delimiter=max(",;\t", key=head.count)))


def _objects(lines: Iterable[str]) -> Iterator[Mapping[str, Any]]:
    """The objects of JSON lines; what a run of ours writes has its metrics one level below."""
    for line in lines:
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(value, dict):
            inner = value.get("metrics")
            yield {**value, **inner} if isinstance(inner, dict) else value


def _rows(records: Iterable[Mapping[str, Any]]) -> Iterator[Row | None]:
    names: dict[Any, str] = {}
    for record in records:
        values: dict[str, float] = {}
        for key, cell in record.items():
            if (number := _number(cell)) is not None:
                if (name := names.get(key)) is None:
                    name = names[key] = metric_name(str(key))
                values.setdefault(name, number)
        yield _row(values)


def _row(values: dict[str, float]) -> Row | None:
    step, at = values.pop("step", math.nan), values.pop("time", None)
    if not values or not -1 <= step < _MOST_STEPS:  # false for NaN
        return None
    return Row(int(step), values, at)


def _number(cell: Any) -> float | None:
    if isinstance(cell, bool) or not isinstance(cell, (int, float, str)):
        return None
    try:
        return float(cell)
    except (ValueError, OverflowError):
        return None


def metric_name(name: str) -> str:
    """The name that rules use for a metric."""
    plain = name.strip().lower().replace(" ", "_").replace("-", "_")
    for prefix in ("train/", "training/"):
        plain = plain.removeprefix(prefix)
    return _KNOWN.get(plain, plain)


def _tensorboard(file: Path) -> list[Row]:
    try:
        from tensorboard.backend.event_processing import event_accumulator  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        hint = "pip install 'opt-launch[tensorboard]'"
        raise LaunchError("to read TensorBoard's event files, tensorboard is needed", str(file), hint) from error
    events = event_accumulator.EventAccumulator(str(file), size_guidance={"scalars": 0})
    events.Reload()
    rows: dict[int, dict[str, float]] = {}
    for tag in events.Tags()["scalars"]:
        for event in events.Scalars(tag):
            row = rows.setdefault(event.step, {"step": event.step, "time": event.wall_time})
            row.setdefault(metric_name(tag), event.value)
    return [row for _, values in sorted(rows.items()) if (row := _row(values))]
