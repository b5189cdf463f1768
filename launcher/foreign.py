"""What RUN.yaml says of a trainer that is not ours: how to read its output, what it can do, its checkpoints."""

from __future__ import annotations

import re
import signal
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Discriminator, Field, Tag, model_validator

from launcher.abilities import SAVE_LIMIT_S, SETTINGS, Abilities
from launcher.grammar import Positive, Section, Text, Texts
from launcher.reporter import EXIT_CHECKPOINT_REJECTED
from launcher.telemetry import PRESETS, Patterns, Speaker, compiled, flaw, metrics_of
from policies.units import Duration

PLACEHOLDERS = ("{dir}", "{step}")
NO_SAVE = "the trainer cannot be told to save: 'capabilities.save_now' does not say how"
SAVE_ENDS = "the trainer ends when it is told to save ('capabilities.save_now'): use stop or hold"


def _known_signal(name: str) -> str:
    if name not in signal.Signals.__members__ or name in ("SIGKILL", "SIGSTOP"):
        raise ValueError(f"{name[:40]!r} is no signal that a process can handle: write for example SIGUSR1")
    return name


def _known_placeholders(text: str) -> str:
    for found in re.findall(r"\{\w*\}", text):
        if found not in PLACEHOLDERS:
            raise ValueError(
                f"{found} is not known here: write {{dir}} for the checkpoint's path, {{step}} for its step"
            )
    return text


def _exit_code(text: str) -> str:
    if not re.fullmatch(r"[1-9][0-9]{0,2}", text) or int(text) > 255:
        raise ValueError(f"{text[:20]} is no exit code of a failure: they go from 1 to 255")
    if int(text) == EXIT_CHECKPOINT_REJECTED:
        raise ValueError(f"{text} is what a rank that refuses its checkpoint exits with, always")
    return text


def _word_or_mapping(value: Any) -> str:
    return "a mapping" if isinstance(value, (dict, Section)) else "a word"


_OneOrMore = BeforeValidator(lambda value: [value] if isinstance(value, str) else value)


class Telemetry(Section):
    """How steps and metrics are read: by a preset, by patterns of one's own, or told through the reporter."""

    preset: Literal["nanogpt", "megatron", "hf_trainer", "torchtitan", "reporter"] | None = None
    pattern: Annotated[Annotated[Texts, Field(min_length=1)], _OneOrMore] | None = None
    from_: Annotated[Speaker | None, Field(alias="from")] = None

    @model_validator(mode="after")
    def _one_way(self) -> Telemetry:
        if (self.preset is None) == (self.pattern is None):
            raise ValueError("write either 'preset' or 'pattern'")
        return self

    @property
    def by_lines(self) -> bool:
        """Whether steps are read from what is printed."""
        return self.preset != "reporter"

    @property
    def speaker(self) -> Speaker:
        """The rank that is read."""
        preset = PRESETS.get(self.preset or "")
        return self.from_ or (preset.speaker if preset else "first_rank")

    def patterns(self, goal: int | None) -> Patterns:
        """What is looked for in a run of `goal` steps. Raises re.error for patterns that `preflight` refuses."""
        preset = PRESETS.get(self.preset or "")
        return compiled(preset.for_goal(goal) if preset else self.pattern or ())

    @property
    def metrics(self) -> frozenset[str] | None:
        """The metrics there can be; None when that is not known."""
        if not self.by_lines or any(map(flaw, self.pattern or ())):
            return None
        return metrics_of(self.patterns(None))


class ResumeArgs(Section):
    """What is appended to the command to begin from a checkpoint: {dir} is its path, {step} its step."""

    args: Annotated[tuple[Annotated[Text, AfterValidator(_known_placeholders)], ...], Field(strict=False, min_length=1)]


class SaveNow(Section):
    """The signal to every rank that asks for a checkpoint; what the trainer does after it, and how long it may take."""

    signal: Annotated[str, AfterValidator(_known_signal)]
    then: Literal["goes_on", "exits"] = "goes_on"
    within: Annotated[Duration, Field(gt=0)] = SAVE_LIMIT_S


class Done(Section):
    """The goal: to end well before this many steps is to end early."""

    step: Positive


Resume = Annotated[
    Annotated[Literal["newest", "none"], Tag("a word")] | Annotated[ResumeArgs, Tag("a mapping")],
    Discriminator(_word_or_mapping),
]
Save = Annotated[
    Annotated[Literal["none"], Tag("a word")] | Annotated[SaveNow, Tag("a mapping")], Discriminator(_word_or_mapping)
]
Told = Literal["none", "reporter"]  # whether the trainer hears of it through the reporter
ExitMeaning = Literal["rerun_same", "done", "stop"]


class Capabilities(Section):
    """What the trainer can do. What is not said is not known, and not relied upon."""

    resume: Resume | None = None
    skip: Told = "none"
    save_now: Save | None = None
    lr: Told = "none"
    clip: Told = "none"
    loss_scale: Told = "none"
    elastic: bool = False  # fit for any WORLD_SIZE, and so are its checkpoints
    done: Done | None = None
    exit_codes: dict[Annotated[str, AfterValidator(_exit_code)], ExitMeaning] = Field(default_factory=dict)

    @property
    def settings(self) -> frozenset[str]:
        """The settings that can be changed."""
        return frozenset(name for name in SETTINGS if getattr(self, name) == "reporter")

    def codes(self, meaning: ExitMeaning) -> list[int]:
        """The exit statuses that mean this."""
        return sorted(int(code) for code, what in self.exit_codes.items() if what == meaning)


class Complete(Section):
    """When a checkpoint is whole: a file in it says so (written last), or nothing in it has changed for a while."""

    marker: Text | None = None
    settled: Annotated[Duration, Field(gt=0)] | None = None

    @model_validator(mode="after")
    def _one_sign(self) -> Complete:
        if (self.marker is None) == (self.settled is None):
            raise ValueError("write either 'marker' or 'settled'")
        return self


class CheckpointFiles(Section):
    """Where the trainer's checkpoints are, relative to the ranks' working folder, and how they are told from halves."""

    glob: Text
    complete: Complete
    verify: Literal["sizes", "sampled", "full"] = "sizes"


def abilities_of(telemetry: Telemetry | None, can: Capabilities, checkpoints: CheckpointFiles | None) -> Abilities:
    """What a trainer can do that declares this."""
    how = can.save_now
    by_signal = how if isinstance(how, SaveNow) else None
    by_reporter = how is None and (telemetry is None or not telemetry.by_lines)
    saves = by_signal.then if by_signal else "goes_on" if by_reporter else "never"
    told = can.settings or can.skip == "reporter"  # who can be told so uses the reporter
    return Abilities(
        saves=saves,
        signal=by_signal.signal if by_signal else "",
        save_s=by_signal.within if by_signal else SAVE_LIMIT_S,
        resume_args=can.resume.args if isinstance(can.resume, ResumeArgs) else (),
        resumes_itself=checkpoints is None and can.resume != "none",
        begins_anew=can.resume == "none",
        done_step=can.done.step if can.done else None,
        settings=can.settings,
        skips=can.skip == "reporter",
        observed=telemetry is not None or bool(told),
        refusal={"goes_on": "", "exits": SAVE_ENDS, "never": NO_SAVE}[saves],
    )
