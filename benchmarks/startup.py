"""How long `opt-launch --help` takes: the median of ten starts.

python benchmarks/startup.py
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from harness import spread, table

REPEATS = 10


def seconds_of(command: list[str]) -> list[float]:
    """Wall seconds of each of ten runs, after one that warms the file cache."""
    taken: list[float] = []
    for _ in range(REPEATS + 1):
        began = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        taken.append(time.perf_counter() - began)
    return taken[1:]


def main() -> None:
    opt_launch = str(Path(sys.executable).with_name("opt-launch"))
    commands = [[opt_launch, "--help"], [opt_launch, "submit", "--help"], [sys.executable, "-c", "pass"]]
    rows = [[" ".join([Path(command[0]).name, *command[1:]]), spread(seconds_of(command))] for command in commands]
    print(table(["command", f"seconds, median of {REPEATS} (least to most)"], rows))


if __name__ == "__main__":
    main()
