"""Events of a small run, told one after another to the engine."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from launcher.events import (
    AgentJoined,
    AttemptStarted,
    CheckpointCommitted,
    Decision,
    Event,
    IncidentClosed,
    IncidentOpened,
    Judgement,
    NodeBack,
    NodeDown,
    NodeDraining,
    NodeSilent,
    NodeUndrained,
    RankExited,
    RankProgress,
    RunReleased,
    StepDone,
    StepsMoving,
    StepsStopped,
    Tick,
)
from policies.engine import decide, initial
from policies.load import load_policy
from policies.schema import Policy
from policies.state import EngineState

PEER = "Connection closed by peer [127.0.0.1]:4000"
ENDS = ("restart", "hold", "stop")


def policy_of(folder: Path, text: str) -> Policy:
    """A policy of these rules."""
    path = folder / "mine.yaml"
    path.write_text(f"version: 1\nname: mine\n{text}")
    return load_policy([str(path)])


class Story:
    """A run of `nodes` nodes with two ranks each; `at` is the clock. Restarts are started when asked."""

    def __init__(self, policy: Policy, nodes: int = 2, spares: int = 1, ranks: int = 2) -> None:
        self.policy, self.state = policy, initial(policy)
        self.at, self.attempt, self.step = 1000.0, 0, -1
        self.deadline: float | None = None
        self.decisions: list[Decision] = []
        self.trouble: list[IncidentOpened | IncidentClosed] = []
        self.events: list[Event] = []
        self.compute_s: tuple[float, ...] = ()
        self.active = [f"n{i}" for i in range(nodes)]
        self.ranks = ranks
        for index in range(nodes + spares):
            self.joined(f"n{index}")

    @property
    def last(self) -> Decision:
        return self.decisions[-1]

    def tell(self, event: Event) -> list[Decision]:
        self.events.append(event)
        self.state, judgements, self.deadline = decide(self.policy, self.state, event)
        assert self.deadline is None or self.deadline > self.state.now
        decisions = [one for one in judgements if isinstance(one, Decision)]
        self.decisions += decisions
        self.trouble += [one for one in judgements if not isinstance(one, Decision)]
        for judgement in judgements:  # what the journal feeds back changes nothing
            state, more, _ = decide(self.policy, self.state, judgement)
            assert (state, more) == (self.state, ())
        return decisions

    def wait(self, seconds: float) -> list[Decision]:
        """Let time pass, ticking at each deadline as the shell does."""
        until, found = self.at + seconds, []
        while self.deadline is not None and self.deadline <= until:
            self.at = self.deadline
            found += self.tell(Tick(at=self.at))
        self.at = until
        return found

    def joined(self, node: str, incarnation: str = "1") -> list[Decision]:
        return self.tell(AgentJoined(at=self.at, node=node, index=0, incarnation=incarnation, host="h", port=1, pid=1))

    def start(self, restore: int | None = None) -> None:
        self.attempt += 1
        slots = {n: tuple(range(i * self.ranks, (i + 1) * self.ranks)) for i, n in enumerate(self.active)}
        self.step = restore if restore is not None else -1
        self.tell(
            AttemptStarted(
                at=self.at,
                attempt=self.attempt,
                slots=slots,
                incarnations={n: self.state.agents[n].incarnation for n in self.active},
                restore=None if restore is None else (restore, 1),
                why="",
            )
        )

    def steps(self, count: int = 1, seconds: float = 1.0, **metrics: float) -> list[Decision]:
        found = []
        for _ in range(count):
            self.at += seconds
            self.step += 1
            values = {"loss": 2.0, "grad_norm": 1.0} | metrics
            found += self.tell(
                StepDone(
                    at=self.at,
                    attempt=self.attempt,
                    step=self.step,
                    metrics=values,
                    step_s=seconds,
                    compute_s=self.compute_s,
                )
            )
        return found

    def training(self, steps: int = 30) -> Story:
        self.start()
        self.steps(steps)
        return self

    def exits(
        self, rank: int, code: int = 1, error: str = "", kind: str = "", step: int | None = None
    ) -> list[Decision]:
        node = self.active[rank // self.ranks]
        return self.tell(
            RankExited(
                at=self.at,
                attempt=self.attempt,
                node=node,
                rank=rank,
                code=code,
                step=self.step if step is None else step,
                error_type=kind,
                error=error,
            )
        )

    def loses_peer(self, rank: int) -> list[Decision]:
        return self.exits(rank, 1, PEER, "RuntimeError")

    def silent(self, node: str, since: float | None = None) -> list[Decision]:
        return self.tell(NodeSilent(at=self.at, node=node, since=self.at if since is None else since, cause="silence"))

    def back(self, node: str) -> list[Decision]:
        return self.tell(NodeBack(at=self.at, node=node))

    def down(self, node: str) -> list[Decision]:
        return self.tell(NodeDown(at=self.at, node=node, reason="DOWN"))

    def draining(self, node: str) -> list[Decision]:
        return self.tell(NodeDraining(at=self.at, node=node, reason="new disks"))

    def undrained(self, node: str) -> list[Decision]:
        return self.tell(NodeUndrained(at=self.at, node=node))

    def stopped(
        self, since: float, proof: bool = True, places: dict[int, tuple[Any, ...]] | None = None
    ) -> list[Decision]:
        """`places`: rank -> (step, section, phase, os_state)."""
        full = {r: (*place, "", "")[:4] for r, place in (places or {}).items()}
        ranks = {
            r: RankProgress(node=self.active[r // self.ranks], step=s, section=c, phase=p, os_state=o)
            for r, (s, c, p, o) in full.items()
        }
        return self.tell(StepsStopped(at=self.at, attempt=self.attempt, since=since, proof=proof, ranks=ranks))

    def moving(self) -> list[Decision]:
        return self.tell(StepsMoving(at=self.at, attempt=self.attempt))

    def committed(self) -> None:
        self.tell(
            CheckpointCommitted(
                at=self.at, step=self.step, attempt=self.attempt, parent=None, manifest_digest="", bytes=0
            )
        )

    def released(self) -> None:
        self.tell(RunReleased(at=self.at, author="me"))


def ending(decision: Decision) -> str:
    """restart, hold, stop, or nothing of these."""
    return next((name for name in ENDS if name in decision.actions), "")


def reason(decision: Decision) -> str:
    hold = decision.actions["hold"]
    assert isinstance(hold, dict)
    return str(hold["reason"])


def replayed(policy: Policy, events: list[Event]) -> tuple[EngineState, list[Judgement]]:
    state, judgements = initial(policy), list[Judgement]()
    for event in events:
        state, more, _ = decide(policy, state, event)
        judgements += more
    return state, judgements


NAN = math.nan
