"""Runs checks in a child process, each with a deadline. What is stuck is killed and named, and the rest goes on."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from launcher.health.checks import Check
from launcher.health.context import Context
from launcher.health.finding import Finding

START_S = 30.0  # until the first line: imports, from a slow disk
DIE_S = 2.0  # after SIGKILL


@dataclass
class Examination:
    """`findings` as they come. `after`: what the next examination wants as `before` of its context.

    `check_of`: by the key of a finding, the check that told it; `completed`: checks that have told all that they had.

    `niceness`: by how much others come first, from 0 to 19.
    """

    at: Context
    niceness: int = 0
    after: dict[str, int | str] = field(default_factory=dict)
    check_of: dict[str, str] = field(default_factory=dict)
    completed: set[str] = field(default_factory=set)
    _stuck_once: set[str] = field(default_factory=set)

    def findings(self, checks: Sequence[Check]) -> Iterator[Finding]:
        """Run the checks in order. Ends, whatever they do.

        To be stuck is held against a host only when it is so twice: processes may have been stopped for a while.
        """
        left = list(checks)
        while left:
            if not (yield from self._in_a_child(left)):
                yield Finding(code="health", verdict="unknown", summary="the process for checks could not be started")
                return

    def _in_a_child(self, left: list[Check]) -> Generator[Finding, None, bool]:
        """Take from `left` what is done, and what has broken the child; whether it has begun at all."""
        about = [str(os.getpid()), str(self.niceness), self._context()]
        child = _Child([sys.executable, "-P", "-m", "launcher.health.child", *about, *(one.name for one in left)])
        deadline, begun = time.monotonic() + START_S, False
        try:
            while left:
                line = child.line(deadline)
                if isinstance(line, str):
                    if begun:
                        yield from self._broken(child, left, line)
                    return begun
                if "begins" in line:
                    deadline, begun = time.monotonic() + left[0].deadline_s, True
                elif "finding" in line:
                    yield from self._once(left[0], Finding(**line["finding"]))
                else:
                    self.after |= line["after"]
                    self.completed |= {left.pop(0).name} if line["completed"] else set()
            return True
        finally:
            child.kill()

    def _once(self, check: Check, finding: Finding) -> Iterator[Finding]:
        """A check that is run again tells again what it had told."""
        if finding.key not in self.check_of:
            self.check_of[finding.key] = check.name
            yield finding

    def _broken(self, child: _Child, left: list[Check], why: str) -> Iterator[Finding]:
        """The first of `left` has broken its process, or has had all its time."""
        check, starved = left[0], child.is_runnable()
        survives = not child.kill()
        if why == _TOO_LATE and check.stuck == "fail" and not survives and check.name not in self._stuck_once:
            self._stuck_once.add(check.name)
            return
        left.pop(0)
        yield from self._once(check, _of_broken(check, why, survives=survives, starved=starved))

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
            }
        )


_TOO_LATE = "no answer in time"


class _Child:
    """A process in a group of its own, read line by line."""

    def __init__(self, command: Sequence[str]) -> None:
        self._process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True
        )
        assert self._process.stdout is not None
        self._pipe = self._process.stdout.fileno()
        os.set_blocking(self._pipe, False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._pipe, selectors.EVENT_READ)
        self._read = b""
        self._is_over = False

    def line(self, deadline: float) -> Mapping[str, Any] | str:
        """The next line, or why there is none. `deadline`: monotonic seconds."""
        while b"\n" not in self._read:
            # What has been said in time counts, also if we were stopped and come to read it late.
            if not self._selector.select(max(0.0, deadline - time.monotonic())):
                return _TOO_LATE
            data = os.read(self._pipe, 1 << 16)
            if not data:
                code = self._exit_code()
                return (
                    f"its process ended by {signal.Signals(-code).name}" if code < 0 else f"its process ended: {code}"
                )
            self._read += data
        text, _, self._read = self._read.partition(b"\n")
        return json.loads(text)

    def _exit_code(self) -> int:
        """Of a process that has closed its end. It is left unreaped until its whole group is killed."""
        about = os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT)
        assert about is not None
        return about.si_status if about.si_code == os.CLD_EXITED else -about.si_status

    def is_runnable(self) -> bool:
        """Whether it waits for nothing but a processor."""
        with contextlib.suppress(OSError, IndexError), open(f"/proc/{self._process.pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] == "R"
        return False

    def kill(self) -> bool:
        """End it and what it has started; whether that could be done."""
        if self._is_over:
            return True
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        try:
            self._process.wait(DIE_S)
        except subprocess.TimeoutExpired:
            return False
        self._is_over = True
        self._selector.close()
        assert self._process.stdout is not None
        self._process.stdout.close()
        return True


def _of_broken(check: Check, why: str, *, survives: bool, starved: bool) -> Finding:
    if why != _TOO_LATE:
        return Finding(code=check.name, verdict="unknown", summary=why)
    also = ", and its process survives SIGKILL" if survives else ", and it waited for a processor" if starved else ""
    blamed = survives or not starved
    return Finding(
        code=check.name,
        verdict="fail" if survives else check.stuck if blamed else "unknown",
        summary=f"no answer within {check.deadline_s:g} s{also}",
        limit=check.deadline_s,
        limit_source="table",
        remedy="reboot_node" if survives else check.remedy if blamed else "none",
    )
