"""The host ledger, on the supervisor's side. Its files are touched in a thread: a disk that stalls stalls nobody."""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from launcher.backends.choice import has_scheduler
from launcher.backends.slurm_hosts import to_exclude
from launcher.errors import LaunchError
from launcher.events import Event
from launcher.hosts.fold import Hosts
from launcher.hosts.guard import Kept, Scene, Suspicion, judge
from launcher.hosts.ledger import Ledger
from launcher.hosts.of_run import Machines, blamed, changes, seen, served, serving, suspicions
from launcher.hosts.records import Excluded, Record
from launcher.hosts.standing import excluded
from launcher.paths import user_name
from launcher.run import NodeState, Run
from launcher.sections import RunSpec

READ_S = 30.0
SERVED_S = 3600.0
ASK_AGAIN = 20  # readings, before the scheduler is asked once more which nodes it has
PATIENCE_S = 5.0  # a start waits so long at most to hear who is left out


class HostWatch:
    """What is remembered of this run, and who is left out of it. Virtual nodes are no hosts: of them nothing is.

    `tell(text)` is called from the thread.
    """

    def __init__(self, spec: RunSpec, tell: Callable[[str], None]) -> None:
        self._spec, self._tell = spec, tell
        self._ledger = Ledger(Path(spec.hosts.ledger)) if has_scheduler(spec) else None
        self._by = f"run {spec.name} of {user_name(os.getuid())}"
        self._left_out: Mapping[str, Excluded] = {}
        self.to_exclude: tuple[str, ...] = ()  # what the scheduler is told when the job begins anew
        self._asked_about: Collection[str] = ()  # of these the scheduler was asked
        self._machines: Machines = {}
        self._jobs: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._asked = self._done = 0  # readings
        self._asked_at = self._served_at = -1e9
        self._told: set[str] = set()
        if self._ledger is not None:
            threading.Thread(target=self._work, args=[self._ledger], name="hosts", daemon=True).start()

    @property
    def is_on(self) -> bool:
        """Whether anything is remembered."""
        return self._ledger is not None

    @property
    def is_ready(self) -> bool:
        """Whether it is known who is left out, or no longer worth waiting for."""
        return self._done == self._asked > 0 or time.monotonic() - self._asked_at > PATIENCE_S

    def changes(self, run: Run, environments: Mapping[str, Mapping[str, Any]], *, settled: bool) -> Iterator[Event]:
        """What the run is to know before anything is planned. `environments`: what agents say of their machines."""
        now, machines = time.monotonic(), {node: _machine(told) for node, told in environments.items() if told}
        if machines != self._machines or now - self._asked_at > READ_S:
            self._machines, self._asked, self._asked_at = machines, self._asked + 1, now
            self._jobs.put(self._read)
        if run.live_attempt and now - self._served_at > SERVED_S:
            self._served_at = now
            if hours := serving(run, run.live_attempt, time.time(), self._by):
                self._jobs.put(partial(self._write, *hours))
        return changes(run, self._left_out, time.time(), settled=settled) if self._done else iter(())

    def durable(self, run: Run, event: Event) -> None:
        """Remember what an event says of hosts."""
        if not self.is_on:
            return
        records = blamed(run, event, self._by)
        if to_write := [*records, *served(run, event, self._by)]:
            self._jobs.put(partial(self._write, *to_write))
        for one in suspicions(event, records):
            usable = [name for name, node in run.nodes.items() if node.state is not NodeState.LOST]
            self._jobs.put(partial(self._judge, one, Scene(run.name, self._by, usable, run.nodes_wanted)))

    def close(self, timeout_s: float) -> None:
        """Write what is left to write, as far as that goes in time."""
        if self.is_on:
            over = threading.Event()
            self._jobs.put(over.set)
            over.wait(timeout_s)

    # ------------------------------------------------------------ in the thread

    def _work(self, ledger: Ledger) -> None:
        while True:
            job = self._jobs.get()
            try:
                job()
            except LaunchError as error:
                self._tell_once(f"{error.message}: {ledger.folder}: nothing is remembered of hosts meanwhile")
            if job == self._read:
                self._done += 1

    def _hosts(self) -> Hosts:
        assert self._ledger is not None
        reading = self._ledger.read()
        for damage in reading.damage:
            self._tell_once(f"the host ledger: {damage}")
        return reading.hosts

    def _read(self) -> None:
        hosts = self._hosts()
        known = {name: (host.identity.boot_id, host.identity.gpus) for name, host in hosts.items() if host.identity}
        if new := seen(self._machines, known, time.time(), self._by):
            self._write(*new)
            hosts = self._hosts()
        self._left_out = excluded(hosts, time.time())
        if self._left_out.keys() != self._asked_about or self._done % ASK_AGAIN == 0:
            self._asked_about = self._left_out.keys()
            self.to_exclude = tuple(to_exclude(self._spec, self._left_out))

    def _write(self, *records: Record) -> None:
        assert self._ledger is not None
        self._ledger.append(*records)

    def _judge(self, one: Suspicion, scene: Scene) -> None:
        verdict = judge(self._hosts(), one, scene, time.time())
        if isinstance(verdict, Kept):
            if verdict.guarded:
                self._tell(f"{verdict.host} is not excluded from other runs: {verdict.why}")
            return
        self._write(verdict)
        self._left_out = excluded(self._hosts(), time.time())
        lasts = f"for {(verdict.until - verdict.at) / 60:.0f} minutes" if verdict.until else "until somebody allows it"
        undo = f"opt-launch hosts allow {verdict.host}"
        self._tell(f"{verdict.host} is excluded from all runs {lasts}: {verdict.reason}: undo: {undo}")

    def _tell_once(self, text: str) -> None:
        if text not in self._told:
            self._told.add(text)
            self._tell(text)


def _machine(told: Mapping[str, Any]) -> tuple[str, tuple[str, ...]]:
    return str(told.get("boot_id", "")), tuple(map(str, told.get("gpus", ())))
