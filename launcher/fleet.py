"""The supervisor's links to the agents: dialled, kept, and condensed into events without judgement."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from launcher import wire
from launcher.agent import stop_threshold
from launcher.events import (
    AgentJoined,
    Event,
    NodeBack,
    NodeSilent,
    RankProgress,
    RanksUp,
    StepsMoving,
    StepsStopped,
    StorageBack,
    StorageSilent,
)
from launcher.moves import Inventory
from launcher.paths import RunPaths
from launcher.run import Node, NodeState, Run, RunState
from launcher.trials import Report

BEAT_S = 1.0  # to agents, which miss us after 3 s
RESET_GRACE_S = 1.0
UP_S = 30.0  # ranks that have run for so long, and tell no steps, are taken to train
STORAGE_S = 15.0  # a look at a folder that takes so long is told
_REDIAL_S = 0.2
_SCAN_S = 0.5
_SCAN_WHEN_RUNNING_S = 2.0

Message = dict[str, Any]


@dataclass
class Contact:
    """One agent as we see it. `heard_at`, `broken_at`: monotonic seconds."""

    node: str
    host: str
    port: int
    incarnation: str
    heard_at: float
    address: Message
    was_heard: bool = False  # else `heard_at` is when we began to listen
    link: wire.Link | None = None
    broken_at: float | None = None
    attempt: int = 0
    ranks: dict[str, Message] = field(default_factory=dict)
    gap_p99: float = 0.0
    storage_s: float = 0.0  # for so long the run folder has not answered there
    storage_told: bool = False
    beat_at: float = 0.0
    cleared: int = 0
    collected: frozenset[str] = frozenset()
    tried: dict[str, Report] = field(default_factory=dict)
    silent: bool = False
    came_back: bool = False  # and nobody has been told yet
    joined: bool = False
    peers_told: list[Message] | None = None
    acks: list[int] = field(default_factory=list)  # what to acknowledge with the next beat
    environment: Message = field(default_factory=dict)
    task: asyncio.Task[None] | None = None

    def moved_s(self, now: float) -> float | None:
        """Seconds since any living rank of the node moved; None without living ranks."""
        moved = [rank["moved_s"] for rank in self.ranks.values() if rank["alive"]]
        return min(moved) + (now - self.beat_at) if moved else None

    def up_s(self, now: float) -> float:
        """Seconds for which all ranks of the node have run; 0 where one does not, or tells of itself."""
        up = [rank["up_s"] if rank["alive"] and not rank["heard"] else 0.0 for rank in self.ranks.values()]
        least = min(up, default=0.0)
        return least + (now - self.beat_at) if least else 0.0


class Fleet:
    """All contacts. `emit` journals an event, `on_message(contact, message)` takes what agents report.

    `proves`: whether standing still proves anything; not of a trainer that cannot say that it saves or evaluates.
    """

    def __init__(
        self,
        paths: RunPaths,
        epoch: int,
        job_id: str,
        silence_s: float,
        emit: Callable[[Event], Event],
        on_message: Callable[[Contact, Message], None],
        on_superseded: Callable[[], None],
        *,
        proves: bool = True,
    ) -> None:
        self._paths, self._epoch, self._job_id, self._silence_s = paths, epoch, job_id, silence_s
        self._emit, self._on_message, self._on_superseded = emit, on_message, on_superseded
        self._proves = proves
        self._secret = paths.secret.read_bytes()
        self.contacts: dict[str, Contact] = {}
        self.changed = False  # other ranks than before: viewers should see them
        self._stopped = False
        self._told_up = 0  # the attempt whose ranks were told to be up
        self._scanned_at = self._beaten_at = 0.0

    # ------------------------------------------------------------ finding and dialling agents

    def know(self, node: Node) -> None:
        """An agent the journal knows; it counts as heard of just now."""
        address = {
            "node": node.name, "index": node.index, "incarnation": node.incarnation,
            "host": node.host, "port": node.port, "pid": node.pid,
        }  # fmt: skip
        self._meet(address, joined=True, silent=node.state is not NodeState.ALIVE)

    def scan(self) -> None:
        """Meet agents that have announced themselves in the run folder."""
        for file in self._paths.agents.glob("*.json"):
            with contextlib.suppress(OSError, ValueError, KeyError):
                address = json.loads(file.read_text())
                if address["job_id"] == self._job_id:
                    self._meet(address)

    def _meet(self, address: Message, *, joined: bool = False, silent: bool = False) -> None:
        known = self.contacts.get(address["node"])
        if known and known.incarnation == address["incarnation"]:
            return
        if known:
            self._forget(known)
        contact = Contact(
            address["node"], address["host"], address["port"], address["incarnation"], time.monotonic(), address,
            joined=joined, silent=silent,
        )  # fmt: skip
        self.contacts[contact.node] = contact
        contact.task = asyncio.get_running_loop().create_task(self._keep(contact))

    def _forget(self, contact: Contact) -> None:
        if contact.task:
            contact.task.cancel()
        if contact.link:
            contact.link.close()

    async def _keep(self, contact: Contact) -> None:
        """Stay connected to one agent."""
        while True:
            with contextlib.suppress(OSError, TimeoutError):
                contact.link = await wire.dial(contact.host, contact.port, self._secret)
                contact.link.send({"type": "supervisor", "epoch": self._epoch})
                contact.peers_told = None
                await self._listen(contact, contact.link)
            if contact.link is not None:
                contact.link.close()
                contact.link = None
            contact.broken_at = contact.broken_at or time.monotonic()
            await asyncio.sleep(_REDIAL_S)

    async def _listen(self, contact: Contact, link: wire.Link) -> None:
        while (message := await link.receive()) is not None:
            now = time.monotonic()
            contact.heard_at, contact.was_heard, contact.broken_at = now, True, None
            if message["type"] == "superseded":
                self._on_superseded()
                return
            if message["type"] == "inventory":
                self._joined(contact, message)
            if message["type"] in ("inventory", "beat"):
                self.changed |= message["ranks"].keys() != contact.ranks.keys()
                contact.ranks, contact.beat_at = message["ranks"], now
                contact.gap_p99 = message.get("gap_p99", contact.gap_p99)
                contact.storage_s = message.get("storage_s", contact.storage_s)
            if contact.silent and contact.beat_at == now:
                contact.silent, contact.came_back = False, True
            if message["type"] == "killed":
                contact.cleared = max(contact.cleared, message["attempt"])
                contact.attempt = max(contact.attempt, message["attempt"])
                contact.ranks = {}  # the beats of before the kill are out of date
            if message["type"] == "collected":
                contact.collected |= {message["decision"]}
            if message["type"] == "tried":
                about = {**message["report"], "digests": tuple(message["report"]["digests"])}
                contact.tried = {message["key"]: Report(**about)}  # of a round that is over nobody asks again
            self._on_message(contact, message)

    def _joined(self, contact: Contact, message: Message) -> None:
        contact.attempt, contact.environment = message["attempt"], message["environment"]
        if not contact.joined:
            contact.joined = True
            about = {key: message[key] for key in ("node", "index", "incarnation", "host", "port", "pid")}
            self._emit(AgentJoined(at=time.time(), **about))

    # ------------------------------------------------------------ what the supervisor sees and says

    def answering(self) -> dict[str, Inventory]:
        """The agents that can be talked to now."""
        return {
            contact.node: Inventory(
                contact.incarnation,
                contact.attempt,
                sum(rank["alive"] for rank in contact.ranks.values()),
                contact.cleared,
                contact.collected,
                contact.tried,
            )
            for contact in self.contacts.values()
            if contact.link is not None and contact.joined and not contact.silent and contact.beat_at
        }

    def send(self, node: str, message: Mapping[str, object]) -> None:
        contact = self.contacts.get(node)
        if contact is None or contact.link is None:
            return
        contact.link.send(dict(message))
        if message["type"] == "start":
            contact.attempt = max(contact.attempt, int(str(message["attempt"])))

    def tell(self, text: str) -> None:
        """Have the first node that can be reached say something to whoever looks."""
        reached = [contact for contact in self.contacts.values() if contact.link is not None]
        if reached:
            first = min(reached, key=lambda contact: contact.address["index"])
            self.send(first.node, {"type": "news", "text": text})

    def acknowledge(self, node: str, said: int) -> None:
        """With the next beat: this message of the agent is durable, or out of date."""
        if node in self.contacts:
            self.contacts[node].acks.append(said)

    def shift(self, late_s: float) -> None:
        """We stood still ourselves: what was not heard meanwhile proves nothing."""
        for contact in self.contacts.values():
            contact.heard_at += late_s
            contact.beat_at += late_s
            if contact.broken_at is not None:
                contact.broken_at += late_s

    def tick(self, run: Run) -> None:
        """Called several times a second: beats out, silences and stops in."""
        now = time.monotonic()
        if now - self._scanned_at > (_SCAN_WHEN_RUNNING_S if run.state is RunState.RUNNING else _SCAN_S):
            self._scanned_at = now
            self.scan()
        if now - self._beaten_at > BEAT_S:
            self._beaten_at = now
            self._beat()
        for contact in self.contacts.values():
            self._watch_silence(contact, now)
            self._watch_storage(contact)
        self._watch_steps(run, now)
        self._watch_start(run, now)
        for contact in self.contacts.values():
            if contact.came_back:  # told only after what its ranks did meanwhile
                contact.came_back = False
                self._emit(NodeBack(at=time.time(), node=contact.node))

    def _beat(self) -> None:
        """Be heard; and let every agent know the others, whom it may have to ask about us one day."""
        addresses = [contact.address for contact in self.contacts.values()]
        for contact in self.contacts.values():
            if contact.link is None:
                continue
            contact.link.send({"type": "beat", "acks": contact.acks})
            contact.acks = []
            if contact.peers_told != addresses:
                contact.link.send({"type": "peers", "peers": addresses})
                contact.peers_told = addresses

    def is_silent(self, node: str) -> bool:
        contact = self.contacts.get(node)
        return contact is None or contact.silent

    def last_sign(self, node: str) -> float | None:
        """When the node was last heard (Unix seconds); None if this supervisor never did."""
        contact = self.contacts.get(node)
        return time.time() - (time.monotonic() - contact.heard_at) if contact and contact.was_heard else None

    def _watch_silence(self, contact: Contact, now: float) -> None:
        if contact.silent or not contact.joined:
            return
        reset = contact.broken_at is not None and now - contact.broken_at > RESET_GRACE_S
        if reset or now - contact.heard_at > self._silence_s:
            contact.silent = True
            since = time.time() - (now - contact.heard_at)
            cause = "reset" if reset else "silence"
            self._emit(NodeSilent(at=time.time(), node=contact.node, since=since, cause=cause))

    def _watch_storage(self, contact: Contact) -> None:
        is_silent = contact.storage_s > STORAGE_S
        if contact.joined and is_silent != contact.storage_told:
            contact.storage_told = is_silent
            at = time.time()
            told = StorageSilent(at=at, node=contact.node, since=at - contact.storage_s)
            self._emit(told if is_silent else StorageBack(at=at, node=contact.node))

    def _watch_steps(self, run: Run, now: float) -> None:
        """Emit `steps_stopped` and `steps_moving` for the live attempt, by its ranks on answering nodes."""
        attempt = run.live_attempt
        if attempt is None or run.pending is not None:
            self._stopped = False
            return
        answering = [
            contact
            for contact in self.contacts.values()
            if contact.node in attempt.slots and not contact.silent and contact.attempt == attempt.number
        ]
        moved = [(seconds, c) for c in answering if (seconds := c.moved_s(now)) is not None]
        if not moved:
            return
        still_s = min(seconds for seconds, _ in moved)
        usual_s = max(contact.gap_p99 for _, contact in moved)
        threshold = stop_threshold(usual_s)
        if self._stopped and still_s < threshold:
            self._stopped = False
            self._emit(StepsMoving(at=time.time(), attempt=attempt.number))
        elif not self._stopped and still_s > threshold:
            self._stopped = True
            ranks = {
                int(rank): RankProgress(
                    node=contact.node, step=at["step"], section=at["section"], phase=at["phase"],
                    os_state=at["os_state"],
                )
                for _, contact in moved
                for rank, at in contact.ranks.items()
            }  # fmt: skip
            in_phase = any(at.phase for at in ranks.values())
            proof = self._proves and attempt.first_step_at is not None and not in_phase
            self._emit(
                StepsStopped(
                    at=time.time(), attempt=attempt.number, since=time.time() - still_s, proof=proof,
                    usual_s=usual_s, ranks=ranks,
                )
            )  # fmt: skip

    def _watch_start(self, run: Run, now: float) -> None:
        """Emit `ranks_up` for an attempt whose first step nobody need ever tell."""
        attempt = run.live_attempt
        if attempt is None or run.state is not RunState.STARTING or not run.is_unobserved:
            return
        contacts = [self.contacts.get(node) for node in attempt.slots]
        up_s = min(c.up_s(now) if c and not c.silent and c.attempt == attempt.number else 0.0 for c in contacts)
        if up_s >= UP_S and self._told_up != attempt.number:
            self._told_up = attempt.number
            self._emit(RanksUp(at=time.time(), attempt=attempt.number, since=time.time() - up_s))

    def attempt_changed(self) -> None:
        """A new attempt begins: nothing is known of its steps."""
        self._stopped = False

    def close(self) -> None:
        for contact in self.contacts.values():
            self._forget(contact)
