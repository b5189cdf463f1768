"""Faults at random, from outside, in every phase of a run."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable

import psutil
from live_run import LiveRun

from launcher.control import command
from launcher.run import RunState

PHASE_LIMIT_S = 15.0


class Schedule:
    """A seed's faults, one after another, each in a phase of its own."""

    def __init__(self, seed: int, run: LiveRun) -> None:
        self.seed, self.random, self.run = seed, random.Random(seed), run
        self.frozen: list[psutil.Process] = []
        self.hit: list[str] = []
        self.held = 0

    def play(self) -> None:
        phases = ORDER[self.seed % len(ORDER) :] + ORDER[: self.seed % len(ORDER)]  # each comes first in some schedule
        for phase in [phases[0], *self.random.choices(ORDER, k=self.random.randint(0, 3))]:
            # Nobody can tell a stopped rank from a slow one before the first step: that takes half a minute.
            faults = sorted(FAULTS) if phase in ("running", "saving") else sorted(set(FAULTS) - SLOW_TO_SEE)
            fault = self.random.choice(faults)
            self.reach(phase)
            if self.run.run.state.is_terminal:
                break
            self.hit.append(f"{fault} while {self.name_of_now()}")
            FAULTS[fault](self)
            self.let_it_notice()
        self.finish()

    def reach(self, phase: str) -> None:
        """Wait for the phase; take what comes where it does not."""
        if phase in ("deciding", "loading"):  # only ever seen after another fault
            self.reach("running")
            if phase == "loading":
                self.run.wait("a checkpoint", lambda run: run.checkpoints or run.state.is_terminal)
            self.kill_rank()
        if phase == "deciding":  # over within a tenth of a second: too short to be waited for
            time.sleep(self.random.uniform(0.0, 0.12))
            return
        deadline = time.monotonic() + PHASE_LIMIT_S
        while time.monotonic() < deadline:
            state = self.run.run.state
            self.release_if_held(state)
            if state.is_terminal or PHASES[phase](self):
                return
            time.sleep(0.005)

    def let_it_notice(self) -> None:
        """Until the run trains on: the next fault finds it in a state that it has reached by itself."""
        deadline = time.monotonic() + 2.0
        while time.monotonic() < deadline and self.run.run.state is RunState.RUNNING:
            time.sleep(0.02)

    def finish(self) -> None:
        deadline = time.monotonic() + 240
        while not (state := self.run.run.state).is_terminal:
            self.release_if_held(state)
            if state is RunState.RUNNING:
                self.thaw()
            assert time.monotonic() < deadline, f"{self.hit}\n{self.run.story()}"
            time.sleep(0.1)
        self.thaw()

    def release_if_held(self, state: RunState) -> None:
        """A person looks after a run whose budget is spent."""
        if state is RunState.HELD:
            self.held += 1
            assert self.held < 4, self.run.story()
            command(self.run.paths, "release", {})

    def thaw(self) -> None:
        self.run.kill(*self.frozen, number=signal.SIGCONT)
        self.frozen.clear()

    def name_of_now(self) -> str:
        return next((name for name in ORDER if PHASES[name](self)), str(self.run.run.state))

    # ------------------------------------------------------------ faults

    def kill_rank(self) -> None:
        ranks = [rank for node in ("node0", "node1", "node2") for rank in self.ranks_of(node)]
        if ranks:
            self.run.kill(self.random.choice(ranks))

    def stop_rank(self) -> None:
        ranks = [rank for node in ("node0", "node1", "node2") for rank in self.ranks_of(node)]
        if ranks:
            self.run.kill(self.random.choice(ranks), number=signal.SIGSTOP)

    def ranks_of(self, node: str) -> list[psutil.Process]:
        try:
            return self.run.ranks_of(node)
        except psutil.Error:
            return []

    def lose_node(self) -> None:
        self.run.lose(self.random.choice(["node0", "node1", "node2"]))

    def freeze_node(self) -> None:
        self.frozen += self.run.freeze(self.random.choice(["node0", "node1", "node2"]))

    def kill_supervisor(self) -> None:
        self.run.kill(psutil.Process(self.run.run.supervisor_pid)) if self.supervised() else None

    def stop_supervisor(self) -> None:
        if self.supervised():
            supervisor = self.run.supervisor()
            self.run.kill(supervisor, number=signal.SIGSTOP)
            self.frozen.append(supervisor)

    def supervised(self) -> bool:
        return psutil.pid_exists(self.run.run.supervisor_pid)

    def kill_everything(self) -> None:
        self.run.kill_everything()
        self.frozen.clear()
        self.run.resume()

    # ------------------------------------------------------------ phases

    def saving(self) -> bool:
        return any(id_ not in self.run.run.checkpoints for id_ in self.folders())

    def committing(self) -> bool:
        written = [id_ for id_ in self.folders() if self.run.is_written(id_)]
        return any(id_ not in self.run.run.checkpoints for id_ in written)

    def folders(self) -> list[tuple[int, int]]:
        names = [folder.name for folder in self.run.paths.checkpoints.iterdir()]
        return [(int(name[5:13]), int(name[15:19])) for name in names]


PHASES: dict[str, Callable[[Schedule], bool]] = {
    "committing": Schedule.committing,
    "saving": Schedule.saving,
    "deciding": lambda schedule: schedule.run.run.pending is not None,
    "loading": lambda schedule: (
        schedule.run.run.state is RunState.STARTING and schedule.run.run.attempts[-1].restore is not None
    ),
    "starting": lambda schedule: schedule.run.run.state is RunState.STARTING,
    "running": lambda schedule: schedule.run.run.state is RunState.RUNNING,
}
ORDER = list(PHASES)
FAULTS: dict[str, Callable[[Schedule], None]] = {
    "rank killed": Schedule.kill_rank,
    "rank stopped": Schedule.stop_rank,
    "node lost": Schedule.lose_node,
    "node frozen": Schedule.freeze_node,
    "supervisor killed": Schedule.kill_supervisor,
    "supervisor stopped": Schedule.stop_supervisor,
    "everything killed": Schedule.kill_everything,
}
SLOW_TO_SEE = {"rank stopped", "node frozen"}
