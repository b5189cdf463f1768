"""What trouble with numbers makes of a run: an incident that is watched, and checkpoints that are kept or not good."""

from __future__ import annotations

import pytest
from tale import Tale

from launcher.checkpoints import Choice, choose, removable
from launcher.events import IncidentClosed, IncidentOpened, StepDone
from launcher.run import Checkpoint, Incident

BACK = {"restart": {"from": "before_incident"}}


class Troubled(Tale):
    """A run with checkpoints of steps 10, 20 and 30, all of them good."""

    def __init__(self) -> None:
        super().__init__(probation=3)
        self.train(10)
        for _ in range(3):
            self.save().verify().steps(10)

    def opened(self, onset: int) -> Troubled:
        self.tell(
            IncidentOpened(
                at=self.at, incident=1, attempt=1, rule="loss-spike", detector="spike", why="5 at step 24",
                onset_at=self.at - 3, onset_step=onset,
            )
        )  # fmt: skip
        return self

    def closed(self, outcome: str) -> Troubled:
        self.tell(IncidentClosed(at=self.at, incident=1, attempt=1, outcome=outcome, why=""))  # type: ignore[arg-type]
        return self

    @property
    def incident(self) -> Incident:
        (incident,) = self.run.incidents
        return incident

    def good(self) -> list[int]:
        return [one.step for one in self.run.lineage() if self.run.is_good(one)][::-1]

    def removed(self) -> list[int]:
        gone: tuple[Checkpoint, ...] = removable(self.run, keep=1, keep_every=None)
        return [one.step for one in gone]


def test_at_its_onset_nothing_is_decided_and_later_checkpoints_are_not_good() -> None:
    tale = Troubled().opened(onset=24)
    assert (tale.incident.state, tale.incident.decisions, tale.incident.onset_step) == ("WATCHED", (), 24)
    assert tale.run.state == "RUNNING"
    assert tale.good() == [10, 20]


def test_checkpoints_from_before_it_are_kept_as_long_as_it_lasts() -> None:
    assert Troubled().removed() == [10, 20]
    tale = Troubled().opened(onset=24)
    assert tale.removed() == []
    tale.steps(10).save().steps(10).save()
    assert tale.removed() == [30, 50]
    assert tale.closed("healed").removed() == [10, 20, 50]


@pytest.mark.parametrize(("outcome", "state"), [("healed", "HEALED"), ("stayed", "STAYED"), ("left", "ENDED")])
def test_when_it_is_over_later_checkpoints_are_good_again(outcome: str, state: str) -> None:
    tale = Troubled().opened(onset=24).closed(outcome)
    assert (tale.incident.state, tale.good()) == (state, [10, 20, 30])


def test_what_does_not_heal_is_gone_back_before_in_the_same_incident() -> None:
    tale = Troubled().opened(onset=24)
    tale.decide(detector="spike", actions=BACK, incident=1, onset_step=24)
    assert (tale.incident.state, tale.run.state) == ("OPEN", "RECOVERING")
    choice = choose(tale.run, "before_incident", 24)
    assert isinstance(choice, Choice)
    assert choice.restore == (20, 1)
    tale.end_attempt().start((20, 1))
    tale.closed("left").steps(1)
    assert (tale.incident.state, tale.incident.lost_steps) == ("RECOVERED", 20)


def test_advice_about_trouble_that_then_heals_is_of_one_that_healed() -> None:
    tale = Troubled().opened(onset=24)
    tale.decide(detector="spike", mode="advise", actions=BACK, incident=1, onset_step=24)
    assert (tale.incident.state, tale.good()) == ("ADVISED", [10, 20])
    assert tale.closed("healed").incident.state == "HEALED"


def test_where_not_every_step_is_told_it_may_have_begun_before_the_step_that_was() -> None:
    tale = Tale(probation=1).start()
    for step in (9, 19, 29):
        tale.tell(StepDone(at=tale.at, attempt=1, step=step, metrics={"loss": 2.0}))
        tale.save()
    choices = [choose(tale.run, "before_incident", onset) for onset in (29, 30, 39)]
    assert [one.restore[0] for one in choices if isinstance(one, Choice) and one.restore] == [20, 20, 30]
