"""The grammar of `when`: the detectors and their parameters.

Each is an optional field of When, not a member of a union, so a mistake has one plain message. Pure.
"""

from __future__ import annotations

import re
from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, Strict, WithJsonSchema, model_validator

from policies.units import Duration, GapText, PercentText, SigmaText, SpaceText, Steps

Positive = Annotated[int, Field(gt=0)]
Number = Annotated[float, Field(allow_inf_nan=False)]
Names = Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Strict(False), Field(min_length=1)]
Integers = Annotated[tuple[int, ...], Strict(False), Field(min_length=1)]


def _xid(value: Any) -> Any:
    if isinstance(value, bool) or not re.fullmatch(r"\d{1,4}(-\d{1,4})?", str(value)):
        raise ValueError(f"{str(value)[:40]!r} is no XID: write a number, or a range as in 63-64")
    return value


Xid = Annotated[int | str, BeforeValidator(_xid), WithJsonSchema({"anyOf": [{"type": "integer"}, {"type": "string"}]})]


class Grammar(BaseModel):
    """Part of a policy: unknown keys are mistakes, numbers are not read from texts, nothing changes later."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class NonFinite(Grammar):
    """A metric is not a number, or infinite, in a step whose update was not skipped."""

    metrics: Names = ("loss", "grad_norm")


class Threshold(Grammar):
    """A metric is above, or below, a fixed value."""

    metric: Annotated[str, Field(min_length=1)]
    above: Number | None = None
    below: Number | None = None

    @model_validator(mode="after")
    def _one_side(self) -> Threshold:
        if (self.above is None) == (self.below is None):
            raise ValueError("a threshold needs exactly one of 'above' and 'below'")
        return self


class Phases(Grammar):
    """How long every rank may stay in a declared phase without moving on."""

    save: Duration = 1800.0
    eval: Duration = 7200.0
    data: Duration = 1800.0
    compile: Duration = 3600.0


class Hang(Grammar):
    """No rank's step or section moved for longer than `no_step`, and than `at_least`.

    `first_step` is the limit before the first step of an attempt; unset, it is launch.first_step.
    """

    no_step: GapText = Field(default="5 x p99", validate_default=True)  # pyright: ignore[reportAssignmentType]
    at_least: Annotated[Duration, Field(gt=0)] = 120.0
    first_step: Annotated[Duration, Field(gt=0)] | None = None
    phases: Phases = Phases()


class Exit(Grammar):
    """A rank ended with an error or by a signal. What is not written matches anything; all that is must match.

    `exception` compares the name of the error's class, with or without its module. `everywhere`: the same
    error on all nodes (on one node: on all its ranks).
    """

    codes: Integers | None = None
    exception: Names | None = None
    before_first_step: bool | None = None
    everywhere: bool | None = None


class NodeLost(Grammar):
    """A node is silent and the work says so too. Where nothing can prove it, it is lost after `unproven`."""

    unproven: Annotated[Duration, Field(gt=0)] = 60.0


class Spike(Grammar):
    """A metric leaves its recent level, upwards, and does not come back within `heal_within` steps.

    Far above is both `above` times its noise and `at_least` that share of its level. A metric `norm` that rises with it
    makes the onset certain sooner; without one the metric alone is judged. Steps before `warmup` only teach.
    """

    metric: Annotated[str, Field(min_length=1)] = "loss"
    norm: Annotated[str, Field(min_length=1)] = "grad_norm"
    above: SigmaText = Field(default="8 sigma", validate_default=True)  # pyright: ignore[reportAssignmentType]
    at_least: PercentText = Field(default="15 %", validate_default=True)  # pyright: ignore[reportAssignmentType]
    heal_within: Annotated[Steps, Field(gt=0)] = 50
    warmup: Annotated[Steps, Field(ge=0)] = 0


class ScaleCollapse(Grammar):
    """The loss scale does not find its size: updates are skipped again and again, or it is too small or too large.

    `skipped` updates in a row, or `halvings` more than doublings within `window`, or a scale that stays `below`, or
    `above`, for `window`. In the first `warmup` updates of an attempt it finds its size, unless it goes on as it was.
    """

    skipped: Positive = 8
    halvings: Positive = 8
    below: Annotated[Number, Field(gt=0)] | None = 1.0
    above: Annotated[Number, Field(gt=0)] | None = None
    window: Annotated[Steps, Field(gt=0)] = 100
    warmup: Annotated[Steps, Field(ge=0)] = 200


class Drift(Grammar):
    """Norms rise steadily over `window`, by the share `above`, while the loss is calm: the first sign of trouble."""

    metrics: Names = ("grad_norm", "activation_norm")
    window: Annotated[Steps, Field(ge=16)] = 2000
    above: PercentText = Field(default="30 %", validate_default=True)  # pyright: ignore[reportAssignmentType]


class Plateau(Grammar):
    """Over `window` a metric has certainly fallen by a share of `less_than` only, if at all."""

    metric: Annotated[str, Field(min_length=1)] = "loss"
    window: Annotated[Steps, Field(ge=16)] = 5000
    less_than: PercentText = Field(default="0.1 %", validate_default=True)  # pyright: ignore[reportAssignmentType]


class Straggler(Grammar):
    """The same few ranks need longer to compute than their peers, in most steps of `window`."""

    slower_than: GapText = Field(default="1.3 x median", validate_default=True)  # pyright: ignore[reportAssignmentType]
    window: Annotated[Steps, Field(gt=0)] = 50


class Slow(Grammar):
    """The steps of a whole `window` have become slower than they were before, in the same number of ranks."""

    slower_than: GapText = Field(default="1.3 x median", validate_default=True)  # pyright: ignore[reportAssignmentType]
    window: Annotated[Steps, Field(gt=0)] = 50


class Draining(Grammar):
    """The admin drains a node of the run."""


class GpuFault(Grammar):
    """A check of a GPU has failed: any, or one of these.

    `xid`: the driver has told one of these codes. `ecc_uncorrected`: so many memory errors were not corrected.
    """

    xid: Annotated[tuple[Xid, ...], Strict(False), Field(min_length=1)] | None = None
    ecc_uncorrected: Positive | None = None

    @property
    def xids(self) -> list[tuple[int, int]]:
        """Its codes as ranges, ends included."""
        parts = (str(one).split("-") for one in self.xid or ())
        return [(int(part[0]), int(part[-1])) for part in parts]


class Check(Grammar):
    """Another check of a node has failed: any, or one whose code is among these."""

    codes: Names | None = None


class StorageStall(Grammar):
    """Most ranks wait in data or save, or most nodes for a look at the run folder, for longer than `at_least`."""

    at_least: Annotated[Duration, Field(gt=0)] = 600.0


class Scheduler(Grammar):
    """The scheduler puts the job into one of these states."""

    states: Names


class TimeLeft(Grammar):
    """The allocation ends soon."""

    below: Annotated[Duration, Field(gt=0)]


class Disk(Grammar):
    """Little space is left where the run folder is."""

    below: SpaceText


class Sdc(Grammar):
    """Ranks that must agree to the bit do not; compared in each step that is a multiple of `every`."""

    every: Annotated[Steps, Field(gt=0)] = 100


class Log(Grammar):
    """A rank prints a line in which `match`, a regular expression of RE2, is found: any rank, or the first or last."""

    match: Annotated[str, Field(min_length=1, max_length=500)]
    from_: Annotated[Literal["first_rank", "last_rank"] | None, Field(alias="from")] = None


class When(Grammar):
    """Exactly one detector with its parameters."""

    exit: Exit | None = None
    node_lost: NodeLost | None = None
    hang: Hang | None = None
    non_finite: NonFinite | None = None
    threshold: Threshold | None = None
    spike: Spike | None = None
    scale_collapse: ScaleCollapse | None = None
    drift: Drift | None = None
    plateau: Plateau | None = None
    straggler: Straggler | None = None
    slow: Slow | None = None
    draining: Draining | None = None
    gpu_fault: GpuFault | None = None
    check: Check | None = None
    storage_stall: StorageStall | None = None
    scheduler: Scheduler | None = None
    time_left: TimeLeft | None = None
    disk: Disk | None = None
    sdc: Sdc | None = None
    log: Log | None = None

    @model_validator(mode="before")
    @classmethod
    def _one_detector(cls, values: Any) -> Any:
        if isinstance(values, dict) and len(known := [key for key in values if key in cls.model_fields]) != 1:
            found = f"found {', '.join(known)}" if known else "found none"
            # An unknown word gets its own message; that no detector is left would only repeat it.
            if known or not values:
                raise ValueError(f"'when' needs exactly one detector, {found}")
        # `exit:` with nothing behind it means the detector with its defaults.
        return {k: {} if v is None else v for k, v in values.items()} if isinstance(values, dict) else values

    @cached_property
    def detector(self) -> str:
        """The name of the detector."""
        return next(name for name in type(self).model_fields if getattr(self, name) is not None)
