"""What is kept of a node's ranks before they are killed: stacks, kernel state, the end of the log."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import sys
from pathlib import Path

from launcher.log_parts import newest
from launcher.ranks import Rank

DUMP_TIMEOUT_S = 8.0
_LOG_TAIL_BYTES = 64 << 10


async def collect(ranks: list[Rank], folder: Path, node: str, log: Path) -> list[str]:
    """Write the evidence into `folder`; the names of the files that could be written."""
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
    stacks = await asyncio.gather(*(stack_of(rank.pid) for rank in ranks if rank.alive))
    texts = {
        f"{node}.rank{rank.rank}.stack.txt": _state(rank) + stack
        for rank, stack in zip((rank for rank in ranks if rank.alive), stacks, strict=True)
    }
    texts[f"{node}.log"] = _tail(newest(log))
    written: list[str] = []
    for name, text in texts.items():
        with contextlib.suppress(OSError):
            (folder / name).write_text(text)
            written.append(name)
    return written


def py_spy() -> str | None:
    """The program, beside our Python or in PATH."""
    beside = Path(sys.executable).with_name("py-spy")
    return str(beside) if beside.exists() else shutil.which("py-spy")


async def stack_of(pid: int) -> str:
    """The Python stacks of a process, also of a stopped one; says so where they cannot be had."""
    if not pid:
        return "its process cannot be seen from here: no stack\n"
    program = py_spy()
    if program is None:
        return "py-spy is not installed: no stack\n"
    process = await asyncio.create_subprocess_exec(
        program, "dump", "--nonblocking", "--pid", str(pid),
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    try:
        output, _ = await asyncio.wait_for(process.communicate(), DUMP_TIMEOUT_S)
    except TimeoutError:
        process.kill()
        await process.wait()
        return f"py-spy gave no stack within {DUMP_TIMEOUT_S:.0f}s\n"
    return output.decode("utf-8", "replace")


def kernel_state(pid: int) -> str:
    """Where the kernel has a process wait, its state and memory; a line each, none for what may not be seen."""
    lines: list[str] = []
    for name in ("wchan", "status"):
        with contextlib.suppress(OSError):
            text = Path(f"/proc/{pid}/{name}").read_text()
            wanted = [line for line in text.splitlines() if name == "wchan" or line.startswith(("State", "VmRSS"))]
            lines += [f"{name}: {line}" for line in wanted]
    return "\n".join(lines)


def _state(rank: Rank) -> str:
    about = f"rank {rank.rank} pid {rank.pid} step {rank.step} section {rank.section} phase {rank.phase or '-'}"
    return f"{about}\n{kernel_state(rank.pid)}\n\n"


def _tail(log: Path) -> str:
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - _LOG_TAIL_BYTES))
            return file.read().decode("utf-8", "replace")
    except OSError as error:
        return f"{log}: {error.strerror}\n"
