"""What the benchmarks share: the same trainer under opt-launch and under torchrun, and when its steps were done."""

from __future__ import annotations

import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from launcher.reporter import read_page

REPOSITORY = Path(__file__).parent.parent
LIMIT_S = 300.0
_STEP = re.compile(r"\bstep (\d+) loss ")


def settings(ranks: int, steps: int, save_every: int) -> dict[str, Any]:
    """A trainer's settings: the smallest model, its data sharded over all ranks."""
    return {
        "size": "tiny",
        "data": ["python"],
        "steps": steps,
        "batch_tokens": 128 * 4 * ranks,
        "seq_len": 128,
        "lr": 6.0e-4,
        "seed": 1,
        "parallel": {"fsdp": ranks, "tensor": 1},
        "checkpoint": {"every": save_every},
    }


@dataclass
class Seen:
    """Steps and when they were done: (Unix time, completed step)."""

    steps: list[tuple[float, int]] = field(default_factory=list)

    def last(self) -> int:
        return self.steps[-1][1] if self.steps else -1

    def first_after_going_back(self) -> int | None:
        """Where in `steps` the ranks that were started again begin; they repeat steps since the last checkpoint."""
        numbers = [step for _, step in self.steps]
        return next((at for at in range(1, len(numbers)) if numbers[at] <= numbers[at - 1]), None)


class Torchrun:
    """`torchrun --max-restarts` on this machine, the launcher PyTorch ships."""

    name = "torchrun"

    def __init__(self, folder: Path, trainer: dict[str, Any], ranks: int) -> None:
        folder.mkdir(parents=True)
        config = folder / "trainer.json"
        config.write_text(json.dumps(trainer))
        command = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "1", "--nproc-per-node", str(ranks)]
        command += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0", "--max-restarts", "3"]
        command += ["-m", "model.train", "--config", str(config), "--out", str(folder / "checkpoints")]
        # Restarted ranks that share the store of those before them can wait for each other for ever.
        env = {**os.environ, "OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1", "PYTHONUNBUFFERED": "1"}
        self.seen, self.detected_at = Seen(), 0.0
        self.started_at = time.time()
        self._process = subprocess.Popen(
            command, cwd=REPOSITORY, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            start_new_session=True,
        )  # fmt: skip
        self._output: list[str] = []
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._output.append(line)
            if match := _STEP.search(line):
                self.seen.steps.append((time.time(), int(match[1])))
            elif "failed (exitcode" in line and not self.detected_at:
                self.detected_at = time.time()

    def step(self) -> int:
        """The last completed step."""
        return self.seen.last()

    def rank_pids(self) -> list[int]:
        return [child.pid for child in psutil.Process(self._process.pid).children()]

    def is_alive(self) -> bool:
        return self._process.poll() is None

    def ended(self) -> bool:
        return self._process.poll() == 0

    def end(self) -> None:
        _kill_tree(self._process.pid)
        self._process.wait()

    def complaint(self) -> str:
        return "".join(self._output[-30:])


class OptLaunch:
    """opt-launch on its local backend: one virtual node, as torchrun has one."""

    name = "opt-launch"

    def __init__(
        self, folder: Path, trainer: dict[str, Any], ranks: int, nodes: int = 1, policy: Sequence[str] = ("default",)
    ) -> None:
        folder.mkdir(parents=True)
        cluster = self.cluster_of(ranks, nodes)
        spec = {"name": "bench", "trainer": trainer, "cluster": cluster, "policy": [*policy]}
        file = folder / "run.yaml"
        file.write_text(json.dumps(spec))
        self.root, self.run = folder / "runs", folder / "runs" / "bench"
        self.seen = Seen()
        self._read_bytes: dict[Path, int] = {}
        self.started_at = time.time()
        self.command("submit", str(file), answers=False)
        self._over = threading.Event()
        threading.Thread(target=self._read, daemon=True).start()

    def cluster_of(self, ranks: int, nodes: int) -> dict[str, Any]:
        """What RUN.yaml says of the cluster."""
        return {"backend": "local", "nodes": nodes, "ranks_per_node": ranks // nodes}

    def command(self, *arguments: str, answers: bool = True) -> str:
        """What a command of opt-launch prints about the runs here."""
        command = [sys.executable, "-P", "-m", "cli", *arguments, "--root", str(self.root)]
        env = {key: value for key, value in os.environ.items() if not key.startswith("OPT_LAUNCH_")}
        output = subprocess.PIPE if answers else subprocess.DEVNULL
        return subprocess.run(command, check=True, stdout=output, text=True, env=env).stdout or ""

    def _read(self) -> None:
        """Every step with the time at which the trainer told of it; the journal has it a second later."""
        while not self._over.wait(0.1):
            for file in sorted(self.run.glob("metrics/*.jsonl")):
                with file.open("rb") as stream:
                    stream.seek(self._read_bytes.get(file, 0))
                    text = stream.read()
                whole = text[: text.rfind(b"\n") + 1]
                self._read_bytes[file] = self._read_bytes.get(file, 0) + len(whole)
                for event in map(json.loads, whole.splitlines()):
                    self.seen.steps.append((event["at"], event["step"]))

    def step(self) -> int:
        """The last completed step, from the pages that the ranks keep for their agents."""
        return max((page[0] for page in self._pages()), default=-1)

    def sections(self) -> int:
        """How often the foremost rank has moved within its steps."""
        return max((page[1] for page in self._pages()), default=0)

    def _pages(self) -> list[tuple[int, int]]:
        pid = json.loads((self.run / "allocation.json").read_text())["pid"]
        files = Path(tempfile.gettempdir()).glob(f"opt-launch-{pid}-*/*/page.*")
        return [(seen[0], seen[1]) for file in files if (seen := read_page(file.read_bytes()))]

    def status(self) -> dict[str, Any]:
        return json.loads(self.command("status", "bench", "--json"))

    def events(self, *kinds: str) -> list[dict[str, Any]]:
        return [event for event in self._lines("journal") if event["type"] in kinds]

    def metrics(self) -> list[dict[str, Any]]:
        """Every step that was told, those of attempts that were gone back from too."""
        return self._lines("metrics")

    def _lines(self, folder: str) -> list[dict[str, Any]]:
        files = sorted(self.run.glob(f"{folder}/*.jsonl"))
        return [json.loads(line) for file in files for line in file.read_text().splitlines(True) if line.endswith("\n")]

    def rank_pids(self) -> list[int]:
        """Known a moment after the ranks have started: what status shows is renewed once a second."""
        while True:
            pids = [rank["pid"] for node in self.status()["nodes"] for rank in node["ranks"]]
            if pids and all(pids):
                return pids
            time.sleep(0.1)

    @property
    def detected_at(self) -> float:
        return next((event["at"] for event in self.events("decision")), 0.0)

    def is_alive(self) -> bool:
        return [event["type"] for event in self.events("run_ended", "run_resumed")][-1:] != ["run_ended"]

    def ended(self) -> bool:
        return any(event["state"] == "SUCCEEDED" for event in self.events("run_ended"))

    def end(self) -> None:
        self._over.set()
        for process in psutil.process_iter(["cmdline"]):
            if any(argument.startswith(str(self.run)) for argument in process.info["cmdline"] or ()):
                _kill_tree(process.pid)

    def complaint(self) -> str:
        return "\n".join(file.read_text()[-2000:] for file in self.run.glob("logs/**/*.log"))


def wait_for(launcher: Torchrun | OptLaunch, what: str, is_so: Callable[[], bool], limit_s: float = LIMIT_S) -> None:
    """Return once it is so; give up loudly after a while."""
    deadline = time.monotonic() + limit_s
    while not is_so():
        alive = launcher.is_alive()
        time.sleep(0.2)  # what it did at last may still be on its way to us
        if time.monotonic() > deadline or not (alive or is_so()):
            complaint = launcher.complaint()
            launcher.end()
            sys.exit(f"{launcher.name}: ended, or not {what} within {limit_s:.0f}s\n{complaint}")


def _kill_tree(pid: int) -> None:
    with suppress(psutil.NoSuchProcess):
        processes = [*psutil.Process(pid).children(recursive=True), psutil.Process(pid)]
        for process in reversed(processes):
            with suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGKILL)


def spread(values: Sequence[float], form: str = ".2f") -> str:
    """The median, with the least and the most."""
    return f"{statistics.median(values):{form}} ({min(values):{form}} to {max(values):{form}})"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]
    lines = [head, ["-" * width for width in widths], *rows]
    return "\n".join(
        "| " + " | ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)) + " |" for line in lines
    )
