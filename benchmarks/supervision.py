"""What being supervised costs.

    python benchmarks/supervision.py [--repeats 3] [--steps 400] [--ranks 2]

1. The reporter: time per call, for a trainer that makes its calls, in each step.
2. The sum for the trainer of examples/demo.yaml (2 nodes x 2 ranks): the reporter's time, and the CPU time of both
   agents and the supervisor, per step, over the time of a step.
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
import yaml
from harness import REPOSITORY, OptLaunch, Torchrun, settings, spread, table, wait_for

from launcher.reporter import PAGE_BYTES, Reporter

CALLS = 20_000
METRICS = {"loss": 2.5, "grad_norm": 0.4, "lr": 6e-4, "tokens": 1e6, "tokens_per_s": 1e4, "activation_norm": 1.0}
SECTION, STEP = "section(), several times per layer", "step(metrics), on one rank"
WARM_STEPS = 20  # left out of the steps per second


# ---------------------------------------------------------------- the reporter


def reporter_calls(folder: Path) -> dict[str, float]:
    """Microseconds per call, of a reporter whose agent reads what it is told."""
    page, path = folder / "page", folder / "socket"
    page.write_bytes(bytes(PAGE_BYTES))
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(path))
    server.listen()
    threading.Thread(target=_drain, args=(server,), daemon=True).start()
    reporter = Reporter(str(page), str(path))
    calls: dict[str, Callable[[int], None]] = {
        SECTION: lambda _: reporter.section(),
        "step(), on all ranks but one": reporter.step,
        STEP: lambda step: reporter.step(step, METRICS, (step, step + 1), 0.1),
    }
    return {name: _microseconds(call) for name, call in calls.items()}


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


# ---------------------------------------------------------------- the sum


def sum_rows(folder: Path, reporter: dict[str, float], windows: int, steps: int) -> list[list[str]]:
    """Milliseconds per step of all that is ours, and their sum over the time of a step, in several windows."""
    demo = yaml.safe_load((REPOSITORY / "examples/demo.yaml").read_text())
    trainer = {**demo["trainer"], "steps": 1_000_000}
    run = OptLaunch(folder, trainer, ranks=4, nodes=2)
    try:
        wait_for(run, f"at step {WARM_STEPS}", lambda: run.step() >= WARM_STEPS)
        status = run.status()
        ours = {f"agent of {node['name']}, CPU": node["agent_pid"] for node in status["nodes"]}
        ours["supervisor, CPU"] = status["supervisor"]["pid"]
        found: dict[str, list[float]] = {}
        for _ in range(windows):
            for name, value in _window(run, ours, reporter, steps).items():
                found.setdefault(name, []).append(value)
        memory = {name: f"{psutil.Process(pid).memory_info().rss / 2**20:.0f}" for name, pid in ours.items()}
        form = {"sum, % of a step": ".2f", "a step": ".0f"}
        return [[name, spread(of, form.get(name, ".3f")), memory.get(name, "")] for name, of in found.items()]
    finally:
        run.end()


def _window(run: OptLaunch, ours: dict[str, int], reporter: dict[str, float], steps: int) -> dict[str, float]:
    first = run.step()
    began, before, sections = time.monotonic(), {name: _cpu_ms(pid) for name, pid in ours.items()}, run.sections()
    wait_for(run, f"at step {first + steps}", lambda: run.step() >= first + steps)
    done = run.step() - first
    step_ms = (time.monotonic() - began) / done * 1e3
    costs = {name: (_cpu_ms(pid) - before[name]) / done for name, pid in ours.items()}
    calls = (run.sections() - sections) / done * reporter[SECTION] + reporter[STEP]
    costs = {"reporter on rank 0, wall": calls / 1e3, **costs}
    return {
        **costs,
        "sum": sum(costs.values()),
        "a step": step_ms,
        "sum, % of a step": sum(costs.values()) / step_ms * 100,
    }


def _cpu_ms(pid: int) -> float:
    """CPU time of all threads, to the nanosecond (psutil counts in clock ticks)."""
    threads = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((thread / "schedstat").read_text().split()[0]) for thread in threads) / 1e6


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
        calls = reporter_calls(folder)
        rows = [[name, f"{microseconds:.2f}"] for name, microseconds in calls.items()]
        print(table(["call of the reporter", "microseconds"], rows), "\n", flush=True)
        rows = sum_rows(folder / "sum", calls, arguments.repeats, arguments.steps // 4)
        head = ["examples/demo.yaml, 4 ranks on 2 nodes", f"ms per step, median (least to most) of {arguments.repeats}"]
        print(table([*head, "MiB resident"], rows), "\n", flush=True)
        rows = beside_rows(folder, arguments.repeats, arguments.steps, arguments.ranks)
        print(f"median (least to most) of {arguments.repeats}, {arguments.ranks} ranks on {os.cpu_count()} cores")
        print(table(["", OptLaunch.name, Torchrun.name, "opt-launch / torchrun"], rows))


if __name__ == "__main__":
    main()
