"""Runs checks in a child process, each with a deadline. What is stuck is killed and named, and the rest goes on."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from launcher.events import Remedy, Verdict
from launcher.health.checks import Check
from launcher.health.context import Context
from launcher.health.finding import Finding

START_S = 30.0  # until the first line: imports, from a slow disk
DIE_S = 2.0  # after SIGKILL
ENDED_S = 0.2  # between looks whether it is to end early
AGAIN_S = 5.0  # until what has failed is looked at once more
HEALTH = "health"  # the code of what is no check's: that none could be run

Told = tuple[str, Finding]  # by which check


@dataclass
class Examination:
    """`findings` as they come. `after`: what the next examination wants as `before` of its context.

    `check_of`: by the key of a finding, the check that told it; `completed`: checks that have told all that they had.

    `niceness`: by how much others come first, from 0 to 19. `left_behind`: by check, processes of this examination and
    of those before it that not even SIGKILL has ended: while one is there, the check is not run again.
    `ended`: set from elsewhere, no more is to be found.
    """

    at: Context
    niceness: int = 0
    left_behind: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    ended: threading.Event = field(default_factory=threading.Event)
    after: dict[str, int | str] = field(default_factory=dict)
    check_of: dict[str, str] = field(default_factory=dict)
    completed: set[str] = field(default_factory=set)

    def findings(self, checks: Sequence[Check]) -> Iterator[Finding]:
        """Run the checks in order. Ends, whatever they do.

        What fails is looked at twice before it is held against a host: much is over after a moment, and processes may
        have been stopped for a while.
        """
        failed: set[str] = set()
        for name, finding in self._told(checks):
            if finding.verdict == "fail":
                failed.add(name)
            else:
                self.check_of[finding.key] = name
                yield finding
        if failed and not self.ended.wait(AGAIN_S):
            self.completed -= failed
            for name, finding in self._told([check for check in checks if check.name in failed]):
                if finding.key not in self.check_of:
                    self.check_of[finding.key] = name
                    yield finding

    def _told(self, checks: Iterable[Check]) -> Iterator[Told]:
        left: list[Check] = []
        for check in checks:
            process = self.left_behind.get(check.name)
            if process is not None and process.poll() is None:
                yield check.name, _survived(check, f"process {process.pid} of an earlier look")
            else:
                left.append(check)
        while left:
            if why := (yield from self._in_a_child(left)):
                yield HEALTH, Finding(code=HEALTH, verdict="unknown", summary=why)
                return
        self.completed.add(HEALTH)

    def _in_a_child(self, left: list[Check]) -> Generator[Told, None, str]:
        """Take from `left` what is done, and what has broken the child; why it has not begun at all."""
        about = [str(os.getpid()), str(self.niceness), self._context()]
        try:
            child = _Child([sys.executable, "-P", "-m", "launcher.health.child", *about, *(one.name for one in left)])
        except OSError as error:  # no memory, too many processes
            return f"the process for checks could not be started: {error.strerror}"
        deadline, begun = time.monotonic() + START_S, False
        try:
            while left:
                line = child.line(deadline, self.ended)
                if isinstance(line, str) and self.ended.is_set():
                    left.clear()
                    return ""
                if isinstance(line, str):
                    if not begun:
                        return f"the process for checks could not be started: {line}"
                    yield self._broken(child, left.pop(0), line)
                    return ""
                if "begins" in line:
                    deadline, begun = time.monotonic() + left[0].deadline_s, True
                elif "finding" in line:
                    yield left[0].name, Finding(**line["finding"])
                else:
                    name = left.pop(0).name
                    self.after |= line["after"]
                    self.completed |= {name} if line["completed"] else set()
            return ""
        finally:
            child.kill()

    def _broken(self, child: _Child, check: Check, why: str) -> Told:
        """The check has broken its process, or has had all its time."""
        waits = child.waits()
        if not child.kill():
            self.left_behind[check.name] = child.process
            return check.name, _survived(check, "its process")
        if why != TOO_LATE:
            return check.name, Finding(code=check.name, verdict="unknown", summary=why)
        summary = f"no answer within {check.deadline_s:g} s" + ("" if waits else ", and it could not run")
        return check.name, _stuck(check, summary, check.stuck if waits else "unknown")

    def _context(self) -> str:
        at = self.at
        return json.dumps(
            {
                "root": str(at.root),
                "folders": list(at.folders),
                "bytes_needed": at.bytes_needed,
                "interface": at.interface,
                "site": [asdict(one) for one in at.site],
                "before": dict(at.before),
                "heard": [asdict(one) for one in at.heard],
                "heard_since": at.heard_since,
            }
        )


TOO_LATE, NONSENSE = "no answer in time", "it told nonsense"


class _Child:
    """A process in a group of its own, read line by line."""

    def __init__(self, command: Sequence[str]) -> None:
        self.process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True
        )
        assert self.process.stdout is not None
        self._pipe = self.process.stdout
        os.set_blocking(self._pipe.fileno(), False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._pipe, selectors.EVENT_READ)
        self._read = b""

    def line(self, deadline: float, ended: threading.Event) -> Mapping[str, Any] | str:
        """The next line, or why there is none. `deadline`: monotonic seconds."""
        while b"\n" not in self._read:
            # What has been said in time counts, also if we were stopped and come to read it late.
            left_s = max(0.0, deadline - time.monotonic())
            if not self._selector.select(min(left_s, ENDED_S)):
                if left_s <= ENDED_S or ended.is_set():
                    return TOO_LATE
                continue
            data = os.read(self._pipe.fileno(), 1 << 16)
            if not data:
                code = self._exit_code()
                return f"its process ended{f' by {signal.Signals(-code).name}' if code < 0 else f': {code}'}"
            self._read += data
        text, _, self._read = self._read.partition(b"\n")
        try:
            return json.loads(text)
        except ValueError:  # a library that prints
            return NONSENSE

    def _exit_code(self) -> int:
        """Of a process that has closed its end. It is left unreaped until its whole group is killed."""
        about = os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOWAIT)
        assert about is not None
        return about.si_status if about.si_code == os.CLD_EXITED else -about.si_status

    def waits(self) -> bool:
        """Whether it waits for something, and not for a processor, or to be let go on after a SIGSTOP."""
        with contextlib.suppress(OSError, IndexError), open(f"/proc/{self.process.pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] in ("S", "D")
        return False

    def kill(self) -> bool:
        """End it and what it has started; whether that could be done. Nothing of it is kept open here."""
        if not self._pipe.closed:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(DIE_S)
            self._selector.close()
            self._pipe.close()
        return self.process.returncode is not None


def _stuck(check: Check, summary: str, verdict: Verdict, remedy: Remedy | None = None) -> Finding:
    return Finding(
        code=check.name,
        verdict=verdict,
        summary=summary,
        limit=check.deadline_s,
        limit_source="table",
        remedy="none" if verdict == "unknown" else remedy or check.remedy,
    )


def _survived(check: Check, what: str) -> Finding:
    """Not even SIGKILL ends what waits in a driver; or in a file system, which need not be the host's fault."""
    summary = f"no answer within {check.deadline_s:g} s, and {what} survives SIGKILL"
    return _stuck(check, summary, check.stuck, "reboot_node")
