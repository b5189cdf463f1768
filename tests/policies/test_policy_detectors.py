"""What each detector finds, and when."""

import pytest
from story import NAN, PEER, Story, ending

from launcher.events import (
    ActionDone,
    CommandAnswered,
    CommandReceived,
    EpochStarted,
    JobEnding,
    Json,
    RanksUp,
    RunEnded,
    RunHeld,
    RunPaused,
    RunResumed,
    RunUnpaused,
    TrainerDone,
)
from policies.load import load_policy
from policies.schema import Policy


@pytest.fixture
def default() -> Policy:
    return load_policy(["default"])


@pytest.fixture
def story(default: Policy) -> Story:
    return Story(default).training()


# ---------------------------------------------------------------- exits


def test_a_rank_killed_from_outside_restarts_at_once_and_blames_nobody(story: Story) -> None:
    (decision,) = story.exits(1, -9)
    assert (decision.rule, decision.rung, decision.blame) == ("rank-exit", 1, "none")
    assert decision.actions == {"shrink": True, "restart": {"from": "latest", "save_first": False}}
    assert decision.evidence["signal"] == "SIGKILL"
    assert decision.evidence["rank"] == 1
    assert (decision.attempt, decision.incident, decision.id, decision.epoch, decision.seq) == (1, 1, "d0001", 0, 0)


def test_a_rank_ended_by_sigterm_waits_for_word_that_the_whole_job_is_ended(story: Story) -> None:
    assert story.exits(1, -15) == []
    story.at += 0.5
    assert story.tell(JobEnding(at=story.at, reason="Slurm ends the job", decided=True)) == []
    assert story.wait(10) == []


def test_a_rank_ended_by_sigterm_alone_restarts_after_that_wait(story: Story) -> None:
    story.exits(1, -15)
    (decision,) = story.wait(10)
    assert (ending(decision), decision.blame, decision.evidence["signal"]) == ("restart", "none", "SIGTERM")


def test_an_exit_without_error_is_nothing(story: Story) -> None:
    assert story.exits(0, 0) == []
    assert story.deadline is None


def test_peers_of_a_killed_rank_are_not_blamed_though_they_come_first(story: Story) -> None:
    assert story.loses_peer(2) == []
    story.at += 0.3
    (decision,) = story.exits(1, -11)
    assert decision.evidence["rank"] == 1
    assert "SIGSEGV" in decision.why


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        ("RuntimeError", PEER),
        ("torch.distributed.DistBackendError", "NCCL communicator was aborted on rank 3"),
        ("DistNetworkError", "The client socket has timed out after 60000ms"),
        ("ConnectionResetError", ""),
        ("RuntimeError", "[gloo/transport/tcp/pair.cc:534] Broken pipe"),
    ],
)
def test_only_broken_connections_settle_and_then_blame_nobody(story: Story, kind: str, error: str) -> None:
    assert story.exits(0, 1, error, kind) == []
    (decision,) = story.wait(10)
    assert (decision.blame, decision.nodes) == ("undecidable", ())
    assert "exclude" not in decision.actions
    assert decision.at == 1032.0


def test_an_error_on_one_node_blames_that_node(story: Story) -> None:
    story.exits(2, 1, "CUDA error: unspecified launch failure\nmore", "RuntimeError")
    (decision,) = story.loses_peer(0)
    assert (decision.blame, decision.nodes, decision.ranks) == ("likely", ("n1",), (2,))
    assert decision.actions["exclude"] == "blamed"
    assert decision.why == "rank 2 on n1: RuntimeError: CUDA error: unspecified launch failure"


def test_an_error_on_the_only_node_blames_nobody(default: Policy) -> None:
    story = Story(default, nodes=1).training()
    story.exits(0, 1, "x", "ValueError")
    (decision,) = story.wait(5)
    assert decision.blame == "undecidable"


def test_the_same_error_everywhere_before_the_first_step_is_a_user_bug(default: Policy) -> None:
    story = Story(default)
    story.start()
    story.exits(0, 1, "No module named 'x'", "ImportError")
    story.exits(1, 1, "No module named 'x'", "ImportError")
    (decision,) = story.exits(2, 1, "No module named 'x'", "ImportError")
    assert (decision.rule, ending(decision)) == ("user-error", "stop")


@pytest.mark.parametrize(("failing", "expected"), [([0], "restart"), ([0, 1], "stop")])
def test_on_a_single_node_all_ranks_make_a_user_bug(default: Policy, failing: list[int], expected: str) -> None:
    story = Story(default, nodes=1)
    story.start()
    for rank in failing:
        story.exits(rank, 1, "bad", "TypeError")
    story.wait(5)
    assert [ending(one) for one in story.decisions] == [expected]


def test_an_error_on_one_node_before_the_first_step_waits_for_the_others_and_blames_it(default: Policy) -> None:
    story = Story(default)
    story.start()
    assert story.exits(0, 1, "cannot open shared object", "ImportError") == []
    (decision,) = story.wait(5)
    assert (decision.rule, decision.blame, decision.nodes, decision.at) == ("rank-exit", "likely", ("n0",), 1002.0)


def test_a_rank_that_had_stepped_failed_after_the_first_step_even_if_none_was_told_yet(default: Policy) -> None:
    story = Story(default)
    story.start()
    story.exits(0, 1, "x", "ValueError", step=4)
    (decision,) = story.wait(5)
    assert decision.evidence["before_first_step"] is False


def test_a_node_lost_with_its_supervisor_was_lost_when_the_last_word_came(story: Story) -> None:
    last_word = story.at
    story.wait(6)
    story.tell(EpochStarted(at=story.at, epoch=2, host="h", pid=2, node="n1", job_id="1"))
    (decision,) = story.down("n0")
    assert decision.onset_at <= last_word + 1


def test_different_errors_on_two_nodes_blame_nobody(story: Story) -> None:
    story.exits(0, 1, "a", "ValueError")
    (decision,) = story.exits(2, 1, "b", "KeyError")
    assert decision.blame == "undecidable"


def test_a_rejected_checkpoint_restarts_once_and_uncounted(default: Policy) -> None:
    story = Story(default)
    story.start()
    (decision,) = story.exits(0, 79)
    assert (decision.rule, decision.counts) == ("checkpoint-rejected", False)
    assert decision.actions == {"restart": {"from": "latest", "save_first": False}}
    assert story.exits(1, 79) == story.exits(2, -9) == []


def test_exits_of_an_earlier_attempt_or_after_the_end_are_ignored(story: Story) -> None:
    story.exits(0, -9)
    story.start()
    story.attempt = 1
    assert story.exits(1, -9) == []
    story.attempt = 2
    story.tell(TrainerDone(at=story.at, attempt=2, step=30))
    assert story.exits(1, -9) == []


@pytest.mark.parametrize("verb", ["stop", "pause"])
def test_after_a_persons_stop_nothing_is_judged_unless_it_was_refused(story: Story, verb: str) -> None:
    story.tell(CommandReceived(at=story.at, id="c1", verb=verb, author="me"))
    assert story.exits(0, -9) == []
    story.tell(CommandAnswered(at=story.at, id="c1", ok=False))
    assert len(story.exits(1, -9)) == 1


def test_what_ends_in_a_pause_is_not_judged_and_what_comes_after_it_counts_as_before(story: Story) -> None:
    story.exits(0, -9)
    story.start()
    before = story.state.restarts
    story.tell(CommandReceived(at=story.at, id="c1", verb="pause", author="me"))
    assert story.exits(0, -9) == []
    story.tell(RunPaused(at=story.at, reason="me: a look"))
    assert story.exits(1, -9) == story.wait(7200) == []

    story.tell(RunUnpaused(at=story.at, author="me"))
    story.start()

    assert (story.state.restarts, len(before)) == (before, 1)
    assert len(story.exits(1, -9)) == 1


def test_an_ended_or_held_run_is_left_alone(default: Policy) -> None:
    for end in (RunEnded(at=1100, state="STOPPED"), RunHeld(at=1100, reason="x")):
        story = Story(default).training()
        story.tell(end)
        assert story.exits(0, -9) == story.silent("n0") == story.wait(7200) == []


# ---------------------------------------------------------------- silence


def test_a_silent_node_is_lost_when_steps_have_stopped(story: Story) -> None:
    silent_at = story.at
    assert story.silent("n1", silent_at) == []
    story.at += 3
    (decision,) = story.stopped(silent_at)
    assert (decision.rule, decision.nodes, decision.ranks) == ("node-failure", ("n1",), (2, 3))
    assert decision.actions["exclude"] == "blamed"
    assert decision.onset_at == silent_at


def test_the_stop_counts_from_the_start_of_the_silence(story: Story) -> None:
    stopped_at = story.at
    story.at += 3
    story.stopped(stopped_at)
    story.at += 10
    silent_at = story.at
    assert story.silent("n1") == []
    (decision,) = story.wait(10)
    assert decision.at == silent_at + 3  # three times the usual step of one second


def test_a_silent_node_lives_while_steps_go_on(story: Story) -> None:
    story.silent("n1")
    assert story.steps(300) == []
    assert story.deadline is None
    assert story.back("n1") == []


def test_steps_that_moved_again_prove_nothing(story: Story) -> None:
    since = story.at
    story.at += 3
    story.stopped(since)
    story.moving()
    assert story.silent("n1") == story.wait(600) == []


@pytest.mark.parametrize("where", ["phase", "before the first step"])
def test_without_proof_silence_loses_a_node_after_a_minute(default: Policy, where: str) -> None:
    story = Story(default)
    story.start()
    if where == "phase":
        story.steps(30)
    silent_at = story.at
    story.silent("n0")
    if where == "phase":
        story.stopped(silent_at, proof=False)
    (decision,) = story.wait(120)
    assert (decision.detector, decision.at) == ("node_lost", silent_at + 60)


def test_a_save_after_a_long_silence_gives_the_node_its_minute(story: Story) -> None:
    story.silent("n1")
    story.steps(100)
    since = story.at
    story.stopped(since, proof=False)
    story.wait(30)
    story.moving()
    assert story.steps(5) == []
    stopped_again = story.at
    story.stopped(stopped_again, proof=False)
    (decision,) = story.wait(100)
    assert decision.at == stopped_again + 60


def test_a_node_that_comes_back_is_not_lost(default: Policy) -> None:
    story = Story(default)
    story.start()
    story.silent("n0")
    story.wait(59)
    story.back("n0")
    assert story.wait(100) == []


def test_the_backend_says_a_node_is_down(story: Story) -> None:
    (decision,) = story.down("n1")
    assert (decision.detector, decision.nodes) == ("node_lost", ("n1",))


def test_a_restarted_agent_has_lost_its_ranks(story: Story) -> None:
    (decision,) = story.joined("n0", incarnation="2")
    assert decision.nodes == ("n0",)


def test_an_agent_that_joins_again_unchanged_is_no_news(story: Story) -> None:
    assert story.joined("n0", incarnation="1") == []


@pytest.mark.parametrize("order", ["silence first", "exit first"])
def test_a_broken_connection_to_a_silent_node_loses_it(story: Story, order: str) -> None:
    if order == "silence first":
        story.silent("n1")
        (decision,) = story.loses_peer(0)
    else:
        assert story.loses_peer(0) == []
        story.at += 1.1
        (decision,) = story.silent("n1", story.at - 1.1)
    assert (decision.detector, decision.nodes) == ("node_lost", ("n1",))


def test_a_silent_or_lost_spare_is_not_the_policys_business(story: Story) -> None:
    assert story.silent("n2") == story.down("n2") == story.wait(600) == []


def test_many_silent_at_once_have_a_common_cause_and_get_a_minute(default: Policy) -> None:
    story = Story(default, nodes=6, spares=0).training()
    first = story.at
    for node in ("n0", "n1", "n2"):
        story.silent(node)
        story.at += 0.5
    assert story.stopped(first) == story.loses_peer(10) == []
    (decision,) = story.wait(100)
    assert (decision.nodes, decision.at) == (("n0", "n1", "n2"), first + 60)


def test_a_common_cause_that_passes_costs_nothing(default: Policy) -> None:
    story = Story(default, nodes=6, spares=0).training()
    since = story.at
    for node in ("n0", "n1", "n2"):
        story.silent(node)
    story.stopped(since)
    story.wait(30)
    for node in ("n0", "n1", "n2"):
        story.back(node)
    story.moving()
    assert story.wait(600) == []


@pytest.mark.parametrize(("nodes", "silent", "apart"), [(6, 2, 0.0), (12, 3, 0.0), (6, 3, 3.0)])
def test_few_or_scattered_silences_are_judged_one_by_one(
    default: Policy, nodes: int, silent: int, apart: float
) -> None:
    story = Story(default, nodes=nodes, spares=0).training()
    for index in range(silent):
        story.silent(f"n{index}")
        story.at += apart
    story.at += 5
    (decision,) = story.stopped(story.at - 5)
    assert decision.detector == "node_lost"


def test_a_new_supervisor_counts_silence_anew(default: Policy) -> None:
    story = Story(default)
    story.start()
    story.silent("n0")
    story.at += 50
    story.tell(EpochStarted(at=story.at, host="h", pid=1, node="n1", job_id=""))
    took_over = story.at
    (decision,) = story.wait(100)
    assert decision.at == took_over + 60


# ---------------------------------------------------------------- draining nodes


def test_a_draining_node_is_saved_from_and_replaced_uncounted_and_nothing_is_ended(story: Story) -> None:
    (decision,) = story.draining("n1")
    assert (decision.rule, decision.nodes, decision.ranks, decision.blame) == ("draining", ("n1",), (2, 3), "certain")
    assert decision.actions == {"save": {"when": "now"}, "replace": "blamed"}
    assert decision.counts is False
    assert story.state.pending is None
    assert story.steps(3) == []


def test_a_draining_node_may_still_fail_like_any_other(story: Story) -> None:
    story.draining("n1")
    (decision,) = story.exits(1, -9)
    assert (decision.rule, ending(decision)) == ("rank-exit", "restart")


def test_how_ranks_end_that_were_asked_to_end_is_no_finding_but_a_lost_node_is(story: Story) -> None:
    (decision,) = story.draining("n1")
    story.tell(ActionDone(at=story.at, decision=decision.id, action="replace", ok=True))
    assert story.exits(1, -9) == []
    assert story.wait(5) == []
    (lost,) = story.down("n0")
    assert lost.rule == "node-failure"


def test_a_node_that_a_person_has_replaced_is_decided_upon_like_one_that_a_rule_blames(story: Story) -> None:
    args: dict[str, Json] = {"why": "looks slow", "actions": {"replace": "blamed"}, "nodes": ["n1"]}
    (decision,) = story.tell(CommandReceived(at=story.at, id="c", verb="replace", author="ann", args=args))
    assert (decision.rule, decision.nodes, decision.ranks, decision.counts) == ("person", ("n1",), (2, 3), False)
    assert (decision.actions, decision.why) == ({"replace": "blamed"}, "ann: looks slow")
    assert story.state.pending is None


def test_a_draining_spare_is_no_finding_until_it_trains(story: Story) -> None:
    assert story.draining("n2") == []
    story.active = ["n0", "n2"]
    story.start()
    assert story.decisions == []
    (decision,) = story.steps(1)
    assert decision.nodes == ("n2",)


def test_before_the_first_step_there_is_nothing_to_save(default: Policy) -> None:
    story = Story(default)
    story.start()
    assert story.draining("n0") == []
    assert [one.rule for one in story.steps(1)] == ["draining"]


def test_a_node_that_is_drained_no_more_is_forgotten(default: Policy) -> None:
    story = Story(default)
    story.start()
    story.draining("n0")
    story.undrained("n0")
    assert story.steps(5) == []


def test_each_further_draining_node_is_told_together_with_those_before(story: Story) -> None:
    story.draining("n0")
    (decision,) = story.draining("n1")
    assert decision.nodes == ("n0", "n1")


def test_a_new_allocation_has_other_nodes(story: Story) -> None:
    story.draining("n1")
    story.tell(RunResumed(at=story.at, author="me"))
    story.start()
    assert story.steps(5) == []


# ---------------------------------------------------------------- hangs


def test_a_hang_is_found_at_its_limit_and_counts_from_the_stop(story: Story) -> None:
    since = story.at
    story.at += 3
    assert story.stopped(since, places=dict.fromkeys(range(4), (30, 7))) == []
    assert story.deadline == since + 120
    (decision,) = story.wait(300)
    assert (decision.rule, decision.at, decision.blame, decision.onset_at) == (
        "hang",
        since + 120,
        "undecidable",
        since,
    )
    assert "exclude" not in decision.actions
    assert list(decision.actions) == ["collect", "shrink", "restart"]


def test_slow_steps_stretch_the_limit(default: Policy) -> None:
    story = Story(default)
    story.start()
    story.steps(30, seconds=40)
    since = story.at
    story.stopped(since)
    assert story.deadline == since + 200


def test_few_steps_do_not_make_a_percentile(default: Policy) -> None:
    story = Story(default)
    story.start()
    story.steps(19, seconds=100)
    story.stopped(story.at)
    assert story.deadline == story.at + 120


def test_a_stop_that_passes_is_no_hang(story: Story) -> None:
    story.stopped(story.at)
    story.wait(119)
    story.moving()
    assert story.wait(1000) == []


@pytest.mark.parametrize(
    ("phase", "limit"), [("save", 1800), ("eval", 7200), ("data", 1800), ("compile", 3600), ("odd", 120)]
)
def test_each_phase_has_its_own_limit(story: Story, phase: str, limit: float) -> None:
    since = story.at
    story.stopped(since, proof=False, places={0: (30, 7, phase), 1: (30, 7)})
    assert story.deadline == since + limit


def test_the_first_step_has_its_own_limit(default: Policy) -> None:
    story = Story(default)
    story.start()
    (decision,) = story.wait(4000)
    assert (decision.rule, decision.at) == ("hang", 2800.0)


def up(default: Policy) -> Story:
    """A command that tells no steps, whose ranks run."""
    story = Story(default)
    story.start()
    story.tell(RanksUp(at=story.at, attempt=story.attempt, since=story.at - 30))
    return story


def test_ranks_of_which_nobody_need_tell_a_step_are_no_hang_however_long_they_say_nothing(default: Policy) -> None:
    assert up(default).wait(30 * 24 * 3600) == []


def test_what_fails_of_ranks_that_ran_is_restarted_at_once_and_uses_the_budget_of_restarts(default: Policy) -> None:
    story = up(default)
    for number in range(8):  # more than may fail before a first step, or end without progress
        (decision,) = story.exits(1, code=-11)
        assert (decision.evidence["before_first_step"], ending(decision)) == (False, "restart")
        assert decision.evidence["budget"] == f"restarts {number + 1} of 20 per 1d; without progress 0"
        story.start()
        story.tell(RanksUp(at=story.at, attempt=story.attempt, since=story.at - 30))
    (decision,) = story.exits(1, code=-11)
    assert ending(decision) == "hold"


@pytest.mark.parametrize(
    ("places", "blame", "ranks"),
    [
        ({0: (5, 9), 1: (5, 9), 2: (5, 4, "", "T"), 3: (5, 9)}, "certain", (2,)),
        ({0: (5, 9), 1: (5, 8), 2: (5, 9), 3: (5, 9)}, "likely", (1,)),
        ({0: (4, 99), 1: (5, 8), 2: (5, 1), 3: (5, 9)}, "likely", (0,)),
        ({0: (5, 8), 1: (5, 8), 2: (5, 9), 3: (5, 9)}, "undecidable", ()),
        ({0: (5, 8)}, "undecidable", ()),
        ({}, "undecidable", ()),
    ],
)
def test_who_is_behind_is_blamed(
    story: Story, places: dict[int, tuple[int, int]], blame: str, ranks: tuple[int, ...]
) -> None:
    story.stopped(story.at, places=places)
    (decision,) = story.wait(200)
    assert (decision.blame, decision.ranks) == (blame, ranks)
    # The first hang leaves a node out only when blame is certain.
    assert ("exclude" in decision.actions) == (blame == "certain")


def test_a_hang_waits_for_silent_nodes(story: Story) -> None:
    since = story.at
    story.stopped(since, proof=False)
    story.wait(100)
    silent_at = story.at
    story.silent("n1")
    (decision,) = story.wait(500)
    assert (decision.detector, decision.at) == ("node_lost", silent_at + 60)


# ---------------------------------------------------------------- numbers


@pytest.mark.parametrize(
    ("metrics", "finds"),
    [
        ({"loss": NAN}, True),
        ({"grad_norm": float("inf")}, True),
        ({"grad_norm": float("-inf")}, True),
        ({"grad_norm": float("inf"), "skipped": 1}, False),
        ({"grad_norm": float("inf"), "skipped": 0}, True),
        ({"lr": NAN}, False),
        ({"loss": 100.0}, False),
    ],
)
def test_numbers_that_are_not_finite(story: Story, metrics: dict[str, float], finds: bool) -> None:
    decisions = story.steps(1, **metrics)
    assert [one.rule for one in decisions] == (["non-finite"] if finds else [])
    if finds:
        assert decisions[0].actions["restart"] == {"from": "last_good", "save_first": False}
        assert decisions[0].onset_step == 30


def test_numbers_of_an_attempt_that_is_over_are_ignored(story: Story) -> None:
    story.exits(0, -9)
    assert story.steps(1, loss=NAN) == []
    story.start()
    story.attempt = 1
    assert story.steps(1, loss=NAN) == []


def test_failed_ranks_come_before_numbers(story: Story) -> None:
    story.loses_peer(0)
    assert story.steps(1, loss=NAN) == []
    (decision,) = story.wait(5)
    assert decision.detector == "exit"


def test_an_error_that_comes_back_on_another_node_before_the_first_step_is_a_user_bug(default: Policy) -> None:
    story = Story(default)
    story.start()
    story.exits(0, 1, "Numpy is not available", "RuntimeError")
    (first,) = story.wait(5)
    story.active = ["n2", "n1"]
    story.start()
    story.exits(0, 1, "Numpy is not available", "RuntimeError")
    (second,) = story.wait(5)
    assert [(one.rule, ending(one)) for one in (first, second)] == [("rank-exit", "restart"), ("user-error", "stop")]


def test_an_error_that_comes_back_on_the_same_node_stays_a_fault_of_that_node(default: Policy) -> None:
    story = Story(default)
    for _ in range(2):
        story.start()
        story.exits(0, 1, "cannot open shared object", "ImportError")
        story.wait(5)
    assert [ending(one) for one in story.decisions] == ["restart", "restart"]
