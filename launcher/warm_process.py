"""The agent's end of the warm process: started through the prefix, spoken to over its socket, ended for certain.

Nothing but its socket is relied upon: what is started may fork, leave our process tree, or live in other namespaces.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from launcher import warm
from launcher.program import Program

Message = dict[str, Any]

LEAVE_S = 2.0  # for a prefix to clean up after itself
_LAST_WORDS_S = 1.0  # for a prefix to end when what it had started has ended
_LAST_BYTES = 4096


class WarmProcess:
    """One at a time. `on_message` takes what it says and the sender's pid; `on_gone`: one that was ready has ended."""

    def __init__(
        self,
        program: Program,
        folder: Path,
        log: Path,
        on_message: Callable[[Message, int], None],
        on_gone: Callable[[], None],
    ) -> None:
        self._program, self._folder, self._log = program, folder, log
        self._on_message, self._on_gone = on_message, on_gone
        self._count = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._leaving: list[tuple[subprocess.Popen[bytes], float]] = []  # to be killed then
        self._listener: socket.socket | None = None
        self._sock: socket.socket | None = None
        self._outcome: asyncio.Future[str] | None = None
        self._started_at = 0.0
        self._lost_at: float | None = None  # since when one that was not ready yet is gone
        self._said_from = 0  # where in the log its words begin

    # ------------------------------------------------------------ start

    def start(self) -> None:
        """Start it; `ready` tells what comes of that."""
        self._let_go(0.0)
        if self._outcome is not None and not self._outcome.done():
            self._fail(f"not ready after {time.monotonic() - self._started_at:.0f}s")
        self._outcome = asyncio.get_running_loop().create_future()
        self._count += 1
        self._started_at, self._lost_at = time.monotonic(), None
        program, path = self._program, str(self._folder / f"warm.{self._count}")
        command = [*program.prefix, program.python, warm.__file__, path, *program.modules]
        plain = {name: value for name, value in os.environ.items() if not name.startswith("OPT_LAUNCH_")}
        env = {**plain, **program.env, "OMP_NUM_THREADS": str(program.threads)}
        try:
            self._listen(path)
            with self._log.open("ab") as log:
                self._said_from = log.tell()
                self._process = subprocess.Popen(
                    command, env=env, cwd=program.cwd, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                    process_group=0,  # Slurm signals our group
                )  # fmt: skip
        except OSError as error:
            self._fail(f"{error.filename or command[0]}: {error.strerror or error}")

    async def ready(self) -> str:
        """Wait until it is ready: ""; or why there is none. One that failed, or takes too long, is started anew."""
        if self._program.problem:
            return self._program.problem
        outcome = self._outcome
        overdue = time.monotonic() - self._started_at > self._program.start_limit_s
        if outcome is None or (outcome.result() if outcome.done() else overdue):
            self.start()
        assert self._outcome is not None
        return await asyncio.shield(self._outcome)

    def _listen(self, path: str) -> None:
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.bind(path)
        self._listener.listen(1)
        self._listener.setblocking(False)
        asyncio.get_running_loop().add_reader(self._listener, self._accept)

    def _accept(self) -> None:
        assert self._listener is not None
        try:
            sock, _ = self._listener.accept()
        except OSError:  # nobody is waiting
            return
        self._close_listener()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, warm.MAX_PACKET_BYTES)
        sock.setblocking(False)
        self._sock = sock
        asyncio.get_running_loop().add_reader(sock, self._read)

    # ------------------------------------------------------------ what it says, and what it is told

    def _read(self) -> None:
        assert self._sock is not None
        assert self._outcome is not None
        try:
            message, _, pid = warm.receive(self._sock)
        except BlockingIOError:
            return
        except OSError:
            message, pid = None, 0
        if message is None:
            self._lost()
            return
        if message["type"] == "ready" and not self._outcome.done():
            self._outcome.set_result("")
        self._on_message(message, pid)

    def request(self, message: Message, fds: tuple[int, ...] = ()) -> None:
        """Ask it for something; one that is gone is asked in vain, and `on_gone` follows."""
        if self._sock is None:
            return
        self._sock.setblocking(True)
        try:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                warm.send(self._sock, message, fds)
        finally:
            self._sock.setblocking(False)

    def _lost(self) -> None:
        assert self._outcome is not None
        self._close_socket()
        if self._outcome.done():
            self._let_go(0.0)
            self._on_gone()
        else:
            self._lost_at = time.monotonic()

    # ------------------------------------------------------------ end

    def poll(self) -> None:
        """Notice what has ended, and what should have; to be called now and then."""
        now = time.monotonic()
        for process, due in self._leaving:
            if now >= due:
                _kill(process)
        self._leaving = [(process, due) for process, due in self._leaving if process.poll() is None]
        if self._process is None or self._outcome is None or self._outcome.done():
            return
        if self._lost_at is not None and now - self._lost_at > _LAST_WORDS_S:
            _kill(self._process)
        if self._listener is not None:
            self._accept()  # what has ended may have left somebody behind who has just come
        if self._sock is None and _has_ended(self._process):
            _kill(self._process)
            self._fail(self._last_words(self._process.wait()))

    def _fail(self, reason: str) -> None:
        assert self._outcome is not None
        self._close_listener()
        what = "launch.prefix" if self._program.prefix else "launch.python"
        self._outcome.set_result(f"{what}: {reason}")

    def _last_words(self, code: int) -> str:
        """The last line that it wrote, and its exit code."""
        how = f"exit code {code}" if code >= 0 else f"killed by signal {-code}"
        try:
            with self._log.open("rb") as file:
                file.seek(max(self._said_from, file.seek(0, os.SEEK_END) - _LAST_BYTES))
                lines = file.read().decode("utf-8", "replace").split("\n")
        except OSError:
            lines = []
        last = next((line.strip() for line in reversed(lines) if line.strip()), "")
        return f"{last} ({how})" if last else f"ended with {how} before any rank could be started"

    def restart(self) -> None:
        """End it, with all ranks that it has forked; `on_gone` follows."""
        self._let_go(LEAVE_S)
        self._on_gone()

    async def close(self) -> None:
        """End it, and let a prefix clean up."""
        self._let_go(LEAVE_S)
        while self._leaving:
            self.poll()
            await asyncio.sleep(0.005)

    def _let_go(self, after_s: float) -> None:
        """Close the line, at which it ends with all its ranks, and then what was started; what does not is killed."""
        self._close_listener()
        self._close_socket()
        if self._process is not None:
            self._leaving.append((self._process, time.monotonic() + after_s))
            self._process = None

    def _close_socket(self) -> None:
        if self._sock is not None:
            asyncio.get_running_loop().remove_reader(self._sock)
            self._sock.close()
            self._sock = None

    def _close_listener(self) -> None:
        if self._listener is not None:
            asyncio.get_running_loop().remove_reader(self._listener)
            self._listener.close()
            self._listener = None


def _has_ended(process: subprocess.Popen[bytes]) -> bool:
    """Whether it has; it is not waited for, so that its number still means its group."""
    return process.returncode is not None or (
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    )


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kill it and its group, unless it has been waited for: then the number may be another's."""
    if process.returncode is None:
        with contextlib.suppress(OSError):
            os.killpg(process.pid, signal.SIGKILL)
