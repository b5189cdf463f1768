"""The supervisor: the loop that joins agents, journal, decisions and deeds. One per epoch, replaceable at any instant.

    python -P -m launcher.supervisor RUN_FOLDER NODE AGENT_PID

Messages become events; events are journaled; durable events go through `advance` and `decide`; what is to be done
follows from `plan`. Nothing is acted upon or acknowledged before it is durable.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from launcher import wire
from launcher.backends.choice import backend_of
from launcher.backends.report import drain_changes
from launcher.commands import Commands, Grounds
from launcher.declared import facts_of
from launcher.drainer import drainer_of
from launcher.errands import Errands
from launcher.events import (
    AttemptStarted,
    CommandReceived,
    Decision,
    EpochStarted,
    Event,
    NodeDown,
    NodeExamined,
    Notified,
    RunHeld,
    RunPaused,
    RunResumed,
    Sealed,
    StepDone,
    Tick,
    Warned,
)
from launcher.facts import Facts
from launcher.fleet import Contact, Fleet, Message
from launcher.fold import Fold
from launcher.host_watch import HostWatch
from launcher.journal import JournalWriter, claim_epoch, newest_epoch, seal
from launcher.keepers import keeper_of
from launcher.live import live_view
from launcher.moves import Emit, Errand, Inspect, Limits, Requeue, Search, Send
from launcher.moves import Fleet as FleetView
from launcher.news import news
from launcher.paths import RunPaths, owner_of, write_atomically
from launcher.reader import Damage
from launcher.recovery import plan
from launcher.run import ENDING, NodeState, Run, RunState
from launcher.sizes import smaller
from launcher.snapshots import Snapshots, policy_version, read_fold, read_run
from launcher.spec import read_resolved
from launcher.succession import Succession
from launcher.surroundings import Surroundings
from launcher.takeover import EXIT_PAST_JOB
from launcher.terms import Tier
from launcher.testimony import Testimony, examined_of
from launcher.warm import ENDS_OF_A_JOB, die_with
from policies.amended import policy_now
from policies.load import read_policy
from policies.schema import Policy

TICK_S = 0.6  # at most; half of it when agents are heard meanwhile
LATE_S = 2.0
SETTLE_S = 2.0
LEAVE_S = 5.0
LAST_WRITES_S = 2.0
LIVE_S = 1.0
EXAMINED_WITHIN_S = 30.0  # then a first start no longer waits for it
_POLL_S = 0.7
_RESEND_S = {"examine": 5.0, "trial": 5.0, "to_rank": 5.0, "collect": 15.0, "store": 2.0, "start": 2.0}

log = logging.getLogger("supervisor")


class Supervisor:
    """One incarnation."""

    def __init__(self, paths: RunPaths, node: str) -> None:
        self.paths, self.node = paths, node
        self.spec = read_resolved(paths.spec)
        self.policy = read_policy(paths.policy)
        self.job_id = os.environ.get("OPT_LAUNCH_JOB", "")
        self.host = os.environ.get("OPT_LAUNCH_HOST", "127.0.0.1")
        cluster = self.spec.cluster
        self.limits = Limits(
            cluster.wait_for_node, cluster.continue_by, self.spec.abilities, smaller(self.spec),
            begins_smaller=cluster.backend == "own",
            examined_within_s=0.0 if self.spec.health.before_start == "none" else EXAMINED_WITHIN_S,
        )  # fmt: skip
        self.fold = Fold(self.policy)
        self.testimony = Testimony(lambda: self.run_, frozenset(self.spec.can.codes("done")))
        self.snapshots = Snapshots(paths, policy_version(paths))
        self.over = asyncio.Event()
        self.started_at = time.monotonic()
        self._in_flight: set[int] = set()  # what `plan` would not know of yet
        self._ticking = False
        self._acks: dict[int, tuple[str, int]] = {}  # seq -> who to acknowledge to, once durable
        self._sent: dict[tuple[str, str], float] = {}
        self._store: tuple[int, str, int] | None = None
        self._down: set[str] = set()
        facts = facts_of(self.spec)
        grounds = Grounds(self.spec.abilities, facts, self._policy_now, owner_of(paths.root))
        self.commands = Commands(paths, lambda: self.run_, self.emit, grounds)
        backend = backend_of(self.spec)
        self.surroundings = Surroundings(paths, self.spec.command or (), self.emit)
        self._node_states = backend.node_states(paths, self.job_id)
        self.hosts = HostWatch(self.spec, lambda text: _from_thread(self._loop, self._warn, text))
        self.succession = Succession(
            paths, self.spec, self.job_id, backend, self._node_states, self.emit, lambda: self.hosts.to_exclude
        )
        self.errands = Errands(paths, self.emit)
        self.facts = Facts(paths.root, self._node_states, self.policy.detectors, self.emit)
        self.drainer = drainer_of(self.spec, self.emit)
        self._live_draft = paths.live.with_suffix(f".{os.getpid()}")
        self._ended_at: float | None = None
        self._polled_at = self._live_at = self._ticked_at = 0.0
        self._tick_due = asyncio.Event()

    @property
    def run_(self) -> Run:
        return self.fold.run

    def _policy_now(self) -> Policy:
        return policy_now(self.policy, self.fold.memory.engine)

    # ------------------------------------------------------------ taking over

    async def serve(self) -> int:
        """Take over and supervise until the run is over or a successor exists; the exit status.

        The processes of a job that another has taken the place of, stopped perhaps and woken much later, must not
        take the run away from it.
        """
        self._loop = asyncio.get_running_loop()
        if self.job_id in read_run(self.paths, steps=False).past_jobs:
            log.warning("job %s is a matter of the past", self.job_id)
            return EXIT_PAST_JOB
        self.epoch = claim_epoch(self.paths)
        sealed = seal(self.paths, self.epoch)
        damaged = self._take_over(sealed)
        begun_anew = self._begin(sealed, damaged)
        server = await wire.serve(self.host, 0, self.paths.secret.read_bytes(), self.commands.serve)
        address = {"host": self.host, "port": server.sockets[0].getsockname()[1], "pid": os.getpid(), "node": self.node}
        write_atomically(self.paths.supervisor_address(self.epoch), json.dumps(address))
        for known in () if begun_anew else self.run_.nodes.values():
            self.fleet.know(known)
        for unanswered in list(self.run_.commands.values()):
            self.commands.execute(self.run_, unanswered)
        await self._tick_forever()
        server.close()
        self.fleet.close()
        self.hosts.close(LAST_WRITES_S)
        self.writer.close()
        self.snapshots.close()
        return 0

    def _take_over(self, sealed: tuple[Sealed, ...]) -> list[Damage]:
        """Be where the predecessors were, and open a journal; what of theirs could not be read."""
        loop = self._loop
        self.fold, damaged = read_fold(self.paths, self.policy, sealed)
        self._remember_all()
        self.fleet = Fleet(
            self.paths, self.epoch, self.job_id, self.spec.cluster.silence, self.emit, self._from_agent,
            lambda: self._lost(RuntimeError("an agent obeys a higher epoch")),
            proves=not (self.spec.telemetry and self.spec.telemetry.by_lines),
        )  # fmt: skip
        self.keeper = keeper_of(self.spec, self.paths, self.emit, self.fleet.acknowledge, self.fleet.send)
        self.writer = JournalWriter(
            self.paths,
            self.epoch,
            on_durable=lambda events: _from_thread(loop, self._durable, events),
            on_lost=lambda error: _from_thread(loop, self._lost, error),
            soon=loop.call_soon,
        )
        return damaged

    def _begin(self, sealed: tuple[Sealed, ...], damaged: list[Damage]) -> bool:
        """Say who we are, what is damaged and what was decided and not said; whether our job is a new one."""
        started = EpochStarted(
            at=time.time(), host=socket.gethostname(), pid=os.getpid(), node=self.node, job_id=self.job_id,
            sealed=sealed,
        )  # fmt: skip
        self.emit(started)
        if begun_anew := bool(self.run_.nodes) and self.run_.job_id != self.job_id and not self.run_.state.is_terminal:
            self._begin_anew(self.run_)
        for damage in damaged:
            self.emit(Warned(at=time.time(), text=f"{damage.file} at byte {damage.offset}: {damage.reason}"))
        for judgement in self.fold.unsaid():
            self.emit(judgement)
        return begun_anew

    def _begin_anew(self, former: Run) -> None:
        """The scheduler has begun the job anew: the processes that the journal knows are gone. A halt stays."""
        self.emit(RunResumed(at=time.time(), author="the scheduler"))
        if former.state is RunState.HELD:
            self.emit(RunHeld(at=time.time(), reason=former.hold_reason))
        if former.paused_by:
            self.emit(RunPaused(at=time.time(), reason=former.paused_by))
        self.succession.begun()

    def _remember_all(self) -> None:
        """What the predecessors had journaled, and may be told again."""
        self.testimony.remember_all(self.run_)
        for id_ in self.fold.memory.commands:
            self.commands.remember(id_)

    def _remember(self, event: Event) -> None:
        """What is needed to recognise a message that is said twice."""
        self.testimony.remember(event)
        if isinstance(event, CommandReceived):
            self.commands.remember(event.id)

    # ------------------------------------------------------------ the journal

    def emit(self, event: Event) -> Event:
        """Journal an event; it takes effect once durable, and nothing is planned before that."""
        event = self.writer.put(event)
        self._remember(event)
        if not isinstance(event, StepDone):
            self._in_flight.add(event.seq)
        return event

    def _durable(self, events: list[Event]) -> None:
        for event in events:
            for judgement in self.fold.take(event):
                log.info("%s %s: %s", judgement.type, judgement.id, judgement.why)
                self.emit(judgement)
            self._in_flight.discard(event.seq)
            self._react(event)
            if event.seq in self._acks:
                self.fleet.acknowledge(*self._acks.pop(event.seq))
        self.snapshots.durable(self.fold)
        self._replan()

    def _react(self, event: Event) -> None:
        """The shell's own book-keeping for a durable event."""
        match event:
            case Tick():
                self._ticking = False
            case AttemptStarted():
                self.fleet.attempt_changed()
                self._sent.clear()
                self._record_environment(event)
                self._look_at_who_left(event)
                log.info("attempt %d from %s on %s", event.attempt, event.restore, list(event.slots))
            case Decision() if event.mode == "act":
                self._act_beside(event)
            case NodeExamined() if self.run_.live_attempt and any(one.verdict == "fail" for one in event.findings):
                self._look_around(event.tier)
        if text := news(event, self.paths.name):
            self.fleet.tell(text)
        self.keeper.durable(self.run_, event)
        self.succession.durable(self.run_, event)
        self.drainer.durable(self.run_, event)
        self.hosts.durable(self.run_, event)
        self.commands.durable(self.run_, event)

    def _act_beside(self, decision: Decision) -> None:
        """What a decision wants done beside the course of the run; the rest is for `plan`."""
        if "notify" in decision.actions:
            text = f"{decision.rule}: {decision.why}"
            self.emit(Notified(at=time.time(), channel=str(decision.actions["notify"]), text=text))
        attempt = self.run_.live_attempt
        if "collect" in decision.actions and attempt and not ENDING & decision.actions.keys():
            for node in attempt.slots:
                message = {"type": "collect", "decision": decision.id, "incident": decision.incident}
                self.fleet.send(node, message)

    def _record_environment(self, event: AttemptStarted) -> None:
        contacts = self.fleet.contacts
        by_node = {node: contacts[node].environment for node in event.slots if node in contacts}
        self.surroundings.record(event.attempt, by_node)

    def _look_at_who_left(self, event: AttemptStarted) -> None:
        """A node whose ranks were taken from it is examined at leisure: it costs nobody anything now."""
        if self.spec.health.before_start != "standard" or len(self.run_.attempts) < 2:
            return
        for node in self.run_.attempts[-2].slots.keys() - event.slots.keys():
            self.fleet.send(node, {"type": "examine", "id": f"left {event.attempt}", "tier": "standard"})

    def _look_around(self, tier: Tier) -> None:
        """Something fails on a node while ranks train: whether others have it too, and whether it lasts."""
        for node in self.fleet.contacts:
            self.fleet.send(node, {"type": "look", "tier": tier})

    def _warn(self, text: str) -> None:
        self.emit(Warned(at=time.time(), text=text))

    def _lost(self, error: Exception) -> None:
        log.warning("epoch %d ends: %s", self.epoch, error)
        self.over.set()

    # ------------------------------------------------------------ the loop

    async def _tick_forever(self) -> None:
        loop = asyncio.get_running_loop()
        expected = time.monotonic()
        while not self.over.is_set():
            late_s = time.monotonic() - expected
            if late_s > LATE_S:
                if newest_epoch(self.paths) > self.epoch:
                    self._lost(RuntimeError(f"stood still for {late_s:.1f}s and was replaced"))
                    return
                self.fleet.shift(late_s)
            self._tick()
            self._ticked_at = time.monotonic()
            expected = self._ticked_at + TICK_S
            self._tick_due = asyncio.Event()
            by_clock = loop.call_later(TICK_S, self._tick_due.set)
            await self._tick_due.wait()
            by_clock.cancel()

    def _tick(self) -> None:
        now = time.monotonic()
        self.fleet.tick(self.run_)
        if self.fold.deadline is not None and time.time() >= self.fold.deadline and not self._ticking:
            self._ticking = True
            self.emit(Tick(at=time.time()))
        if now - self._polled_at > _POLL_S:
            self._polled_at = now
            self._replan()  # some moves are due by time alone
            self._poll_backend()
            self.succession.look()
            self.facts.look()
            self.commands.look_for_files(self.run_)
        if now - self._live_at > LIVE_S or self.fleet.changed:
            self._live_at, self.fleet.changed = now, False
            self._write_live()
        if self.run_.state.is_terminal or self.succession.has_left(bool(self.fleet.answering())):
            self._ended_at = self._ended_at or now
            if self.errands.busy:
                return  # whose time is limited
            if now - self._ended_at > LEAVE_S or (now - self._ended_at > 1.0 and not self.fleet.answering()):
                self.over.set()

    def _poll_backend(self) -> None:
        reports = self._node_states.read()
        if not self._in_flight:  # else the run may not yet know what was said before
            for event in drain_changes(self.run_, reports, time.time()):
                self.emit(event)
        for name, report in reports.items():
            node = self.run_.nodes.get(name)
            if node is None or not report.down or node.incarnation in self._down:
                continue
            if report.agent_pid is None and not self.fleet.is_silent(name):
                continue  # hearsay, and we hear the node ourselves
            if report.agent_pid not in (None, node.pid):
                continue  # of an agent before this one
            self._down.add(node.incarnation)
            if node.state is not NodeState.LOST:
                since = self.fleet.last_sign(name) or 0.0
                self.emit(NodeDown(at=time.time(), node=name, reason=report.down, since=since))

    def _write_live(self) -> None:
        with contextlib.suppress(OSError):
            contacts, job = self.fleet.contacts.values(), self.succession.told
            saves = self.limits.trainer.known(has_told=self.run_.has_told).saves != "never"
            text = json.dumps(live_view(self.run_, self.epoch, contacts, job, time.time(), saves=saves))
            self._live_draft.write_bytes(text.encode())
            self._live_draft.replace(self.paths.live)

    # ------------------------------------------------------------ planning and doing

    def _replan(self) -> None:
        if self._in_flight or self.over.is_set() or self._learns_of_hosts():
            return
        view = FleetView(
            now=time.time(),
            answering=self.fleet.answering(),
            settled=self._settled(),
            store=self._store,
            inspected=self.keeper.inspected,
            searched=self.keeper.searched,
            unfinished=self.keeper.unfinished,
            committing=self.keeper.committing,
        )
        for move in plan(self.run_, view, self.limits):
            match move:
                case Emit(event):
                    self.emit(event)
                case Send(node, message):
                    self._send(node, message)
                case Inspect(checkpoint):
                    self.keeper.inspect(self.run_.checkpoints[checkpoint])
                case Search():
                    self.keeper.search()
                case Requeue(exclude):
                    self.succession.requeue(exclude)
                case Errand(decision):
                    self.errands.start(self.run_, decision)

    def _learns_of_hosts(self) -> bool:
        """Tell the run who is left out. A start waits until that is known, and until it is durable."""
        if not self.hosts.is_on:
            return False
        environments = {node: contact.environment for node, contact in self.fleet.contacts.items() if contact.joined}
        settled = time.monotonic() - self.started_at > self.limits.wait_for_node_s
        told = [*self.hosts.changes(self.run_, environments, settled=settled)]
        for event in told:
            self.emit(event)
        return bool(told) or (self.run_.live_attempt is None and not self.hosts.is_ready)

    def _settled(self) -> bool:
        expected = self.run_.nodes_wanted + self.run_.spares_wanted
        known = self.run_.nodes.keys() & self.fleet.answering().keys()
        return len(known) >= expected or time.monotonic() - self.started_at > SETTLE_S

    def _send(self, node: str, message: Any) -> None:
        """Send what is still needed, but not at every turn."""
        key = (node, json.dumps(message, sort_keys=True))
        now = time.monotonic()
        if now - self._sent.get(key, -1e9) < _RESEND_S.get(message["type"], 1.0):
            return
        self._sent[key] = now
        if message["type"] == "start":
            restore = message["restore"]
            known = self.run_.checkpoints[restore].path if restore else ""
            message = {**message, "restore": known or (str(self.paths.checkpoint(*restore)) if restore else "")}
        self.fleet.send(node, message)

    # ------------------------------------------------------------ what agents say

    def _from_agent(self, contact: Contact, message: Message) -> None:
        said = message.get("said")
        if said is None:
            if message["type"] == "store":
                self._store = (message["attempt"], message["host"], message["port"])
            if message["type"] in ("inventory", "killed", "collected", "store"):
                self._replan()
            elif time.monotonic() - self._ticked_at > TICK_S / 2:
                self._tick_due.set()  # a beat has woken us anyway
            return
        if message["type"] in ("save_part", "save_finished", "save_failed"):
            self.keeper.take(self.run_, contact.node, message)
            return
        event = self._event_of(contact.node, message)
        if event is None:
            self.fleet.acknowledge(contact.node, said)
            return
        self._acks[self.emit(event).seq] = (contact.node, said)

    def _event_of(self, node: str, message: Message) -> Event | None:
        """The event of an agent's message; None if it is out of date or was said before."""
        at = message["at"]
        if message["type"] == "warned":
            return Warned(at=at, text=message["text"])
        if message["type"] == "job_ending":
            return self.succession.ending(at, message["reason"], decided=message["decided"])
        if message["type"] == "unkillable":
            return NodeDown(at=at, node=node, reason=f"processes {message['pids']} survive SIGKILL")
        if message["type"] == "checkpoint_rejected":
            return self._rejection(message["attempt"], message)
        if message["type"] == "examined":
            return examined_of(self.run_, node, self.fleet.contacts[node].incarnation, message)
        return self.testimony.event_of(node, message)

    def _rejection(self, attempt: int, message: Message) -> Event | None:
        """A rank's word counts even if its attempt has ended meanwhile; once per checkpoint is enough."""
        of = next((one for one in self.run_.attempts if one.number == attempt), None)
        if of is None or of.restore is None or not self.run_.checkpoints[of.restore].usable:
            return None
        return self.keeper.rejection(of.restore, f"rank {message['rank']}: {message['reason']}")


def _from_thread(loop: asyncio.AbstractEventLoop, function: Callable[[Any], None], argument: object) -> None:
    loop.call_soon_threadsafe(function, argument)


def main(argv: list[str]) -> int:
    root, node, agent_pid = argv
    die_with(int(agent_pid))
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    for number in ENDS_OF_A_JOB:
        signal.signal(number, signal.SIG_IGN)
    gc.freeze()  # what the imports made stays: no collection need look at it again
    return asyncio.run(Supervisor(RunPaths(Path(root)), node).serve())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
