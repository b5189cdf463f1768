"""The run folder: the only place that knows its file names."""

from __future__ import annotations

import os
import pwd
import re
from dataclasses import dataclass
from pathlib import Path

_CHECKPOINT = re.compile(r"step_(\d+)\.a(\d+)")


@dataclass(frozen=True)
class RunPaths:
    """Paths within one run's folder on the shared file system."""

    root: Path

    @property
    def name(self) -> str:
        return self.root.name

    @property
    def spec(self) -> Path:
        return self.root / "spec.yaml"

    @property
    def policy(self) -> Path:
        return self.root / "policy.yaml"

    @property
    def trainer(self) -> Path:
        """The `trainer:` section as JSON, for the ranks."""
        return self.root / "trainer.json"

    @property
    def secret(self) -> Path:
        return self.root / "secret"

    @property
    def variables(self) -> Path:
        """The variables of the ranks that were taken from the submitter's environment: mode 0600."""
        return self.root / "variables.json"

    @property
    def code_folder(self) -> Path:
        """What is known of the code, one number for each time that it was taken; the highest counts."""
        return self.root / "code"

    def code(self, number: int) -> Path:
        """The copy of the work tree, and links to what lies beside it."""
        return self.code_folder / f"{number:04d}"

    def code_record(self, number: int) -> Path:
        return self.code_folder / f"{number:04d}.json"

    def code_diff(self, number: int) -> Path:
        return self.code_folder / f"{number:04d}.diff"

    def code_files(self, number: int) -> Path:
        """The names of the files that were copied, each followed by a NUL."""
        return self.code_folder / f"{number:04d}.files"

    @property
    def journal_folder(self) -> Path:
        return self.root / "journal"

    def journal(self, epoch: int) -> Path:
        return self.journal_folder / f"{epoch:06d}.jsonl"

    @property
    def ballast(self) -> Path:
        """Space that is given back when the disk is full, so that the journal can go on."""
        return self.journal_folder / "ballast"

    @property
    def metrics_folder(self) -> Path:
        return self.root / "metrics"

    def metrics(self, epoch: int, attempt: int) -> Path:
        return self.metrics_folder / f"{epoch:06d}.{attempt:04d}.jsonl"

    @property
    def state(self) -> Path:
        """Snapshots of what follows from journal and metrics: can be deleted."""
        return self.root / "state"

    def snapshot(self, epoch: int, seq: int) -> Path:
        return self.state / f"{epoch:06d}.{seq:09d}.json"

    @property
    def epochs(self) -> Path:
        """One folder per epoch, made atomically by the supervisor that claims it."""
        return self.root / "supervisor"

    def epoch(self, epoch: int) -> Path:
        return self.epochs / f"{epoch:06d}"

    def supervisor_address(self, epoch: int) -> Path:
        return self.epoch(epoch) / "address.json"

    @property
    def agents(self) -> Path:
        """One file per living agent: its address, for supervisors that do not know it yet."""
        return self.root / "agents"

    def agent(self, node: str) -> Path:
        return self.agents / f"{node}.json"

    @property
    def allocation(self) -> Path:
        """What the backend knows of the allocation."""
        return self.root / "allocation.json"

    @property
    def job_state(self) -> Path:
        """What the scheduler last said of the job, for all who look."""
        return self.root / "job.json"

    @property
    def submitit(self) -> Path:
        return self.root / "submitit"

    @property
    def live(self) -> Path:
        return self.root / "live.json"

    @property
    def control(self) -> Path:
        return self.root / "control"

    @property
    def checkpoints(self) -> Path:
        return self.root / "checkpoints"

    def checkpoint(self, step: int, attempt: int) -> Path:
        return self.checkpoints / f"step_{step:08d}.a{attempt:04d}"

    def manifest(self, step: int, attempt: int) -> Path:
        return self.checkpoint(step, attempt) / "manifest.json"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    def log(self, attempt: int, node: str) -> Path:
        return self.logs / f"{attempt:04d}" / f"{node}.log"

    def supervisor_log(self, node: str) -> Path:
        return self.logs / f"supervisor.{node}.log"

    def agent_log(self, node: str) -> Path:
        return self.logs / f"agent.{node}.log"

    def incident(self, number: int) -> Path:
        return self.root / "incidents" / f"{number:04d}"

    def command_output(self, incident: int, decision: str) -> Path:
        """What the command of a decision has printed."""
        return self.incident(incident) / f"{decision}.run.log"

    def environment(self, attempt: int) -> Path:
        return self.root / "environment" / f"{attempt:04d}.json"

    def make_folders(self) -> None:
        """Make all folders of the run. Raises OSError."""
        folders = (
            self.journal_folder, self.metrics_folder, self.state, self.epochs, self.agents, self.control,
            self.checkpoints, self.logs, self.root / "incidents", self.root / "environment", self.code_folder,
        )  # fmt: skip
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)


def checkpoint_of(folder: Path) -> tuple[int, int] | None:
    """(step, attempt) of a checkpoint folder's name; None if it is none."""
    match = _CHECKPOINT.fullmatch(folder.name)
    return (int(match[1]), int(match[2])) if match else None


def user_name(uid: int) -> str:
    """The name of a user, or its number where it has none."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def owner_of(path: Path) -> str:
    """The name of the user to whom something belongs. Raises OSError."""
    return user_name(path.stat().st_uid)


def write_atomically(path: Path, text: str, *, mode: int | None = None) -> None:
    """Replace `path` with `text`: after a crash it holds the old or the new, never a part. Raises OSError.

    A `mode` is the file's, whatever the umask.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666 if mode is None else 0o600)
    try:
        with os.fdopen(descriptor, "w") as file:
            if mode is not None:
                os.fchmod(descriptor, mode)
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make a rename or a new file in `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
