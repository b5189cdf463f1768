"""What a person steers, on real processes: stopped, resumed otherwise, branched, acted upon, with or without TCP."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import counting
import pytest
from live_run import LiveRun, opt_launch

from launcher import branch, stop
from launcher.control import command
from launcher.errors import LaunchError, Unreachable
from launcher.events import AttemptStarted, CheckpointCommitted, CommandReceived, RunAmended, RunEnded, TrainerDone
from launcher.report import report
from launcher.resume import resume
from launcher.submit import submit
from launcher.view.snapshot import snapshot

pytestmark = pytest.mark.timeout(120)
Launch = Callable[..., LiveRun]
ROOT = Path(__file__).parents[2]


# ---------------------------------------------------------------- stop


def test_a_stop_at_once_saves_nothing_and_gives_the_allocation_back(launch: Launch) -> None:
    run = launch(steps=4000, save_every=10).reaches(25)

    done = opt_launch(run, "stop", run.paths.name, "--now", "--yes")
    end = run.ends("STOPPED")

    assert (done.returncode, done.stderr) == (0, f"{run.paths.name}: stopping at once\n")
    assert set(end.attempts[0].exits.values()) <= {-signal.SIGKILL}
    assert end.head is not None
    assert end.head[0] % 10 == 0


@pytest.mark.slow
def test_a_stop_at_once_ends_also_what_nobody_supervises(launch: Launch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stop, "NOW_S", 1.0)
    run = launch(steps=4000).reaches(15)
    for node in ("node0", "node1", "node2"):
        run.freeze(node)
    told: list[str] = []

    monkeypatch.setattr(stop, "ANSWER_S", 0.5)
    with pytest.raises(Unreachable, match="--now"):
        stop.stop(run.paths, "ann", now=False, tell=told.append)
    assert (told, run.run.state.is_terminal) == ([], False)
    stop.stop(run.paths, "ann", now=True, tell=told.append)

    assert told == ["no supervisor answered 'stop' within 1s: its allocation is ended without one"]
    end = run.ends("STOPPED")
    assert end.ended_reason == "stopped by ann: no supervisor answered"
    assert end.live_attempt is None


def test_a_run_of_which_nothing_lives_is_ended_by_a_stop(launch: Launch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("launcher.view.steer.GONE_S", 0.5)
    run = launch(steps=4000).reaches(5)
    run.kill_everything()

    stop.stop(run.paths, "ann", now=False, tell=print)

    snap = snapshot(run.paths)
    assert (snap["state"], snap["reason"]) == ("STOPPED", "stopped by ann: none of its processes was alive")


# ---------------------------------------------------------------- pause


def test_a_paused_run_keeps_its_nodes_outlives_its_supervisor_and_goes_on_where_it_was(launch: Launch) -> None:
    run = launch(steps=120, save_every=30)
    name = run.paths.name
    run.saved(30)

    done = opt_launch(run, "pause", name, "--reason", "a look")
    halted = run.run
    snap = snapshot(run.paths)
    run.kill(run.supervisor())
    run.new_epoch(after=halted.epoch)
    again, gone_on = opt_launch(run, "pause", name), opt_launch(run, "unpause", name)
    end = run.ends()

    assert (done.returncode, done.stderr) == (0, f"paused at step {halted.step}; the nodes are kept\n")
    assert (halted.state, halted.live_attempt, halted.head and halted.head[0]) == ("PAUSED", None, halted.step)
    assert snap["reason"].endswith(": a look")
    assert snap["next_action"] == f"nothing, until a person says: opt-launch unpause {name}"
    assert {node["state"] for node in snap["nodes"]} == {"ALIVE"}
    assert (again.returncode, "the run is paused" in again.stderr) == (1, True)
    assert (gone_on.returncode, gone_on.stderr) == (0, "unpaused\n")
    assert (run.decisions(), end.lost_steps, end.attempts[1].restore) == ([], 0, halted.head)
    assert report(run.paths)["time"]["seconds"]["paused"] > 0


def test_a_pause_at_once_is_asked_about_first(launch: Launch) -> None:
    run = launch(steps=4000, save_every=10).reaches(15)
    name = run.paths.name

    refused = opt_launch(run, "pause", name, "--now")
    done = opt_launch(run, "pause", name, "--now", "--yes")

    assert (refused.returncode, "add --yes" in refused.stderr) == (2, True)
    assert done.returncode == 0, done.stderr
    assert set(run.run.attempts[0].exits.values()) <= {-signal.SIGKILL}


# ---------------------------------------------------------------- resume


@pytest.mark.slow
def test_a_run_is_resumed_on_another_number_of_nodes(launch: Launch) -> None:
    run = launch(steps=80, save_every=1000).reaches(15)
    assert command(run.paths, "stop", {})[0]
    stopped = run.ends("STOPPED")

    resume(run.paths, "ann", ["cluster.wait_for_node=9s"], {"nodes": 1, "spares": 0})
    run.wait_for(AttemptStarted, attempt=2)
    end = run.wait("its end", lambda run: run.state == "SUCCEEDED")
    run.check_nothing_is_left()

    (amended,) = run.of(RunAmended)
    assert amended.changes == {
        "cluster.nodes": [2, 1],
        "cluster.spares": [1, 0],
        "cluster.wait_for_node": ["30s", "9s"],
    }
    assert (amended.author, amended.nodes, amended.spares) == ("ann", 1, 0)
    assert end.attempts[1].slots == {"node0": (0, 1)}
    assert end.attempts[1].restore == stopped.head
    assert end.lost_steps == 0
    assert "nodes: 1  # --nodes 1; resume by ann, 20" in run.paths.spec.read_text()
    assert report(run.paths)["amendments"][0]["changes"]["cluster.nodes"] == [2, 1]


def test_a_resume_that_gets_no_allocation_leaves_the_run_as_it_was(
    launch: Launch, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run = launch(steps=4000).reaches(15)
    assert command(run.paths, "stop", {})[0]
    stopped = run.ends("STOPPED")
    spec = run.paths.spec.read_text()

    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(LaunchError, match="no Slurm"):
        resume(run.paths, "ann", ["cluster.backend=slurm"], {"nodes": 3})

    after = run.run
    assert run.paths.spec.read_text() == spec
    assert (after.state, after.nodes_wanted, after.ended_reason) == ("STOPPED", 2, stopped.ended_reason)


@pytest.mark.slow
def test_what_was_asked_of_the_dead_is_not_done_to_the_resumed(launch: Launch) -> None:
    run = launch(steps=60).reaches(15)
    run.kill_everything()
    (run.paths.control / "stale.json").write_text('{"id": "stale", "verb": "stop", "args": {}}')

    run.resume()

    assert len(run.ends().attempts) == 2


# ---------------------------------------------------------------- branches


class BranchRun(LiveRun):
    """A run from a checkpoint of another one."""

    def submit(self, file: Path, root: Path) -> None:
        resolved, source = branch.resolve(file, self.origin, root, (), {})
        submit(resolved, root, source)

    def __init__(self, root: Path, name: str, origin: str, **options: Any) -> None:
        self.origin = origin
        super().__init__(root, name, **options)


@pytest.mark.slow
def test_a_branch_begins_from_another_runs_checkpoint_and_outlives_it(launch: Launch) -> None:
    parent = launch(steps=40)
    parent.ends()
    run = BranchRun(parent.paths.root.parent, "branch", f"{parent.paths.name}@20", steps=60)
    try:
        shutil.rmtree(parent.paths.checkpoints)
        end = run.wait("its end", lambda run: run.state == "SUCCEEDED")
        run.check_nothing_is_left()
    finally:
        run.clean_up()

    assert end.attempts[0].restore == (20, 0)
    assert run.of(TrainerDone)[-1].final_digest == counting.expected(60, 4)
    book = report(run.paths)
    assert book["branched_from"] == {"run": parent.paths.name, "step": 20, "attempt": 1}
    assert (book["samples"]["faults"], book["lost_steps"]) == ([], 0)
    assert snapshot(run.paths)["branched_from"]["step"] == 20


# ---------------------------------------------------------------- do


def test_a_person_goes_back_to_the_last_good_checkpoint_like_a_rule(launch: Launch) -> None:
    run = launch(steps=120)
    run.wait("a good checkpoint", lambda run: any(run.is_good(one) for one in run.lineage()))

    done = opt_launch(
        run, "do", run.paths.name, "{restart: {from: last_good}, collect: [stacks]}", "--why", "odd", "-y"
    )
    run.wait_for(AttemptStarted, attempt=2)
    end = run.ends()

    (decision,) = run.decisions()
    assert (done.returncode, done.stderr) == (0, "collect, restart from last_good\n")
    assert (decision.rule, decision.why.endswith(": odd")) == ("person", True)
    assert run.of(AttemptStarted, attempt=2)[0].why == "last good checkpoint"
    assert end.incidents[0].state == "RECOVERED"
    assert [*run.paths.incident(1).glob("*.stack.txt")]


@pytest.mark.slow
def test_what_a_held_run_is_to_do_is_said_by_a_person(launch: Launch) -> None:
    run = launch(steps=100).reaches(25)
    saved = run.saved(20)
    assert command(run.paths, "hold", {})[0]
    run.wait("a hold", lambda run: run.state == "HELD")

    for asked, why_not in (
        ({"save": "now"}, "no ranks train"),
        ({"restart": {"from": "step 7"}}, "no usable checkpoint at step 7"),
        ({"hold": {}}, "held already"),
        ({"skip": "64 batches"}, "it needs 'restart'"),
        ({"check": "deep"}, "action 'check' is not built yet"),
    ):
        done, said = command(run.paths, "do", {"actions": asked, "why": "x"})
        assert (done, why_not in said) == (False, True), said
    done, _ = command(run.paths, "do", {"actions": {"restart": {"from": f"step {saved.step}"}}, "why": "x"})
    run.wait_for(AttemptStarted, attempt=2)

    assert done
    assert run.ends().attempts[1].restore == (saved.step, 1)


# ---------------------------------------------------------------- without TCP


def test_commands_reach_a_run_whose_nodes_cannot_be_reached_by_tcp(launch: Launch) -> None:
    alone = ("unshare", "--net") if os.getuid() == 0 else ("unshare", "--user", "--map-current-user", "--net")
    if subprocess.run([*alone, "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("COMMANDS WITHOUT TCP NOT TESTED: this user may make no network namespace")
    run = launch(steps=4000, save_every=10000).reaches(15)
    name = run.paths.name

    saved = opt_launch(run, "save", name, before=alone)
    paused = [opt_launch(run, verb, name, before=alone) for verb in ("pause", "unpause")]
    run.wait_for(AttemptStarted, attempt=2)
    run.reaches(20, attempt=2)
    back = opt_launch(run, "do", name, "{restart: {from: latest}}", "--why", "try", "--yes", before=alone)
    run.wait_for(AttemptStarted, attempt=3)
    run.reaches(20, attempt=3)
    stopped = opt_launch(run, "stop", name, "--yes", before=alone)
    run.ends("STOPPED")

    given = (saved, *paused, back, stopped)
    assert [one.returncode for one in given] == [0] * 5, given
    assert [one.verb for one in run.of(CommandReceived)] == ["save", "pause", "unpause", "do", "stop"]
    assert len(run.of(CheckpointCommitted)) == 3
    assert run.of(RunEnded)[0].state == "STOPPED"
    assert not [*run.paths.control.iterdir()]
