"""Spikes: the loss leaves its level and does not come back. Seen early, judged late. Pure, of constant size.

Trouble begins with the first row above the baseline. It is an *onset* once more than one row, or loss and gradient
norm together, say so: one bad batch is none. It is to be *acted upon* when it lasts: three rows far above, or seven of
the last nine clearly above, and `heal_within` steps have not healed it; at once when the loss has left all measure.
It has *healed* when three rows in a row are back. While it lasts nothing of it moves the baseline.

Some runs jump up now and then as a habit: a batch loss of two levels, odd batches. So it must also be most unlikely
that these rows are of that habit. Where the gradient norm is known and did not rise with the loss, twice as much is
asked for. A run that went back is to do as well as it did at the step it went back to: policies/relapse.py.

A row is what was told: one step, or the last of 500. Rows and limits follow how the labels of tests/data/curves were
made, which is by looking at the whole curve; docs/benchmarks.md says how well it works without, and on other curves.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from launcher.events import Json, StepDone
from launcher.evolve import evolve
from policies.baseline import NOISE_OF, UNKNOWN, Baseline, learned, noted, raised
from policies.finding import Word
from policies.habit import NO_HABIT, Habit, surprise
from policies.relapse import Return, followed, is_healing, relapse
from policies.when import Spike

FAR_ROWS = 3  # rows far above that are no accident
CLEAR_ROWS, OF_ROWS = 7, 9  # of the last nine rows clearly above
BACK_ROWS = 3  # rows in a row that are no longer above
CLEAR = 3.0 / 8.0  # of the limit for 'far'; of the share of the level two thirds
CLEAR_SHARE = 2.0 / 3.0
NORM_NOISE, LOG_FACTOR = 8.0, math.log(2.0)  # a gradient norm so many noises up, and doubled, is up
EXPLODED = 100.0  # times the highest level the loss has had, which is that of a model that knows nothing
CERTAIN = math.log(1e6)  # by habit, once in a million rows
SETTLED_ROWS = 200  # what has lasted so long is the new level
TRACED = 64  # earlier levels that are remembered at most, evenly over the run
RECENT = 4  # of them say what the level was at a step


@dataclass(frozen=True)
class Row:
    """A row of the trouble: how far above the level, and what that counts for."""

    step: int
    above: float
    is_clear: bool


@dataclass(frozen=True)
class Trouble:
    """Rows in a row that are not as usual. `level`, `far`, `clear` and `habit` are of before; `values`: (loss, norm).

    `count` are all its rows, `loss_rows` those since the loss was clearly above; `norm_rise` is what the logarithm of
    the norm was above its level in rows far above, altogether.
    """

    step: int
    at: float
    level: float
    far: float
    clear: float
    habit: Habit
    rows: tuple[Row, ...] = ()
    values: tuple[tuple[float, float | None], ...] = ()
    count: int = 0
    loss_rows: int = 0
    clear_rows: int = 0
    far_rows: int = 0
    norm_rise: float | None = None
    norm_rows: int = 0
    back_rows: int = 0
    peak: float = -math.inf
    is_told: bool = False
    is_due: bool = False


@dataclass(frozen=True)
class Past:
    """The levels of loss and norm, and of which step."""

    step: int
    loss: float
    norm: float


@dataclass(frozen=True)
class SpikeMemory:
    """Baselines of the loss and of the logarithm of the gradient norm; the highest level so far; trouble, if any.

    `trace`: levels of the past, at least `stride` steps apart, for a run that goes back.
    """

    loss: Baseline = UNKNOWN
    norm: Baseline = UNKNOWN
    highest: float = 0.0
    trace: tuple[Past, ...] = ()
    stride: int = 1
    habit: Habit = NO_HABIT  # as of `calm_rows` ago
    calm_rows: int = 0
    trouble: Trouble | None = None
    back: Return | None = None


def spike(detector: Spike, memory: SpikeMemory, event: StepDone, *, learning: bool) -> tuple[SpikeMemory, Word | None]:
    """What the detector says of a step. While `learning` (after a declared change) everything is usual."""
    back, loss = memory.back, event.metrics.get(detector.metric, math.nan)
    if back is None:
        return _seen(detector, memory, event, learning)
    if learning or math.isfinite(loss):
        back = None if learning else followed(detector, back, event, loss)
    memory, word = _seen(detector, evolve(memory, back=back), event, learning)
    return memory, relapse(detector, back, event) if back and back.is_due else word


def _seen(detector: Spike, memory: SpikeMemory, event: StepDone, learning: bool) -> tuple[SpikeMemory, Word | None]:
    """One row more, beside what is usual."""
    loss = event.metrics.get(detector.metric, math.nan)
    trouble = memory.trouble
    if not math.isfinite(loss):  # another detector's matter
        return memory, _word(trouble, event) if trouble and trouble.is_told else None
    norm = event.metrics.get(detector.norm, math.nan)
    log_norm = math.log(norm) if 0 < norm < math.inf else None
    if learning or not memory.loss.is_learned or event.step < detector.warmup:
        return _learn(
            evolve(memory, trouble=None, calm_rows=0) if trouble else memory, event.step, loss, log_norm
        ), None
    norm_is_up = norm == math.inf or (log_norm is not None and _is_up(memory.norm, log_norm))
    if trouble is None:
        above = loss - memory.loss.level
        if not norm_is_up and above <= CLEAR_SHARE * (detector.at_least * abs(memory.loss.level)):
            return _learn(memory, event.step, loss, log_norm), None  # whatever the noise
        far, clear = limits(detector, memory.loss)
        if above <= clear and not norm_is_up:
            return _learn(memory, event.step, loss, log_norm), None
        trouble = Trouble(event.step, event.at, memory.loss.level, far, clear, memory.habit.plus(memory.calm_rows))
    above = loss - trouble.level
    exploded = above > EXPLODED * memory.highest
    rise = None if log_norm is None or not memory.norm.is_learned else log_norm - memory.norm.level
    trouble = _grown(trouble, Row(event.step, above, above > trouble.clear), (loss, log_norm), norm_is_up, rise)
    trouble = _judged(detector, trouble, norm_is_up, exploded)
    if trouble.back_rows >= BACK_ROWS or trouble.count >= SETTLED_ROWS:
        return _over(memory, trouble, event)
    return evolve(memory, trouble=trouble), _word(trouble, event) if trouble.is_told else None


def looked_at(memory: SpikeMemory) -> SpikeMemory:
    """What is remembered once a person has looked: only rows from then on are a reason to act upon the trouble."""
    memory = evolve(memory, back=None)
    if memory.trouble is None:
        return memory
    counted = {"loss_rows": 0, "clear_rows": 0, "far_rows": 0, "norm_rows": 0, "norm_rise": None}
    return evolve(memory, trouble=evolve(memory.trouble, rows=(), is_due=False, **counted))


def gone_back(memory: SpikeMemory, restored: int) -> SpikeMemory:
    """What is remembered when a run goes back to a step: what was usual then, where that was more than it is now.

    Trouble that began later is gone.
    """
    trouble = None if memory.trouble and restored <= memory.trouble.step else memory.trouble
    trace = tuple(past for past in memory.trace if past.step <= restored)
    past = trace[-1] if trace else memory.trace[0] if memory.trace else None
    if past is None:
        return evolve(memory, trouble=trouble)
    loss, norm = raised(memory.loss, past.loss), raised(memory.norm, past.norm)
    back = _returned(memory, restored, trace)
    return evolve(memory, trouble=trouble, loss=loss, norm=norm, trace=trace, back=back)


def _returned(memory: SpikeMemory, restored: int, trace: tuple[Past, ...]) -> Return | None:
    """What a run that goes back is held to: the level it had there, as the mean of the last ones remembered."""
    back, trouble = memory.back, memory.trouble
    noise = back.noise if back else memory.loss.noise
    if trouble and trouble.is_due and restored <= trouble.step:
        cause = trouble.step
    elif back and restored <= back.step:
        cause = back.trouble
    else:
        return back  # it begins anew for another reason
    levels = [past.loss for past in trace[-RECENT:]]
    return Return(restored, math.fsum(levels) / len(levels), noise, cause) if levels else None


def _learn(memory: SpikeMemory, step: int, loss: float, log_norm: float | None) -> SpikeMemory:
    known = learned(memory.loss, loss)
    norm = memory.norm if log_norm is None else learned(memory.norm, log_norm)
    highest = max(memory.highest, abs(known.level))
    trace, stride = memory.trace, memory.stride
    if known.is_learned and (not trace or step >= trace[-1].step + stride):
        trace = (*trace, Past(step, known.level, norm.level))
        if len(trace) > TRACED:
            trace, stride = trace[::2], 2 * stride
    return evolve(
        memory, loss=known, norm=norm, highest=highest, calm_rows=memory.calm_rows + 1, trace=trace, stride=stride
    )


def _is_up(norm: Baseline, log_norm: float) -> bool:
    above = log_norm - norm.level
    return above > LOG_FACTOR and norm.is_learned and above > NORM_NOISE * norm.noise


def limits(detector: Spike, loss: Baseline) -> tuple[float, float]:
    """How much above the level is far above, and how much is clearly above."""
    noise, share = detector.above * loss.noise, detector.at_least * abs(loss.level)
    return max(noise, share), max(CLEAR * noise, CLEAR_SHARE * share)


def _grown(
    trouble: Trouble, row: Row, value: tuple[float, float | None], norm_is_up: bool, rise: float | None
) -> Trouble:
    is_far = row.above > trouble.far
    risen = trouble.norm_rise if rise is None or not is_far else (trouble.norm_rise or 0.0) + rise
    return evolve(
        trouble,
        rows=(*trouble.rows[1 - OF_ROWS :], row),
        values=(*trouble.values[1 - NOISE_OF :], value),
        count=trouble.count + 1,
        loss_rows=trouble.loss_rows + 1 if row.is_clear or trouble.loss_rows else 0,
        clear_rows=trouble.clear_rows + row.is_clear,
        far_rows=trouble.far_rows + is_far,
        norm_rise=risen,
        norm_rows=trouble.norm_rows + norm_is_up,
        back_rows=0 if row.is_clear or norm_is_up else trouble.back_rows + 1,
        peak=max(trouble.peak, row.above),
    )


def _judged(detector: Spike, trouble: Trouble, norm_is_up: bool, exploded: bool) -> Trouble:
    """Whether it is trouble by now, and whether it is to be acted upon. Neither is taken back while it lasts."""
    row, habit = trouble.rows[-1], trouble.habit
    mostly = row.is_clear and sum(one.is_clear for one in trouble.rows) >= CLEAR_ROWS
    far = row.above > trouble.far
    told = trouble.is_told or exploded or mostly or trouble.far_rows >= 2 or trouble.norm_rows >= FAR_ROWS
    told = told or (norm_is_up and far)
    needed = CERTAIN if trouble.norm_rise is None or trouble.norm_rise > 0 else 2 * CERTAIN
    lasts = (
        far and trouble.far_rows >= FAR_ROWS
        and surprise(trouble.loss_rows, trouble.far_rows, habit.rate(habit.far)) >= needed
    ) or (mostly and surprise(trouble.loss_rows, trouble.clear_rows, habit.rate(habit.clear)) >= needed)  # fmt: skip
    above = [(one.step, one.above) for one in trouble.rows]
    overdue = row.step - trouble.step >= detector.heal_within and not is_healing(above, detector.heal_within)
    return evolve(trouble, is_told=told, is_due=trouble.is_due or exploded or (lasts and overdue))


def _over(memory: SpikeMemory, trouble: Trouble, event: StepDone) -> tuple[SpikeMemory, Word | None]:
    """The trouble is over. What it was made of is noise from now on, or, if it never ended, the new level."""
    healed = trouble.back_rows >= BACK_ROWS
    habit = trouble.habit
    if healed and not trouble.is_due:
        habit = habit.plus(trouble.count, trouble.far_rows, trouble.clear_rows)
    if healed:
        memory = evolve(memory, loss=_with(memory.loss, [loss for loss, _ in trouble.values], back=BACK_ROWS))
        memory = evolve(memory, norm=_with(memory.norm, [norm for _, norm in trouble.values], back=BACK_ROWS))
    else:
        memory = evolve(memory, loss=UNKNOWN, norm=UNKNOWN)
        for loss, log_norm in trouble.values:
            memory = _learn(memory, event.step, loss, log_norm)
    outcome = "the loss is back" if healed else f"after {trouble.count} rows this is the new level"
    word = Word("healed" if healed else "stayed", trouble.step, trouble.at, f"{outcome} at step {event.step}")
    return evolve(memory, trouble=None, habit=habit, calm_rows=0), word if trouble.is_told else None


def _with(baseline: Baseline, values: list[float | None], back: int) -> Baseline:
    for value in values[:-back]:
        baseline = baseline if value is None else noted(baseline, value)
    for value in values[-back:]:
        baseline = baseline if value is None else learned(baseline, value)
    return baseline


def _word(trouble: Trouble, event: StepDone) -> Word:
    now, limit = trouble.level + trouble.rows[-1].above, trouble.level + trouble.far
    since = f", since step {trouble.step}" if trouble.step != event.step else ""
    evidence: dict[str, Json] = {
        "step": event.step,
        "level": trouble.level,
        "limit": limit,
        "peak": trouble.level + trouble.peak,
        "rows": trouble.count,
        "rows_far_above": trouble.far_rows,
        "rows_with_high_norm": trouble.norm_rows,
    }
    why = f"{now:.4g} at step {event.step}{since}; usually {trouble.level:.4g}, limit {limit:.4g}"
    return Word("finding" if trouble.is_due else "onset", trouble.step, trouble.at, why, evidence)
