"""What sensors would have seen of a row of the OPT-175B record, as events for the engine. Pure.

The record is prose of people who knew more. From it come only the kind of event, how it was noticed, the step, and the
words of the note about what was to be seen; shapes and sizes that it does not state are the choices below. Where it
leaves open what was seen, each sign that fits is tried.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from opt175b_record import Seen

from launcher.events import Event, NodeDown, RankExited, RankProgress, StepDone, StepsStopped, Tick
from launcher.evolve import evolve

NODES = tuple(f"node{index:03d}" for index in range(124))  # one rank stands for the eight of each
SLOTS = {node: (rank,) for rank, node in enumerate(NODES)}
STEP_S = 21.0  # about 2 million tokens at 100,000 tokens a second
WATCHED_S = 3 * 3600.0  # how long the engine may wait before it decides
LOST_AT_ONCE = 5


@dataclass(frozen=True)
class Place:
    """Where a run is: the time (Unix seconds), the attempt, and the last step done."""

    at: float
    attempt: int
    step: int


@dataclass(frozen=True)
class Sign:
    """Something that sensors see, from `steps` before the step of the row on.

    `at_start`: of an attempt that never does its first step. `name` completes the sentence 'if ...'.
    """

    name: str
    events: Callable[[Place], Iterator[Event]]
    steps: int = 0
    at_start: bool = False


# ---------------------------------------------------------------- steps


def healthy(place: Place, step: int, step_s: float = STEP_S) -> StepDone:
    """A step as they were in the middle of the run. `step_s`: 0 where those before it were left out of the tale."""
    return evolve(_step(place, step), step_s=step_s)


def _step(place: Place, step: int, **changed: float) -> StepDone:
    """A step as in the middle of the run: a loss of 2.2, a norm of 0.14, a loss scale of 4, activations of 3400."""
    noise = ((step * 7919) % 101) / 50 - 1  # between -1 and 1, without a period that matters
    metrics = {
        "loss": 2.2 + 0.02 * noise,
        "grad_norm": 0.14 * (1 + 0.05 * noise),
        "activation_norm": 3400.0 * (1 + 0.002 * noise),
        "loss_scale": 4.0,
        "skipped": 0.0,
    }
    at = place.at + (step - place.step) * STEP_S
    return StepDone(at=at, attempt=place.attempt, step=step, metrics=metrics | changed, step_s=STEP_S)


def _steps(changes: Callable[[int], Mapping[str, float]], count: int, every: int = 1) -> Callable:
    """Steps with numbers that are not as usual, by how many steps they have not been."""

    def events(place: Place) -> Iterator[Event]:
        for after in range(every, count + 1, every):
            yield _step(place, place.step + after, **changes(after))

    return events


# ---------------------------------------------------------------- infrastructure


def _exits(place: Place, error: str, ranks: Sequence[int] = (17,), step: int | None = None) -> Iterator[Event]:
    step = place.step if step is None else step
    for rank in ranks:
        yield RankExited(
            at=place.at + 1, attempt=place.attempt, node=NODES[rank], rank=rank, code=1, step=step,
            error_type="RuntimeError", error=error,
        )  # fmt: skip
    yield Tick(at=place.at + WATCHED_S)


def _rank_exits(place: Place) -> Iterator[Event]:
    return _exits(place, "CUDA error: uncorrectable ECC error encountered")


def _gpus_missing(place: Place) -> Iterator[Event]:
    return _exits(place, "CUDA error: invalid device ordinal", step=-1)


def _links_break(place: Place) -> Iterator[Event]:
    return _exits(place, "NCCL error: remote process exited or there was a network error", ranks=range(len(NODES)))


def _nodes_vanish(count: int) -> Callable[[Place], Iterator[Event]]:
    def events(place: Place) -> Iterator[Event]:
        for node in NODES[10 : 10 + count]:
            yield NodeDown(at=place.at + 1, node=node, reason="DOWN")
        yield Tick(at=place.at + WATCHED_S)

    return events


def _all_stand_still(place: Place) -> Iterator[Event]:
    ranks = {
        rank: RankProgress(node=node, step=place.step, section=40, phase="", os_state="S")
        for rank, node in enumerate(NODES)
    }
    at = place.at + 3 * STEP_S
    yield StepsStopped(at=at, attempt=place.attempt, since=place.at, proof=True, usual_s=STEP_S, ranks=ranks)
    yield Tick(at=at + WATCHED_S)


def _nothing_comes(place: Place) -> Iterator[Event]:
    yield Tick(at=place.at + WATCHED_S)


def _nothing(place: Place) -> Iterator[Event]:
    yield Tick(at=place.at + 1)


RANK_EXITS = Sign("a rank ends with an error", _rank_exits)
NODE_VANISHES = Sign("a node vanishes", _nodes_vanish(1))
NODES_VANISH = Sign("five nodes vanish at once", _nodes_vanish(LOST_AT_ONCE))
LINKS_BREAK = Sign("all ranks lose their connections", _links_break)
STANDS_STILL = Sign("nothing moves", _all_stand_still)
NEVER_BEGINS = Sign("a rank ends before the first step", _gpus_missing, at_start=True)
STANDS_AT_START = Sign("no first step comes", _nothing_comes, at_start=True)
STOPPED_BY_HAND = Sign("people stopped it", _nothing)
NOTHING = Sign("nothing that a sensor sees", _nothing)

# ---------------------------------------------------------------- numbers

# The loss climbs from 2.2 to 6 within 60 steps, and the norm with it.
EXPLODES = Sign(
    "loss and gradient norm explode",
    _steps(lambda after: {"loss": min(6.0, 2.2 * math.exp(after / 60)), "grad_norm": 0.14 * (8 + after % 5)}, 100),
    steps=100,
)
NOT_FINITE = Sign("the loss is not a number", _steps(lambda _: {"loss": math.nan, "grad_norm": math.nan}, 3), steps=3)
# Each update is skipped, and the scale stays at its floor: metaseq went on like this until it was stopped.
SCALE_AT_FLOOR = Sign(
    "updates are skipped with the loss scale at its floor",
    _steps(lambda after: {"skipped": 1.0, "loss_scale": max(0.25, 4.0 / 2**after), "grad_norm": math.inf}, 300),
    steps=300,
)
# From 0.14 to 0.2 at once, and 0.21 in the end; the activations rise by a tenth. How much they did is not stated.
NORMS_TURN_UP = Sign(
    "the norms turn upwards under a calm loss",
    _steps(lambda after: {"grad_norm": 0.2 + 2e-5 * after, "activation_norm": 3400.0 * (1 + 0.1 * after / 630)}, 630),
    steps=630,
)
# From 3400 to 4300 in 17,000 steps.
ACTIVATIONS_RISE = Sign(
    "the norm of the activations rises slowly",
    _steps(lambda after: {"activation_norm": 3400.0 + 900.0 * after / 17_000}, 17_000, every=50),
    steps=17_000,
)
ACTIVATIONS_FALL = Sign(
    "the norm of the activations falls",
    _steps(lambda after: {"activation_norm": 3400.0 * (1 - 0.2 * min(1.0, after / 500))}, 1000, every=5),
    steps=1000,
)
STAYS_FLAT = Sign("the loss no longer falls", _steps(lambda _: {}, 2000, every=10), steps=2000)

# ---------------------------------------------------------------- what fits a row

# Of this kind, noticed so (anything where empty), with these words in the note: the signs that fit, the first row wins.
FITS: tuple[tuple[str, str, str, tuple[Sign, ...]], ...] = (
    ("divergence", "", "loss scale pinned near zero", (SCALE_AT_FLOOR,)),
    ("divergence", "", r"perplexity (about \d{3}|and activation norm shot up|began to diverge)|last logged perplexity",
     (EXPLODES,)),
    ("divergence", "", "", (EXPLODES, NOT_FINITE, SCALE_AT_FLOOR)),
    ("loss_scale_collapse", "", "", (SCALE_AT_FLOOR,)),
    ("drift", "", "", (NORMS_TURN_UP,)),
    ("plateau", "", "", (STAYS_FLAT,)),
    ("config_change", "", "activation norm had risen", (ACTIVATIONS_RISE,)),
    ("software", "", "activation norm fell", (ACTIVATIONS_FALL,)),
    ("hang", "", "", (STANDS_STILL, STANDS_AT_START)),
    ("storage", "", "partly uploaded when hardware failed", (NODE_VANISHES, RANK_EXITS)),
    ("storage", "", "downloads", (STANDS_AT_START,)),
    ("node_failure", "", "GPUs missing|nodes arrived", (NEVER_BEGINS,)),
    ("node_failure", "", "ECC|CUDA", (RANK_EXITS,)),
    ("node_failure", "", "NCCL", (LINKS_BREAK, RANK_EXITS)),
    ("node_failure", "", "replacing one machine", (NODE_VANISHES, RANK_EXITS)),
    ("node_failure", "", "five hosts went down", (NODES_VANISH,)),
    ("node_failure", "", "", (NODE_VANISHES, RANK_EXITS, STANDS_STILL)),
    ("failed_restart", "", "same overflow", (SCALE_AT_FLOOR,)),
    ("failed_restart", "metric_watch", "", (SCALE_AT_FLOOR, EXPLODES, NOT_FINITE)),
    ("failed_restart", "", "", (NEVER_BEGINS, STANDS_AT_START)),
    ("restart", "", "hardware or infrastructure|hardware trouble", (RANK_EXITS, NODE_VANISHES, STANDS_STILL)),
    ("restart", "", "", (RANK_EXITS, NODE_VANISHES, STANDS_STILL, STOPPED_BY_HAND)),
)  # fmt: skip


def signs_of(seen: Seen) -> tuple[Sign, ...]:
    """What sensors may have seen of a row."""
    for kind, detection, words, signs in FITS:
        if kind == seen.kind and detection in ("", seen.detection) and re.search(words, seen.note):
            return signs
    return (NOTHING,)
