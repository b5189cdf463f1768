"""A run told event by event, for tests of what follows from a journal."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from launcher.advance import advance, fold
from launcher.events import (
    AgentJoined,
    AttemptEnded,
    AttemptStarted,
    Branch,
    CheckpointCommitted,
    CheckpointId,
    CheckpointRejected,
    CheckpointRemoved,
    CheckpointVerified,
    Decision,
    EpochStarted,
    Event,
    NodeBack,
    NodeDown,
    NodeDraining,
    NodeSilent,
    NodeUndrained,
    RankExited,
    RanksUp,
    RunEnded,
    RunHeld,
    RunReleased,
    RunResumed,
    RunSubmitted,
    StepDone,
    StepsMoving,
    StepsStopped,
    TrainerDone,
)
from launcher.run import Run


class Tale:
    """Events at a clock that goes on by a second each; `run` is what follows from them."""

    def __init__(
        self,
        nodes: int = 2,
        ranks: int = 2,
        spares: int = 1,
        probation: int = 3,
        target: int | None = 100,
        branch: Branch | None = None,
        save_every: int | None = 10,
    ) -> None:
        self.at, self.events, self.run = 1000.0, [], Run()
        self.nodes, self.ranks = nodes, ranks
        self.tell(
            RunSubmitted(
                at=self.at,
                run="tale",
                nodes=nodes,
                ranks_per_node=ranks,
                spares=spares,
                target_step=target,
                probation=probation,
                save_every=save_every,
                branched_from=branch,
            )
        )
        self.epoch()
        for index in range(nodes + spares):
            self.join(index)

    def tell(self, *events: Event) -> Tale:
        for event in events:
            self.events.append(event)
            self.run = advance(self.run, event)
            assert self.run == fold(self.events)
            self.at += 1
        return self

    def epoch(self, job: str = "1") -> Tale:
        number = self.run.epoch + 1
        return self.tell(EpochStarted(at=self.at, epoch=number, host="h", pid=number, node="n0", job_id=job))

    def join(self, index: int, incarnation: str = "a") -> Tale:
        name = f"n{index}"
        return self.tell(
            AgentJoined(at=self.at, node=name, index=index, incarnation=incarnation, host="h", port=1, pid=1)
        )

    def start(
        self,
        restore: CheckpointId | None = None,
        nodes: Iterable[str] | None = None,
        *,
        resumes_itself: bool = False,
        observed: bool = True,
    ) -> Tale:
        names = list(nodes or [f"n{i}" for i in range(self.nodes)])
        slots = {name: tuple(range(i * self.ranks, (i + 1) * self.ranks)) for i, name in enumerate(names)}
        incarnations = {name: self.run.nodes[name].incarnation for name in names}
        return self.tell(
            AttemptStarted(
                at=self.at,
                attempt=len(self.run.attempts) + 1,
                slots=slots,
                incarnations=incarnations,
                restore=restore,
                why="told",
                resumes_itself=resumes_itself,
                observed=observed,
            )
        )

    def up(self, for_s: float = 0.0) -> Tale:
        return self.tell(RanksUp(at=self.at, attempt=self.number, since=self.at - for_s))

    def steps(self, count: int, **metrics: float) -> Tale:
        for _ in range(count):
            values = {"loss": 2.0} | metrics
            self.tell(StepDone(at=self.at, attempt=self.number, step=self.run.step, metrics=values, step_s=1.0))
        return self

    def train(self, steps: int) -> Tale:
        return self.start().steps(steps)

    def save(self, step: int | None = None, attempt: int | None = None) -> Tale:
        step = self.run.step if step is None else step
        return self.tell(
            CheckpointCommitted(
                at=self.at,
                step=step,
                attempt=attempt or self.number,
                parent=self.run.head,
                manifest_digest="d",
                bytes=1,
            )
        )

    def verify(self, *ids: CheckpointId) -> Tale:
        return self.tell(*(CheckpointVerified(at=self.at, step=s, attempt=a) for s, a in ids or [self.head]))

    def reject(self, id_: CheckpointId, reason: str = "a flipped byte") -> Tale:
        return self.tell(CheckpointRejected(at=self.at, step=id_[0], attempt=id_[1], reason=reason))

    def remove(self, id_: CheckpointId) -> Tale:
        return self.tell(CheckpointRemoved(at=self.at, step=id_[0], attempt=id_[1]))

    def silent(self, node: str = "n1") -> Tale:
        return self.tell(NodeSilent(at=self.at, node=node, since=self.at - 2, cause="silence"))

    def back(self, node: str = "n1") -> Tale:
        return self.tell(NodeBack(at=self.at, node=node))

    def down(self, node: str = "n1") -> Tale:
        return self.tell(NodeDown(at=self.at, node=node, reason="gone"))

    def draining(self, node: str = "n1") -> Tale:
        """The node is wanted back, and the policy has said what to do about it."""
        self.tell(NodeDraining(at=self.at, node=node, reason="new disks"))
        actions = {"save": {"when": "now"}, "replace": "blamed"}
        return self.decide(nodes=[node], detector="draining", actions=actions, counts=False)

    def undrained(self, node: str = "n1") -> Tale:
        return self.tell(NodeUndrained(at=self.at, node=node))

    def stopped(self, proof: bool = True) -> Tale:
        return self.tell(StepsStopped(at=self.at, attempt=self.number, since=self.at - 1, proof=proof))

    def moving(self) -> Tale:
        return self.tell(StepsMoving(at=self.at, attempt=self.number))

    def exit(self, rank: int, code: int = -9) -> Tale:
        node = f"n{rank // self.ranks}"
        return self.tell(RankExited(at=self.at, attempt=self.number, node=node, rank=rank, code=code))

    def done(self) -> Tale:
        return self.tell(TrainerDone(at=self.at, attempt=self.number, step=self.run.step))

    def end_attempt(self) -> Tale:
        return self.tell(AttemptEnded(at=self.at, attempt=self.number, reason="told"))

    def decide(self, *, nodes: Iterable[str] = (), detector: str = "exit", mode: Any = "act", **more: Any) -> Tale:
        actions = more.pop("actions", {"restart": {"from": "latest", "save_first": False}})
        number = more.pop("incident", len(self.run.incidents) + 1)
        return self.tell(
            Decision(
                at=self.at,
                id=f"d{len(self.events)}",
                incident=number,
                attempt=self.number,
                rule=more.pop("rule", "a-rule"),
                detector=detector,
                mode=mode,
                actions=actions,
                why="told so",
                nodes=tuple(nodes),
                **more,
            )
        )

    def hold(self) -> Tale:
        return self.tell(RunHeld(at=self.at, reason="told to hold"))

    def release(self) -> Tale:
        return self.tell(RunReleased(at=self.at, author="someone"))

    def end(self, state: Any = "STOPPED") -> Tale:
        return self.tell(RunEnded(at=self.at, state=state))

    def resume(self) -> Tale:
        return self.tell(RunResumed(at=self.at, author="someone"))

    @property
    def number(self) -> int:
        return len(self.run.attempts)

    @property
    def head(self) -> CheckpointId:
        assert self.run.head is not None
        return self.run.head
