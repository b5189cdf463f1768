"""The grammar of a policy: what may be written, and the frozen objects it becomes.

A policy is a list of rules and a budget. A rule names one detector (`when`), how long its finding must
last (`for`), and a ladder of rungs (`do`); a rung lists actions and how often it may be used. Detectors and
actions are optional fields, not a union, so a mistake has one plain message. Pure: nothing is read here.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Strict, Tag, model_validator
from pydantic.json_schema import SkipJsonSchema

from policies.units import Duration, GapText, RateText, Span, SpanText, Steps, WindowText

# The fixed order in which the actions of a rung are done, however they are written.
ACTIONS = (
    *("collect", "save", "check", "exclude", "replace", "shrink", "set", "skip"),
    *("restart", "run", "notify", "hold", "stop"),
)
INFRASTRUCTURE = ("exit", "node_lost", "hang")  # judged before the numerics of the same moment

Positive = Annotated[int, Field(gt=0)]
Number = Annotated[float, Field(allow_inf_nan=False)]
Names = Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Strict(False), Field(min_length=1)]
Integers = Annotated[tuple[int, ...], Strict(False), Field(min_length=1)]


class Grammar(BaseModel):
    """Part of a policy: unknown keys are mistakes, numbers are not read from texts, nothing changes later."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


# ---------------------------------------------------------------- detectors


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
    """A metric rises far above its recent course."""

    metric: str = "loss"
    window: SpanText | None = None
    above: str | None = None
    warmup: SpanText | None = None
    heal_within: SpanText | None = None


class ScaleCollapse(Grammar):
    """The loss scale keeps being halved."""

    below: Number | None = None
    halvings: Positive | None = None
    window: SpanText | None = None
    warmup: SpanText | None = None


class Drift(Grammar):
    """A metric leaves its baseline slowly."""

    metric: str = "loss"
    window: SpanText | None = None
    above: str | None = None


class Plateau(Grammar):
    """A metric has stopped to improve."""

    metric: str = "loss"
    window: SpanText | None = None
    less_than: str | None = None


class Straggler(Grammar):
    """One rank is slower than its peers."""

    slower_than: GapText | None = None
    window: SpanText | None = None


class Slow(Grammar):
    """All steps have become slower."""

    slower_than: GapText | None = None
    window: SpanText | None = None


class Draining(Grammar):
    """The admin drains a node of the run."""


class GpuFault(Grammar):
    """The driver reports a fault of a GPU."""

    xid: Annotated[tuple[int | str, ...], Strict(False)] | None = None
    ecc_uncorrected: Positive | None = None


class StorageStall(Grammar):
    """Most ranks wait for the file system."""

    at_least: Duration | None = None


class Scheduler(Grammar):
    """The scheduler puts the job into one of these states."""

    states: Names


class TimeLeft(Grammar):
    """The allocation ends soon."""

    below: Duration


class Disk(Grammar):
    """Little space is left."""

    below: str


class Sdc(Grammar):
    """Ranks that must agree to the bit do not."""

    every: Steps | None = None


class Log(Grammar):
    """A line of the logs matches."""

    match: str
    from_: Annotated[str | None, Field(alias="from")] = None


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

    @property
    def detector(self) -> str:
        """The name of the detector."""
        return next(name for name in type(self).model_fields if getattr(self, name) is not None)


# ---------------------------------------------------------------- actions


class Restart(Grammar):
    """Begin a new attempt from a checkpoint; `save_first` saves what there is before."""

    from_: Annotated[str, Field(alias="from", pattern=r"^(latest|last_good|before_incident|step [0-9]{1,15})$")]
    save_first: bool = False


class Hold(Grammar):
    """Keep the allocation and wait for a person."""

    reason: str = ""
    retry: str | None = None
    at_most: Duration | None = None


class Setting(Grammar):
    """Change a setting of the training: `x0.9` multiplies, a number replaces."""

    lr: Number | str | None = None
    clip: Number | str | None = None
    loss_scale: Number | str | None = None
    optimizer: str | None = None


class Rung(Grammar):
    """The actions of one step of a ladder, done in the order of ACTIONS, and how often the rung may be used."""

    collect: Annotated[tuple[Literal["stacks", "flight_recorder", "logs"], ...], Strict(False)] | None = None
    save: Literal["now", "if_time"] | None = None
    check: Literal["fast", "standard", "deep"] | None = None
    exclude: Literal["blamed", "failed"] | None = None
    replace: Literal["blamed"] | None = None
    shrink: bool | None = None
    set: Setting | None = None
    skip: str | None = None
    restart: Restart | None = None
    run: Names | None = None
    notify: Annotated[str, Field(min_length=1)] | None = None
    hold: Hold | None = None
    stop: Annotated[str, Field(min_length=1)] | None = None
    times: Positive | None = None
    per: WindowText = None

    @property
    def actions(self) -> dict[str, Any]:
        """The actions of this rung by name, in the order in which they are done."""
        return {name: value for name in ACTIONS if (value := getattr(self, name)) is not None}


# ---------------------------------------------------------------- rules and policies


class Ask(Grammar):
    """Wait for a person's yes so long, and then do, or leave, what was proposed."""

    ask: Duration
    else_: Annotated[Literal["act", "nothing"], Field(alias="else")]


def _kind_of_mode(value: Any) -> str:
    return "a mapping" if isinstance(value, (dict, Ask)) else "a word"


Mode = Annotated[
    Annotated[Literal["act", "advise"], Tag("a word")] | Annotated[Ask, Tag("a mapping")], Discriminator(_kind_of_mode)
]
Ladder = Annotated[tuple[Rung, ...], Strict(False), Field(min_length=1)]


class RuleChange(Grammar):
    """What an override changes in a rule of another file; each key given replaces the rule's."""

    when: When | None = None
    for_: Annotated[SpanText | None, Field(alias="for")] = None
    do: Ladder | None = None
    cooldown: SpanText | None = None
    counts: bool | None = None
    mode: Mode | None = None


class Rule(Grammar):
    """One finding and what is done about it.

    `counts: false` keeps its restarts out of the budget. Within `cooldown` after it acted the rule is
    silent. `place` is where it was written; the loader sets it.
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
    when: When
    for_: Annotated[SpanText | None, Field(alias="for")] = None
    do: Ladder
    cooldown: SpanText | None = None
    counts: bool = True
    mode: Mode | None = None
    place: SkipJsonSchema[str] = ""


class Budget(Grammar):
    """What the run may spend before a person is called.

    `no_progress`: attempts in a row that end without progress. `first_step`: failures in a row before the
    first step is done; between them the run waits longer and longer.
    """

    restarts: RateText = Field(default="10 per run", validate_default=True)  # pyright: ignore[reportAssignmentType]
    no_progress: Positive = 3
    first_step: Positive = 4
    lost_time: str | None = None


class Quiet(Grammar):
    """Mute numerics for a while after a declared change."""

    after: Names
    for_: Annotated[SpanText, Field(alias="for")] = Span(steps=200)


class Policy(Grammar):
    """A policy as written; once loaded nothing is left to include or override and every rule has its mode."""

    version: Literal[1]
    name: Annotated[str, Field(min_length=1)]
    mode: Mode = "act"
    include: Names | None = None
    override: dict[str, RuleChange] = {}
    budget: Budget = Budget()
    reset_after: Annotated[Steps, Field(gt=0)] = 1000
    quiet: Quiet | None = None
    rules: Annotated[tuple[Rule, ...], Strict(False)] = ()
