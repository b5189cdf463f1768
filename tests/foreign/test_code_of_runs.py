"""Which code the ranks of a real run work with, when that of its author goes on changing."""

from __future__ import annotations

import itertools
import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from foreign_run import ForeignRun

from launcher import resume
from launcher.events import AttemptStarted, EnvironmentChanged, RunAmended
from launcher.report import report
from launcher.view.incidents import incidents_of, incidents_text
from launcher.view.logbook import to_markdown
from launcher.view.plain import plain
from launcher.view.snapshot import snapshot

Launch = Callable[..., "EditedRun"]

PRINTS = "telemetry: {preset: nanogpt}\n"
SAVES = 'checkpoints: {glob: "out/ckpt-{step}", complete: {marker: DONE}}\n'
BY_ARGS = 'capabilities: {resume: {args: ["--load", "{dir}", "--ckpt-step", "{step}"]}}\n'


def git(folder: Path, *arguments: str) -> str:
    command = ["git", "-c", "user.name=a", "-c", "user.email=a@b", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout.strip()


class EditedRun(ForeignRun):
    """`work` is a git work tree whose trainer says which version it is."""

    def __init__(self, root: Path, name: str, *, code: str = "auto", **options: Any) -> None:
        self.code = code
        super().__init__(root, name, **options)

    def submit(self, file: Path, root: Path) -> None:
        self.edit("one")
        git(self.work, "init", "-q")
        git(self.work, "add", "-A")
        git(self.work, "commit", "-q", "-m", "one")
        file.write_text(file.read_text().replace("code: in_place", f"code: {self.code}"))
        super().submit(file, root)

    def edit(self, version: str) -> None:
        script = self.work / "train.py"
        lines = [line for line in script.read_text().splitlines() if not line.startswith("print('this is")]
        lines.insert(lines.index("import cli"), f"print('this is {version}', flush=True)")
        script.write_text("\n".join(lines) + "\n")

    def versions(self, attempt: int) -> set[str]:
        """What the ranks of an attempt say they are."""
        lines = self.printed(attempt).splitlines()
        return {line.rpartition("this is ")[2] for line in lines if "this is " in line}


@pytest.fixture
def edited(tmp_path: Path) -> Iterator[Launch]:
    """Submits runs; when the test is over no process of theirs is."""
    runs: list[EditedRun] = []
    names = (f"edited{number}" for number in itertools.count())

    def submit(says: str = PRINTS + SAVES + BY_ARGS, **options: Any) -> EditedRun:
        run = EditedRun(tmp_path / "runs", next(names), says=says, save_every=10, step_s=0.05, **options)
        runs.append(run)
        return run

    yield submit
    for run in runs:
        run.clean_up()


def test_every_attempt_runs_the_code_that_was_submitted(edited: Launch) -> None:
    run = edited(steps=80)
    rank = run.rank(3)
    run.edit("two")
    run.reaches(25).kill(rank)
    run.ends()

    assert (run.versions(1), run.versions(2)) == ({"one"}, {"one"})
    assert run.of(EnvironmentChanged) == []
    restored = run.of(AttemptStarted)[1].restore
    assert restored is not None
    assert f"loaded {run.work / 'out' / f'ckpt-{restored[0]}'}\n" in run.printed(2), "checkpoints are the user's"
    assert report(run.paths)["digest"]["comparable"] is True


def test_a_resume_goes_on_with_the_same_code_unless_new_code_is_asked_for(edited: Launch) -> None:
    run = edited(steps=1000)
    run.reaches(15)
    run.kill_everything()
    run.edit("two")

    resume.resume(run.paths, "ann")
    run.wait("words of attempt 2", lambda _: run.versions(2))
    run.kill_everything()
    resume.resume(run.paths, "ann", new_code=True)
    run.wait("words of attempt 3", lambda _: run.versions(3))
    run.wait_for(EnvironmentChanged)
    run.kill_everything()

    assert [run.versions(attempt) for attempt in (1, 2, 3)] == [{"one"}, {"one"}, {"two"}]
    (amended,) = run.of(RunAmended)
    commit = git(run.work, "rev-parse", "HEAD")[:9]
    assert amended.changes == {"code": [f"snapshot 1, {commit}", f"snapshot 2, {commit} with changes"]}
    (changed,) = run.of(EnvironmentChanged)
    assert (changed.attempt, {*changed.changes}) == (3, {"code.digest", "code.snapshot"})
    assert (run.paths.code(1) / run.work.name / "train.py").exists(), "the former stays"
    recorded = json.loads(run.paths.environment(3).read_text())
    assert recorded["code"]["snapshot"] == 2
    assert run.found()[-1] == 10, "one line of checkpoints"


def test_code_that_is_run_in_place_is_compared_from_attempt_to_attempt(edited: Launch) -> None:
    run = edited(steps=80, code="in_place").reaches(1)
    run.edit("two")
    run.reaches(25).kill(run.rank(3))
    run.ends()

    assert (run.versions(1) | run.versions(2)) == {"one", "two"}
    (changed,) = run.of(EnvironmentChanged)
    assert (changed.attempt, [*changed.changes]) == (2, ["code.files.train.py"])
    told = "attempt 2 differs from the one before: code.files.train.py"
    assert told in plain(snapshot(run.paths))
    assert told in incidents_text(incidents_of(run.paths))
    body = report(run.paths)
    assert body["digest"]["why"] == "these changed between attempts: code.files.train.py"
    assert "## What attempts ran on" in to_markdown(body)
    assert "| 2 | code.files.train.py |" in to_markdown(body)
