"""The grammar of a policy: what may be written, and the frozen objects it becomes.

A policy is a list of rules and a budget. A rule names one detector (`when`), how long its finding must
last (`for`), and a ladder of rungs (`do`); a rung lists actions and how often it may be used. Detectors and
actions are optional fields, not a union, so a mistake has one plain message. Pure: nothing is read here.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Strict, Tag, WithJsonSchema, field_validator
from pydantic.json_schema import SkipJsonSchema
from pydantic_core import PydanticCustomError

from launcher.events import Json
from policies.units import (
    BatchesText,
    ChangeText,
    Duration,
    EveryText,
    RateText,
    ScaleText,
    ShareText,
    Span,
    SpanText,
    Steps,
    WindowText,
    format_duration,
)
from policies.when import Grammar, Names, Positive, When

# The fixed order in which the actions of a rung are done, however they are written.
ACTIONS = (
    *("collect", "save", "check", "exclude", "replace", "shrink", "requeue", "set", "skip"),
    *("restart", "run", "notify", "hold", "stop"),
)
INFRASTRUCTURE = ("exit", "node_lost", "hang")  # the attempt is over, or as good as that
# Judged before the numerics of the same moment, whenever anything is heard.
BY_CHECKS = ("gpu_fault", "check")  # examinations of nodes have found something
FACTS = (*INFRASTRUCTURE, "storage_stall", "draining", *BY_CHECKS, "scheduler", "time_left", "disk", "log")

_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"


def _rule_name(value: Any) -> Any:
    if isinstance(value, str) and not re.fullmatch(_NAME, value):
        message = "write letters, digits, '.', '_' and '-', at most 64 of them, a letter or digit first"
        raise ValueError(f"{value[:40]!r} is no name of a rule: {message}")
    return value


RuleName = Annotated[str, BeforeValidator(_rule_name), WithJsonSchema({"type": "string", "pattern": _NAME})]
ORIGINS = ("latest", "last_good", "before_incident")  # beside `step N`: where a restart may go back to
ORIGIN = re.compile(rf"{'|'.join(ORIGINS)}|step [0-9]{{1,15}}")

# ---------------------------------------------------------------- actions


def _an_origin(value: object) -> str:
    if isinstance(value, str) and ORIGIN.fullmatch(value):
        return value
    numbers = re.findall("[0-9]+", str(value))
    meant = f"step {numbers[0]}" if len(numbers) == 1 else ""
    raise PydanticCustomError("not_one_of", "not one of them", {"options": [*ORIGINS, "step N"], "meant": meant})


class Restart(Grammar):
    """Begin a new attempt from a checkpoint; `save_first` saves what there is before."""

    from_: Annotated[
        str, BeforeValidator(_an_origin), Field(alias="from", json_schema_extra={"pattern": f"^({ORIGIN.pattern})$"})
    ]
    save_first: bool = False


class Hold(Grammar):
    """Keep the allocation and wait for a person.

    Meanwhile `retry` begins again from the newest checkpoint every so often, for `at_most` so long in all.
    """

    reason: str = ""
    retry: EveryText | None = None
    at_most: Annotated[Duration, Field(gt=0)] | None = None


class Setting(Grammar):
    """Change a setting of the training: `x0.9` multiplies what it is now, a number replaces it.

    `lr` is the peak of the schedule. `loss_scale: reset` begins at the trainer's first scale again.
    """

    lr: ChangeText | None = None
    clip: ChangeText | None = None
    loss_scale: ScaleText | None = None
    optimizer: str | None = None


class Rung(Grammar):
    """The actions of one step of a ladder, done in the order of ACTIONS, and how often the rung may be used.

    `skip`: that many batches around the onset are never trained on again. `shrink` and `requeue` say what becomes of a
    restart that still lacks nodes when it has waited for them. `run`: a program and its arguments, started on the
    supervisor's node without a shell, with the incident as JSON on its standard input.
    """

    collect: Annotated[tuple[Literal["stacks", "flight_recorder", "logs"], ...], Strict(False)] | None = None
    save: Literal["now", "if_time"] | None = None
    check: Literal["fast", "standard", "deep"] | None = None
    exclude: Literal["blamed", "failed"] | None = None
    replace: Literal["blamed"] | None = None
    shrink: bool | None = None
    requeue: bool | None = None
    set: Setting | None = None
    skip: BatchesText | None = None
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
        return {name: value for name in ACTIONS if (value := getattr(self, name)) not in (None, False)}

    def plain(self, reason: str) -> dict[str, Json]:
        """The actions as values of JSON, as decisions carry them. `reason`: of a hold that gives none."""
        plain: dict[str, Json] = {}
        for name, value in self.actions.items():
            if name == "restart":
                plain[name] = {"from": value.from_, "save_first": value.save_first}
            elif name == "hold":
                again = {"every_s": value.retry, "at_most_s": value.at_most}
                plain[name] = {"reason": value.reason or reason, **{k: v for k, v in again.items() if v is not None}}
            elif name == "save":
                plain[name] = {"when": value}
            elif name == "set":
                plain[name] = value.model_dump(exclude_none=True)
            elif name == "skip":
                plain[name] = {"batches": value}
            else:
                plain[name] = list(value) if isinstance(value, tuple) else value
        return plain


# ---------------------------------------------------------------- rules and policies


class Ask(Grammar):
    """Wait for a person's yes so long, and then do, or leave, what was proposed."""

    ask: Annotated[Duration, Field(gt=0)]
    else_: Annotated[Literal["act", "nothing"], Field(alias="else")]

    def __str__(self) -> str:
        return f"ask {format_duration(self.ask)}, else {self.else_}"


def _asked_how(value: Any) -> Any:
    if value == "ask":
        raise ValueError("how long, and what if nobody answers? Write {ask: 30m, else: act}, or else: nothing")
    return value


def _kind_of_mode(value: Any) -> str:
    return "a mapping" if isinstance(value, (dict, Ask)) else "a word"


Mode = Annotated[
    Annotated[Literal["act", "advise"], Tag("a word")] | Annotated[Ask, Tag("a mapping")],
    Discriminator(_kind_of_mode),
    BeforeValidator(_asked_how),
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

    @field_validator("when", "do", "counts", mode="before")
    @classmethod
    def _is_something(cls, value: Any) -> Any:
        if value is None:
            raise ValueError("nothing is written here: leave the key out to keep what the rule has")
        return value


class Rule(Grammar):
    """One finding and what is done about it.

    `counts: false` keeps its restarts out of the budget. Within `cooldown` after it acted the rule is
    silent. `place` is where it was written; the loader sets it.
    """

    name: RuleName
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
    first step is done; between them the run waits longer and longer. `lost_time`: what restarts cost, in standing still
    and in steps that are done again, before the run is back where it was.
    """

    restarts: RateText = Field(default="20 per 24h", validate_default=True)  # pyright: ignore[reportAssignmentType]
    no_progress: Positive = 3
    first_step: Positive = 4
    lost_time: ShareText | None = None


class Quiet(Grammar):
    """After a declared change numbers teach, and nothing is found in them but what is not finite.

    `resume`: an attempt began from a checkpoint; the others: a setting of the run was changed.
    """

    after: Annotated[
        tuple[Literal["resume", "lr_change", "batch_change", "data_stage"], ...], Strict(False), Field(min_length=1)
    ]
    for_: Annotated[SpanText, Field(alias="for")] = Span(steps=200)


class Policy(Grammar):
    """A policy as written; once loaded nothing is left to include or override and every rule has its mode."""

    version: Literal[1]
    name: Annotated[str, Field(min_length=1)]
    mode: Mode = "act"
    include: Names | None = None
    override: dict[str, RuleChange] = Field(default_factory=dict)
    budget: Budget = Budget()
    reset_after: Annotated[Steps, Field(gt=0)] = 1000
    quiet: Quiet | None = None
    rules: Annotated[tuple[Rule, ...], Strict(False)] = ()

    @property
    def detectors(self) -> frozenset[str]:
        """What its rules are about."""
        return frozenset(rule.when.detector for rule in self.rules)
