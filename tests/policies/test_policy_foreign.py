"""A trainer of which only one rank prints, and that seldom: a healthy one is left alone, a hanging one is found."""

from pathlib import Path

import pytest
from story import Story, ending, policy_of, reason

from launcher.events import AttemptEnded, Decision, StepDone, StepsStopped
from launcher.events import RankProgress as At
from policies.load import RunFacts, load_policy
from policies.schema import Policy

PRINTS = RunFacts(own_trainer=False, first_step_s=3600.0, least_hang_s=1800.0, metrics=frozenset({"loss"}))
EVERY = 500  # steps between lines
LINE_S = 600.0  # seconds between lines


class Printing(Story):
    """Rank 3 on n1 prints; no other rank ever says a word. The supervisor speaks of a stop after three gaps."""

    def __init__(self, policy: Policy) -> None:
        super().__init__(policy)
        self.start()

    def line(self, seconds: float = LINE_S) -> None:
        """The next line of a healthy trainer, and what the supervisor makes of the time before it."""
        self.wait(seconds)
        if self.state.stopped:
            self.moving()
        first = self.step < 0
        self.step += 1 if first else EVERY
        step_s = 0.0 if first else seconds / EVERY
        self.tell(StepDone(at=self.at, attempt=self.attempt, step=self.step, metrics={"loss": 2.0}, step_s=step_s))
        if first:
            self.wait(1.0)
            self.stands_still(since=self.at - 1, usual_s=0.0, phase="start")

    def stands_still(self, since: float, usual_s: float, phase: str = "", lines: int = 2) -> list[Decision]:
        ranks = {rank: At(node=self.active[rank // 2], step=-1, section=0, phase="start") for rank in range(3)}
        ranks[3] = At(node="n1", step=self.step, section=lines, phase=phase)
        stopped = StepsStopped(at=self.at, attempt=1, since=since, proof=False, usual_s=usual_s, ranks=ranks)
        return self.tell(stopped)

    def stands_unseen(self) -> None:
        """Only n0 answers, whose ranks never say a word."""
        mute = {rank: At(node="n0", step=-1, section=0, phase="start") for rank in range(2)}
        self.tell(StepsStopped(at=self.at, attempt=1, since=1000.0, proof=False, ranks=mute))


@pytest.fixture
def default() -> Policy:
    return load_policy(["default"], PRINTS)


def test_until_the_second_line_nobody_knows_how_often_lines_come(default: Policy) -> None:
    run = Printing(default)
    run.line(30)
    since = run.at - 1
    assert run.wait(3000) == []
    run.line(100)
    assert run.decisions == []

    hanging = Printing(default)
    hanging.line(30)
    (decision,) = hanging.wait(9000)
    assert (decision.rule, decision.at) == ("hang", since + 3600)
    assert "no second word" in decision.why


@pytest.mark.parametrize("lines", [2, 3, 19, 40])
def test_lines_that_come_every_ten_minutes_are_waited_for(default: Policy, lines: int) -> None:
    """However few there were: five of the usual gaps, and never less than half an hour."""
    run = Printing(default)
    for _ in range(lines):
        run.line()
    last = run.at
    run.wait(3 * LINE_S)
    run.stands_still(since=last, usual_s=LINE_S)
    assert run.wait(2 * LINE_S - 1) == []
    (decision,) = run.wait(10)
    assert (decision.rule, decision.at, decision.onset_at) == ("hang", last + 5 * LINE_S, last)
    assert decision.nodes == (), "ranks that never say a word are not behind"


def test_a_line_every_second_does_not_make_an_evaluation_a_hang(default: Policy) -> None:
    run = Printing(default)
    for _ in range(100):
        run.line(1.0)
    last = run.at
    run.wait(3)
    run.stands_still(since=last, usual_s=1.0)
    assert run.wait(1796) == []
    (decision,) = run.wait(2)
    assert decision.at == last + 1800


def test_a_policy_of_ones_own_says_how_long_a_trainer_may_be_silent(tmp_path: Path) -> None:
    policy = policy_of(tmp_path, "rules: [{name: h, when: {hang: {at_least: 5s}}, do: [{hold: {}}]}]\n")
    run = Printing(policy)
    for _ in range(3):
        run.line(2.0)
    last = run.at
    run.wait(6)
    run.stands_still(since=last, usual_s=2.0)
    (decision,) = run.wait(20)
    assert decision.at == last + 10


def test_a_silent_node_of_mute_ranks_is_alive_while_lines_come(default: Policy) -> None:
    run = Printing(default)
    for _ in range(3):
        run.line(30.0)
    run.silent("n0")
    for _ in range(20):
        run.line(30.0)
    assert run.decisions == []


def test_a_silent_node_of_mute_ranks_is_lost_when_lines_have_stopped_for_long(default: Policy) -> None:
    """Standing still proves nothing of a trainer that cannot say that it saves: a minute it must last."""
    run = Printing(default)
    for _ in range(3):
        run.line(30.0)
    run.silent("n0")
    last = run.at
    run.wait(90)
    (decision,) = run.stands_still(since=last, usual_s=30.0) or run.wait(1)
    assert (decision.detector, decision.nodes) == ("node_lost", ("n0",))

    short = Printing(default)
    for _ in range(30):
        short.line(1.0)
    short.silent("n0")
    last = short.at
    short.wait(3)
    short.stands_still(since=last, usual_s=1.0)
    assert short.wait(40) == []
    short.line(1.0)
    short.back("n0")
    assert short.decisions == []


def test_the_node_whose_rank_prints_is_lost_after_a_minute_of_silence(default: Policy) -> None:
    run = Printing(default)
    for _ in range(3):
        run.line(30.0)
    run.silent("n1")
    run.stands_unseen()
    silent_at = run.at
    (decision,) = run.wait(500)
    assert (decision.detector, decision.nodes) == ("node_lost", ("n1",))
    assert decision.at == silent_at + 60


def test_a_node_that_was_silent_for_a_while_is_no_hang_when_it_is_back(default: Policy) -> None:
    """What its ranks did meanwhile is not known before they have said so."""
    run = Printing(default)
    for _ in range(3):
        run.line(600.0)
    run.silent("n1")
    run.stands_unseen()
    run.wait(50)
    assert run.back("n1") == []
    assert run.wait(10_000) == []


# ---------------------------------------------------------------- early ends


def ends_early(story: Story) -> list[Decision]:
    return story.tell(AttemptEnded(at=story.at, attempt=story.attempt, reason="before 500", early=True))


def test_an_early_end_costs_nothing_and_goes_on(default: Policy) -> None:
    story = Story(default)
    for attempt in range(30):
        story.start(restore=None if not attempt else story.step)
        story.steps(30)
        ends_early(story)
        assert (ending(story.last), story.last.rule, story.last.counts) == ("restart", "early-end", False)
    assert story.state.restarts == ()


def test_early_ends_that_lead_nowhere_call_a_person(default: Policy) -> None:
    story = Story(default).training(100)
    ends_early(story)
    for _ in range(3):
        story.start(restore=99)
        ends_early(story)
        assert ending(story.last) == "restart"
    story.start(restore=99)
    ends_early(story)
    assert ending(story.last) == "hold"
    assert "no_progress" in reason(story.last)


def test_several_skipped_steps_in_one_line_are_how_a_loss_scale_finds_its_size() -> None:
    story = Story(load_policy(["numerics"]))
    story.training(5)
    assert story.steps(1, grad_norm=float("inf"), skipped=3.0) == []
    assert story.steps(1, grad_norm=float("inf"), skipped=0.0) != []
