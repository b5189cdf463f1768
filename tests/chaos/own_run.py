"""A run of the counting trainer that `opt-launch run` starts: this process's child is the agent."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from live_run import COUNTING, LIMIT_S, POLL_S, LiveRun

from launcher.paths import RunPaths

PROGRAM = Path(sys.executable).with_name("opt-launch")  # as users have it: its folder is what Python finds first
RANKS = 4  # as many as the digest of an undisturbed run is made of


def environment() -> dict[str, str]:
    """Ours, without what would tell the launcher or Python where it is."""
    return {key: value for key, value in os.environ.items() if not key.startswith(("OPT_LAUNCH", "SLURM_", "PYTHON"))}


class OwnRun(LiveRun):
    """`start` may be called again once the run has ended, as a person would."""

    def __init__(self, folder: Path, name: str, *flags: str, steps: int = 60, **options: Any) -> None:
        self.folder, self.paths, self.steps = folder, RunPaths(folder / "runs" / name), steps
        self.flags = [*(flags or ("--nproc-per-node", str(RANKS))), "--name", name]
        self.script = [str(COUNTING), "--run", str(self.paths.root), "--steps", str(steps), *given(options)]
        self.started: list[subprocess.Popen[str]] = []

    def start(self, *more: str) -> subprocess.Popen[str]:
        """Give the command, in `folder`."""
        process = subprocess.Popen(
            [PROGRAM, "run", *self.flags, *more, *self.script], cwd=self.folder, env=environment(), text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip
        self.started.append(process)
        return process

    def begins(self) -> None:
        """Wait until there is a journal to look at."""
        deadline = time.monotonic() + LIMIT_S
        while not self.paths.allocation.exists():
            codes = [one.poll() for one in self.started]
            assert None in codes, codes
            assert time.monotonic() < deadline
            time.sleep(POLL_S)

    def call(self, verb: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Another of our commands about this run."""
        return subprocess.run(
            [PROGRAM, verb, self.paths.name, *arguments], cwd=self.folder, env=environment(), capture_output=True,
            text=True, timeout=60, check=False, stdin=subprocess.DEVNULL,
        )  # fmt: skip

    def scratch(self) -> list[Path]:
        """Those of killed processes stay until the next run on their machine."""
        owners = [one.pid for one in self.started if one.poll() != -signal.SIGKILL]
        return [folder for pid in owners for folder in Path(tempfile.gettempdir()).glob(f"opt-launch-{pid}-*")]

    def clean_up(self) -> None:
        super().clean_up()
        for process in self.started:
            with contextlib.suppress(OSError):
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate(timeout=10)


def given(options: dict[str, Any]) -> list[str]:
    """As flags of the counting trainer."""
    flags = [(f"--{key.replace('_', '-')}", value) for key, value in options.items()]
    return [word for flag, value in flags for word in ([flag] if value is True else [flag, str(value)])]
