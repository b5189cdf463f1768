"""Every fault, on real processes: what the run does about it, and that it ends as if nothing had happened."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from live_run import LiveRun, prefixes

from launcher.control import command
from launcher.events import (
    AgentJoined,
    AttemptEnded,
    AttemptStarted,
    CheckpointCommitted,
    CheckpointFailed,
    CheckpointRejected,
    Decision,
    EpochStarted,
    NodeBack,
    NodeSilent,
    RankExited,
)

pytestmark = pytest.mark.timeout(240)
Launch = Callable[..., LiveRun]


def test_undisturbed_a_run_decides_nothing_and_ends(launch: Launch) -> None:
    run = launch(steps=40)

    end = run.ends()

    assert run.decisions() == []
    assert (end.restarts, end.lost_steps) == (0, 0)
    assert [one[0] for one in run.line()] == [40, 30, 20, 10]


# ---------------------------------------------------------------- ranks


def test_a_killed_rank_costs_the_steps_since_the_newest_checkpoint(launch: Launch) -> None:
    run = launch().reaches(15)

    run.kill(run.rank(3))
    end = run.ends()

    (decision,) = run.decisions()
    newest = [one for one in run.of(CheckpointCommitted, attempt=1) if one.at <= run.of(AttemptEnded)[0].at][-1]
    assert (decision.detector, decision.rule) == ("exit", "rank-exit")
    assert decision.evidence["rank"] == 3
    assert end.attempts[1].restore == (newest.step, 1)
    assert end.attempts[1].slots == end.attempts[0].slots
    assert end.lost_steps < 10 + 10


def test_a_rank_killed_before_the_first_checkpoint_costs_all(launch: Launch) -> None:
    run = launch(steps=40, save_every=30).reaches(5)

    run.kill(run.rank(1))
    end = run.ends()

    assert end.attempts[1].restore is None
    assert run.of(AttemptStarted, attempt=2)[0].why == "no checkpoint was ever committed"


def test_a_stopped_rank_is_seen_by_what_does_not_move_and_stacks_are_taken_first(launch: Launch) -> None:
    run = launch().reaches(15)
    node = run.node_of(3)

    run.kill(run.rank(3), number=signal.SIGSTOP)
    end = run.ends()

    (decision,) = run.decisions()
    assert decision.detector == "hang"
    assert decision.blame == "undecidable" or node in decision.nodes
    folder = run.paths.incident(decision.incident)
    stacks = sorted(path for path in folder.iterdir() if path.name.endswith(".stack.txt"))
    assert [path.name.split(".")[1] for path in stacks] == ["rank0", "rank1", "rank2", "rank3"]
    assert "counting.py" in stacks[0].read_text()
    ended = run.of(AttemptEnded, attempt=1)[0].at
    assert all(path.stat().st_mtime <= ended for path in stacks)
    assert end.restarts == 1


# ---------------------------------------------------------------- nodes


def test_a_spare_takes_the_slots_of_a_lost_node(launch: Launch) -> None:
    run = launch().reaches(15)

    run.lose("node1")
    end = run.ends()

    (decision,) = run.decisions()
    assert (decision.detector, decision.nodes, decision.blame) == ("node_lost", ("node1",), "certain")
    assert end.attempts[0].slots == {"node0": (0, 1), "node1": (2, 3)}
    assert end.attempts[1].slots == {"node0": (0, 1), "node2": (2, 3)}
    assert end.attempts[1].restore is not None


def test_losing_the_node_that_carries_the_supervisor_is_an_ordinary_loss(launch: Launch) -> None:
    run = launch().reaches(15)
    assert run.run.supervisor_node == "node0"

    run.lose("node0")
    end = run.ends()

    (decision,) = run.decisions()
    assert (decision.detector, decision.nodes) == ("node_lost", ("node0",))
    assert end.attempts[1].slots == {"node2": (0, 1), "node1": (2, 3)}
    assert end.supervisor_node != "node0" or end.nodes["node0"].incarnation != end.attempts[0].incarnations["node0"]


def test_without_spares_a_run_waits_for_its_node_to_come_back(launch: Launch) -> None:
    run = launch(spares=0).reaches(15)

    run.lose("node1")
    end = run.ends()

    assert end.attempts[1].slots == end.attempts[0].slots
    assert end.attempts[1].incarnations["node1"] != end.attempts[0].incarnations["node1"]


def test_a_node_that_is_back_before_a_supervisor_is_can_be_used_again(launch: Launch) -> None:
    """Its agent was started anew before anybody noticed that the old one was gone."""
    run = launch(spares=0).reaches(15)
    supervisor = run.supervisor()

    run.kill(supervisor, number=signal.SIGSTOP)
    run.lose("node1")
    end = run.ends()

    assert [decision.nodes for decision in run.decisions()] == [("node1",)]
    assert end.attempts[1].slots == end.attempts[0].slots


def test_a_frozen_node_is_suspect_then_lost_because_steps_stopped_and_its_ranks_end_when_it_thaws(
    launch: Launch,
) -> None:
    run = launch(steps=150).reaches(15)

    frozen = run.freeze("node1")
    run.wait_for(AttemptStarted, attempt=2)
    run.reaches(20, attempt=2)
    run.kill(*frozen, number=signal.SIGCONT)
    run.ends()

    silent, (decision,) = run.of(NodeSilent, node="node1")[0], run.decisions()
    assert silent.at <= decision.at
    assert (decision.detector, decision.nodes) == ("node_lost", ("node1",))
    assert "steps have stopped" in str(decision.evidence) or "lost their connections" in str(decision.evidence)


def test_an_agent_killed_alone_takes_its_ranks_along_and_its_node_is_lost(launch: Launch) -> None:
    run = launch().reaches(15)

    run.kill(run.agent("node1"))
    end = run.ends()

    assert [decision.nodes for decision in run.decisions()] == [("node1",)]
    assert end.attempts[1].slots == {"node0": (0, 1), "node2": (2, 3)}


def test_the_parent_of_a_nodes_ranks_is_replaced_and_the_node_goes_on(launch: Launch) -> None:
    run = launch().reaches(15)

    run.kill(run.rank(2).parent())
    end = run.ends()

    (decision,) = run.decisions()
    assert decision.detector == "exit"
    assert end.attempts[1].slots == end.attempts[0].slots


def test_a_spare_that_dies_is_nothing_to_decide_about(launch: Launch) -> None:
    run = launch(steps=100).reaches(10)
    (lost,) = run.of(AgentJoined, node="node2")

    run.lose("node2")
    run.wait("the spare to come back", lambda run: run.nodes["node2"].incarnation != lost.incarnation)
    end = run.ends()

    assert run.decisions() == []
    assert len(end.attempts) == 1


# ---------------------------------------------------------------- supervisors


def test_training_does_not_notice_the_death_of_a_supervisor(launch: Launch) -> None:
    run = launch(steps=150).reaches(15)
    epoch = run.epoch()

    run.kill(run.supervisor())
    run.new_epoch(epoch)
    end = run.ends()

    assert run.decisions() == []
    assert (len(end.attempts), end.lost_steps) == (1, 0)


@pytest.mark.parametrize("stopped_s", [5.0, pytest.param(20.0, marks=pytest.mark.slow)])
def test_a_supervisor_that_stood_still_is_replaced_and_leaves_when_it_wakes(launch: Launch, stopped_s: float) -> None:
    run = launch(steps=int(40 + 25 * stopped_s)).reaches(15)
    old, epoch = run.supervisor(), run.epoch()

    run.kill(old, number=signal.SIGSTOP)
    began = time.monotonic()
    run.new_epoch(epoch)
    while time.monotonic() - began < stopped_s:
        time.sleep(0.1)
    run.kill(old, number=signal.SIGCONT)
    with contextlib.suppress(psutil.NoSuchProcess):
        psutil.wait_procs([old], timeout=15)
    end = run.ends()

    assert run.decisions() == []
    assert (len(end.attempts), end.lost_steps) == (1, 0)
    takeover = min(event.at for event in run.of(EpochStarted) if event.epoch > epoch)
    assert all(event.at <= takeover for event in run.events() if event.epoch == epoch)


def lose_supervisor(run: LiveRun, supervisor: psutil.Process, number: int) -> None:
    """Killed, or stopped until it has a successor."""
    epoch = run.epoch()
    run.kill(supervisor, number=number)
    run.new_epoch(epoch)
    run.kill(supervisor, number=signal.SIGCONT)


KILLED_OR_STOPPED = pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])


@KILLED_OR_STOPPED
def test_a_supervisor_lost_in_the_middle_of_a_recovery_has_a_successor_that_finishes_it(
    launch: Launch, number: int
) -> None:
    run = launch().reaches(15)
    supervisor = run.supervisor()

    run.kill(run.rank(2))
    run.wait("a decision", lambda run: run.incidents)
    lose_supervisor(run, supervisor, number)
    end = run.ends()

    assert len(run.decisions()) == 1
    assert (len(end.attempts), end.restarts) == (2, 1)


@KILLED_OR_STOPPED
def test_a_supervisor_lost_during_a_save_has_a_successor_that_commits_it(launch: Launch, number: int) -> None:
    run = launch(steps=150, save_every=30, save_s=1.5).reaches(25)
    supervisor = run.supervisor()

    run.phase("save")
    lose_supervisor(run, supervisor, number)
    end = run.ends()

    assert run.decisions() == []
    assert (30, 1) in end.checkpoints
    assert len(end.attempts) == 1


@KILLED_OR_STOPPED
def test_a_supervisor_lost_while_it_commits_has_a_successor_that_commits(launch: Launch, number: int) -> None:
    run = launch(steps=150, save_every=30).reaches(20)
    supervisor, folder = run.supervisor(), run.paths.checkpoint(30, 1)

    while len([*folder.glob("part.*")]) < 4:
        time.sleep(0.001)
    lose_supervisor(run, supervisor, number)
    end = run.ends()

    assert run.decisions() == []
    assert (30, 1) in end.checkpoints


def test_of_two_supervisors_only_the_newer_one_is_referenced(launch: Launch) -> None:
    run = launch(steps=150).reaches(15)
    old, epoch = run.supervisor(), run.epoch()
    job = json.loads(run.paths.allocation.read_text())["job_id"]

    module = [sys.executable, "-P", "-m", "launcher.supervisor", str(run.paths.root), "node1", str(os.getpid())]
    rival = subprocess.Popen(module, env={**os.environ, "OPT_LAUNCH_JOB": job}, stderr=subprocess.DEVNULL)
    newer = run.new_epoch(epoch)
    assert newer.pid == rival.pid
    assert psutil.wait_procs([old], timeout=15)[1] == []
    end = run.ends()
    rival.wait(30)

    sealed = {one.file: one.length for one in newer.sealed}
    journal = run.paths.journal(epoch)
    assert {event.epoch for event in run.events() if event.at > newer.at + 1} == {newer.epoch}
    assert journal.stat().st_size >= sealed[f"journal/{journal.name}"]
    assert run.decisions() == []
    assert (len(end.attempts), end.lost_steps) == (1, 0)


# ---------------------------------------------------------------- everything


def test_after_everything_was_killed_a_person_resumes_the_run(launch: Launch) -> None:
    run = launch().reaches(25)
    saved = run.saved(20)

    run.kill_everything()
    program = Path(sys.executable).with_name("opt-launch")
    resumed = [program, "resume", run.paths.name, "--root", run.paths.root.parent]
    done = subprocess.run(resumed, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    run.wait_for(AttemptStarted, attempt=2)
    end = run.ends()

    assert end.attempts[1].restore is not None
    assert end.attempts[1].restore[0] >= saved.step


def test_a_killed_allocation_takes_everything_along_and_can_be_resumed(launch: Launch) -> None:
    run = launch().reaches(15)

    run.kill(psutil.Process(json.loads(run.paths.allocation.read_text())["pid"]))
    deadline = time.monotonic() + 15
    while left := [p for p in run.processes() if "submitit" not in " ".join(p.cmdline())]:
        assert time.monotonic() < deadline, f"outlived their allocation: {left}"
        time.sleep(0.05)
    run.resume()
    run.wait_for(AttemptStarted, attempt=2)
    end = run.ends()

    assert end.attempts[1].restore is not None


# ---------------------------------------------------------------- numbers


def test_not_a_number_is_answered_from_before_it_and_nothing_of_it_is_ever_good(launch: Launch) -> None:
    run = launch(nan_at=25)

    end = run.ends()

    (decision,) = run.decisions()
    assert (decision.detector, decision.onset_step) == ("non_finite", 25)
    restore = end.attempts[1].restore
    assert restore is not None
    assert restore[0] <= 25
    for _, at in prefixes(run.events()):
        good = [one for one in at.checkpoints.values() if at.is_good(one)]
        assert not [one for one in good if one.attempt == 1 and one.step > 25]


def test_numbers_that_go_wrong_again_and_again_hold_the_run(launch: Launch) -> None:
    run = launch(nan_at=15, nan_always=True)

    held = run.wait("held", lambda run: run.state == "HELD")

    assert "not finite" in held.hold_reason
    assert not any(at.is_good(one) for _, at in prefixes(run.events()) for one in at.checkpoints.values())
    command(run.paths, "stop", {})
    run.ends("STOPPED")


# ---------------------------------------------------------------- damaged checkpoints


def truncate(folder: Path) -> None:
    os.truncate(folder / "part.0002", 100)


def flip_a_byte(folder: Path) -> None:
    data = bytearray((folder / "part.0002").read_bytes())
    data[len(data) // 2] ^= 1
    (folder / "part.0002").write_bytes(data)


def lose_the_manifest(folder: Path) -> None:
    (folder / "manifest.json").unlink()


@pytest.mark.parametrize("spoil", [truncate, flip_a_byte, lose_the_manifest])
def test_a_damaged_checkpoint_is_reported_and_the_one_before_it_used(
    launch: Launch, spoil: Callable[[Path], None]
) -> None:
    run = launch(steps=80, save_every=20).reaches(20)
    victim = run.rank(3)

    newest = run.saved(40)
    spoil(run.paths.checkpoint(newest.step, 1))
    run.kill(victim)
    end = run.ends()

    rejected = run.of(CheckpointRejected)[0]
    assert (rejected.step, rejected.attempt) == (newest.step, 1)
    assert rejected.reason
    assert end.attempts[-1].restore == (newest.step - 20, 1)
    assert all(decision.counts is False for decision in run.decisions() if decision.rule != "rank-exit")


def test_with_every_checkpoint_damaged_the_run_is_held_never_begun_anew(launch: Launch) -> None:
    run = launch(steps=200, save_every=20).reaches(20)
    victim = run.rank(3)

    newest = run.saved(40)
    for one in run.of(CheckpointCommitted):
        lose_the_manifest(run.paths.checkpoint(one.step, one.attempt))
    run.kill(victim)
    held = run.wait("held", lambda run: run.state == "HELD")

    assert "manifest.json" in held.hold_reason
    assert {id_ for id_, one in held.checkpoints.items() if one.rejected} >= {(newest.step, 1), (20, 1)}
    assert len(held.attempts) == 1
    command(run.paths, "stop", {})
    run.ends("STOPPED")


# ---------------------------------------------------------------- a full disk


def test_a_full_disk_fails_the_save_and_nothing_else(launch: Launch, small_disk: Path) -> None:
    run = launch(root=small_disk, steps=120, part_kb=500)
    first = run.saved(10)

    with run.full(small_disk):
        failed = run.wait_for(CheckpointFailed)
        run.reaches(failed.step + 3)
        assert run.paths.manifest(first.step, 1).exists()
    run.saved(failed.step + 10)
    end = run.ends()

    assert "No space left on device" in failed.reason
    assert run.decisions() == []
    assert len(end.attempts) == 1


# ---------------------------------------------------------------- errors of the trainer


def test_an_error_everywhere_before_the_first_step_fails_the_run_at_once(launch: Launch) -> None:
    run = launch(raise_at_import=True)

    end = run.ends("FAILED")

    assert len(end.attempts) == 1
    assert "ImportError: No module named 'frobnicate'" in end.ended_reason
    first = run.of(RankExited)[0]
    assert end.incidents[0].evidence["rank"] == first.rank
    assert (first.error_type, first.error) == ("ImportError", "No module named 'frobnicate'")


def test_an_error_on_one_node_only_is_a_fault_of_that_node(launch: Launch) -> None:
    run = launch(raise_at_import=True, raise_on_node="node1")

    end = run.ends()

    (decision,) = run.decisions()
    assert (decision.detector, decision.nodes, decision.blame) == ("exit", ("node1",), "likely")
    assert end.attempts[1].slots == {"node0": (0, 1), "node2": (2, 3)}


def test_the_same_error_at_the_same_step_again_holds_the_run(launch: Launch) -> None:
    run = launch(exit_at=15)

    held = run.wait("held", lambda run: run.state == "HELD")

    assert len(held.attempts) == 2
    assert held.hold_reason
    last = run.of(Decision)[-1]
    assert "a shape that does not fit" in str(last.evidence)
    command(run.paths, "stop", {})
    run.ends("STOPPED")


def test_attempts_that_get_no_further_end_in_a_hold(launch: Launch) -> None:
    run = launch(steps=400, save_every=1000)

    for attempt in range(1, 5):
        run.wait(f"attempt {attempt} or a hold", lambda run, n=attempt: _started(run, n) or run.state == "HELD")
        if run.run.state == "HELD":
            break
        run.kill(run.rank(0))
        run.wait("its end", lambda run, n=attempt: run.state == "HELD" or len(run.attempts) > n)
    held = run.wait("held", lambda run: run.state == "HELD")

    assert len(held.attempts) <= 4
    command(run.paths, "stop", {})
    run.ends("STOPPED")


def _started(run: object, attempt: int) -> bool:
    attempts = run.attempts  # type: ignore[attr-defined]
    return len(attempts) >= attempt and attempts[attempt - 1].first_step_at is not None


# ---------------------------------------------------------------- people


def test_a_stop_saves_first_and_a_resumed_run_loses_no_step(launch: Launch) -> None:
    run = launch(steps=100, save_every=1000).reaches(15)

    done, _ = command(run.paths, "stop", {})
    end = run.ends("STOPPED")
    run.resume()
    run.wait_for(AttemptStarted, attempt=2)
    resumed = run.ends()

    assert done
    assert end.head == (end.step, 1)
    assert resumed.lost_steps == 0


def test_a_save_asked_for_is_committed_before_it_is_answered(launch: Launch) -> None:
    run = launch(steps=120, save_every=1000).reaches(15)

    done, said = command(run.paths, "save", {})

    assert done, said
    assert run.run.checkpoints
    run.ends()


# ---------------------------------------------------------------- healthy, but nasty


def test_steps_that_become_five_times_slower_are_no_fault(launch: Launch) -> None:
    run = launch(steps=50, slow_from=30)

    run.ends()

    assert run.decisions() == []


def test_a_declared_evaluation_of_half_a_minute_is_no_fault(launch: Launch) -> None:
    run = launch(steps=40, eval_at=25, eval_s=30)

    run.ends()

    assert run.decisions() == []


@pytest.mark.parametrize("when", ["in training", "in an evaluation"])
@pytest.mark.parametrize("node", ["node0", "node1"])
def test_an_agent_that_says_nothing_for_five_seconds_is_no_fault(launch: Launch, when: str, node: str) -> None:
    evaluates = {"eval_at": 25, "eval_s": 8} if when == "in an evaluation" else {}
    run = launch(steps=60 if evaluates else 160, **evaluates).reaches(20)
    if evaluates:
        run.phase("eval")
    agent = run.agent(node)

    run.kill(agent, number=signal.SIGSTOP)
    began = time.monotonic()
    run.wait_for(NodeSilent, node=node)
    while time.monotonic() - began < 5:
        time.sleep(0.05)
    run.kill(agent, number=signal.SIGCONT)
    run.wait_for(NodeBack, node=node)
    end = run.ends()

    assert run.decisions() == []
    assert (len(end.attempts), end.lost_steps) == (1, 0)


@pytest.mark.parametrize("stopped_s", [3.0, 8.0])
def test_a_machine_that_sleeps_and_wakes_is_no_fault(launch: Launch, stopped_s: float) -> None:
    run = launch(steps=100).reaches(20)
    everything = run.processes()

    run.kill(*everything, number=signal.SIGSTOP)
    time.sleep(stopped_s)
    run.kill(*everything, number=signal.SIGCONT)
    end = run.ends()

    assert run.decisions() == []
    assert (len(end.attempts), end.lost_steps) == (1, 0)
