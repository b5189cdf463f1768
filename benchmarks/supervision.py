"""What it costs a healthy run to be watched.

    python benchmarks/supervision.py [--steps 400] [--repeats 3] [--ranks 2]

1. The reporter: microseconds a rank spends in its calls, in each step.
2. Agent and supervisor: CPU seconds and memory of a run of eight ranks on two nodes, per step.
3. The whole: seconds per step, and from start to end, beside torchrun without faults, in turn.
"""

from __future__ import annotations

import argparse
import os
import socket
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
from harness import OptLaunch, Torchrun, settings, spread, table, wait_for

from launcher.reporter import PAGE_BYTES, Reporter

CALLS = 20_000
METRICS = {"loss": 2.5, "grad_norm": 0.4, "lr": 6e-4, "tokens": 1e6, "tokens_per_s": 1e4, "activation_norm": 1.0}
WARM_STEPS = 20  # left out of the steps per second
SMALL_RANKS = 8


# ---------------------------------------------------------------- the reporter


def reporter_rows(folder: Path) -> list[list[str]]:
    """Microseconds per call, of a reporter whose agent reads what it is told."""
    page, path = folder / "page", folder / "socket"
    page.write_bytes(bytes(PAGE_BYTES))
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(path))
    server.listen()
    threading.Thread(target=_drain, args=(server,), daemon=True).start()
    reporter = Reporter(str(page), str(path))
    calls: dict[str, Callable[[int], None]] = {
        "section(), once per layer and pass": lambda _: reporter.section(),
        "step(), on all ranks but one": reporter.step,
        "step(metrics), on one rank": lambda step: reporter.step(step, METRICS, (step, step + 1), 0.1),
    }
    return [[name, f"{_microseconds(call):.2f}"] for name, call in calls.items()]


def _microseconds(call: Callable[[int], None]) -> float:
    taken = []
    for _ in range(5):
        began = time.perf_counter()
        for step in range(CALLS):
            call(step)
        taken.append((time.perf_counter() - began) / CALLS * 1e6)
        time.sleep(0.5)  # the sending thread empties its queue; a step is never as short as here
    return statistics.median(taken)


def _drain(server: socket.socket) -> None:
    connection, _ = server.accept()
    while connection.recv(1 << 16):
        pass


# ---------------------------------------------------------------- agent and supervisor


def process_rows(folder: Path, steps: int) -> list[list[str]]:
    """CPU per step and memory of our own processes while eight ranks train."""
    trainer = settings(SMALL_RANKS, steps=1_000_000, save_every=100)
    run = OptLaunch(folder, trainer, SMALL_RANKS, nodes=2)
    try:
        wait_for(run, f"at step {WARM_STEPS}", lambda: run.seen.last() >= WARM_STEPS)
        status = run.status()
        ours = {node["name"]: psutil.Process(node["agent_pid"]) for node in status["nodes"]}
        ours = {f"agent of {name}": process for name, process in ours.items()}
        ours["supervisor"] = psutil.Process(status["supervisor"]["pid"])
        before = {name: _cpu_s(process) for name, process in ours.items()}
        first_at, first = run.seen.steps[-1]
        wait_for(run, f"at step {first + steps}", lambda: run.seen.last() >= first + steps)
        last_at, last = run.seen.steps[-1]
        step_s = (last_at - first_at) / (last - first)
        rows = []
        for name, process in ours.items():
            cpu_s = (_cpu_s(process) - before[name]) / (last - first)
            memory = process.memory_info().rss / 2**20
            rows.append([name, f"{cpu_s * 1e3:.2f}", f"{cpu_s / step_s:.2%}", f"{memory:.0f}"])
        return [*rows, ["a step", f"{step_s * 1e3:.2f}", "", ""]]
    finally:
        run.end()


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system


# ---------------------------------------------------------------- beside torchrun


def beside_rows(folder: Path, repeats: int, steps: int, ranks: int) -> list[list[str]]:
    """Milliseconds per step, and seconds from start to the last step, for both launchers."""
    step_ms: dict[str, list[float]] = {OptLaunch.name: [], Torchrun.name: []}
    first_s: dict[str, list[float]] = {OptLaunch.name: [], Torchrun.name: []}
    whole_s: dict[str, list[float]] = {OptLaunch.name: [], Torchrun.name: []}
    for repeat in range(repeats):
        for kind in (OptLaunch, Torchrun):
            trainer = settings(ranks, steps=steps, save_every=100)
            launcher = kind(folder / f"{kind.name}.{repeat}", trainer, ranks)
            try:
                wait_for(launcher, "done", lambda of=launcher: of.seen.last() >= steps - 1)
                seen = launcher.seen.steps
                first_s[kind.name].append(seen[0][0] - launcher.started_at)
                step_ms[kind.name].append((seen[-1][0] - seen[WARM_STEPS][0]) / (len(seen) - 1 - WARM_STEPS) * 1e3)
                whole_s[kind.name].append(seen[-1][0] - launcher.started_at)
            finally:
                launcher.end()
    return [
        [name, spread(of[OptLaunch.name], form), spread(of[Torchrun.name], form), _ratio(of)]
        for name, of, form in (
            ("start to first step, s", first_s, ".2f"),
            ("a step, ms", step_ms, ".2f"),
            ("start to last step, s", whole_s, ".1f"),
        )
    ]


def _ratio(of: dict[str, list[float]]) -> str:
    return f"{statistics.median(of[OptLaunch.name]) / statistics.median(of[Torchrun.name]):.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--ranks", type=int, default=2)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="opt-launch-bench-") as name:
        folder = Path(name)
        print(table(["call of the reporter", "microseconds"], reporter_rows(folder)), "\n", flush=True)
        head = ["8 ranks on 2 nodes", "CPU ms per step", "of one core", "MiB resident"]
        print(table(head, process_rows(folder / "processes", arguments.steps // 4)), "\n", flush=True)
        rows = beside_rows(folder, arguments.repeats, arguments.steps, arguments.ranks)
        print(f"median (least to most) of {arguments.repeats}, {arguments.ranks} ranks on {os.cpu_count()} cores")
        print(table(["", OptLaunch.name, Torchrun.name, "opt-launch / torchrun"], rows))


if __name__ == "__main__":
    main()
