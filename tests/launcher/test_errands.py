"""The commands of decisions: real processes, at most once each, none of them for ever."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from simulated_fleet import Simulation
from tale import Tale

from launcher.errands import OUTPUT_BYTES, Errands
from launcher.events import ActionDone, Decision, Event
from launcher.moves import Errand
from launcher.paths import RunPaths
from launcher.run import Run

LIMIT_S = 20.0


def decision_of(command: list[str], **more: Any) -> Decision:
    actions: dict[str, Any] = {"run": command}
    return Decision(at=1.0, id="d0007", incident=3, attempt=1, rule="mine", detector="spike", actions=actions, **more)


def outcome(folder: Path, decision: Decision, limit_s: float = LIMIT_S, run: Run | None = None) -> ActionDone:
    """What came of it, once it is over."""
    told: list[Event] = []

    async def wait() -> None:
        errands = Errands(RunPaths(folder), lambda event: told.append(event) or event, limit_s)
        errands.start(run or Run(name="r"), decision)
        errands.start(run or Run(name="r"), decision)  # planned once more while it runs
        assert errands.busy
        async with asyncio.timeout(LIMIT_S):
            while errands.busy:
                await asyncio.sleep(0.01)

    asyncio.run(wait())
    (done,) = told
    assert isinstance(done, ActionDone)
    assert (done.decision, done.action) == (decision.id, "run")
    return done


def output(folder: Path) -> str:
    return RunPaths(folder).command_output(3, "d0007").read_text()


def test_a_command_reads_the_incident_and_its_output_is_kept(tmp_path: Path) -> None:
    done = outcome(tmp_path, decision_of(["cat"], why="odd", nodes=("n1",), onset_step=4), run=Run(name="r", step=9))
    assert (done.ok, done.detail.split(" after ")[0]) == (True, "exit status 0")
    assert done.detail.endswith("output in incidents/0003/d0007.run.log")
    told = json.loads(output(tmp_path))
    assert [told[key] for key in ("run", "step", "rule", "why", "nodes", "onset_step")] == [
        "r", 9, "mine", "odd", ["n1"], 4,
    ]  # fmt: skip


def test_there_is_no_shell(tmp_path: Path) -> None:
    assert outcome(tmp_path, decision_of(["echo", "$HOME; `id`"])).ok
    assert output(tmp_path) == "$HOME; `id`\n"


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["false"], "exit status 1"),
        ([sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"], "killed by signal 9"),
        (["/no/such/program"], "it could not be started: No such file or directory"),
    ],
)
def test_a_command_that_fails_is_told_so(tmp_path: Path, command: list[str], said: str) -> None:
    done = outcome(tmp_path, decision_of(command))
    assert not done.ok
    assert done.detail.startswith(said)


def test_a_command_that_takes_too_long_is_killed_with_all_that_it_started(tmp_path: Path) -> None:
    done = outcome(tmp_path, decision_of(["sh", "-c", "sleep 600 & echo $!; wait"]), limit_s=1.0)
    assert (done.ok, done.detail.split(" after ")[0]) == (False, "it was killed: its time was up")
    deadline = time.monotonic() + LIMIT_S
    while lives(int(output(tmp_path))):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def lives(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_what_a_command_prints_without_end_does_not_fill_the_disk(tmp_path: Path) -> None:
    assert outcome(tmp_path, decision_of(["head", "-c", str(3 * OUTPUT_BYTES), "/dev/zero"])).ok
    assert RunPaths(tmp_path).command_output(3, "d0007").stat().st_size == OUTPUT_BYTES


def test_a_command_that_does_not_read_is_no_worse_for_it(tmp_path: Path) -> None:
    big = {"text": "x" * 500_000}
    assert outcome(tmp_path, decision_of(["true"], evidence=big)).ok


def test_a_successor_does_not_run_it_again(tmp_path: Path) -> None:
    file = RunPaths(tmp_path).command_output(3, "d0007")
    file.parent.mkdir(parents=True)
    file.touch()
    done = outcome(tmp_path, decision_of(["touch", str(tmp_path / "twice")]))
    assert (done.ok, "how it ended is not known" in done.detail) == (False, True)
    assert not (tmp_path / "twice").exists()


def test_a_command_comes_after_the_restart_of_its_rung_and_is_planned_until_it_has_an_outcome() -> None:
    actions = {"run": ["a"], "restart": {"from": "latest", "save_first": False}}
    tale = Tale().train(20).save().decide(actions=actions)
    simulation = Simulation(tale)
    assert not any(isinstance(move, Errand) for move in simulation.moves())
    simulation.until(lambda run: len(run.attempts) == 2)
    (errand,) = [move for move in simulation.moves() if isinstance(move, Errand)]
    tale.tell(ActionDone(at=tale.at, decision=errand.decision.id, action="run", ok=True))
    assert not any(isinstance(move, Errand) for move in simulation.moves())


@pytest.mark.parametrize("more", [{}, {"hold": {"reason": "x"}}, {"stop": "x"}])
def test_without_a_restart_it_is_run_at_once(more: dict[str, Any]) -> None:
    tale = Tale().train(20).decide(actions={"run": ["a"], **more})
    assert any(isinstance(move, Errand) for move in Simulation(tale).moves())


def test_what_is_advised_is_not_run() -> None:
    tale = Tale().train(20).decide(actions={"run": ["a"]}, mode="advise")
    assert not tale.run.errands


def test_a_command_may_ask_the_launcher(tmp_path: Path) -> None:
    done = outcome(tmp_path, decision_of([sys.executable, "-c", "import os; print(os.environ['OPT_LAUNCH_ROOT'])"]))
    assert done.ok
    assert output(tmp_path).strip() == os.fspath(tmp_path.parent)
