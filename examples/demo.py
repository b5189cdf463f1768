"""Trains examples/demo.yaml, kills one of its ranks with SIGKILL, and shows what became of it.

    python examples/demo.py [FOLDER FOR THE RUN]        (default: demo-runs)

Leaves with 0 only if the run succeeded, at least one incident was recovered from, and the loss fell.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
LAUNCHER = [sys.executable, "-P", "-m", "cli"]  # what the command opt-launch runs
LIMIT_S = 900.0


def main() -> int:
    root = Path(sys.argv[1] if len(sys.argv) > 1 else "demo-runs")
    name = time.strftime("demo-%m%d-%H%M%S")
    submit = ["submit", str(HERE / "demo.yaml"), "--name", name, "--root", str(root), "--wait"]
    say(f"opt-launch {' '.join(submit)}")
    run = subprocess.Popen([*LAUNCHER, *submit])
    try:
        kill_a_rank(run, root, name)
        code = run.wait(LIMIT_S)
    except BaseException:
        subprocess.call([*LAUNCHER, "stop", name, "--yes", "--root", str(root)])
        raise
    say(f"opt-launch status {name} --root {root} --once")
    launcher("status", name, "--root", root, "--once")
    file = root / name / "report.md"
    launcher("report", name, "--root", root, "-o", file)
    return verdict(code, json.loads(launcher("report", name, "--root", root, "--format", "json", quiet=True)), file)


def kill_a_rank(run: subprocess.Popen[bytes], root: Path, name: str) -> None:
    """Kill the last rank, like the kernel does when memory is short, some steps after a checkpoint."""
    began = time.monotonic()
    state: dict[str, Any] = {}
    while not state.get("checkpoints") or state["step"] < state["checkpoints"][-1]["step"] + 8:
        if run.poll() is not None or time.monotonic() > began + LIMIT_S:
            sys.exit("demo: the run ended, or stood still, before there was a checkpoint")
        time.sleep(0.3)
        if (root / name).exists():
            state = json.loads(launcher("status", name, "--root", root, "--json", quiet=True))
    node = [node for node in state["nodes"] if node["role"] == "active"][-1]
    rank = node["ranks"][-1]
    say(f"step {state['step']}, checkpoint of step {state['checkpoints'][-1]['step']} committed")
    say(f"kill -9 {rank['pid']}        rank {rank['rank']} on {node['name']}")
    os.kill(rank["pid"], signal.SIGKILL)


def verdict(code: int, report: dict[str, Any], file: Path) -> int:
    """Say whether the run did what it is for; the exit code."""
    recovered = [one for one in report["incidents"] if one["state"] == "RECOVERED"]
    losses = [one["loss"] for one in report["effective_loss"]]
    fell = len(losses) > 1 and losses[-1] < losses[0]
    say(f"report: {file}")
    say(f"{report['state']}, {len(recovered)} incident(s) recovered, loss {losses[0]:.3f} -> {losses[-1]:.3f}")
    return 0 if code == 0 and report["state"] == "SUCCEEDED" and recovered and fell else 1


def launcher(*arguments: object, quiet: bool = False) -> str:
    """Run opt-launch; its output, also shown unless quiet."""
    done = subprocess.run([*LAUNCHER, *map(str, arguments)], stdout=subprocess.PIPE, text=True, check=True)
    if not quiet:
        print(done.stdout, end="", flush=True)
    return done.stdout


def say(text: str) -> None:
    print(f"\n== {text}" if text.startswith("opt-launch") else f"== {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
