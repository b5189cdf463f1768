"""What is left of a run on this machine when the agent that started it is gone: looked at, and ended.

A process is the run's when it is ours, its environment names the run's folder, and the job in it is one of the run's.
It is left over when the agent in whose folder its socket lies lives no more; those of a living agent are its business.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import select
import signal
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from launcher.evidence import kernel_state, stack_of
from launcher.health.kernel_log import kernel_log
from launcher.place import own_id, slurm_job

DIE_S = 10.0  # after SIGKILL
STACKS_AT_ONCE = 8
LOG_LINES = 500
_PROC = Path("/proc")
_INCARNATION = re.compile(r"/opt-launch-(\d+)-[^/]*/[^/]*$")  # the agent's pid, in a path of its scratch folder


@dataclass(frozen=True)
class Process:
    """One of the run's. `started`: in the kernel's ticks, which with the pid tell it from any later one."""

    pid: int
    started: int
    node: str
    rank: str
    command: str
    left_over: bool


def processes(run: str, jobs: Collection[str]) -> list[Process]:
    """The processes of the run in this folder. `jobs`: Slurm's ids of its jobs; empty where it never had any."""
    wanted = os.path.realpath(run)
    return [one for name in sorted(os.listdir(_PROC)) if name.isdigit() and (one := _of(int(name), wanted, jobs))]


def collect(run: str, jobs: Collection[str]) -> dict[str, Any]:
    """Stacks and kernel state of its processes, and the kernel's log, as {file name: text}."""
    found = processes(run, jobs)
    texts = {"kernel.log": _kernel_log()}
    for one, stack in zip(found, asyncio.run(_stacks(found)), strict=True):
        about = f"pid {one.pid} rank {one.rank} of {one.node}, {'left over' if one.left_over else 'its agent lives'}"
        texts[f"{one.pid}.stack.txt"] = f"{about}\n{one.command}\n{kernel_state(one.pid)}\n\n{stack}"
    return {"processes": [asdict(one) for one in found], "texts": texts}


def clean(run: str, jobs: Collection[str], end: bool) -> dict[str, Any]:
    """What is left over, and with `end` what of it survives SIGKILL, which is a fault of the machine."""
    found = processes(run, jobs)
    left = [one for one in found if one.left_over]
    survived = _end(left, run, jobs) if end else []
    return {
        "left": [asdict(one) for one in left],
        "living": len(found) - len(left),
        "survived": [one.pid for one in survived],
    }


def _of(pid: int, run: str, jobs: Collection[str]) -> Process | None:
    folder = _PROC / str(pid)
    try:
        if folder.stat().st_uid != os.getuid():
            return None
        environment = _environment(folder)
        if not _is_of(environment, run, jobs):
            return None
        command = " ".join(_words(folder / "cmdline"))[:500]
        started = _started(folder)
    except (OSError, ValueError):  # gone meanwhile, or not to be looked at
        return None
    agent = _INCARNATION.search(environment.get("OPT_LAUNCH_SOCKET", ""))
    return Process(
        pid=pid,
        started=started,
        node=environment.get("OPT_LAUNCH_NODE", ""),
        rank=environment.get("OPT_LAUNCH_RANK", ""),
        command=command,
        left_over=agent is not None and not _is_agent(int(agent[1]), run),
    )


def _is_of(environment: Mapping[str, str], run: str, jobs: Collection[str]) -> bool:
    """Whether a rank of this run was started with it. What a rank submits has it as well, and is another job."""
    trainer = environment.get("OPT_LAUNCH_TRAINER", "")
    if not trainer or os.path.realpath(os.path.dirname(trainer)) != run:
        return False
    return not jobs or ("SLURM_JOB_ID" in environment and slurm_job(own_id(environment)) in jobs)


def _is_agent(pid: int, run: str) -> bool:
    """Whether this process is an agent of the run, and lives."""
    try:
        words = _words(_PROC / str(pid) / "cmdline")
    except OSError:
        return False
    return "launcher.agent" in words and any(os.path.realpath(word) == run for word in words if "/" in word)


def _end(left: Sequence[Process], run: str, jobs: Collection[str]) -> list[Process]:
    """Kill them, each by a handle that cannot come to mean another process; those that do not end."""
    wanted, held = os.path.realpath(run), {}
    try:
        for one in left:
            with contextlib.suppress(OSError):
                held[one] = os.pidfd_open(one.pid)
                if _of(one.pid, wanted, jobs) == one:
                    signal.pidfd_send_signal(held[one], signal.SIGKILL)
        deadline = time.monotonic() + DIE_S
        return [one for one, handle in held.items() if not _has_ended(handle, deadline)]
    finally:
        for handle in held.values():
            os.close(handle)


def _has_ended(handle: int, deadline: float) -> bool:
    return bool(select.select([handle], [], [], max(0.0, deadline - time.monotonic()))[0])


async def _stacks(found: Sequence[Process]) -> list[str]:
    at_once = asyncio.Semaphore(STACKS_AT_ONCE)

    async def one(pid: int) -> str:
        async with at_once:
            return await stack_of(pid)

    return await asyncio.gather(*(one(process.pid) for process in found))


def _kernel_log() -> str:
    try:
        lines = [f"[{entry.at:12.6f}] {entry.text}" for entry in kernel_log(Path("/"))]
    except OSError as error:
        return f"the kernel's log cannot be read: {(error.strerror or str(error)).lower()}\n"
    return "\n".join(lines[-LOG_LINES:]) + "\n"


def _environment(folder: Path) -> dict[str, str]:
    return dict(word.split("=", 1) for word in _words(folder / "environ") if "=" in word)


def _words(file: Path) -> list[str]:
    return [os.fsdecode(word) for word in file.read_bytes().split(b"\0") if word]


def _started(folder: Path) -> int:
    return int((folder / "stat").read_text(errors="replace").rpartition(")")[2].split()[19])
