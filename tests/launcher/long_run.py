"""The journal and metrics of a long run, as its supervisors would have left them; for tests and benchmarks.

16 nodes of 8 ranks train; a checkpoint every 250 steps, read back and later deleted; now and then a node falls silent
and is lost, or a rank dies, and ranks start anew from the last checkpoint; now and then a supervisor is replaced. What
is decided is what the policy decides.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import IO

from launcher.events import (
    AgentJoined,
    AttemptEnded,
    AttemptStarted,
    CheckpointCommitted,
    CheckpointId,
    CheckpointRemoved,
    CheckpointVerified,
    Decision,
    EpochStarted,
    Event,
    NodeBack,
    NodeSilent,
    RankExited,
    RunHeld,
    RunReleased,
    RunSubmitted,
    StepDone,
    StepsStopped,
    Tick,
    to_json,
)
from launcher.evolve import evolve
from launcher.fold import Fold
from launcher.journal import claim_epoch, seal
from launcher.paths import RunPaths
from policies.schema import Policy

NODES, RANKS, SAVE_EVERY, KEEP = 16, 8, 250, 5


def write_long_run(
    paths: RunPaths,
    policy: Policy,
    steps: int,
    *,
    fault_every: int = 17_000,
    takeover_every: int = 40_000,
    at: Callable[[int, Fold], None] = lambda steps, fold: None,
) -> None:
    """Write the history of a run that has done so many steps into an empty folder; `at` is told each number of them."""
    paths.make_folders()
    run = _LongRun(paths, policy)
    run.begin()
    for step in range(steps):
        run.train()
        at(step + 1, run.fold)
        if (step + 1) % takeover_every == 0:
            run.take_over()
        if (step + 1) % fault_every == 0:
            run.fail(step // fault_every)
    run.close()


class _LongRun:
    def __init__(self, paths: RunPaths, policy: Policy) -> None:
        self.paths, self.fold = paths, Fold(policy)
        self.random = random.Random(1)
        self.at, self.epoch, self.seq = 1e9, 0, 0
        self.attempt = self.step = 0
        self.checkpoints: list[CheckpointId] = []
        self.decisions: list[Decision] = []
        self.files: dict[str, IO[str]] = {}

    def begin(self) -> None:
        self.take_over()
        self.tell(
            RunSubmitted(
                at=self.at, run="long", nodes=NODES, ranks_per_node=RANKS, spares=1, target_step=10_000_000,
                probation=20, save_every=SAVE_EVERY,
            )
        )  # fmt: skip
        for index in range(NODES + 1):
            self.join(f"node{index}", index)
        self.start()

    def tell(self, event: Event) -> None:
        self.seq += 1
        event = evolve(event, epoch=self.epoch, seq=self.seq)
        of_step = isinstance(event, StepDone)
        path = self.paths.metrics(self.epoch, event.attempt) if of_step else self.paths.journal(self.epoch)
        file = self.files.get(path.name) or self.files.setdefault(path.name, path.open("a"))
        file.write(f"{to_json(event)}\n")
        for decision in self.fold.take(event):
            self.decisions.append(decision)
            self.tell(decision)

    def pass_time(self, seconds: float) -> None:
        until = self.at + seconds
        while self.fold.deadline is not None and self.fold.deadline <= until:
            self.at = self.fold.deadline
            self.tell(Tick(at=self.at))
        self.at = until

    # ------------------------------------------------------------ what happens

    def take_over(self) -> None:
        self.close()
        self.epoch, self.seq = claim_epoch(self.paths), 0
        sealed = seal(self.paths, self.epoch)
        self.tell(EpochStarted(at=self.at, host="h", pid=1, node="node0", job_id="1", sealed=sealed))

    def join(self, node: str, index: int) -> None:
        incarnation = f"{self.attempt}.{index}"
        self.tell(
            AgentJoined(at=self.at, node=node, index=index, incarnation=incarnation, host="h", port=1, pid=index + 2)
        )

    def start(self) -> None:
        self.attempt += 1
        self.pass_time(30.0)
        restore = self.checkpoints[-1] if self.checkpoints else None
        self.step = restore[0] if restore else 0
        names = [f"node{index}" for index in range(NODES)]
        self.tell(
            AttemptStarted(
                at=self.at, attempt=self.attempt, why="ranks are needed", restore=restore,
                slots={name: tuple(range(i * RANKS, (i + 1) * RANKS)) for i, name in enumerate(names)},
                incarnations={name: self.fold.run.nodes[name].incarnation for name in names},
            )
        )  # fmt: skip

    def train(self) -> None:
        took = self.random.lognormvariate(0.0, 0.05)
        self.pass_time(took)
        loss = 2.0 + 8.0 / math.sqrt(1 + self.step / 100) + self.random.gauss(0.0, 0.02)
        metrics = {
            "loss": loss, "grad_norm": self.random.lognormvariate(-1.0, 0.2), "lr": 6e-4, "tokens": 2e6 * self.step,
            "tokens_per_s": 2e6 / took, "activation_norm": self.random.gauss(1.0, 0.01),
        }  # fmt: skip
        samples = (self.step * 1024, (self.step + 1) * 1024)
        self.tell(
            StepDone(at=self.at, attempt=self.attempt, step=self.step, metrics=metrics, samples=samples, step_s=took)
        )
        self.step += 1
        if self.step % SAVE_EVERY == 0:
            self.save()

    def save(self) -> None:
        id_, parent = (self.step, self.attempt), self.checkpoints[-1] if self.checkpoints else None
        self.tell(
            CheckpointCommitted(
                at=self.at, step=self.step, attempt=self.attempt, parent=parent, manifest_digest="0" * 32,
                bytes=1 << 40,
            )
        )  # fmt: skip
        self.tell(CheckpointVerified(at=self.at, step=self.step, attempt=self.attempt))
        self.checkpoints.append(id_)
        if len(self.checkpoints) > KEEP:
            step, attempt = self.checkpoints.pop(0)
            self.tell(CheckpointRemoved(at=self.at, step=step, attempt=attempt))

    def fail(self, number: int) -> None:
        told = len(self.decisions)
        if number % 2:
            self.tell(RankExited(at=self.at, attempt=self.attempt, node="node3", rank=27, code=-9, step=self.step))
        else:
            self.tell(NodeSilent(at=self.at, node="node5", since=self.at - 1, cause="silence"))
            self.pass_time(10.0)
            self.tell(StepsStopped(at=self.at, attempt=self.attempt, since=self.at - 10, proof=True))
        self.pass_time(200.0)
        assert len(self.decisions) > told, "nothing was decided"
        if "hold" in self.decisions[-1].actions:
            self.tell(RunHeld(at=self.at, reason=self.decisions[-1].why))
            self.tell(RunReleased(at=self.at, author="someone"))
        self.tell(AttemptEnded(at=self.at, attempt=self.attempt, reason="decided"))
        if number % 2 == 0:
            self.tell(NodeBack(at=self.at, node="node5"))
        self.start()

    def close(self) -> None:
        for file in self.files.values():
            file.close()
        self.files.clear()
