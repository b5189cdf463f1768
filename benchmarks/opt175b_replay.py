"""The OPT-175B record told to the engine of a live run, row by row. Pure.

The rows of a lineage are one run, so that ladders and budgets count from row to row; those without a date stand alone.
The record goes on whatever is decided: where the engine wants to restart, the next attempt begins ten minutes later;
where it holds, a person releases the run. Where several signs fit a row each is tried, and the run goes on from the
first.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time

from opt175b_record import Row
from opt175b_signs import NODES, SLOTS, STEP_S, Place, Sign, healthy, signs_of

from launcher.events import (
    AgentJoined,
    AttemptEnded,
    AttemptStarted,
    CheckpointCommitted,
    Decision,
    Event,
    Judgement,
    RunHeld,
    RunReleased,
    Tick,
)
from launcher.evolve import evolve
from policies.answer import ENDS
from policies.engine import decide, initial
from policies.schema import Policy
from policies.state import EngineState
from policies.watch import NUMERICS

SAVE_EVERY = 250
RESTART_S = 600.0
HEALTHY_STEPS = 100  # that are told before a sign: enough to know what is usual
UNKNOWN_GAP = 2 * SAVE_EVERY  # steps since the row before, where a row does not state its step
DAY_S = 86_400.0


@dataclass(frozen=True)
class Tale:
    """A run as far as it has been told. `attempt` and `step` as in Place; `alive`: its ranks train."""

    policy: Policy
    state: EngineState
    at: float
    attempt: int = 0
    step: int = -1
    alive: bool = False
    deadline: float | None = None
    judgements: tuple[Judgement, ...] = ()

    @property
    def ending(self) -> Decision | None:
        """What has been decided that ends the attempt."""
        return next((one for one in self.judgements if _ends(one)), None)  # type: ignore[return-value]


def _ends(one: Judgement) -> bool:
    return isinstance(one, Decision) and one.mode == "act" and bool(ENDS & one.actions.keys())


@dataclass(frozen=True)
class Outcome:
    """What became of a row under one sign that fits it."""

    sign: Sign
    judgements: tuple[Judgement, ...]

    @property
    def decision(self) -> Decision | None:
        """What ended the attempt; without that, what else was done or advised first."""
        decisions = [one for one in self.judgements if isinstance(one, Decision)]
        return next((one for one in decisions if _ends(one)), decisions[0] if decisions else None)


def outcomes(policy: Policy, rows: Sequence[Row]) -> dict[int, tuple[Outcome, ...]]:
    """By number of the row, what the policy finds and decides under each sign that fits."""
    found: dict[int, tuple[Outcome, ...]] = {}
    for chapter in _chapters(rows):
        tale = _new_run(policy, _times(chapter)[0])
        for row, at in zip(chapter, _times(chapter), strict=True):
            ends = [(sign, _told_row(tale, row, sign, at)) for sign in signs_of(row.seen)]
            found[row.number] = tuple(Outcome(sign, end.judgements) for sign, end in ends)
            tale = _after(ends[0][1], row)
    return found


def _chapters(rows: Sequence[Row]) -> Iterator[list[Row]]:
    """The rows of each run, in order of time: a launch begins a run, and rows without a date are by themselves."""
    chapter: list[Row] = []
    for row in sorted((row for row in rows if row.day), key=lambda row: row.day or date.max):
        if row.seen.kind == "launch" and chapter:
            yield chapter
            chapter = []
        chapter.append(row)
    yield chapter
    yield from ([row] for row in rows if row.day is None)


def _times(chapter: Sequence[Row]) -> list[float]:
    """When each row happened (Unix seconds): those of a day are spread over it evenly."""
    days = [row.day for row in chapter]
    times = []
    for at, day in enumerate(days):
        of_day = days.count(day)
        since = datetime.combine(day, time(), UTC).timestamp() if day else 0.0
        times.append(since + (days[:at].count(day) + 1) * DAY_S / (of_day + 1))
    return times


# ---------------------------------------------------------------- a run is told


def _new_run(policy: Policy, at: float) -> Tale:
    tale = Tale(policy, initial(policy), at - DAY_S)
    return _told(tale, *(_joined(node, tale.at) for node in NODES))


def _joined(node: str, at: float) -> AgentJoined:
    return AgentJoined(at=at, node=node, index=NODES.index(node), incarnation="1", host="", port=0, pid=0)


def _told(tale: Tale, *events: Event) -> Tale:
    """The tale with events told, and what the engine found and decided; it is asked when it wanted to be."""
    for event in events:
        while tale.deadline is not None and tale.deadline < event.at:
            tale = _folded(tale, Tick(at=tale.deadline))
            if tale.ending:
                return tale
        tale = _folded(tale, event)
    return tale


def _folded(tale: Tale, event: Event) -> Tale:
    state, judgements, deadline = decide(tale.policy, tale.state, event)
    step = max(getattr(event, "step", tale.step), -1) if event.type == "step_done" else tale.step
    known = (*tale.judgements, *judgements)
    return evolve(tale, state=state, deadline=deadline, judgements=known, at=max(tale.at, event.at), step=step)


def _told_row(tale: Tale, row: Row, sign: Sign, at: float) -> Tale:
    """The tale up to what came of a row: the engine is shown the sign until it ends the attempt, and nothing else."""
    step = row.seen.step if row.seen.step is not None else max(tale.step, 0) + (0 if sign.at_start else UNKNOWN_GAP)
    tale = evolve(tale, judgements=())
    if sign.at_start:
        tale = tale if not tale.alive else evolve(_told(tale, _over(tale)), alive=False)
        return _shown(_begun(tale, step, at), sign)
    onset = max(1, step - sign.steps)
    if not tale.alive or onset <= tale.step:
        tale = tale if not tale.alive else _told(tale, _over(tale))
        tale = _begun(tale, onset, tale.at + RESTART_S)
    return _shown(_healthy(tale, onset, at), sign)


def _over(tale: Tale) -> AttemptEnded:
    return AttemptEnded(at=tale.at, attempt=tale.attempt, reason="people ended it")


def _begun(tale: Tale, step: int, at: float) -> Tale:
    """A new attempt, from the newest checkpoint that is older than this step and than the last one that was done."""
    newest = (min(step, max(tale.step, 0)) - 1) // SAVE_EVERY * SAVE_EVERY
    restore = (newest, tale.attempt) if newest > 0 else None
    tale = _told(
        tale, *(_joined(node, max(at, tale.at)) for node in sorted(tale.state.troubled))
    )  # or a machine like it
    event = AttemptStarted(
        at=max(at, tale.at), attempt=tale.attempt + 1, slots=SLOTS, incarnations=dict.fromkeys(NODES, "1"),
        restore=restore, why="",
    )  # fmt: skip
    begun = evolve(tale, attempt=tale.attempt + 1, step=newest if newest > 0 else -1, alive=True)
    return _told(begun, event)


def _healthy(tale: Tale, step: int, at: float) -> Tale:
    """The steps up to this one, told of where it matters: at once when the attempt has begun, and before the sign."""
    first = healthy(Place(tale.at + STEP_S, tale.attempt, tale.step + 1), tale.step + 1)
    tale = _told(tale, first)
    saved = step // SAVE_EVERY * SAVE_EVERY
    if saved > tale.step:
        told = CheckpointCommitted(
            at=tale.at, step=saved, attempt=tale.attempt, parent=None, manifest_digest="", bytes=0
        )
        tale = _told(tale, told)
    begin = max(tale.at, at - HEALTHY_STEPS * STEP_S)
    from_ = max(tale.step + 1, step - HEALTHY_STEPS)
    place = Place(begin, tale.attempt, from_)
    told = [healthy(place, one) for one in range(from_ + 1, step + 1)]
    return _told(tale, healthy(place, from_, step_s=0.0), *told)


def _shown(tale: Tale, sign: Sign) -> Tale:
    if tale.ending:  # else the verdict would be about what nobody has seen
        raise AssertionError(f"the engine has acted upon healthy steps: {tale.ending}")
    tale = evolve(tale, judgements=())
    for event in sign.events(Place(tale.at, tale.attempt, tale.step)):
        tale = _told(tale, event)
        if tale.ending:
            break
    return tale


def _after(tale: Tale, row: Row) -> Tale:
    """The run as the record goes on: what was decided is over, and where the engine called a person, one has come."""
    ending = tale.ending
    if ending is None:
        ended = row.seen.kind not in LIVES_ON
        return evolve(_told(tale, _over(tale)), alive=False) if ended and tale.alive else tale
    # Of numbers that have gone wrong the next attempt begins before they had.
    step = min(tale.step, ending.onset_step) if ending.detector in NUMERICS else tale.step
    tale = evolve(_told(tale, _over(tale)), alive=False, judgements=(), step=step)
    if "restart" in ending.actions:
        return tale
    return _told(tale, RunHeld(at=tale.at, reason=""), RunReleased(at=tale.at + RESTART_S, author="a person"))


# Rows that tell of no end of a run.
LIVES_ON = frozenset({"launch", "config_change", "infra_note", "software", "milestone"})
