"""The ranks of one node: started through the warm process, watched through their pages, ended for certain."""

from __future__ import annotations

import asyncio
import contextlib
import math
import mmap
import os
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from launcher import reporter as reporter_file
from launcher import warm
from launcher.arrivals import Arrivals
from launcher.foreground import Foreground
from launcher.rank_log import Heard, RankLog, first_error
from launcher.rank_socket import RankListener, RankSocket
from launcher.telemetry import Patterns, Speaker, Telemetry, to_wire

Message = dict[str, Any]

KILL_LIMIT_S = 20.0  # a process alive this long after SIGKILL hangs in its kernel: a fault of the node
_LAST_LINES_S = 2.0  # how long the log may take to be written when the agent leaves
_STILL_S = 0.4  # a rank that has not moved for so long may be stopped: look at it, and before anyone is told of it
_GAPS_KEPT = 256


@dataclass(frozen=True)
class Program:
    """What a rank runs: a target of modules imported beforehand, or a command; and where.

    `speaker`: the rank whose output tells of the steps, and what to look for in it.
    """

    modules: tuple[str, ...]
    target: str
    command: tuple[str, ...]
    cwd: str
    env: Mapping[str, str]
    threads: int
    speaker: tuple[Speaker, Patterns] | None = None


@dataclass
class Rank:
    """One training process. Times are monotonic seconds of this node."""

    rank: int
    attempt: int
    page: mmap.mmap
    pid: int = 0
    code: int | None = None
    step: int = -1
    section: int = 0
    phase: str = "start"
    phase_at: float = 0.0
    moved_at: float = field(default_factory=time.monotonic)
    error_type: str = ""
    error: str = ""
    socket: RankSocket | None = None

    @property
    def alive(self) -> bool:
        return self.code is None


class Ranks:
    """Owns the warm process and the ranks it forked. `say` takes messages for the supervisor.

    What ranks print is logged, and shown in the foreground where somebody looks.
    """

    def __init__(
        self,
        node: str,
        scratch: Path,
        program: Program,
        say: Callable[[Message], None],
        foreground: Foreground | None = None,
    ) -> None:
        self.node, self.program, self._foreground = node, program, foreground
        self._scratch, self._say = scratch, say
        self.attempt = 0
        self._cleared = 0  # no rank of this attempt or an older one may live any more
        self.by_rank: dict[int, Rank] = {}
        self.gaps: deque[float] = deque(maxlen=_GAPS_KEPT)
        self._log: RankLog | None = None
        self._telemetry: Telemetry | None = None  # where the rank that speaks for all is one of ours
        self._signalled: set[tuple[int, float]] = set()
        self._warm: subprocess.Popen[bytes] | None = None
        self._sock: socket.socket | None = None
        self._ready = asyncio.Event()
        self._stores: dict[int, asyncio.Future[int]] = {}
        self._arrivals = Arrivals()
        self._listener = RankListener(str(scratch / "ranks"), self._arrivals, self._from_rank)
        self._speakers: WeakKeyDictionary[RankSocket, Rank] = WeakKeyDictionary()
        self._closing = False

    # ------------------------------------------------------------ the warm process

    def open(self) -> None:
        """Start the warm process. Raises OSError."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for sock in (ours, theirs):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, warm.MAX_PACKET_BYTES)
        command = [sys.executable, str(Path(warm.__file__)), str(theirs.fileno()), str(os.getpid())]
        command += self.program.modules
        threads = {"OMP_NUM_THREADS": str(self.program.threads), "OPENBLAS_NUM_THREADS": "1"}  # OpenBLAS starts its own
        env = {**os.environ, **self.program.env, **threads}
        self._warm = subprocess.Popen(
            command, pass_fds=(theirs.fileno(),), env=env, cwd=self.program.cwd, stdin=subprocess.DEVNULL,
            process_group=0,  # Slurm signals our group
        )  # fmt: skip
        theirs.close()
        ours.setblocking(False)
        self._sock = ours
        self._ready.clear()
        asyncio.get_running_loop().add_reader(ours, self._on_warm)

    def _on_warm(self) -> None:
        assert self._sock is not None
        try:
            message, _ = warm.receive(self._sock)
        except BlockingIOError:
            return
        except OSError:
            message = None
        if message is None:
            self._warm_gone()
        elif message["type"] == "ready":
            self._ready.set()
            if message["cold"]:
                self._say({"type": "warned", "text": f"{self.node}: ranks start cold: {message['cold']}"})
        elif message["type"] == "forked":
            rank = self._find(message)
            if rank:
                rank.pid = message["pid"]
        elif message["type"] == "exited":
            rank = self._find(message)
            if rank:
                rank.code = message["code"]
                self._tell_exit(rank)
        elif message["type"] == "store":
            future = self._stores.get(message["attempt"])
            if future and not future.done():
                future.set_result(message["port"])

    def _find(self, message: Message) -> Rank | None:
        rank = self.by_rank.get(message["rank"])
        return rank if rank and rank.attempt == message["attempt"] else None

    def _warm_gone(self) -> None:
        """Its ranks die with it: the kernel sees to that. Start another for the next attempt."""
        assert self._sock is not None
        assert self._warm is not None
        asyncio.get_running_loop().remove_reader(self._sock)
        self._sock.close()
        self._warm.wait()
        for rank in self.by_rank.values():
            if rank.alive:
                rank.code = -signal.SIGKILL
                self._tell_exit(rank)
        for future in self._stores.values():
            if not future.done():
                future.cancel()
        self._stores.clear()
        if not self._closing:
            self.open()

    def _request(self, message: Message, fds: tuple[int, ...] = ()) -> None:
        assert self._sock is not None
        self._sock.setblocking(True)
        try:
            warm.send(self._sock, message, fds)
        finally:
            self._sock.setblocking(False)

    async def store(self, attempt: int, host: str) -> int:
        """The port of the attempt's rendezvous store on this node, started on the first call.

        Raises asyncio.CancelledError if the warm process dies meanwhile, TimeoutError if it does not answer.
        """
        if attempt not in self._stores:
            await asyncio.wait_for(self._ready.wait(), 60)
            self._stores = {attempt: asyncio.get_running_loop().create_future()}
            kind = "store" if self.program.target else "port"
            self._request({"type": kind, "attempt": attempt, "host": host})
        return await asyncio.wait_for(asyncio.shield(self._stores[attempt]), 30)

    # ------------------------------------------------------------ start and end

    async def start(
        self, attempt: int, envs: Mapping[int, Mapping[str, str]], log: Path, args: tuple[str, ...] = ()
    ) -> None:
        """Start the ranks of an attempt; nothing happens if they were started before or are out of date.

        `args` are appended to the command.
        """
        if attempt <= self.attempt:
            return
        self.attempt = attempt
        await self.end()
        if self._log is not None:
            self._log.close()
        self._log = RankLog(log, self._arrivals)
        await self._ready.wait()
        if attempt <= self._cleared or attempt != self.attempt:
            return
        self.gaps.clear()
        self.by_rank = {}
        self._telemetry = self._telemetry_of(envs)
        for rank, env in envs.items():
            self._fork(attempt, rank, env, args)

    def _telemetry_of(self, envs: Mapping[int, Mapping[str, str]]) -> Telemetry | None:
        if self.program.speaker is None:
            return None
        which, patterns = self.program.speaker
        for rank, env in envs.items():
            if rank == (0 if which == "first_rank" else int(env["WORLD_SIZE"]) - 1):
                return Telemetry(rank, patterns)
        return None

    def _fork(self, attempt: int, rank: int, env: Mapping[str, str], args: tuple[str, ...]) -> None:
        page_path = self._scratch / f"page.{attempt}.{rank}"
        page_path.write_bytes(bytes(reporter_file.PAGE_BYTES))
        with page_path.open("r+b") as file:
            page = mmap.mmap(file.fileno(), reporter_file.PAGE_BYTES)
        self.by_rank[rank] = Rank(rank, attempt, page)
        full = {
            **{key: value for key, value in os.environ.items() if not key.startswith("OPT_LAUNCH_")},
            **self.program.env,
            "OMP_NUM_THREADS": str(self.program.threads),
            "PYTHONUNBUFFERED": "1",
            "OPT_LAUNCH_SOCKET": str(self._scratch / "ranks"),
            "OPT_LAUNCH_PAGE": str(page_path),
            "OPT_LAUNCH_REPORTER": str(Path(reporter_file.__file__)),
            **env,
        }
        assert self._log is not None
        fds = self._log.pipes(rank, tuple(self._hearers(rank, int(env["LOCAL_RANK"]))))
        request = {
            "type": "fork",
            "attempt": attempt,
            "rank": rank,
            "env": full,
            "cwd": self.program.cwd,
            "agent_pid": os.getpid(),
            "target": self.program.target,
            "command": [*self.program.command, *args],
        }
        try:
            self._request(request, fds)
        finally:
            for descriptor in fds:
                os.close(descriptor)

    def _hearers(self, rank: int, local_rank: int) -> Iterator[Heard]:
        if self._telemetry and self._telemetry.rank == rank:
            yield self._telemetry.take
        if self._foreground:
            yield self._foreground.hearer(local_rank)

    async def clear(self, attempt: int) -> None:
        """End all ranks of this attempt and of older ones; none of them will be started any more."""
        self._cleared = max(self._cleared, attempt)
        self.attempt = max(self.attempt, attempt)
        if any(rank.attempt > attempt for rank in self.by_rank.values()):
            return
        await self.end()
        if self._stores.pop(attempt, None) is not None:
            self._request({"type": "end_store"})

    async def end(self) -> None:
        """Kill whatever ranks are left and wait until they are gone; say so of those that will not die."""
        for rank in self.by_rank.values():
            if rank.alive:
                await self._wait_for_pid(rank)
                with contextlib.suppress(OSError):
                    os.killpg(rank.pid, signal.SIGKILL)
                with contextlib.suppress(OSError):
                    os.kill(rank.pid, signal.SIGKILL)  # it may not have reached its own group yet
        deadline = time.monotonic() + KILL_LIMIT_S
        while any(rank.alive for rank in self.by_rank.values()):
            if time.monotonic() > deadline:
                pids = [rank.pid for rank in self.by_rank.values() if rank.alive]
                self._say({"type": "unkillable", "pids": pids})
                return
            await asyncio.sleep(0.005)

    async def _wait_for_pid(self, rank: Rank) -> None:
        deadline = time.monotonic() + 5
        while rank.pid == 0 and rank.alive and time.monotonic() < deadline:
            await asyncio.sleep(0.005)

    async def close(self) -> None:
        """End the ranks and the warm process."""
        self._closing = True
        await self.end()
        if self._warm is not None:
            self._warm.kill()
            self._warm.wait()
        self._listener.close()
        if self._log is not None:
            self._log.close(_LAST_LINES_S)
        self._arrivals.close()

    # ------------------------------------------------------------ what ranks say

    def _from_rank(self, connection: RankSocket, message: Message) -> None:
        rank = self._speakers.get(connection)
        if message["type"] == "hello":
            if (newcomer := self.by_rank.get(message["rank"])) is not None:
                self._speakers[connection], newcomer.socket = newcomer, connection
        elif rank is None:
            return
        elif message["type"] == "error":
            rank.error_type, rank.error = message["kind"], message["message"]
        else:
            self._say({**message, "attempt": rank.attempt, "rank": rank.rank})

    def to_rank(self, attempt: int, rank: int, message: Message) -> None:
        """Pass a wish of the supervisor on."""
        known = self.by_rank.get(rank)
        if known and known.attempt == attempt and known.socket is not None:
            known.socket.send(message)

    def signal(self, attempt: int, number: signal.Signals, wish: float) -> None:
        """Send a signal to the ranks, once for each wish."""
        if (attempt, wish) in self._signalled:
            return
        for rank in self.by_rank.values():
            if rank.attempt == attempt and rank.alive and rank.pid:
                self._signalled.add((attempt, wish))
                with contextlib.suppress(OSError):
                    os.kill(rank.pid, number)

    def _tell_exit(self, rank: Rank) -> None:
        """Report a dead rank once its last words have been read."""
        self._arrivals.take()
        self._tell_steps(math.inf)
        tail: list[str] = []
        if self._log is not None:
            tail = self._log.finish(rank.rank, failed=rank.code != 0)
        if rank.code and not rank.error_type:
            rank.error_type, rank.error = first_error(tail)
        self._look_at(rank, time.monotonic())
        self._say(
            {
                "type": "rank_exited",
                "attempt": rank.attempt,
                "rank": rank.rank,
                "code": rank.code,
                "step": rank.step,
                "error_type": rank.error_type,
                "error": rank.error,
            }
        )

    # ------------------------------------------------------------ progress

    def sample(self) -> None:
        """Look at every rank's page and at what it said and printed; called several times a second."""
        self._arrivals.take()
        if self._log is not None:
            self._log.flush()
        now = time.monotonic()
        self._tell_steps(now)
        for rank in self.by_rank.values():
            if rank.alive:
                self._look_at(rank, now)

    def _look_at(self, rank: Rank, now: float) -> None:
        seen = reporter_file.read_page(rank.page)
        if seen is None or (self._telemetry and self._telemetry.rank == rank.rank):
            return
        step, section, _, phase_at, phase = seen
        if section != rank.section:
            if rank.section and not rank.phase:
                self.gaps.append(now - rank.moved_at)
            rank.step, rank.section, rank.moved_at = step, section, now
            rank.phase, rank.phase_at = phase, phase_at

    def _tell_steps(self, now: float) -> None:
        """What the rank that speaks for all has printed is its progress, as if it had told of it.

        How often it does so shows with the second step: until then it is in its start phase.
        """
        rank = self.by_rank.get(self._telemetry.rank) if self._telemetry else None
        if rank is None or self._telemetry is None:
            return
        telemetry = self._telemetry
        if telemetry.moves != rank.section:
            if rank.section:
                self.gaps.append(telemetry.moved_at - rank.moved_at)
                rank.phase = ""
            rank.section, rank.moved_at = telemetry.moves, telemetry.moved_at
        for told in telemetry.look(now):
            rank.step = told.step
            metrics = {name: to_wire(value) for name, value in told.metrics.items()}
            self._say(
                {
                    "type": "step_done", "attempt": rank.attempt, "rank": rank.rank, "step": told.step,
                    "metrics": metrics, "samples": None, "step_s": told.step_s, "blocked_s": 0.0,
                    "at": time.time() - (time.monotonic() - told.at),
                }
            )  # fmt: skip

    def shift(self, late_s: float) -> None:
        """This process itself stood still for a while: no one else's silence is to be counted from before."""
        for rank in self.by_rank.values():
            rank.moved_at += late_s

    def still_s(self) -> float:
        """Seconds since any living rank moved; 0 without one."""
        moved = [rank.moved_at for rank in self.by_rank.values() if rank.alive]
        return time.monotonic() - max(moved) if moved else 0.0

    def progress(self) -> dict[str, Message]:
        """Per rank: where it is, since when (seconds), and of one that stands still the kernel's state letter."""
        now = time.monotonic()
        return {
            str(rank.rank): {
                "pid": rank.pid,
                "alive": rank.alive,
                "step": rank.step,
                "section": rank.section,
                "phase": rank.phase,
                "phase_s": now - rank.phase_at if rank.phase_at else 0.0,
                "moved_s": now - rank.moved_at,
                "os_state": "Z" if not rank.alive else _os_state(rank.pid) if now - rank.moved_at > _STILL_S else "",
            }
            for rank in self.by_rank.values()
        }

    def gap_p99(self) -> float:
        """The 99th percentile of the seconds between two movements of a counter on this node."""
        if not self.gaps:
            return 0.0
        ordered = sorted(self.gaps)
        return ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))]


def _os_state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return ""
