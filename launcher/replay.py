"""What a policy would have made of a run that is over: its own, or one of others of which only the curve is known.

The very engine of a live run is fed the record. What it decides is not done: the record goes on as it did, so that the
cost of acting can be put beside that of doing nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from launcher.curves import SUFFIXES, Row, curve_files, read_curve
from launcher.errors import LaunchError
from launcher.events import (
    JUDGEMENTS,
    AgentJoined,
    AttemptStarted,
    CheckpointCommitted,
    Decision,
    Event,
    IncidentClosed,
    IncidentOpened,
    Judgement,
    StepDone,
    Tick,
)
from launcher.journal import read_journal
from launcher.paths import RunPaths
from policies.answer import ENDS
from policies.engine import decide, initial
from policies.schema import Policy
from policies.state import EngineState
from policies.watch import NUMERICS

NODE = "curve"  # where a run of which only the curve is known has its one rank


@dataclass(frozen=True)
class Costs:
    """What a step costs, where the record does not say: GPUs, seconds a step, steps between checkpoints."""

    gpus: int | None = None
    step_s: float | None = None
    save_every: int = 250


@dataclass
class Replay:
    """What was seen and decided along one record. `rows` are the steps it tells of, `last_step` the last one."""

    name: str
    judgements: list[Judgement] = field(default_factory=list)
    saved: list[int] = field(default_factory=list)
    rows: int = 0
    last_step: int = -1
    ranks: int = 0
    step_s: float = 0.0
    steps: dict[str, int] = field(default_factory=dict)  # by id of a judgement, the step in which it was known

    @property
    def opened(self) -> list[IncidentOpened]:
        return [one for one in self.judgements if isinstance(one, IncidentOpened)]

    @property
    def decisions(self) -> list[Decision]:
        return [one for one in self.judgements if isinstance(one, Decision)]

    def step_of(self, judgement: Judgement) -> int:
        """The step in which it was known."""
        return self.steps[judgement.id]


def sources(source: Path) -> list[tuple[str, Path]]:
    """The records of a source: (name, file of a curve, or folder of a run). Raises LaunchError if there is none."""
    if (source / "journal").is_dir():
        return [(source.name, source)]
    if not source.exists():
        raise LaunchError("there is no such file, folder or run", str(source))
    runs = sorted(path.parent for path in source.rglob("journal") if path.is_dir()) if source.is_dir() else []
    if runs:
        return [(run.name, run) for run in runs]
    files = curve_files(source)
    base = source.parent if source.is_file() else source
    return [(_named(file.relative_to(base)), file) for file in files]


def _named(file: Path) -> str:
    return str(file.with_suffix("")) if file.suffix.lower() in SUFFIXES else str(file)


def replay(policy: Policy, name: str, record: Path, costs: Costs) -> Replay:
    """One record through a policy. Raises LaunchError if it cannot be read."""
    if record.is_dir():
        return replayed(policy, name, _inputs(RunPaths(record)))
    rows = read_curve(record)
    if not rows:
        hint = "columns `step` and `loss`, and if there are any `grad_norm`, `lr`, `loss_scale`"
        raise LaunchError("no row with a step and a number is in it", str(record), hint)
    return replayed(policy, name, events_of(rows, costs.step_s or 1.0))


def replayed(policy: Policy, name: str, events: Iterable[Event]) -> Replay:
    """What the engine finds and decides in these events of a run, none of it being done. Pure."""
    replay, state, deadline = Replay(name), initial(policy), None
    times: list[float] = []
    for event in events:
        while deadline is not None and deadline < event.at:
            state, deadline = _told(policy, replay, state, Tick(at=deadline))
        if isinstance(event, StepDone):
            if state.pending and (goes_on := _went_on(state, replay.decisions[-1], event)):
                state, deadline = _told(policy, replay, state, goes_on)
            replay.rows, replay.last_step = replay.rows + 1, event.step
            times += [event.step_s] if 0 < event.step_s < 1e6 else []
        if isinstance(event, CheckpointCommitted):
            replay.saved.append(event.step)
        state, deadline = _told(policy, replay, state, event)
    replay.ranks = state.attempt.world_size if state.attempt else 0
    replay.step_s = sorted(times)[len(times) // 2] if times else 0.0
    return replay


def _told(policy: Policy, replay: Replay, state: EngineState, event: Event) -> tuple[EngineState, float | None]:
    state, judgements, deadline = decide(policy, state, event)
    if judgements:
        replay.judgements += judgements
        replay.steps |= {one.id: event.step if isinstance(event, StepDone) else replay.last_step for one in judgements}
    return state, deadline


def _went_on(state: EngineState, last: Decision, event: StepDone) -> Event | None:
    """The start of an attempt where the engine has ended one about its numbers, but the record went on."""
    attempt = state.attempt
    if state.pending is None or attempt is None or attempt.number != event.attempt or last.detector not in NUMERICS:
        return None
    restore = (attempt.step + 1, attempt.number)
    return AttemptStarted(
        at=event.at, attempt=attempt.number, slots=dict(attempt.slots), incarnations=dict(attempt.incarnations),
        restore=restore, why="the record goes on",
    )  # fmt: skip


def _inputs(paths: RunPaths) -> Iterator[Event]:
    """What the engine of a run was fed: everything but its own judgements, and the clock's word."""
    return (event for event in read_journal(paths).events if not isinstance(event, (*JUDGEMENTS, Tick)))


def events_of(rows: Sequence[Row], step_s: float) -> Iterator[Event]:
    """The events of a run of which only the curve is known.

    A step that goes back is one of a new attempt, begun there; a row told twice counts once.
    """
    at, last, attempt = 0.0, None, 0
    yield AgentJoined(at=at, node=NODE, index=0, incarnation="1", host="", port=0, pid=0)
    for row in rows:
        if row.step == last:
            continue
        gap = row.step - last if last is not None and row.step > last else 1
        at = max(at, row.at) if row.at is not None and abs(row.at) < 1e11 else at + gap * step_s
        if last is None or row.step < last:
            attempt += 1
            restore = (row.step, attempt - 1) if attempt > 1 else None
            yield AttemptStarted(
                at=at, attempt=attempt, slots={NODE: (0,)}, incarnations={NODE: "1"}, restore=restore, why=""
            )
        last = row.step
        yield StepDone(at=at, attempt=attempt, step=row.step, metrics=dict(row.metrics))


# ---------------------------------------------------------------- what it comes to


@dataclass(frozen=True)
class Bill:
    """What an incident costs in steps: done again after going back, or spent in trouble if nothing is done."""

    acting: int
    waiting: int


def bill(replay: Replay, decision: Decision, costs: Costs) -> Bill:
    """Steps that going back throws away, and steps from the onset until the trouble healed, or the record ended."""
    step, onset = replay.step_of(decision), max(0, decision.onset_step)
    before = [saved for saved in replay.saved if saved <= onset]
    base = max(before, default=onset // costs.save_every * costs.save_every if not replay.saved else 0)
    over = [one for one in replay.judgements if isinstance(one, IncidentClosed) and one.incident == decision.incident]
    ended = replay.step_of(over[0]) if over and over[0].outcome == "healed" else replay.last_step
    return Bill(max(0, step - base), max(0, ended - onset))


def gpu_hours(steps: int, replay: Replay, costs: Costs) -> float | None:
    """GPU-hours of so many steps; None where neither the record nor `costs` say what a step takes."""
    step_s, gpus = costs.step_s or replay.step_s, costs.gpus or (replay.ranks if replay.step_s else None)
    return steps * step_s * gpus / 3600 if step_s and gpus else None


def deed(decision: Decision) -> str:
    """What a decision comes to, in a word: how it ends the attempt, or what is done beside it."""
    return next((name for name in decision.actions if name in ENDS), "+".join(decision.actions))
