"""A trainer that has never heard of us: watched by what it prints, resumed from what it saves."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

from foreign_run import ForeignRun

from launcher.events import AttemptStarted, CheckpointRejected, CheckpointSetAside, NodeSilent, StepDone, StepsStopped

Launch = Callable[..., ForeignRun]

PRINTS = "telemetry: {preset: nanogpt}\n"
SAVES = 'checkpoints: {glob: "out/ckpt-{step}", complete: {marker: DONE}, verify: full}\n'
BY_ARGS = 'capabilities: {resume: {args: ["--load", "{dir}", "--ckpt-step", "{step}"]}}\n'
NEWEST = "capabilities: {resume: newest}\n"


def restores(run: ForeignRun) -> list[tuple[int, int] | None]:
    return [one.restore for one in run.of(AttemptStarted)]


def test_a_killed_rank_is_made_good_from_the_newest_checkpoint(launch: Launch, bare_python: str) -> None:
    run = launch(PRINTS + SAVES + BY_ARGS, python=bare_python, save_every=10, step_s=0.1)
    rank = run.rank(3)
    run.reaches(25).kill(rank)
    run.ends()

    first, second = run.of(AttemptStarted)
    assert first.restore is None
    assert second.restore is not None
    assert f"loaded {run.work / 'out' / f'ckpt-{second.restore[0]}'}\n" in run.printed(2)
    assert second.restore[0] >= 20, "the last look was before the ranks ended"
    assert [one.step for one in run.lines(1)][:25] == list(range(25))
    assert run.lines(2)[0].step == run.lines(1)[-1].step + 1 - run.run.lost_steps
    assert run.found()[0] == 60
    assert [one.rule for one in run.decisions()] == ["rank-exit"]


def test_a_trainer_that_takes_the_newest_finds_none_that_is_damaged(launch: Launch) -> None:
    run = launch(PRINTS + SAVES + NEWEST, newest=True, save_every=10, save_until=20, steps=80, step_s=0.1)
    rank = run.rank(3)
    run.saved(20)
    damaged = run.work / "out" / "ckpt-20" / "state.json"
    damaged.write_text(damaged.read_text().replace("1", "2"))
    run.kill(rank)
    run.ends()

    assert restores(run) == [None, (10, 1)]
    assert [(one.step, "not as it was" in one.reason) for one in run.of(CheckpointRejected)] == [(20, True)]
    (aside,) = run.of(CheckpointSetAside)
    assert (aside.path, aside.moved_to) == (
        str(run.work / "out" / "ckpt-20"),
        str(run.work / "out" / "set_aside" / "ckpt-20"),
    )
    assert (run.work / "out" / "set_aside" / "ckpt-20" / "DONE").exists()
    assert run.run.checkpoints[20, 2].parent == (10, 1)


class ElasticForeignRun(ForeignRun):
    """Two nodes, of which a lost one stays away."""

    backend = "backend: local, min_nodes: 1, local: {return_after: 1h}"
    wait_for_node = "1s"

    def check_history(self) -> None:
        """What it comes to depends on how many ranks there were when."""
        assert self.final()["done"] == self.steps


def test_an_elastic_trainer_goes_on_with_the_node_that_is_left(tmp_path: Path) -> None:
    says = PRINTS + SAVES + BY_ARGS.replace("{resume", "{elastic: true, resume")
    run = ElasticForeignRun(tmp_path, "elastic", says=says, save_every=10, step_s=0.1)
    try:
        run.saved(20)
        run.lose("node1")
        end = run.ends()
    finally:
        run.clean_up()

    assert [dict(one.slots) for one in end.attempts] == [{"node0": (0, 1), "node1": (2, 3)}, {"node0": (0, 1)}]
    assert [one.rule for one in run.decisions()] == ["node-failure"]
    assert (end.attempts[1].restore or (0,))[0] >= 20
    first = run.lines(2)[0].step
    assert first + run.run.lost_steps == run.lines(1)[-1].step + 1


def test_a_hang_is_found_by_the_lines_that_do_not_come(launch: Launch) -> None:
    run = launch(PRINTS + SAVES + NEWEST, newest=True, save_every=10, log_every=5, hang_at=33)
    run.ends()

    (decision,) = run.decisions()
    assert (decision.rule, decision.attempt, decision.onset_step) == ("hang", 1, 30)
    assert restores(run) == [None, (30, 1)]
    # Ranks that never say a word are not behind anybody.
    assert decision.nodes == ()


def test_a_healthy_trainer_that_seldom_prints_is_left_alone(launch: Launch) -> None:
    """A second and more between lines, a while without any, and an agent that is stopped meanwhile."""
    run = launch(PRINTS, steps=300, step_s=0.02, log_every=50, quiet_at=220, quiet_s=3.5)
    run.reaches(51)
    assert run.ask("save") == (False, "the trainer cannot be told to save: 'capabilities.save_now' does not say how")
    agent = run.agent(run.node_of(3))
    run.kill(agent, number=signal.SIGSTOP)
    run.wait_for(NodeSilent)
    run.reaches(151)
    run.kill(agent, number=signal.SIGCONT)
    run.ends()

    assert run.decisions() == []
    assert [one.step for one in run.of(StepDone)] == [0, 50, 100, 150, 200, 250]
    assert any(one.at > run.lines(1)[-2].at for one in run.of(StepsStopped)), (
        "the evaluation was too short to be noticed"
    )
    assert not any(one.proof for one in run.of(StepsStopped))


def test_a_checkpoint_asked_for_by_signal_and_a_stop_that_waits_for_one(launch: Launch) -> None:
    says = "capabilities: {resume: newest, save_now: {signal: SIGUSR1, within: 20s}}\n"
    run = launch(PRINTS + SAVES + says, newest=True, saves_on_signal=True, steps=10_000).reaches(5)
    ok, message = run.ask("save")
    saved = run.found()
    assert ok
    assert message in [f"step {step} saved" for step in saved]  # a signal may reach two ranks at two steps

    assert run.ask("stop") == (True, "stopping after a last checkpoint")
    end = run.ends("STOPPED")
    assert max(run.found()) > max(saved)
    assert end.head is not None
    assert end.head[0] == max(run.found())


def test_exit_codes_and_early_ends_mean_what_the_trainer_says(launch: Launch) -> None:
    can = "capabilities: {resume: newest, done: {step: 60}, exit_codes: {16: rerun_same, 3: done}}\n"
    run = launch(PRINTS + SAVES + can, newest=True, save_every=10, end_at="15:16,35:0,60:3")
    run.ends()

    assert restores(run) == [None, (10, 1), (30, 2)]
    assert [(one.rule, one.counts) for one in run.decisions()] == [("exit-code-16", False), ("early-end", False)]
