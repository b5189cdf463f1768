"""The agent: one per node. Starts ranks, watches them, tells the supervisor, and replaces a lost supervisor.

    python -P -m launcher.agent RUN_FOLDER NODE INDEX

It obeys the highest epoch it has seen. Whatever the supervisor must not miss stays in the outbox until
acknowledged, and is said again to the next one.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import os
import shutil
import signal
import sys
import tempfile
import time
import uuid
from pathlib import Path

from launcher import access, control, wire
from launcher.backends.choice import backend_of, has_scheduler
from launcher.environment import environment
from launcher.evidence import collect
from launcher.foreground import GENTLE, Foreground
from launcher.line_watch import watched_by
from launcher.machine import binding_of
from launcher.other_agents import OtherAgents
from launcher.paths import RunPaths, write_atomically
from launcher.program import program_of
from launcher.rank_env import rank_env
from launcher.ranks import Message, Ranks
from launcher.spec import read_resolved
from launcher.storage_probe import StorageProbe
from launcher.takeover import Finding, Takeover
from launcher.warm import die_with
from policies.load import read_policy

SAMPLE_S = 0.25
BEAT_S = 0.5
STEPS_S = 1.0  # ordinary steps are told together so often
LATE_S = 2.0
LAST_WAITS_S = 30.0  # for the other agents to leave an allocation that is given up
LAST_WORDS_S = 2.0  # how long a reader may take to read what is left
END_GRACE_S = 1.0  # for a first node that is just leaving
EXIT_ABANDONED = 75


class Agent:
    """One node's agent."""

    def __init__(self, paths: RunPaths, node: str, index: int, foreground: Foreground | None = None) -> None:
        self.paths, self.node, self.index = paths, node, index
        self.incarnation = uuid.uuid4().hex[:12]
        self.job_id = os.environ.get("OPT_LAUNCH_JOB", "")
        self.host = os.environ.get("OPT_LAUNCH_HOST", "127.0.0.1")
        self.secret = paths.secret.read_bytes()
        parent = os.environ.get("OPT_LAUNCH_SCRATCH") or None
        self.scratch = Path(tempfile.mkdtemp(prefix=f"opt-launch-{os.getpid()}-{node}-", dir=parent))
        self._spec = read_resolved(paths.spec)
        access.share(self._spec.access)  # supervisor and ranks, our children, have it from us
        self._others = OtherAgents(paths, node, self.job_id, self.secret)
        self._takeover = Takeover(paths, node, index, self._others, self._spec.cluster.unsupervised)
        self._backend, self._in_a_job = backend_of(self._spec), has_scheduler(self._spec)
        program = program_of(self._spec, paths, node, self.scratch, self.host)
        self.binding = binding_of(self._spec)
        self.environment = environment(self._spec.launch, os.environ) | {"bind": self.binding.told()}
        watched = watched_by(read_policy(paths.policy))
        self.ranks = Ranks(node, self.scratch, program, paths.agent_log(node), self.say, foreground, watched)
        self._storage = StorageProbe(paths.root)
        self._foreground = foreground
        self.epoch = 0
        self.link: wire.Link | None = None
        self._outbox: dict[int, Message] = {}
        self._sent_at = 0.0
        self._said = self._sent = 0  # how many messages there were, and the last one that this link has carried
        self._first_step_of = 0  # the newest attempt of which a step was told
        self._beat_at = 0.0
        self._stopped = False  # whether the ranks stood still at the last beat
        self._leaving = asyncio.Event()
        self._ending = False  # the run is over, and we leave
        self._ended_by_scheduler = False
        self._exit_code = 0
        self._outcome = ""  # the state in which the run has ended
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self, *, starts_supervisor: bool) -> int:
        """Serve until told to leave; the exit status."""
        server = await wire.serve(self.host, 0, self.secret, self._serve)
        self.port = server.sockets[0].getsockname()[1]
        self.ranks.open()
        if self.binding.is_lacking:
            self.say({"type": "warned", "text": f"{self.node}: ranks are not bound to CPUs: {self.binding.why}"})
        self._announce()
        if starts_supervisor:
            self._takeover.start(self.epoch)
        loop = asyncio.get_running_loop()
        for number in GENTLE if self._foreground else (signal.SIGTERM,):
            if signal.getsignal(number) is not signal.SIG_IGN:  # as with nohup, or in the background of a script
                loop.add_signal_handler(number, self._terminated, number)
        loop.add_signal_handler(signal.SIGUSR2, self._job_ends, "the time limit of the job", False)
        loop.call_soon(self._turn, time.monotonic())
        await self._leaving.wait()
        self._withdraw()
        server.close()
        await self.ranks.close()
        shutil.rmtree(self.scratch, ignore_errors=True)
        if self._foreground:
            self._foreground.close(LAST_WORDS_S)
            return self._exit_code or self._foreground.exit_code(self._outcome)
        return self._exit_code

    def _announce(self) -> None:
        address = {**self._address(), "job_id": self.job_id}
        write_atomically(self.paths.agent(self.node), json.dumps(address))

    def _withdraw(self) -> None:
        """Take our address away, unless another agent of this node has put its own there."""
        with contextlib.suppress(OSError, ValueError):
            if json.loads(self.paths.agent(self.node).read_text())["incarnation"] == self.incarnation:
                self.paths.agent(self.node).unlink()

    def _address(self) -> Message:
        return {
            "node": self.node,
            "index": self.index,
            "incarnation": self.incarnation,
            "host": self.host,
            "port": self.port,
            "pid": os.getpid(),
        }

    # ------------------------------------------------------------ to the supervisor

    def say(self, message: Message) -> None:
        """Tell the supervisor, and keep telling until it has acknowledged. Ordinary steps wait a little."""
        self._said += 1
        self._outbox[self._said] = {**message, "said": self._said, "at": message.get("at", time.time())}
        if not self._is_ordinary_step(message):
            self._send_outbox()

    def _is_ordinary_step(self, message: Message) -> bool:
        """Nothing is to be decided on its news: neither an attempt's first step nor one with an infinity in it."""
        if message["type"] != "step_done":
            return False
        first = message["attempt"] > self._first_step_of
        self._first_step_of = message["attempt"]
        return not first and not any(isinstance(value, str) for value in message["metrics"].values())

    def _send_outbox(self) -> None:
        if self.link is None:
            return
        for said in range(self._sent + 1, self._said + 1):
            if said in self._outbox:
                self.link.send(self._outbox[said])
        self._sent, self._sent_at = self._said, time.monotonic()

    def _turn(self, expected: float) -> None:
        """Look at the ranks and for a supervisor; beat when it is time, or when ranks stop or move. Comes back."""
        if self._leaving.is_set():
            return
        now = time.monotonic()
        if now - expected > LATE_S:
            self.ranks.shift(now - expected)
            self._takeover.shift(now - expected)
        self.ranks.sample()
        still_s, storage_s = self.ranks.still_s(), self._storage.waits_s()
        stopped = still_s > 1.0 and still_s > stop_threshold(self.ranks.gap_p99())
        if self.link and (now - self._beat_at > BEAT_S - SAMPLE_S / 2 or stopped != self._stopped):
            self._beat_at, self._stopped = now, stopped
            if now - self._sent_at > STEPS_S - SAMPLE_S / 2:
                self._send_outbox()
            beat = {"ranks": self.ranks.progress(), "gap_p99": self.ranks.gap_p99(), "storage_s": storage_s}
            self.link.send({"type": "beat", **beat})
        self._watch_supervisor(now)
        if self._ended_by_scheduler and not any(rank.alive for rank in self.ranks.by_rank.values()):
            self._leaving.set()
        if not self._leaving.is_set():
            pause_s = SAMPLE_S if self.ranks.by_rank else BEAT_S
            asyncio.get_running_loop().call_later(pause_s, self._turn, now + pause_s)

    # ------------------------------------------------------------ from the supervisor and other agents

    async def _serve(self, link: wire.Link) -> None:
        hello = await link.receive()
        if hello is None:
            return
        if hello["type"] == "ask":
            hears = self.link is not None and self._takeover.hears
            link.send({"type": "hears", "hears": hears, "epoch": self.epoch})
            await link.flush()
        elif hello["type"] == "supervisor":
            await self._obey(link, hello["epoch"])

    async def _obey(self, link: wire.Link, epoch: int) -> None:
        if epoch < self.epoch:
            link.send({"type": "superseded", "epoch": self.epoch})
            return await link.flush()
        if self.link is not None:
            self.link.close()
        self.link, self.epoch = link, epoch
        self._takeover.heard()
        inventory = {"attempt": self.ranks.attempt, "ranks": self.ranks.progress(), "environment": self.environment}
        link.send({"type": "inventory", **self._address(), **inventory})
        self._sent = 0
        self._send_outbox()
        try:
            while (message := await link.receive()) is not None and self.link is link:
                self._takeover.heard()
                self._handle(message)
        finally:
            if self.link is link:
                self.link = None

    def _handle(self, message: Message) -> None:
        match message["type"]:
            case "beat":
                for said in message["acks"]:
                    self._outbox.pop(said, None)
            case "peers":
                self._others.told = message["peers"]
            case "store":
                self._spawn(self._store(message["attempt"]))
            case "start":
                self._spawn(self._start(message))
            case "kill":
                self._spawn(self._kill(message["attempt"]))
            case "collect":
                self._spawn(self._collect(message))
            case "to_rank":
                self.ranks.to_rank(message["attempt"], message["rank"], message["message"])
            case "signal":
                self.ranks.signal(message["attempt"], signal.Signals[message["signal"]], message["wish"])
            case "news" if self._foreground:
                self._foreground.tell(message["text"])
            case "leave" if not self._ending:
                self._ending, self._outcome = True, message["state"]
                self._spawn(self._leave())

    def _job_ends(self, reason: str, decided: bool) -> None:
        self.say({"type": "job_ending", "reason": reason, "decided": decided})

    def _terminated(self, number: int) -> None:
        """Slurm ends the job and leaves us a moment to save in; so does who stands before us, the first time."""
        is_first = self._foreground is not None and self._foreground.is_first(number)
        if self._in_a_job and number == signal.SIGTERM and self.ranks.by_rank and not self._ended_by_scheduler:
            self._ended_by_scheduler = True
            self._job_ends("Slurm ends the job", True)
        elif self._foreground and is_first and not (self._in_a_job and number == signal.SIGTERM):
            has_told = any(rank.socket for rank in self.ranks.by_rank.values())
            saves = self._spec.abilities.known(has_told=has_told).saves != "never"
            how = "after a last checkpoint" if saves else "without a checkpoint: the script cannot be told to save"
            self._foreground.tell(f"stopping {how}; a second signal ends it at once")
            control.leave(self.paths, f"signal-{self.job_id}", "stop")
        else:
            self._leaving.set()

    async def _leave(self) -> None:
        """The run is over. An allocation that lost its first node does not end by itself: see to it."""
        first = next((peer for peer in self._others.all() if peer["index"] == 0), None)
        if first is not None and await self._others.ask(first) in ("refused", "timeout"):
            await asyncio.sleep(END_GRACE_S)
            if self.paths.agent(first["node"]).exists():  # it did not leave: it was lost
                await asyncio.to_thread(self._backend.end, self.job_id)
        self._leaving.set()

    async def _store(self, attempt: int) -> None:
        with contextlib.suppress(asyncio.CancelledError, TimeoutError):
            port = await self.ranks.store(attempt, self.host)
            if self.link is not None:
                self.link.send({"type": "store", "attempt": attempt, "host": self.host, "port": port})

    async def _start(self, message: Message) -> None:
        envs = rank_env(message, self.paths, self.node, self.ranks.program)
        cpus = {rank: self.binding.of(rank) for rank in envs}
        log = self.paths.log(message["attempt"], self.node)
        await self.ranks.start(message["attempt"], envs, log, tuple(message["args"]), cpus)
        self._beat_at = 0.0  # the next turn tells of the new ranks

    async def _kill(self, attempt: int) -> None:
        await self.ranks.clear(attempt)
        if self.link is not None:
            self.link.send({"type": "killed", "attempt": attempt})

    async def _collect(self, message: Message) -> None:
        folder = self.paths.incident(message["incident"])
        ranks = list(self.ranks.by_rank.values())
        files = await collect(ranks, folder, self.node, self.paths.log(self.ranks.attempt, self.node))
        if self.link is not None:
            self.link.send({"type": "collected", "decision": message["decision"], "files": files})

    def _spawn(self, coroutine: object) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)  # type: ignore[arg-type]
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # ------------------------------------------------------------ without a supervisor

    def _watch_supervisor(self, now: float) -> None:
        if self._ending:
            return
        match self._takeover.look(now, self.epoch, self.ranks.still_s() if self.ranks.by_rank else None):
            case Finding.SUCCEED:
                self._spawn(self._takeover.succeed(self.epoch))
            case Finding.GIVE_UP:
                self._ending = True
                self._spawn(self._abandon())
            case Finding.LEAVE:
                self._leaving.set()

    async def _abandon(self) -> None:
        """No supervisor can be had: leave. The first of the agents that are left does so last, and gives the job back.

        Not if there is one that we cannot reach: then the job is not ours to give back.
        """
        self._exit_code = EXIT_ABANDONED
        await self.ranks.end()
        deadline = time.monotonic() + LAST_WAITS_S
        while answering := await self._others.answering():
            if min(answering) < self.index or time.monotonic() > deadline:
                return self._leaving.set()
            await asyncio.sleep(END_GRACE_S)
        if not self._takeover.is_sighted(time.monotonic()):
            await self._give_back()
        return self._leaving.set()

    async def _give_back(self) -> None:
        """Have the job begin anew, or end: nothing works in it."""
        if self._spec.cluster.continue_by != "requeue":
            await asyncio.to_thread(self._backend.end, self.job_id)
        elif self._in_a_job:
            self._backend.requeue(self.job_id, ())
            await asyncio.sleep(LAST_WAITS_S)  # what asks for it ends with us, and Slurm ends us


def stop_threshold(gap_p99: float) -> float:
    """Seconds without any counter moving after which steps have stopped."""
    return max(1.0, 3.0 * gap_p99)


def main(argv: list[str]) -> int:
    root, node, index = argv
    foreground = Foreground.of(os.environ)
    if foreground is None:
        die_with(os.getppid())
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    gc.freeze()  # what the imports made stays: no collection need look at it again
    agent = Agent(RunPaths(Path(root).absolute()), node, int(index), foreground)
    return asyncio.run(agent.run(starts_supervisor="OPT_LAUNCH_FIRST" in os.environ))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
