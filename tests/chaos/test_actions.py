"""What rules do besides restarting, on real processes: samples left out, commands run, people asked, rules changed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import counting
import pytest
from live_run import LiveRun, opt_launch

from launcher.control import command
from launcher.events import ActionDone, AttemptStarted, Decision, SettingsApplied, StepDone
from launcher.view.explaining import explanation_of_rules

pytestmark = [pytest.mark.timeout(180), pytest.mark.slow]

RULES = """
rules:
  - name: numbers
    when: {non_finite: {metrics: [loss]}}
    do:
      - {skip: 4 batches, restart: {from: before_incident}, run: [sh, -c, "cat; echo done"], times: 3}
    mode: MODE
"""


class Ruled(LiveRun):
    """A run whose policy has a rule of its own about the numbers."""

    mode = "act"

    @property
    def policy_text(self) -> str:
        return super().policy_text.replace("include: [infra, numerics]", "include: [infra]") + RULES.replace(
            "MODE", self.mode
        )


class Told(Ruled):
    """Its trainer lets itself be told."""

    def trainer(self, program: str = "", **options: object) -> str:
        return super().trainer(program, **options) + "\ncapabilities: {lr: reporter, skip: reporter}"


class Asked(Ruled):
    mode = "{ask: 1h, else: nothing}"


@pytest.fixture
def ruled(tmp_path: Path, request: pytest.FixtureRequest) -> Callable[..., LiveRun]:
    def make(kind: type[LiveRun] = Ruled, **options: object) -> LiveRun:
        run = kind(tmp_path, "ruled", **options)  # type: ignore[arg-type]
        request.addfinalizer(run.clean_up)
        return run

    return make


def test_a_rule_leaves_samples_out_and_runs_a_command_once(ruled: Callable[..., LiveRun]) -> None:
    run = ruled(steps=60, nan_at=25)
    end = run.wait("its end", lambda run: run.state == "SUCCEEDED", 120)

    (decision,) = run.decisions()
    started = run.of(AttemptStarted, attempt=2)[0]
    assert started.skips == ((23 * counting.BATCH, 27 * counting.BATCH),)
    assert started.restore == (20, 1)
    used = [event.samples for event in run.of(StepDone, attempt=2)]
    assert (22 * counting.BATCH, 23 * counting.BATCH) in used
    assert (27 * counting.BATCH, 28 * counting.BATCH) in [(last[1] - counting.BATCH, last[1]) for last in used if last]
    (done,) = run.of(ActionDone, action="run")
    assert (done.decision, done.ok) == (decision.id, True)
    told = run.paths.command_output(1, decision.id).read_text()
    assert told.endswith("done\n")
    assert json.loads(told.removesuffix("done\n"))["onset_step"] == 25
    assert end.skips == started.skips
    run.check_replay()
    run.check_nothing_is_left()


def test_a_person_answers_what_a_rule_asks_and_it_outlives_a_supervisor(ruled: Callable[..., LiveRun]) -> None:
    run = ruled(Asked, steps=4000, nan_at=25, nan_always=True)
    run.wait("a question", lambda run: run.incidents and run.incidents[0].state == "ASKED")
    epoch = run.epoch()
    run.kill(run.supervisor())
    run.new_epoch(epoch)

    name = run.paths.name
    noted = opt_launch(run, "incidents", name, "note", "1", "a bad file")
    wrong = opt_launch(run, "incidents", name, "approve", "7")
    done = opt_launch(run, "incidents", name, "approve", "1")
    run.wait_for(AttemptStarted, attempt=2)

    assert [one.returncode for one in (noted, wrong, done)] == [0, 1, 0], (noted, wrong, done)
    assert "there is no incident 7: 1 to 1" in wrong.stderr
    assert [(one.mode, one.incident) for one in run.of(Decision)[:2]] == [("ask", 1), ("act", 1)]
    assert [note.text for note in run.run.incidents[0].notes] == ["a bad file"]
    assert command(run.paths, "stop", {"now": True})[0]
    run.ends("STOPPED")
    late = opt_launch(run, "incidents", name, "note", "1", "seen again")
    assert (late.returncode, late.stderr) == (0, "noted at incident 1\n")
    assert "seen again" in opt_launch(run, "incidents", name).stdout


def test_a_rule_is_changed_for_a_while_and_comes_back_by_itself(ruled: Callable[..., LiveRun]) -> None:
    run = ruled(steps=4000).reaches(15)
    name = run.paths.name

    wrong = opt_launch(run, "policy", "set", name, "numbers.mode=advice")
    done = opt_launch(run, "policy", "set", name, "numbers.mode=advise", "--for", "2s")
    assert (wrong.returncode, done.returncode, done.stderr) == (
        1, 0, "numbers.mode is advise now for 2s; it was act\n",
    )  # fmt: skip
    assert "numbers: non_finite, advise" in explanation_of_rules(run.paths).replace(
        f" ({run.policy.rules[-1].place})", ""
    )
    run.wait("its former mode", lambda _: ": non_finite, act" in explanation_of_rules(run.paths))
    assert "non_finite, act" in opt_launch(run, "policy", "explain", name).stdout

    assert command(run.paths, "stop", {"now": True})[0]
    run.ends("STOPPED")


def test_a_setting_is_changed_while_ranks_train_and_holds_for_later_attempts(ruled: Callable[..., LiveRun]) -> None:
    run = ruled(Told, steps=4000).reaches(15)
    name = run.paths.name

    wrong = opt_launch(run, "do", name, "{set: {clip: 0.3}}", "--why", "x", "--yes")
    done = opt_launch(run, "do", name, "{set: {lr: x0.5}}", "--why", "too fast", "--yes")
    live = run.wait_for(SettingsApplied, attempt=1)
    run.kill(run.rank(2))
    begun = run.wait_for(SettingsApplied, attempt=2)

    assert (wrong.returncode, "cannot be told: clip" in wrong.stderr) == (1, True)
    assert (done.returncode, done.stderr) == (0, "set lr x0.5\n")
    assert (live.id, live.asked, live.effective) == (run.decisions()[0].id, {"lr": "x0.5"}, {"lr": 0.5})
    assert (begun.id, begun.asked, begun.effective) == ("", {"lr": "x0.5"}, {"lr": 0.5})
    assert len(run.of(SettingsApplied)) == 2
    assert command(run.paths, "stop", {"now": True})[0]
    run.ends("STOPPED")


def test_a_trainer_that_does_not_take_a_setting_is_held(ruled: Callable[..., LiveRun]) -> None:
    run = ruled(Told, steps=4000, deaf=True).reaches(15)
    opt_launch(run, "do", run.paths.name, "{set: {lr: 0.5}}", "--why", "too fast", "--yes")
    held = run.wait("a hold", lambda run: run.state == "HELD")
    assert "lr: asked 0.5, effective 1.0" in held.hold_reason
    assert command(run.paths, "stop", {"now": True})[0]
    run.ends("STOPPED")
