"""The small texts people write in RUN.yaml and in policies, each read by one function.

    Duration   "10s" "2m" "1h30m" "3-00:00:00"      seconds, as a float
    Steps      "25 steps" or 25                      optimizer steps, as an int
    Span       "3 steps" or "10s"                    steps or seconds
    Rate       "10 per run", "2 per 24h"             a number of times in a window
    Gap        "5 x p99"                             a multiple of a percentile of step durations
    Sigma      "8 sigma"                             a multiple of the noise, as a float
    Percent    "15 %"                                a share, as a float: 0.15
    Every      "every 10m"                           seconds between two times
    Space      "5 %" or "50 GB"                      a part of a disk, or bytes
    Share      "20 % per 24h"                        a part of the time of a window
    Batches    "64 batches"                          a number of global batches
    Change     x0.9 or 0.3 or reset                  of a setting: a factor, a value, or begin anew
    Bytes      "512MB" "2GB"                         bytes, in powers of 1000, as an int

A number without its unit is refused where it could be read two ways.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BeforeValidator, PlainSerializer, WithJsonSchema

UNIT_BYTES = {"kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
UNIT_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
SPACE_B = {"MB": 1e6, "GB": 1e9, "TB": 1e12}
LARGEST_FACTOR = 1e6
MOST_BATCHES = 10**6
LONGEST_S = 10 * 366 * UNIT_S["d"]
_PART = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d|w)")
_DURATION = re.compile(rf"(?:{_PART.pattern}\s*)+")
_CLOCK = re.compile(r"(?:(\d+)-)?(\d{1,3}):([0-5]\d):([0-5]\d)")  # Slurm's days-hours:minutes:seconds
_STEPS = re.compile(r"(\d+)\s*steps?")
_RATE = re.compile(r"(\d+)\s+per\s+(.+)")
_SIGMA = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)\s*sigma")
_PERCENT = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)\s*%")
_SPACE = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)\s*(%|MB|GB|TB)")
_SHARE = re.compile(r"(\d{1,3}(?:\.\d{1,9})?)\s*%\s*per\s+(.+)")
_BATCHES = re.compile(r"(\d{1,9})\s*batch(?:es)?")
_FACTOR = re.compile(r"x\s*(\d{1,9}(?:\.\d{1,17})?(?:e-?\d{1,2})?)")
_BYTES = re.compile(r"(\d+(?:\.\d+)?)\s*(kB|MB|GB|TB)")
_GAP = re.compile(r"(\d+(?:\.\d+)?)\s*x\s*(median|p(\d{1,2}))")


def parse_duration(text: object) -> float:
    """Seconds of "90s", "2m", "1h30m" or "3-00:00:00"."""
    if isinstance(text, (int, float)) and not isinstance(text, bool):
        raise ValueError(f"{text} has no unit: write {text}s, {text}m or {text}h")
    if not isinstance(text, str):
        raise ValueError("a duration is expected, such as 10s, 2m or 6h")
    if clock := _CLOCK.fullmatch(text.strip()):
        days, hours, minutes, seconds = (int(part or 0) for part in clock.groups())
        return float(((days * 24 + hours) * 60 + minutes) * 60 + seconds)
    if not _DURATION.fullmatch(text.strip()):
        raise ValueError(f"{text!r} is not a duration: write for example 10s, 2m, 6h or 3-00:00:00")
    seconds = math.fsum(float(number) * UNIT_S[unit] for number, unit in _PART.findall(text))
    if seconds > LONGEST_S:
        raise ValueError(f"{text!r} is longer than ten years")
    return seconds


def format_duration(seconds: float) -> str:
    """The shortest text that `parse_duration` reads as these seconds."""
    for unit in ("d", "h", "m"):
        if seconds and seconds % UNIT_S[unit] == 0:
            return f"{int(seconds // UNIT_S[unit])}{unit}"
    return f"{seconds:.3f}".rstrip("0").rstrip(".") + "s"


def parse_steps(value: object) -> int:
    """A number of optimizer steps from "25 steps" or 25."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, str) and (match := _STEPS.fullmatch(value.strip())):
        return int(match[1])
    raise ValueError(f"{value!r} is not a number of steps: write for example 25 steps")


def format_steps(steps: int) -> str:
    """The text of a number of steps."""
    return f"{steps} step{'' if steps == 1 else 's'}"


@dataclass(frozen=True)
class Span:
    """A stretch of training in steps or of time in seconds; exactly one of the two is set."""

    steps: int | None = None
    seconds: float | None = None

    def __str__(self) -> str:
        return format_steps(self.steps) if self.steps is not None else format_duration(self.seconds or 0.0)


def parse_span(value: object) -> Span:
    """A span from "3 steps" or "10s"."""
    if isinstance(value, Span):
        return value
    if isinstance(value, str) and (match := _STEPS.fullmatch(value.strip())):
        return Span(steps=int(match[1]))
    if isinstance(value, str):
        return Span(seconds=parse_duration(value))
    raise ValueError(f"{value!r} is neither steps nor time: write for example 3 steps or 10s")


@dataclass(frozen=True)
class Rate:
    """So many times in a window; without a window, in the whole run."""

    times: int
    per: Span | None = None

    def __str__(self) -> str:
        return f"{self.times} per {self.per or 'run'}"


def parse_rate(value: object) -> Rate:
    """A rate from "10 per run", "2 per 24h" or "3 per 1000 steps"."""
    if isinstance(value, Rate):
        return value
    if isinstance(value, str) and (match := _RATE.fullmatch(value.strip())):
        return Rate(int(match[1]), parse_window(match[2]))
    raise ValueError(f"{value!r} is not a rate: write for example 10 per run or 2 per 24h")


def parse_window(value: object) -> Span | None:
    """The window of a rate: None for "run"."""
    return None if value is None or value == "run" else parse_span(value)


@dataclass(frozen=True)
class Gap:
    """A multiple of a percentile (50 = median) of the durations of steps."""

    factor: float
    percentile: int

    def __str__(self) -> str:
        return f"{self.factor:g} x {'median' if self.percentile == 50 else f'p{self.percentile}'}"


def parse_gap(value: object) -> Gap:
    """A gap from "5 x p99" or "5 x median"."""
    if isinstance(value, Gap):
        return value
    if isinstance(value, str) and (match := _GAP.fullmatch(value.strip())):
        percentile = 50 if match[2] == "median" else int(match[3])
        if float(match[1]) >= 1 and percentile:
            return Gap(float(match[1]), percentile)
    raise ValueError(f"{value!r} is not a multiple of the usual step: write for example 5 x p99 or 8 x median")


def parse_sigma(value: object) -> float:
    """A multiple of the noise from "8 sigma"."""
    if isinstance(value, str) and (match := _SIGMA.fullmatch(value.strip())) and float(match[1]) > 0:
        return float(match[1])
    raise ValueError(f"{value!r} is not a multiple of the noise: write for example 8 sigma")


def parse_percent(value: object) -> float:
    """A share from "15 %"."""
    if isinstance(value, str) and (match := _PERCENT.fullmatch(value.strip())) and float(match[1]) > 0:
        return float(match[1]) / 100
    raise ValueError(f"{value!r} is not a share: write for example 15 %")


def parse_every(value: object) -> float:
    """Seconds of "every 10m"."""
    if isinstance(value, str) and value.startswith("every ") and (seconds := parse_duration(value[6:])) >= 1:
        return seconds
    raise ValueError(f"{value!r} does not say how often: write for example every 10m")


def format_every(seconds: float) -> str:
    """The text that `parse_every` reads as these seconds."""
    return f"every {format_duration(seconds)}"


@dataclass(frozen=True)
class Share:
    """So many percent of the time of a window."""

    percent: float
    per_s: float

    @property
    def seconds(self) -> float:
        return self.percent / 100 * self.per_s

    def __str__(self) -> str:
        return f"{self.percent:g} % per {format_duration(self.per_s)}"


@dataclass(frozen=True)
class Space:
    """Room on a disk: so many percent of it, or so many bytes."""

    percent: float | None = None
    bytes: float = 0.0

    def of(self, total: int) -> float:
        """The bytes that this is of a disk of `total`."""
        return self.bytes if self.percent is None else self.percent / 100 * total

    def __str__(self) -> str:
        if self.percent is not None:
            return f"{self.percent:g} %"
        unit = next(unit for unit in ("TB", "GB", "MB") if self.bytes >= SPACE_B[unit] or unit == "MB")
        return f"{self.bytes / SPACE_B[unit]:g} {unit}"


def parse_space(value: object) -> Space:
    """Room on a disk from "5 %" or "50 GB"."""
    if isinstance(value, Space):
        return value
    if isinstance(value, str) and (match := _SPACE.fullmatch(value.strip())):
        number = float(match[1])
        if match[2] == "%" and 0 < number < 100:
            return Space(percent=number)
        if match[2] != "%" and number > 0:
            return Space(bytes=number * SPACE_B[match[2]])
    raise ValueError(f"{value!r} is no room on a disk: write for example 5 % or 50 GB")


def parse_share(value: object) -> Share:
    """A share from "20 % per 24h"."""
    if isinstance(value, Share):
        return value
    if isinstance(value, str) and (match := _SHARE.fullmatch(value.strip())):
        percent, per_s = float(match[1]), parse_duration(match[2])
        if 0 < percent <= 100 and per_s > 0:
            return Share(percent, per_s)
    raise ValueError(f"{value!r} is no share of a time: write for example 20 % per 24h")


def parse_batches(value: object) -> int:
    """A number of global batches from "64 batches"."""
    if isinstance(value, str) and (match := _BATCHES.fullmatch(value.strip())) and 0 < int(match[1]) <= MOST_BATCHES:
        return int(match[1])
    raise ValueError(f"{value!r} is not a number of batches: write for example 64 batches")


def format_batches(batches: int) -> str:
    """The text of a number of batches."""
    return f"{batches} batch{'' if batches == 1 else 'es'}"


def parse_change(value: object) -> float | str:
    """What becomes of a setting: the text "x0.9" (a factor of what it is) or a positive number (its value)."""
    if isinstance(value, str) and (match := _FACTOR.fullmatch(value.strip())):
        if 0 < float(match[1]) < LARGEST_FACTOR:
            return f"x{float(match[1]):g}"
        raise ValueError(f"{value!r}: a factor lies between 0 and {LARGEST_FACTOR:g}")
    if isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < math.inf:
        return float(value)
    raise ValueError(f"{value!r} is no change of a setting: write a factor such as x0.9, or a value above 0")


def parse_scale_change(value: object) -> float | str:
    """As `parse_change`, or the word "reset"."""
    return "reset" if value == "reset" else parse_change(value)


def parse_bytes(value: object) -> int:
    """Bytes from "512MB" or "1.5 GB"."""
    if isinstance(value, str) and (match := _BYTES.fullmatch(value.strip())):
        return round(float(match[1]) * UNIT_BYTES[match[2]])
    raise ValueError(f"{value!r} is not a size: write for example 512MB or 2GB")


def format_bytes(count: int) -> str:
    """A text that `parse_bytes` reads as so many bytes."""
    unit = next((unit for unit in ("TB", "GB", "MB") if count % UNIT_BYTES[unit] == 0), "kB")
    return f"{count / UNIT_BYTES[unit]:.3f}".rstrip("0").rstrip(".") + unit


def _text(example: str, *, number: bool = False) -> WithJsonSchema:
    types: Any = ["string", "integer"] if number else "string"
    return WithJsonSchema({"type": types, "examples": [example]})


Duration = Annotated[float, BeforeValidator(parse_duration), PlainSerializer(format_duration), _text("10s")]
Steps = Annotated[int, BeforeValidator(parse_steps), _text("25 steps", number=True)]
SpanText = Annotated[Span, BeforeValidator(parse_span), PlainSerializer(str), _text("3 steps")]
RateText = Annotated[Rate, BeforeValidator(parse_rate), PlainSerializer(str), _text("10 per run")]
WindowText = Annotated[
    Span | None, BeforeValidator(parse_window), PlainSerializer(lambda per: str(per or "run")), _text("24h")
]
Bytes = Annotated[int, BeforeValidator(parse_bytes), PlainSerializer(format_bytes), _text("512MB")]
GapText = Annotated[Gap, BeforeValidator(parse_gap), PlainSerializer(str), _text("5 x p99")]
SigmaText = Annotated[
    float, BeforeValidator(parse_sigma), PlainSerializer(lambda value: f"{value:g} sigma"), _text("8 sigma")
]
PercentText = Annotated[
    float, BeforeValidator(parse_percent), PlainSerializer(lambda share: f"{100 * share:g} %"), _text("15 %")
]
BatchesText = Annotated[int, BeforeValidator(parse_batches), PlainSerializer(format_batches), _text("64 batches")]
_CHANGE = WithJsonSchema({"type": ["string", "number"], "examples": ["x0.9"]})
ChangeText = Annotated[float | str, BeforeValidator(parse_change), _CHANGE]
ScaleText = Annotated[float | str, BeforeValidator(parse_scale_change), _CHANGE]
SpaceText = Annotated[Space, BeforeValidator(parse_space), PlainSerializer(str), _text("5 %")]
EveryText = Annotated[float, BeforeValidator(parse_every), PlainSerializer(format_every), _text("every 10m")]
ShareText = Annotated[Share, BeforeValidator(parse_share), PlainSerializer(str), _text("20 % per 24h")]
