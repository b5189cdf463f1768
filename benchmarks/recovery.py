"""How long a killed rank costs: opt-launch beside torchrun, the same trainer, the same fault, in turn.

    python benchmarks/recovery.py [--repeats 5] [--ranks 2]

A rank is killed with SIGKILL half way between two checkpoints. Seconds are counted from the kill:
detected    the launcher knows (torchrun says so; opt-launch has decided)
first step  the first step of the restarted ranks is done
caught up   the first step is done that had not been done before
Lost steps had been done and were done again.
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from harness import OptLaunch, Torchrun, settings, spread, table, wait_for

SAVE_EVERY = 20
KILL_AT = 10  # steps after a checkpoint


@dataclass(frozen=True)
class Outcome:
    """One recovery, in seconds from the kill and in steps."""

    detected_s: float
    first_step_s: float
    caught_up_s: float
    lost_steps: int


def recover(launcher: Torchrun | OptLaunch) -> Outcome:
    """Kill the last rank once the trainer is half way to its next checkpoint, and watch it come back."""
    wait_for(launcher, "at its first step", lambda: launcher.step() >= 0)
    victim = launcher.rank_pids()[-1]

    def is_due() -> bool:
        step = launcher.step()
        return step > SAVE_EVERY and step % SAVE_EVERY == KILL_AT

    wait_for(launcher, f"{KILL_AT} steps after a checkpoint", is_due)
    killed_at = time.time()
    os.kill(victim, signal.SIGKILL)
    wait_for(launcher, "back", lambda: launcher.seen.first_after_going_back() is not None)
    again = launcher.seen.first_after_going_back()
    assert again is not None
    reached = launcher.seen.steps[again - 1][1]  # the last step before the ranks died
    wait_for(launcher, f"beyond step {reached}", lambda: launcher.seen.last() > reached)
    first_at, first = launcher.seen.steps[again]
    caught_up_at = next(at for at, step in launcher.seen.steps[again:] if step > reached)
    return Outcome(
        launcher.detected_at - killed_at, first_at - killed_at, caught_up_at - killed_at, reached + 1 - first
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--ranks", type=int, default=2)
    arguments = parser.parse_args()
    outcomes: dict[str, list[Outcome]] = {OptLaunch.name: [], Torchrun.name: []}
    with tempfile.TemporaryDirectory(prefix="opt-launch-bench-") as folder:
        for repeat in range(arguments.repeats):
            for kind in (OptLaunch, Torchrun):
                trainer = settings(arguments.ranks, steps=100_000, save_every=SAVE_EVERY)
                launcher = kind(Path(folder) / f"{kind.name}.{repeat}", trainer, arguments.ranks)
                try:
                    outcomes[kind.name].append(recover(launcher))
                finally:
                    launcher.end()
                print(f"{repeat + 1}/{arguments.repeats} {kind.name}: {outcomes[kind.name][-1]}", flush=True)
    fields = ("detected_s", "first_step_s", "caught_up_s", "lost_steps")
    columns = {
        field: {name: [float(getattr(one, field)) for one in found] for name, found in outcomes.items()}
        for field in fields
    }
    rows = []
    for field, of in columns.items():
        ours, theirs = of[OptLaunch.name], of[Torchrun.name]
        ratio = statistics.median(theirs) / statistics.median(ours) if statistics.median(ours) else float("nan")
        form = ".0f" if field == "lost_steps" else ".2f"
        rows.append([field, spread(ours, form), spread(theirs, form), f"{ratio:.1f} x"])
    print(f"\nmedian (least to most) of {arguments.repeats}, {arguments.ranks} ranks on {os.cpu_count()} cores")
    print(table(["", OptLaunch.name, "torchrun --max-restarts", "torchrun / opt-launch"], rows))


if __name__ == "__main__":
    main()
