"""Agents and a trainer that do at once what they are told, to see where repeated planning leads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from tale import Tale

from launcher.events import (
    CheckpointCommitted,
    CheckpointRejected,
    Event,
    Json,
    NodeSilent,
    RankExited,
    StepDone,
)
from launcher.moves import Emit, Errand, Fleet, Inspect, Inventory, Limits, Move, Requeue, Send
from launcher.recovery import plan
from launcher.reporter import SAVE, STOP
from launcher.run import Run, RunState

LIMITS = Limits(wait_for_node_s=30)


@dataclass
class Simulation:
    """The world of a Tale. `dead`: nodes that answer no more. `damaged`: checkpoints whose files are spoilt."""

    tale: Tale
    agents: dict[str, Inventory] = field(default_factory=dict)
    store: tuple[int, str, int] | None = None
    inspected: frozenset[tuple[int, int]] = frozenset()
    damaged: frozenset[tuple[int, int]] = frozenset()
    dead: frozenset[str] = frozenset()
    settled: bool = True
    committing: bool = False
    limits: Limits = LIMITS
    left: set[str] = field(default_factory=set)
    log: list[tuple[float, Move]] = field(default_factory=list)

    def __post_init__(self) -> None:
        for node in self.tale.run.nodes.values():
            self.agents.setdefault(node.name, Inventory(node.incarnation, 0, 0))
        attempt = self.tale.run.live_attempt
        for name in attempt.slots if attempt else ():
            assert attempt is not None
            if name not in self.dead:
                alive = sum(rank not in attempt.exits for rank in attempt.slots[name])
                self.agents[name] = replace(self.agents[name], attempt=attempt.number, ranks_alive=alive)

    @property
    def run(self) -> Run:
        return self.tale.run

    @property
    def fleet(self) -> Fleet:
        answering = {name: one for name, one in self.agents.items() if name not in self.dead | self.left}
        return Fleet(
            self.tale.at, answering, self.settled, self.store, self.inspected, committing=self.committing
        )  # fmt: skip

    def moves(self) -> list[Move]:
        return plan(self.run, self.fleet, self.limits)

    def turn(self) -> list[Move]:
        """One turn of the supervisor's loop, and a second of everybody's time."""
        moves = self.moves()
        for move in moves:
            self.log.append((self.tale.at, move))
            match move:
                case Emit(event):
                    self.emit(event)
                case Send(node, message):
                    if node not in self.dead:
                        self.obey(node, dict(message))
                case Inspect(checkpoint):
                    self.inspect(checkpoint)
                case Requeue() | Errand():
                    pass  # others do the rest
        self.train()
        self.tale.at += 1
        return moves

    def until(self, true: Callable[[Run], bool], turns: int = 300) -> None:
        for _ in range(turns):
            if true(self.run):
                return
            self.turn()
        raise AssertionError(f"never so: the run is {self.run.state}, {self.moves()}")

    def emit(self, event: Event) -> None:
        if event.type == "attempt_started":
            self.inspected = frozenset()
        self.tale.tell(event)

    def obey(self, node: str, message: dict[str, object]) -> None:
        agent, attempt = self.agents[node], message.get("attempt")
        match message["type"]:
            case "kill":
                assert isinstance(attempt, int)
                self.agents[node] = replace(agent, ranks_alive=0, cleared=attempt, attempt=max(agent.attempt, attempt))
            case "store":
                assert isinstance(attempt, int)
                self.store = (attempt, "h", 1)
            case "start":
                assert isinstance(attempt, int)
                assert self.store is not None
                assert self.store[0] == attempt, "ranks were started without their store"
                if attempt > agent.attempt:
                    ranks = message["ranks"]
                    assert isinstance(ranks, list)
                    self.agents[node] = replace(agent, attempt=attempt, ranks_alive=len(ranks))
            case "collect":
                decision = message["decision"]
                assert isinstance(decision, str)
                self.agents[node] = replace(agent, collected=agent.collected | {decision})
            case "leave":
                self.left.add(node)
            case "to_rank":
                self.wanted(message)

    def wanted(self, message: dict[str, object]) -> None:
        inner, live = message["message"], self.run.live_attempt
        assert isinstance(inner, dict)
        if live is None or not self.stepping():
            return
        if inner["bits"] & SAVE and self.run.step > (self.run.head or (0, 0))[0]:
            self.emit(
                CheckpointCommitted(
                    at=self.tale.at,
                    step=self.run.step,
                    attempt=live.number,
                    parent=self.run.head,
                    manifest_digest="d",
                    bytes=1,
                )
            )
        if inner["bits"] & STOP:
            self.all_exit(0)

    def inspect(self, checkpoint: tuple[int, int]) -> None:
        if checkpoint in self.damaged:
            self.emit(CheckpointRejected(at=self.tale.at, step=checkpoint[0], attempt=checkpoint[1], reason="spoilt"))
        else:
            self.inspected |= {checkpoint}

    def stepping(self) -> bool:
        live = self.run.live_attempt
        return live is not None and all(
            node not in self.dead
            and self.agents[node].attempt == live.number
            and self.agents[node].ranks_alive == len(ranks)
            for node, ranks in live.slots.items()
        )

    def train(self) -> None:
        live = self.run.live_attempt
        if not self.stepping() or live is None:
            return
        self.emit(StepDone(at=self.tale.at, attempt=live.number, step=self.run.step, metrics={"loss": 1.0}))
        if self.run.target_step and self.run.step >= self.run.target_step:
            self.all_exit(0)

    def all_exit(self, code: int) -> None:
        live = self.run.live_attempt
        assert live is not None
        for node, ranks in live.slots.items():
            for rank in ranks:
                self.emit(RankExited(at=self.tale.at, attempt=live.number, node=node, rank=rank, code=code))
            self.agents[node] = replace(self.agents[node], ranks_alive=0)

    def lose(self, *nodes: str, **more: Json) -> None:
        """These nodes are gone, and the policy has said so; `more` of its actions."""
        self.dead |= set(nodes)
        for node in nodes:
            self.tale.tell(NodeSilent(at=self.tale.at, node=node, since=self.tale.at, cause="reset"))
        if self.run.live_attempt and set(nodes) & self.run.live_attempt.slots.keys():
            actions = {**more, "restart": {"from": "latest", "save_first": False}}
            self.tale.decide(nodes=nodes, detector="node_lost", actions=actions)

    def give_back(self, node: str) -> None:
        """A lost node's agent was started anew."""
        incarnation = f"{self.run.nodes[node].incarnation}'"
        self.dead -= {node}
        self.agents[node] = Inventory(incarnation, 0, 0)
        self.tale.join(int(node[1:]), incarnation)

    @property
    def at_rest(self) -> bool:
        return self.run.state in (RunState.RUNNING, RunState.HELD) or self.run.state.is_terminal
