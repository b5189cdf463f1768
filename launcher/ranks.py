"""The ranks of one node: started through the warm process, watched through their pages, ended for certain."""

from __future__ import annotations

import asyncio
import contextlib
import math
import mmap
import os
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from launcher import reporter as reporter_file
from launcher import warm
from launcher.arrivals import Arrivals
from launcher.foreground import Foreground
from launcher.line_watch import LineWatch, Watched
from launcher.program import Program
from launcher.rank_log import Heard, RankLog, first_error
from launcher.rank_socket import RankListener, RankSocket
from launcher.telemetry import Telemetry, to_wire
from launcher.warm_process import WarmProcess

Message = dict[str, Any]

NOT_STARTED = 1  # the exit status of a rank that could not be started
KILL_LIMIT_S = 20.0  # a process alive this long after SIGKILL hangs in its kernel: a fault of the node
_LAST_LINES_S = 2.0  # how long the log may take to be written when the agent leaves
_STILL_S = 0.4  # a rank that has not moved for so long may be stopped: look at it, and before anyone is told of it
_GAPS_KEPT = 256


@dataclass
class Rank:
    """One training process. Times are monotonic seconds of this node; `pid` is 0 until it is known."""

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
    up_at: float | None = None
    error_type: str = ""
    error: str = ""
    socket: RankSocket | None = None

    @property
    def alive(self) -> bool:
        return self.code is None


class Ranks:
    """Owns the warm process and the ranks it forked. `say` takes messages for the supervisor.

    What ranks print is logged, and shown in the foreground where somebody looks. `warm_log`: where the warm process,
    and what it is started through, write.
    """

    def __init__(
        self,
        node: str,
        scratch: Path,
        program: Program,
        warm_log: Path,
        say: Callable[[Message], None],
        foreground: Foreground | None = None,
        watched: tuple[Watched, ...] = (),
    ) -> None:
        self._watched = watched
        self.node, self.program, self._foreground = node, program, foreground
        self._scratch, self._say = scratch, say
        self.attempt = 0
        self._cleared = 0  # no rank of this attempt or an older one may live any more
        self.by_rank: dict[int, Rank] = {}
        self.gaps: deque[float] = deque(maxlen=_GAPS_KEPT)
        self._log: RankLog | None = None
        self._telemetry: Telemetry | None = None  # where the rank that speaks for all is one of ours
        self._signalled: set[tuple[int, float]] = set()
        self._warm = WarmProcess(program, scratch, warm_log, self._from_warm, self._warm_gone)
        self._stores: dict[int, asyncio.Future[int]] = {}
        self._arrivals = Arrivals()
        self._socket_path = str(scratch / "ranks")
        self._listener = RankListener(self._socket_path, self._arrivals, self._from_rank)
        self._speakers: WeakKeyDictionary[RankSocket, Rank] = WeakKeyDictionary()
        self._closing = False

    # ------------------------------------------------------------ the warm process

    def open(self) -> None:
        """Start the warm process."""
        if not self.program.problem:
            self._warm.start()

    def _from_warm(self, message: Message, sender: int) -> None:
        rank = self._find(message)
        if message["type"] == "ready" and message["cold"]:
            self._say({"type": "warned", "text": f"{self.node}: ranks start cold: {message['cold']}"})
        elif message["type"] == "forked" and rank:
            rank.pid, rank.up_at = sender, time.monotonic()
        elif message["type"] == "exited" and rank:
            rank.code = message["code"]
            self._tell_exit(rank)
        elif message["type"] == "store":
            future = self._stores.get(message["attempt"])
            if future and not future.done():
                future.set_result(message["port"])

    def _find(self, message: Message) -> Rank | None:
        rank = self.by_rank.get(message.get("rank", -1))
        return rank if rank and rank.attempt == message["attempt"] else None

    def _warm_gone(self) -> None:
        """Its ranks die with it: the kernel sees to that. Start another for the next attempt."""
        for rank in self.by_rank.values():
            if rank.alive:
                rank.code = -signal.SIGKILL
                self._tell_exit(rank)
        for future in self._stores.values():
            if not future.done():
                future.cancel()
        self._stores.clear()
        if not self._closing:
            self._warm.start()

    async def store(self, attempt: int, host: str) -> int:
        """The port of the attempt's rendezvous store on this node, started on the first call.

        A command makes its own, on a port that is free now. So it is where no warm process can be had: the ranks'
        start then tells why. Raises asyncio.CancelledError if the warm process dies meanwhile, TimeoutError if it
        does not answer.
        """
        if attempt not in self._stores:
            lacks = not self.program.target or await asyncio.wait_for(self._warm.ready(), 60)
            self._stores = {attempt: asyncio.get_running_loop().create_future()}
            if lacks:
                self._stores[attempt].set_result(warm.free_port(host))
            else:
                self._warm.request({"type": "store", "attempt": attempt, "host": host})
        return await asyncio.wait_for(asyncio.shield(self._stores[attempt]), 30)

    # ------------------------------------------------------------ start and end

    async def start(
        self,
        attempt: int,
        envs: Mapping[int, Mapping[str, str]],
        log: Path,
        args: tuple[str, ...],
        cpus: Mapping[int, Sequence[int]],
    ) -> None:
        """Start the ranks of an attempt; nothing happens if they were started before or are out of date.

        Where none can be started, each ends at once with the reason as its error. `args` are appended to the command;
        `cpus`: those a rank may use, where not all.
        """
        if attempt <= self.attempt:
            return
        self.attempt = attempt
        await self.end()
        if self._log is not None:
            self._log.close()
        self._log = RankLog(log, self._arrivals, self.program.log_limit, self._watch_of(attempt, envs))
        problem = await self._warm.ready()
        if attempt <= self._cleared or attempt != self.attempt:
            return
        self.gaps.clear()
        self.by_rank = {}
        self._telemetry = self._telemetry_of(envs)
        for rank, env in envs.items():
            fds = self._admit(attempt, rank, int(env["LOCAL_RANK"]))
            try:
                if problem:
                    os.write(fds[1], f"{problem}\n".encode())
                else:
                    self._warm.request(self._request(attempt, rank, env, args, cpus.get(rank, ())), fds)
            finally:
                for descriptor in fds:
                    os.close(descriptor)
            if problem:
                self._give_up(self.by_rank[rank], problem)

    def _watch_of(self, attempt: int, envs: Mapping[int, Mapping[str, str]]) -> Callable[[int, list[str]], None] | None:
        """Who looks for the lines of the policy's rules, if it has such."""
        if not self._watched:
            return None
        watch, ranks = LineWatch(self._watched, self._say), int(next(iter(envs.values()))["WORLD_SIZE"])
        return lambda rank, lines: watch.take(attempt, rank, ranks, lines)

    def _telemetry_of(self, envs: Mapping[int, Mapping[str, str]]) -> Telemetry | None:
        if self.program.speaker is None:
            return None
        which, patterns = self.program.speaker
        for rank, env in envs.items():
            if rank == (0 if which == "first_rank" else int(env["WORLD_SIZE"]) - 1):
                return Telemetry(rank, patterns)
        return None

    def _admit(self, attempt: int, rank: int, local_rank: int) -> tuple[int, int]:
        """A rank is about to be started: its page is made; the ends of its stdout and stderr."""
        page = self._page(attempt, rank)
        page.write_bytes(bytes(reporter_file.PAGE_BYTES))
        with page.open("r+b") as file:
            self.by_rank[rank] = Rank(rank, attempt, mmap.mmap(file.fileno(), reporter_file.PAGE_BYTES))
        assert self._log is not None
        return self._log.pipes(rank, tuple(self._hearers(rank, local_rank)))

    def _page(self, attempt: int, rank: int) -> Path:
        return self._scratch / f"page.{attempt}.{rank}"

    def _give_up(self, rank: Rank, problem: str) -> None:
        """A rank that cannot be started has ended with this as its error."""
        rank.error_type, _, rank.error = problem.partition(": ")
        rank.code = NOT_STARTED
        self._tell_exit(rank)

    def _request(
        self, attempt: int, rank: int, env: Mapping[str, str], args: tuple[str, ...], cpus: Sequence[int]
    ) -> Message:
        """What the warm process is asked for."""
        full = {
            **self.program.env,
            "OMP_NUM_THREADS": str(self.program.threads),
            "PYTHONUNBUFFERED": "1",
            "OPT_LAUNCH_SOCKET": self._socket_path,
            "OPT_LAUNCH_PAGE": str(self._page(attempt, rank)),
            "OPT_LAUNCH_REPORTER": str(Path(reporter_file.__file__)),
            **env,
        }
        return {
            "type": "fork",
            "attempt": attempt,
            "rank": rank,
            "env": full,
            "cwd": self.program.cwd,
            "tracer": -1 if self.program.prefix else os.getpid(),  # behind a prefix our pid may mean nothing: anyone
            "target": self.program.target,
            "command": [*self.program.command, *args],
            "cpus": list(cpus),
        }

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
            self._warm.request({"type": "end_store"})

    async def end(self) -> None:
        """Kill whatever ranks are left, and all that they have started, and wait until they are gone.

        Says so of those that will not die.
        """
        if not self.by_rank:
            return
        for rank in self.by_rank.values():
            if rank.alive:
                await self._wait_for_pid(rank)
            if rank.alive and rank.pid:
                with contextlib.suppress(OSError):
                    os.killpg(rank.pid, signal.SIGKILL)
        if any(rank.alive and not rank.pid for rank in self.by_rank.values()):
            self._warm.restart()  # it runs where we cannot see it, and nothing else reaches its ranks
        deadline = time.monotonic() + KILL_LIMIT_S
        while any(rank.alive for rank in self.by_rank.values()):
            if time.monotonic() > deadline:
                pids = [rank.pid for rank in self.by_rank.values() if rank.alive]
                self._say({"type": "unkillable", "pids": pids})
                return
            await asyncio.sleep(0.005)
        while await asyncio.to_thread(warm.kill_all_of, self._socket_path) and time.monotonic() < deadline:
            await asyncio.sleep(warm.SWEEP_S)

    async def _wait_for_pid(self, rank: Rank) -> None:
        deadline = time.monotonic() + 5
        while rank.pid == 0 and rank.alive and time.monotonic() < deadline:
            await asyncio.sleep(0.005)

    async def close(self) -> None:
        """End the ranks and the warm process."""
        self._closing = True
        await self.end()
        await self._warm.close()
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
        self._warm.poll()
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
        """Per rank: where it is, since when (seconds), and of one that stands still the kernel's state letter.

        `heard`: whether it tells of itself, else step and phase say nothing.
        """
        now = time.monotonic()
        return {
            str(rank.rank): {
                "pid": rank.pid,
                "alive": rank.alive,
                "up_s": now - rank.up_at if rank.up_at else 0.0,
                "heard": self._is_heard(rank),
                "step": rank.step,
                "section": rank.section,
                "phase": rank.phase,
                "phase_s": now - rank.phase_at if rank.phase_at else 0.0,
                "moved_s": now - rank.moved_at,
                "os_state": "Z" if not rank.alive else _os_state(rank.pid) if now - rank.moved_at > _STILL_S else "",
            }
            for rank in self.by_rank.values()
        }

    def _is_heard(self, rank: Rank) -> bool:
        return rank.socket is not None or (self._telemetry is not None and self._telemetry.rank == rank.rank)

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
