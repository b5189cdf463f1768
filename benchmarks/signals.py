"""What the signals of our trainer cost it, per step.

    torchrun --standalone --nproc-per-node 2 benchmarks/signals.py [--size tiny] [--tensor 1] [--steps 30]

Each signal is timed where the step takes it, on rank 0; a step is the whole, signals included. The norm of the
gradient and the sum over ranks a step needs anyway.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from harness import table

from launcher.reporter import Reporter
from model import parallel
from model.config import TrainerConfig
from model.trainer import Trainer

WARM_STEPS = 5


def timed(owner: Any, name: str, into: list[float]) -> None:
    """Have each call of a method leave its seconds."""
    method: Callable[..., Any] = getattr(owner, name)

    def call(*arguments: Any, **named: Any) -> Any:
        began = time.perf_counter()
        try:
            return method(*arguments, **named)
        finally:
            into.append(time.perf_counter() - began)

    setattr(owner, name, call)


def measured(trainer: Trainer, steps: int) -> dict[str, list[float]]:
    """Seconds in each step, by what took them."""
    parts = {
        "norm of the weights": (trainer.optimizer, "squared_weights"),
        "stopwatch: a start": (trainer.stopwatch, "start"),
        "stopwatch: a stop": (trainer.stopwatch, "stop"),
        "stopwatch: reading it": (trainer.stopwatch, "read"),
        "checksums of shards": (trainer.checksums, "begin"),
        "checksums of what is gathered": (trainer.checksums, "add"),
    }
    calls: dict[str, list[float]] = {name: [] for name in parts}
    for name, (owner, method) in parts.items():
        timed(owner, method, calls[name])
    found: dict[str, list[float]] = {"a step": [], **{name: [] for name in parts}}
    for step in range(steps):
        for taken in calls.values():
            taken.clear()
        began = time.perf_counter()
        with contextlib.redirect_stdout(io.StringIO()):
            trainer.train_step()
        if step >= WARM_STEPS:
            found["a step"].append(time.perf_counter() - began)
            for name, taken in calls.items():
                found[name].append(sum(taken))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="tiny")
    parser.add_argument("--batch-tokens", type=int, default=8192)
    parser.add_argument("--seq-len", type=int, default=128)
    parser.add_argument("--tensor", type=int, default=1)
    parser.add_argument("--steps", type=int, default=30)
    asked = parser.parse_args()
    mesh = {"fsdp": int(os.environ["WORLD_SIZE"]) // asked.tensor, "tensor": asked.tensor}
    settings = {"size": asked.size, "batch_tokens": asked.batch_tokens, "seq_len": asked.seq_len, "parallel": mesh}
    config = TrainerConfig.from_mapping({**settings, "steps": asked.steps, "lr": 1e-3, "checksum_every": 1})
    parallel.be_deterministic()
    world = parallel.join(config, os.environ)
    with tempfile.TemporaryDirectory(prefix="opt-launch-bench-") as folder:
        trainer = Trainer(config, world, Reporter(), Path(folder))
    parallel.initialise(trainer.model, config)
    found = {name: statistics.median(seconds) * 1e3 for name, seconds in measured(trainer, asked.steps).items()}
    if world.rank == 0:
        whole = found["a step"]
        rows = [[name, f"{ms:.3f}", f"{ms / whole * 100:.3f}"] for name, ms in found.items()]
        print(table([f"{asked.size}, {mesh}", "ms per step", "% of a step"], rows))
    parallel.leave()


if __name__ == "__main__":
    main()
