"""What a long run costs those who come to it later: a new supervisor, and everybody who looks.

    python benchmarks/fold.py [--steps 10000 100000 1000000] [--repeats 3]

A run of so many steps on 16 nodes of 8 ranks is made up, with its checkpoints, faults and takeovers. Then, with and
without a snapshot of the fold: what a new supervisor takes until it can supervise (it seals what there is, and folds
it), and what `status --once` takes. CPU seconds of the whole process, its imports too, and its most memory. The
snapshot is as old as it is on average: half as many events have come since as lie between two. At last, what it costs
to write.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from harness import REPOSITORY, spread, table

sys.path.insert(0, str(REPOSITORY))
from launcher.fold import Fold
from launcher.paths import RunPaths
from launcher.snapshots import EVERY, policy_version, write_snapshot
from policies.load import load_policy
from tests.launcher.long_run import write_long_run

TAKE_OVER = """\
import sys
from pathlib import Path
from launcher.journal import seal
from launcher.paths import RunPaths
from launcher.snapshots import read_fold
from policies.load import load_policy
paths = RunPaths(Path(sys.argv[1]))
read_fold(paths, load_policy(["default"]), seal(paths, 1_000_000))
"""


def measured(command: list[str]) -> tuple[float, float]:
    """CPU seconds of a process, and the most memory that it had (MiB)."""
    process = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"failed: {' '.join(command)}")
    return used.ru_utime + used.ru_stime, used.ru_maxrss / 1024


def rows_of(paths: RunPaths, steps: int, repeats: int, what: str) -> list[list[str]]:
    cli = [sys.executable, "-P", "-m", "cli", "status", paths.name, "--root", str(paths.root.parent)]
    commands = {
        "take over": [sys.executable, "-c", TAKE_OVER, str(paths.root)],
        "status --once": [*cli, "--once"],
    }
    rows = []
    for name, command in commands.items():
        taken = [measured(command) for _ in range(repeats)]
        memory = f"{max(mib for _, mib in taken):.0f}"
        rows.append([f"{steps:,}", what, name, spread([seconds for seconds, _ in taken]), memory])
    return rows


def writing(paths: RunPaths, fold: Fold, steps: int) -> list[str]:
    """What a snapshot costs the supervisor: CPU time, of a thread beside its loop."""
    began = time.thread_time()
    write_snapshot(paths, policy_version(paths), fold.view, fold.memory)
    ms = (time.thread_time() - began) * 1e3
    size = paths.snapshot(fold.view.epoch, fold.view.seq).stat().st_size
    return [f"{steps:,}", f"{ms:.1f}", f"{size / 1024:.0f}", f"{ms * 1e3 / EVERY:.1f}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    rows: list[list[str]] = []
    costs: list[list[str]] = []
    with tempfile.TemporaryDirectory(prefix="opt-launch-bench-") as name:
        for steps in arguments.steps:
            paths = RunPaths(Path(name) / "runs" / "long")
            paths.root.mkdir(parents=True)
            paths.policy.write_text("default\n")

            def snapshot(done: int, fold: Fold, paths: RunPaths = paths, steps: int = steps) -> None:
                if done == steps - EVERY // 2:
                    costs.append(writing(paths, fold, steps))

            write_long_run(paths, load_policy(["default"]), steps, at=snapshot)
            rows += rows_of(paths, steps, arguments.repeats, "yes")
            shutil.rmtree(paths.state)
            rows += rows_of(paths, steps, 1, "no")
            shutil.rmtree(paths.root)
    print(table(["steps", "snapshot", "", f"CPU s, median of {arguments.repeats}; once without", "MiB"], rows), "\n")
    print(table(["steps", "a snapshot, ms CPU", "KiB", "microseconds per step"], costs))


if __name__ == "__main__":
    main()
