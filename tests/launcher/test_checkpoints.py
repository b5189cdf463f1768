"""Which checkpoint a restart begins from, and which may be deleted."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tale import Tale

from launcher.advance import fold
from launcher.checkpoints import Choice, NoChoice, choose, choose_undecided, removable
from launcher.events import CheckpointId
from launcher.run import Run

ORIGINS = ["latest", "last_good", "before_incident", "step 10"]


def saved_thrice() -> Tale:
    """Checkpoints of steps 10, 20 and 30; those of 10 and 20 are good; 32 steps done."""
    tale = Tale(probation=5)
    return tale.train(10).save().verify().steps(10).save().verify().steps(10).save().verify().steps(2)


CHOICES = [
    ("latest", -1, (30, 1)),
    ("latest", 15, (30, 1)),
    ("last_good", -1, (20, 1)),
    ("last_good", 31, (20, 1)),
    ("last_good", 19, (10, 1)),
    ("before_incident", 31, (30, 1)),
    ("before_incident", 30, (30, 1)),
    ("before_incident", 29, (20, 1)),
    ("before_incident", 10, (10, 1)),
    ("before_incident", -1, (30, 1)),
    ("before_incident", 9, None),
    ("last_good", 9, None),
    ("step 10", -1, (10, 1)),
    ("step 20", -1, (20, 1)),
    ("step 15", -1, None),
]


@pytest.mark.parametrize(("origin", "onset", "expected"), CHOICES)
def test_a_restart_begins_where_it_was_asked_to(origin: str, onset: int, expected: CheckpointId | None) -> None:
    choice = choose(saved_thrice().run, origin, onset)

    if expected is None:
        assert isinstance(choice, NoChoice)
    else:
        assert isinstance(choice, Choice)
        assert choice.restore == expected
        assert choice.why


@pytest.mark.parametrize("origin", ORIGINS)
def test_without_history_a_run_begins_at_step_0(origin: str) -> None:
    choice = choose(Tale().train(5).run, origin, 3)

    assert choice == Choice(None, "no checkpoint was ever committed")


@pytest.mark.parametrize("origin", ORIGINS)
def test_with_history_and_nothing_usable_a_run_never_begins_at_step_0(origin: str) -> None:
    tale = saved_thrice().reject((10, 1)).reject((20, 1)).reject((30, 1), "manifest is missing")

    choice = choose(tale.run, origin, 31)

    assert isinstance(choice, NoChoice)
    assert "manifest is missing" in choice.reason


@pytest.mark.parametrize("spoil", [Tale.reject, Tale.remove])
def test_a_damaged_or_deleted_one_is_passed_over(spoil: Callable[[Tale, CheckpointId], Tale]) -> None:
    choice = choose(spoil(saved_thrice(), (30, 1)).run)

    assert isinstance(choice, Choice)
    assert choice.restore == (20, 1)


def test_without_a_good_one_the_oldest_from_before_the_incident_is_taken() -> None:
    tale = Tale(probation=50).train(10).save().steps(10).save().steps(10).save()

    choice = choose(tale.run, "last_good", 25)

    assert isinstance(choice, Choice)
    assert choice.restore == (10, 1)


def test_the_abandoned_branch_is_not_chosen_though_it_is_newer() -> None:
    tale = saved_thrice().decide().end_attempt().start((10, 1)).steps(3)

    choice = choose(tale.run)

    assert isinstance(choice, Choice)
    assert choice.restore == (10, 1)


def held_for(detector: str, onset: int) -> Tale:
    """Checkpoints of steps 10, 20 and 30; held at step 32 for trouble since `onset`."""
    return saved_thrice().decide(detector=detector, onset_step=onset, actions={"hold": {}}).end_attempt().hold()


@pytest.mark.parametrize(
    ("detector", "onset", "step"),
    [
        ("spike", 25, 20),
        ("scale_collapse", 30, 30),
        ("non_finite", 12, 10),
        ("sdc", 20, 20),
        ("spike", 5, 30),  # there is none from before it, and a person wants the run to go on
        ("exit", 25, 30),
        ("plateau", 12, 30),
    ],
)
def test_after_a_hold_for_what_is_in_the_weights_a_run_goes_on_from_before_it(detector: str, onset: int, step: int):
    for tale in (held_for(detector, onset).release(), held_for(detector, onset).end().resume()):
        choice = choose_undecided(tale.run)
        assert isinstance(choice, Choice)
        assert choice.restore == (step, 1)


def test_once_it_trains_again_the_newest_is_the_one_to_go_on_from() -> None:
    tale = held_for("spike", 25).release().start((20, 1)).steps(5).save()
    assert choose_undecided(tale.run) == Choice((25, 2), "latest complete checkpoint")


def test_what_a_held_run_may_go_back_to_stays() -> None:
    gone = [removable(held_for("spike", onset).run, keep=1, keep_every=None) for onset in (15, 25)]
    assert [[one.step for one in some] for some in gone] == [[], [10]]


# ---------------------------------------------------------------- retention


def test_retention_keeps_the_newest_every_so_many_and_the_newest_good() -> None:
    tale = Tale(probation=5).start()
    for number in range(8):
        tale.steps(10).save()
        if number < 2:
            tale.verify()

    gone = removable(tale.run, keep=2, keep_every=40)

    assert [one.step for one in gone] == [10, 30, 50, 60]  # 20 is the newest good one, 40 and 80 of every 40


def test_the_one_the_attempt_began_from_stays() -> None:
    tale = saved_thrice().decide().end_attempt().start((10, 1))
    for _ in range(4):
        tale.steps(10).save()

    assert (10, 1) not in [one.id for one in removable(tale.run, keep=1, keep_every=None)]


def test_an_abandoned_branch_goes_once_a_newer_one_is_there() -> None:
    tale = saved_thrice().decide().end_attempt().start((10, 1)).steps(5)
    assert removable(tale.run, keep=5, keep_every=None) == ()

    tale.save()

    assert [one.id for one in removable(tale.run, keep=5, keep_every=None)] == [(20, 1), (30, 1)]


Deed = Callable[[Tale], Tale]
DEEDS: dict[str, Deed] = {
    "steps": lambda tale: tale.steps(4),
    "save": lambda tale: tale.steps(2).save(),
    "save and verify": lambda tale: tale.steps(1).save().verify(),
    "bad numbers": lambda tale: tale.steps(1, loss=float("nan")),
    "damage": lambda tale: tale.reject(tale.head) if tale.run.head else tale,
    "restart": lambda tale: go_back(tale, "latest"),
    "go back": lambda tale: go_back(tale, "last_good"),
}


def go_back(tale: Tale, origin: str) -> Tale:
    choice = choose(tale.run, origin, tale.run.step - 1)
    if isinstance(choice, NoChoice):
        return tale
    return tale.decide().end_attempt().start(choice.restore)


def after_retention(run: Run, tale: Tale, keep: int, keep_every: int | None) -> Run:
    gone = {one.id for one in removable(run, keep, keep_every)}
    for id_ in gone:
        tale.remove(id_)
    return tale.run


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.sampled_from(sorted(DEEDS)), max_size=14),
    st.integers(1, 4),
    st.none() | st.integers(1, 20),
)
def test_retention_never_removes_what_a_restart_would_begin_from(
    deeds: list[str], keep: int, keep_every: int | None
) -> None:
    tale = Tale(probation=3).start()
    for deed in deeds:
        DEEDS[deed](tale)
    run = fold(tale.events)
    latest, good = choose(run), [one for one in run.lineage() if run.is_good(one)]

    pruned = after_retention(run, tale, keep, keep_every)

    assert choose(pruned) == latest
    if good:
        assert pruned.checkpoints[good[0].id].usable
    if run.attempt and run.attempt.restore and run.checkpoints[run.attempt.restore].usable:
        assert pruned.checkpoints[run.attempt.restore].usable
    assert len([one for one in pruned.lineage() if one.usable]) >= min(
        keep, len([one for one in run.lineage() if one.usable])
    )
    assert removable(pruned, keep, keep_every) == ()
