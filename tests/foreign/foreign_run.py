"""A real run of a trainer that is not ours, in a folder of its own."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import psutil
from live_run import LIMIT_S, POLL_S, LiveRun

from launcher import control
from launcher.events import CommandAnswered, StepDone
from launcher.spec import load_spec
from launcher.submit import submit

TRAINER = Path(__file__).with_name("trainer")
RANKS = 4
POLICY = """
version: 1
name: foreign
include: [infra]
override:
  hang: {when: {hang: {no_step: 5 x p99, at_least: 2s}}}
"""


def trained(steps: int) -> str:
    """The state of the trainer after so many undisturbed steps."""
    spec = importlib.util.spec_from_file_location("foreign_model", TRAINER / "model" / "__init__.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.trained(steps, RANKS)


class ForeignRun(LiveRun):
    """`says`: what RUN.yaml says of the trainer beside its command."""

    first_step = "20s"

    def __init__(self, root: Path, name: str, *, says: str, python: str = sys.executable, **options: Any) -> None:
        self.work, self.python, self.says = root / f"{name}.work", python, says
        shutil.copytree(TRAINER, self.work, ignore=shutil.ignore_patterns("__pycache__"))
        super().__init__(root, name, **options)

    def trainer(self, **options: Any) -> str:
        command = [self.python, "train.py"]
        for key, value in {"run": self.paths.root, "steps": self.steps, **options}.items():
            flag = f"--{key.replace('_', '-')}"
            command += [flag] if value is True else [flag, str(value)]
        return f"command: {json.dumps(command)}\n{self.says}"

    def submit(self, file: Path, root: Path) -> None:
        """From the trainer's own folder, in which other packages are called as ours are."""
        (file.parent / "policy.yaml").write_text(POLICY)
        text = file.read_text().replace("policy: [infra]", "policy: [./policy.yaml]")
        file.write_text(text.replace("spares: 1", "spares: 0"))
        with contextlib.chdir(self.work):
            submit(load_spec(file), root)

    def reaches(self, step: int, attempt: int = 1, limit_s: float = LIMIT_S) -> ForeignRun:
        """Wait until so many steps have been told of this attempt or a later one."""
        self.wait(
            f"step {step} of attempt {attempt}", lambda run: len(run.attempts) >= attempt and run.step >= step, limit_s
        )
        return self

    def rank(self, rank: int) -> psutil.Process:
        """A rank of the newest attempt, once it lives."""
        deadline = time.monotonic() + LIMIT_S
        while True:
            for process in self.processes():
                with contextlib.suppress(psutil.Error):
                    script = any(word.endswith("train.py") for word in process.cmdline())
                    env = process.environ() if script else {}
                    if env.get("RANK") == str(rank) and env["OPT_LAUNCH_ATTEMPT"] == str(len(self.run.attempts)):
                        return process
            assert time.monotonic() < deadline, f"rank {rank} does not live\n{self.story()}"
            time.sleep(POLL_S)

    def ask(self, verb: str) -> tuple[bool, str]:
        """What the supervisor answers a person."""
        return control.command(self.paths, verb, {})

    def answers(self) -> list[str]:
        return [one.message for one in self.of(CommandAnswered)]

    def printed(self, attempt: int) -> str:
        return "".join(log.read_text() for log in sorted(self.paths.log(attempt, "x").parent.glob("node*.log")))

    def lines(self, attempt: int) -> list[StepDone]:
        return self.of(StepDone, attempt=attempt)

    def found(self) -> list[int]:
        """The steps of the checkpoints of the present line, newest first."""
        return [one.step for one in self.run.lineage()]

    def final(self) -> Any:
        return json.loads((self.work / "out" / "final.json").read_text())

    def check_history(self) -> None:
        """Every step of the kept history was trained exactly once."""
        assert self.final() == {"done": self.steps, "state": trained(self.steps)}
        assert os.listdir(self.work)
