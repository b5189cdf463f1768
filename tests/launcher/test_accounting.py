"""Where the time went: the parts always sum to the whole, and a known story gets known numbers."""

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launcher import ledger
from launcher.accounting import PARTS, detected_s, median_us, recovered_s, sample_faults
from launcher.advance import fold
from launcher.events import (
    AttemptEnded,
    AttemptStarted,
    CheckpointCommitted,
    CheckpointRemoved,
    Decision,
    Event,
    RunAmended,
    RunEnded,
    RunHeld,
    RunPaused,
    RunReleased,
    RunResumed,
    RunSubmitted,
    RunUnpaused,
    StepDone,
    Warned,
)
from launcher.ledger import RECENT, Ledger, account


def submitted(at: float = 0.0) -> RunSubmitted:
    return RunSubmitted(at=at, run="r", nodes=2, ranks_per_node=2, spares=0, target_step=10, probation=2, save_every=2)


def started(at: float, attempt: int, base: int = 0) -> AttemptStarted:
    restore = (base, attempt - 1) if base else None
    slots = {"a": (0, 1), "b": (2, 3)}
    return AttemptStarted(at=at, attempt=attempt, slots=slots, incarnations={}, restore=restore, why="w")


def step(at: float, attempt: int, index: int, step_s: float = 1.0, blocked_s: float = 0.0) -> StepDone:
    samples = (index * 4, index * 4 + 4)
    return StepDone(
        at=at, attempt=attempt, step=index, metrics={"loss": 5.0 - index}, samples=samples,
        step_s=step_s, blocked_s=blocked_s,
    )  # fmt: skip


def hang(at: float, attempt: int, onset_at: float, detector: str = "hang") -> Decision:
    return Decision(
        at=at, id="d1", incident=1, attempt=attempt, rule="hang", detector=detector,
        actions={"restart": {"from": "latest"}}, onset_at=onset_at,
    )  # fmt: skip


def story() -> list[Event]:
    """Three steps, one checkpoint after two, a hang, a restart from it, three steps more, the end."""
    return [
        submitted(0.0),
        started(10.0, 1),
        step(14.0, 1, 0),
        step(15.0, 1, 1),
        CheckpointCommitted(at=15.5, step=2, attempt=1, parent=None, manifest_digest="d", bytes=7),
        step(16.0, 1, 2, blocked_s=0.25),
        hang(20.0, 1, onset_at=16.0),
        AttemptEnded(at=21.0, attempt=1, reason="hang"),
        started(22.0, 2, base=2),
        step(25.0, 2, 2),
        step(26.0, 2, 3),
        step(27.0, 2, 4),
        AttemptEnded(at=27.5, attempt=2, reason="done"),
        RunEnded(at=28.0, state="SUCCEEDED"),
    ]


def test_every_part_of_a_known_story() -> None:
    books = account(story(), now=1000.0)
    assert books.seconds == {
        "useful": 5.0,
        "rolled_back": 0.75,
        "checkpoint": 0.25,
        "hang": 4.0,
        "starting": 3.0,
        "restarting": 4.0,  # 2 s from the decision, 2 s to the next first step
        "unobserved": 0.0,
        "queue": 10.0,
        "paused": 0.0,
        "held": 0.0,
        "stopped": 1.0,
    }
    assert books.total_us == 28_000_000
    assert books.ettr == 5 / 28
    assert books.gpu_hours["useful"] == pytest.approx(5 * 4 / 3600)
    assert books.median_step_s == 1.0
    assert books.goodput == pytest.approx(5 / 18)
    assert books.lost_steps == 1


def test_rolled_back_steps_leave_the_loss_curve_and_the_samples() -> None:
    books = account(story())
    assert [(one, attempt) for one, attempt, _ in books.loss_curve] == [(0, 1), (1, 1), (2, 2), (3, 2), (4, 2)]
    assert books.kept_samples == [(0, 4), (4, 8), (8, 12), (12, 16), (16, 20)]
    assert sample_faults(books.kept_samples) == []


def test_an_incident_is_timed_from_its_onset() -> None:
    incident = fold(story()).incidents[0]
    assert detected_s(incident) == 4.0
    assert recovered_s(incident) == 9.0
    assert incident.lost_steps == 1


@pytest.mark.parametrize(
    ("ranges", "faults"),
    [
        ([(0, 4), (4, 8)], []),
        ([(0, 4), (2, 6)], ["samples 2 to 4 were used twice"]),
        ([(0, 4), (6, 8)], ["samples 4 to 6 were left out"]),
        ([(4, 8)], ["samples 0 to 4 were left out"]),
    ],
)
def test_sample_faults(ranges: list[tuple[int, int]], faults: list[str]) -> None:
    assert sample_faults(ranges) == faults


def test_what_begun_before_a_rollback_for_the_loss_is_thrown_away_not_hung() -> None:
    events = [submitted(), started(1.0, 1), step(2.0, 1, 0), hang(2.5, 1, onset_at=2.0, detector="spike")]
    books = account(events, now=3.0)
    assert books.seconds["rolled_back"] == 0.5
    assert books.seconds["hang"] == 0.0
    assert books.seconds["restarting"] == 0.5


def test_a_running_step_is_useful_until_nothing_has_moved_for_too_long() -> None:
    events = [submitted(), started(1.0, 1), *(step(2.0 + i, 1, i) for i in range(4))]
    assert account(events, now=6.0).seconds["hang"] == 0.0
    assert account(events, now=60.0).seconds["hang"] == 55.0


@pytest.mark.parametrize(("held_at", "part"), [(2.5, "rolled_back"), (30.0, "hang")])
def test_a_step_cut_short_by_a_person_is_thrown_away_unless_it_stood_still(held_at: float, part: str) -> None:
    events = [submitted(), started(1.0, 1), step(2.0, 1, 0), RunHeld(at=held_at, reason="x")]
    assert account(events, now=held_at).seconds[part] == held_at - 2.0


def test_held_and_resumed_time_is_told_apart() -> None:
    events = [
        submitted(),
        started(1.0, 1),
        step(2.0, 1, 0),
        RunHeld(at=3.0, reason="no checkpoint"),
        RunReleased(at=10.0, author="ada"),
        RunEnded(at=11.0, state="STOPPED"),
        RunResumed(at=15.0, author="ada"),
    ]
    books = account(events, now=18.0)
    assert (books.seconds["held"], books.seconds["stopped"], books.seconds["queue"]) == (7.0, 4.0, 4.0)
    assert books.total_us == 18_000_000


def test_spares_are_paid_for_and_what_lies_before_and_after_an_allocation_is_not() -> None:
    events = [replace(submitted(), spares=1), started(10.0, 1), step(11.0, 1, 0), RunEnded(at=12.0, state="STOPPED")]
    events += [RunResumed(at=100.0, author="a"), started(110.0, 2, base=0), step(111.0, 2, 0)]

    hours = account(events, now=111.0).gpu_hours

    assert hours["queue"] == 0
    assert hours["stopped"] == pytest.approx(1 * 6 / 3600)
    assert sum(hours.values()) == pytest.approx(3 * 6 / 3600)


@pytest.mark.parametrize("ended", [True, False])
def test_a_command_that_tells_of_no_step_was_not_restarting_all_the_time(ended: bool) -> None:
    events = [replace(submitted(), target_step=None), started(10.0, 1)]
    events += [AttemptEnded(at=15.0, attempt=1, reason="done"), RunEnded(at=15.0, state="SUCCEEDED")] if ended else []

    seconds = account(events, now=15.0).seconds

    assert (seconds["queue"], seconds["unobserved"], seconds["restarting"]) == (10.0, 5.0, 0.0)


def test_nothing_has_no_shares() -> None:
    books = account([])
    assert (books.total_us, books.ettr, books.goodput, books.median_step_s) == (0, None, None, None)


# ---------------------------------------------------------------- any order of events


moments = st.floats(0, 1e6, allow_nan=False)
durations = st.floats(-5, 1e5, allow_nan=False)
attempts = st.integers(1, 4)


def test_time_counts_for_the_places_that_were_allocated_then() -> None:
    three = {"nodes": 3, "ranks_per_node": 2, "spares": 0, "target_step": 10, "probation": 2, "save_every": 2}
    resumed = [RunResumed(at=100.0, author="x"), RunAmended(at=100.0, author="x", **three)]
    again = [started(103.0, 3, base=5), step(105.0, 3, 5), RunEnded(at=105.0, state="STOPPED")]

    books = account([*story(), *resumed, *again])

    hours = {part: books.gpu_hours[part] * 3600 for part in ("useful", "starting", "stopped", "queue")}
    assert hours == pytest.approx(
        {"useful": 4 * 5.0 + 6 * 1.0, "starting": 4 * 3.0 + 6 * 1.0, "stopped": 4 * 1.0, "queue": 0.0}
    )


def any_event() -> st.SearchStrategy[Event]:
    return st.one_of(
        st.builds(submitted, moments),
        st.builds(started, moments, attempts, st.integers(0, 6)),
        st.builds(step, moments, attempts, st.integers(0, 8), durations, durations),
        st.builds(hang, moments, attempts, moments, st.sampled_from(["hang", "exit", "spike"])),
        st.builds(lambda at, attempt: AttemptEnded(at=at, attempt=attempt, reason="x"), moments, attempts),
        st.builds(lambda at: RunHeld(at=at, reason="x"), moments),
        st.builds(lambda at: RunReleased(at=at, author="x"), moments),
        st.builds(lambda at: RunPaused(at=at, reason="x"), moments),
        st.builds(lambda at: RunUnpaused(at=at, author="x"), moments),
        st.builds(lambda at: RunEnded(at=at, state="STOPPED"), moments),
        st.builds(lambda at: RunResumed(at=at, author="x"), moments),
        st.builds(lambda at: Warned(at=at, text="x"), moments),
    )


def in_order(events: Sequence[Event]) -> list[Event]:
    return sorted(events, key=lambda event: event.at)


@settings(max_examples=300, deadline=None)
@given(st.lists(any_event(), max_size=40), moments, st.booleans())
def test_the_parts_sum_to_the_whole(events: list[Event], now: float, ordered: bool) -> None:
    events = [submitted(500.0), *(in_order(events) if ordered else events)]
    books = account(events, now=now)
    ended = [index for index, event in enumerate(events) if isinstance(event, RunEnded)]
    open_ = not ended or any(isinstance(event, (AttemptStarted, RunResumed)) for event in events[ended[-1] + 1 :])
    moments_ = [event.at for event in events] + ([now] if open_ else [])
    if open_:
        assert books.total_us == round(max(moments_) * 1e6) - 500_000_000
    assert books.total_us == sum(books.parts_us[part] for part in PARTS)
    assert all(us >= 0 for us in books.parts_us.values())
    assert math.isclose(sum(books.gpu_hours.values()), sum(books.slots_us.values()) / 3.6e9, abs_tol=1e-12)
    assert all(0 <= us <= 4 * books.parts_us[part] for part, us in books.slots_us.items())


@settings(max_examples=200, deadline=None)
@given(st.lists(any_event(), max_size=40))
def test_kept_steps_rise_and_agree_with_the_run(events: list[Event]) -> None:
    events = [submitted(), *in_order(events)]
    books, run = account(events), fold(events)
    steps = [one.step for one in books.kept]
    assert steps == sorted(set(steps))
    if steps and run.attempt:
        assert steps[-1] + 1 <= max(run.step, run.attempt.last_step)


# ---------------------------------------------------------------- books that do not grow


def joining(events: Sequence[Event], recent: int = RECENT) -> Ledger:
    """Books that join old steps as early as they can."""
    books = Ledger()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(ledger, "RECENT", recent)
        for event in events:
            books.join_at = min(books.join_at, len(books.kept) + 1)
            books.take(event)
    return books


def long_story(steps: int = 40 * RECENT) -> list[Event]:
    """Steps of a second, a checkpoint every hundred, of which the last two stay; twice back to the last but one."""
    events: list[Event] = [submitted(), started(10.0, 1)]
    at, attempt, index, there = 10.0, 1, 0, list[tuple[int, int]]()
    for done in range(1, steps + 1):
        at += 1.0
        events.append(step(at, attempt, index, blocked_s=0.25 * (index % 100 == 0)))
        index += 1
        if index % 100 == 0:
            events.append(
                CheckpointCommitted(at=at, step=index, attempt=attempt, parent=None, manifest_digest="", bytes=1)
            )
            there.append((index, attempt))
            if len(there) > 2:
                old = there.pop(0)
                events.append(CheckpointRemoved(at=at, step=old[0], attempt=old[1]))
        if done in (steps // 2, steps - 50):
            index, attempt = there[0][0], attempt + 1
            events += [hang(at, attempt - 1, at), AttemptEnded(at=at, attempt=attempt - 1, reason="hang")]
            events.append(replace(started(at, attempt), restore=there[0]))
    return events


def test_books_that_join_old_steps_say_the_same_to_the_microsecond() -> None:
    events = long_story()
    whole, joined = account(events), joining(events).account()

    assert (joined.parts_us, joined.slots_us) == (whole.parts_us, whole.slots_us)
    assert (joined.ettr, joined.goodput, joined.lost_steps) == (whole.ettr, whole.goodput, whole.lost_steps)
    assert joined.kept[-100:] == whole.kept[-100:]
    assert len(joined.kept) < 2 * RECENT < len(whole.kept) / 10


@settings(max_examples=200, deadline=None)
@given(st.lists(any_event(), max_size=40), moments)
def test_joined_or_not_no_step_and_no_time_is_lost(events: list[Event], now: float) -> None:
    events = [submitted(), *in_order(events)]
    whole, joined = account(events, now), joining(events, recent=2).account(now)

    assert joined.total_us == whole.total_us
    assert joined.lost_steps == whole.lost_steps
    assert sum(one.steps for one in joined.kept) == sum(one.steps for one in whole.kept)


@pytest.mark.parametrize(
    ("speeds", "median"),
    [({}, 0), ({5: 1}, 5), ({5: 1, 9: 1}, 7), ({9: 2, 5: 1}, 9), ({9: 2, 5: 2}, 7), ({5: 3, 9: 2}, 5)],
)
def test_the_median_of_durations_that_are_counted(speeds: dict[int, int], median: float) -> None:
    assert median_us(speeds) == median
