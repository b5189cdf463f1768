"""A real run of the counting trainer on virtual nodes, watched through its journal and hurt from outside."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import counting
import psutil

from launcher.advance import advance, fold
from launcher.events import (
    JUDGEMENTS,
    AttemptStarted,
    CheckpointCommitted,
    Decision,
    EpochStarted,
    Event,
    NodeSilent,
    RankExited,
    StepDone,
    TrainerDone,
)
from launcher.journal import read_journal
from launcher.paths import RunPaths
from launcher.reporter import read_page
from launcher.resume import resume
from launcher.run import Run
from launcher.spec import load_spec
from launcher.submit import submit
from policies.engine import decide, initial
from policies.load import load_policy, read_policy

COUNTING = Path(counting.__file__)
ROOT = Path(__file__).parents[2]
LIMIT_S = 60.0
POLL_S = 0.05
PAGE_POLL_S = 0.01

POLICY = """
version: 1
name: chaos
include: [infra, numerics]
override:
  hang:
    when:
      hang:
        {no_step: 5 x p99, at_least: 3s, first_step: FIRST_STEP, phases: {save: 8s, eval: 45s, data: 20s, compile: 20s}}
"""

SPEC = """
name: NAME
TRAINER
cluster: {nodes: 2, ranks_per_node: 2, spares: SPARES, silence: 2s, wait_for_node: WAIT, BACKEND}
launch: {first_step: FIRST_STEP, code: in_place, SECTION}
policy: [infra]
"""

E = TypeVar("E", bound=Event)


class LiveRun:
    """One run, from its submission to the moment when no process of it is left.

    `section`: more keys of `launch:`. `program`: starts the trainer, with the trainer as its first argument.
    """

    first_step = "30s"
    wait_for_node = "30s"
    backend = "backend: local, local: {return_after: 1s}"

    def __init__(
        self, root: Path, name: str, steps: int = 60, spares: int = 1, section: str = "", **options: Any
    ) -> None:
        self.paths = RunPaths(root / name)
        self.steps = steps
        folder = root / f"{name}.asked"
        folder.mkdir(parents=True)
        (folder / "policy.yaml").write_text(self.policy_text)
        text = (
            SPEC.replace("BACKEND", self.backend)
            .replace("NAME", name)
            .replace("SPARES", str(spares))
            .replace("FIRST_STEP", self.first_step)
            .replace("SECTION", section)
            .replace("WAIT", self.wait_for_node)
        )
        (folder / "RUN.yaml").write_text(text.replace("TRAINER", self.trainer(**options)))
        self.policy = load_policy([str(folder / "policy.yaml")])
        self.submit(folder / "RUN.yaml", root)

    @property
    def policy_text(self) -> str:
        return POLICY.replace("FIRST_STEP", self.first_step)

    def submit(self, file: Path, root: Path) -> None:
        # The launcher refuses numerics for a command it knows nothing of; this one tells it about its checkpoints.
        submit(replace(load_spec(file), policy=self.policy), root)

    def trainer(self, program: str = "", **options: Any) -> str:
        """What RUN.yaml says is to be run."""
        command = [sys.executable, *([program] if program else []), str(COUNTING)]
        for key, value in {"run": self.paths.root, "steps": self.steps, **options}.items():
            flag = f"--{key.replace('_', '-')}"
            command += [flag] if value is True else [flag, str(value)]
        return f"command: {json.dumps(command)}"

    # ------------------------------------------------------------ what the journal says

    def events(self) -> tuple[Event, ...]:
        return read_journal(self.paths).events

    def of(self, kind: type[E], **fields: Any) -> list[E]:
        """All events of a type so far, with these values."""
        found = [event for event in self.events() if isinstance(event, kind)]
        return [one for one in found if all(getattr(one, key) == value for key, value in fields.items())]

    @property
    def run(self) -> Run:
        return fold(self.events())

    def wait(self, what: str, true: Callable[[Run], Any], limit_s: float = LIMIT_S) -> Run:
        """The run, once it is as described."""
        deadline = time.monotonic() + limit_s
        while True:
            run = self.run
            if true(run):
                return run
            if run.state.is_terminal or time.monotonic() > deadline:
                raise AssertionError(f"not seen within {limit_s:.0f} s: {what}\n{self.story()}")
            time.sleep(POLL_S)

    def wait_for(self, kind: type[E], limit_s: float = LIMIT_S, **fields: Any) -> E:
        """The first event of a type with these values, once it is there."""
        self.wait(f"{kind.type} {fields}", lambda _: self.of(kind, **fields), limit_s)
        return self.of(kind, **fields)[0]

    def reaches(self, step: int, attempt: int = 1, limit_s: float = LIMIT_S) -> LiveRun:
        """Wait until so many steps are done, in this attempt or a later one, as the ranks' own pages tell."""
        deadline = time.monotonic() + limit_s
        while (at := self.progress())[0] < attempt or at[1] < step:
            assert time.monotonic() < deadline, f"attempt and step {at}, not {attempt, step}\n{self.story()}"
            time.sleep(PAGE_POLL_S)
        return self

    def progress(self) -> tuple[int, int]:
        """The newest attempt whose ranks run, and how many steps its foremost rank has done."""
        found = [(0, 0)]
        for scratch in self.scratch():
            for page in scratch.glob("*/page.*"):
                with contextlib.suppress(OSError):
                    if (data := page.read_bytes()) and (seen := read_page(data)):  # empty when just made
                        found.append((int(page.name.split(".")[1]), seen[0] + 1))
        return max(found)

    def saved(self, step: int = 0) -> CheckpointCommitted:
        """The newest checkpoint, once there is one of at least this step."""
        self.wait(f"a checkpoint of step {step}", lambda run: any(id_[0] >= step for id_ in run.checkpoints))
        return [one for one in self.of(CheckpointCommitted) if one.step >= step][-1]

    def phase(self, name: str, limit_s: float = LIMIT_S) -> None:
        """Wait until a rank says that it is in this phase."""
        deadline = time.monotonic() + limit_s
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError, ValueError):
                live = json.loads(self.paths.live.read_text())
                if name in json.dumps(live):
                    return
            time.sleep(POLL_S)
        raise AssertionError(f"no rank was ever in phase {name}\n{self.story()}")

    def ends(self, state: str = "SUCCEEDED", limit_s: float = 2 * LIMIT_S) -> Run:
        """Wait for the end; then nothing of the run is left, and its history is whole."""
        deadline = time.monotonic() + limit_s
        while not (run := self.run).state.is_terminal:
            assert time.monotonic() < deadline, f"did not end within {limit_s:.0f} s\n{self.story()}"
            time.sleep(POLL_S)
        assert run.state == state, self.story()
        if state == "SUCCEEDED":
            self.check_history()
        self.check_replay()
        self.check_nothing_is_left()
        return run

    def story(self) -> str:
        """What happened, for a person who reads why a test failed."""
        lines, began = [], None
        for event in self.events():
            began = began or event.at
            if not isinstance(event, StepDone):
                text = repr(event)
                lines.append(f"{event.at - began:8.2f} {event.epoch}.{event.seq} {text[:400]}")
        for log in sorted(self.paths.logs.glob("*.log")):
            lines += [f"--- {log.name}", *log.read_text(errors="replace").splitlines()[-15:]]
        return "\n".join([*lines, f"step {self.run.step} state {self.run.state}"])

    # ------------------------------------------------------------ what must hold afterwards

    def check_history(self) -> None:
        """The kept history holds every step and every sample once, and ends in the digest of an undisturbed run."""
        samples = [sample for first, last in self.kept() for sample in range(first, last)]
        assert samples == list(range(self.steps * counting.BATCH))
        done = self.of(TrainerDone)[-1]
        assert (done.step, done.final_digest) == (self.steps, counting.expected(self.steps, 4))

    def kept(self) -> list[tuple[int, int]]:
        """The samples that each step of the kept history used."""
        kept: list[tuple[int, int]] = []
        for event in self.events():
            if isinstance(event, AttemptStarted):
                kept = kept[: event.restore[0] if event.restore else 0]
            elif isinstance(event, StepDone):
                assert event.step == len(kept), f"step {event.step} after {len(kept)} steps\n{self.story()}"
                assert event.samples is not None
                kept.append(event.samples)
        return kept

    def is_written(self, checkpoint: tuple[int, int]) -> bool:
        """Whether all ranks have written their parts of a checkpoint."""
        return len([*self.paths.checkpoint(*checkpoint).glob("part.*")]) == 4

    def check_replay(self) -> None:
        """The journal's inputs, folded again by the policy, give exactly the journal's decisions."""
        policy = read_policy(self.paths.policy)
        state, replayed = initial(policy), []
        for event in self.events():
            state, decisions, _ = decide(policy, state, event)
            replayed += decisions
        journaled = [replace(one, epoch=0, seq=0) for one in self.of(JUDGEMENTS)]
        assert replayed == journaled, self.story()

    def check_nothing_is_left(self, limit_s: float = 25.0) -> None:
        deadline = time.monotonic() + limit_s
        while left := [*self.processes(), *self.scratch()]:
            assert time.monotonic() < deadline, f"left behind: {left}\n{self.story()}"
            time.sleep(POLL_S)

    def decisions(self) -> list[Decision]:
        return self.of(Decision)

    def line(self) -> list[tuple[int, int]]:
        return [one.id for one in self.run.lineage()]

    # ------------------------------------------------------------ processes

    def processes(self) -> list[psutil.Process]:
        """Every living process of the run, ranks included; dead ones nobody has waited for do not count."""
        named = [process for process in psutil.process_iter() if self._is_ours(process)]
        found = {process.pid: process for process in named}
        for process in named:
            with contextlib.suppress(psutil.Error):
                found |= {child.pid: child for child in process.children(recursive=True)}
        return [process for process in found.values() if _lives(process)]

    def _is_ours(self, process: psutil.Process) -> bool:
        with contextlib.suppress(psutil.Error):
            return str(self.paths.root) in " ".join(process.cmdline()) and process.pid != os.getpid()
        return False

    def scratch(self) -> list[Path]:
        with contextlib.suppress(OSError, ValueError):
            pid = json.loads(self.paths.allocation.read_text())["pid"]
            return [*Path(tempfile.gettempdir()).glob(f"opt-launch-{pid}-*")]
        return []

    def agent(self, node: str) -> psutil.Process:
        """The agent of a node, once it is up."""
        deadline = time.monotonic() + LIMIT_S
        while True:
            with contextlib.suppress(OSError, ValueError, KeyError, psutil.Error):
                process = psutil.Process(json.loads(self.paths.allocation.read_text())["nodes"][node]["pid"])
                if _lives(process):
                    return process
            assert time.monotonic() < deadline, f"no agent on {node}"
            time.sleep(POLL_S)

    def rank(self, rank: int) -> psutil.Process:
        """A rank of the newest attempt, once it lives."""
        deadline = time.monotonic() + LIMIT_S
        while True:
            for process in self.processes():
                with contextlib.suppress(psutil.Error):
                    env = process.environ() if str(COUNTING) in process.cmdline() else {}
                    if env.get("RANK") == str(rank) and env["OPT_LAUNCH_ATTEMPT"] == str(len(self.run.attempts)):
                        return process
            assert time.monotonic() < deadline, f"rank {rank} does not live\n{self.story()}"
            time.sleep(POLL_S)

    def ranks_of(self, node: str) -> list[psutil.Process]:
        return [p for p in self.agent(node).children(recursive=True) if str(COUNTING) in _cmdline(p)]

    def node_of(self, rank: int) -> str:
        attempt = self.run.attempt
        assert attempt is not None
        return next(node for node, ranks in attempt.slots.items() if rank in ranks)

    def supervisor(self) -> psutil.Process:
        return psutil.Process(self.run.supervisor_pid)

    def epoch(self) -> int:
        return max(event.epoch for event in self.of(EpochStarted))

    def new_epoch(self, after: int, limit_s: float = LIMIT_S) -> EpochStarted:
        """The first supervisor after this epoch."""
        self.wait(f"an epoch after {after}", lambda run: run.epoch > after, limit_s)
        return next(event for event in self.of(EpochStarted) if event.epoch > after)

    def kill(self, *processes: psutil.Process, number: int = signal.SIGKILL) -> None:
        """Send a signal to all of them as nearly at once as can be."""
        for process in processes:
            with contextlib.suppress(psutil.Error):
                process.send_signal(number)

    def lose(self, node: str) -> None:
        """The machine is gone: its agent and all that the agent started, killed together."""
        agent = self.agent(node)
        self.kill(agent, *agent.children(recursive=True))

    def freeze(self, node: str) -> list[psutil.Process]:
        agent = self.agent(node)
        frozen = [agent, *agent.children(recursive=True)]
        self.kill(*frozen, number=signal.SIGSTOP)
        return frozen

    @contextlib.contextmanager
    def full(self, disk: Path) -> Iterator[None]:
        """Not a byte is free on this file system."""
        filler = disk / "filler"
        with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(1 << 16))
        try:
            yield
        finally:
            filler.unlink()

    def kill_everything(self) -> None:
        """The machine room is gone."""
        for _ in range(3):  # what was being started meanwhile as well
            self.kill(*self.processes())
        deadline = time.monotonic() + 10
        while self.processes() and time.monotonic() < deadline:
            time.sleep(POLL_S)

    def resume(self) -> None:
        resume(self.paths, "a person")

    def clean_up(self) -> None:
        """Whatever is still there after a test, failed or not, goes."""
        told = (
            event for event in self.events() if isinstance(event, AttemptStarted | NodeSilent | RankExited | Decision)
        )
        print(self.paths.name, *told, sep="\n")  # seen where a test fails
        self.kill_everything()
        assert not self.processes()


def _lives(process: psutil.Process) -> bool:
    try:
        return process.status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    except psutil.Error:
        return False


def _cmdline(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def prefixes(events: tuple[Event, ...]) -> Iterator[tuple[Event, Run]]:
    """Every event with the run as it was after it."""
    run = Run()
    for event in events:
        run = advance(run, event)
        yield event, run


def opt_launch(run: LiveRun, *arguments: str, before: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """The command as a person gives it, perhaps in a world of its own."""
    done = [*before, sys.executable, "-m", "cli", *arguments]
    root = {"OPT_LAUNCH_ROOT": str(run.paths.root.parent), "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        done, env={**os.environ, **root}, capture_output=True, text=True, check=False, timeout=60,
        stdin=subprocess.DEVNULL,
    )  # fmt: skip
