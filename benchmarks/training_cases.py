"""The trainings of benchmarks/trainings.py: four faults, and healthy runs of which some look like one."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness import OptLaunch, wait_for
from injections import corpus, flip_a_bit, poisoned

STEPS, SEQ_LEN, BATCH = 300, 64, 4  # BATCH: sequences of a step
SAVE_EVERY = 20
RECOMMENDED: dict[str, Any] = {
    "size": "tiny",
    "steps": STEPS,
    "batch_tokens": BATCH * SEQ_LEN,
    "seq_len": SEQ_LEN,
    "lr": 3.0e-3,
    "warmup_tokens": STEPS * BATCH * SEQ_LEN // 8,
    "dropout": 0.0,
    "attention_dropout": 0.0,
    "checkpoint": {"every": SAVE_EVERY, "keep": 10},
}

Disturb = Callable[[OptLaunch], None]


def _leave(_run: OptLaunch) -> None:
    """Nothing happens to the run."""


@dataclass(frozen=True, eq=False)
class Training:
    """One training: what differs from what is recommended, and what is done to it while it goes on.

    `poison`: the steps whose data are garbage.
    """

    name: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    ranks: int = 1
    nodes: int = 1
    poison: range | None = None
    disturb: Disturb = _leave

    def start(self, folder: Path, seed: int, policy: str) -> OptLaunch:
        """Submit it. `seed` is that of the weights, of the order of the data and of all that is drawn."""
        trainer = {**RECOMMENDED, "seed": seed, **self.changes}
        folder.mkdir(parents=True)
        text = corpus()
        if self.poison:
            text = poisoned(text, self.poison, batch=BATCH, seq_len=SEQ_LEN, seed=seed)
        file = folder / "text.jsonl" if trainer.pop("as_lines", False) else folder / "text.txt"
        file.write_bytes(_lines(text) if file.suffix == ".jsonl" else text)
        trainer["data"] = [str(file)]
        return OptLaunch(folder / "run", trainer, self.ranks, self.nodes, policy=[policy])


def _lines(text: bytes) -> bytes:
    parts = text.decode("latin-1").split("\0")
    return "".join(json.dumps({"text": part}) + "\n" for part in parts).encode()


# ---------------------------------------------------------------- what is done to runs


def reaches(run: OptLaunch, step: int) -> None:
    wait_for(run, f"at step {step}", lambda: run.step() >= step)


def flips(step: int) -> Disturb:
    """A bit of a weight flips soon after so many steps."""

    def disturb(run: OptLaunch) -> None:
        (pid,) = run.rank_pids()
        reaches(run, step)
        os.kill(pid, signal.SIGSTOP)  # it trains faster than its memory is searched
        found = flip_a_bit(pid, newest_checkpoint(run))
        os.kill(pid, signal.SIGCONT)
        if not found:
            raise RuntimeError("the weight was not found in the memory of the rank")

    return disturb


def newest_checkpoint(run: OptLaunch) -> Path:
    saved = run.events("checkpoint_committed")[-1]
    return run.run / "checkpoints" / f"step_{saved['step']:08d}.a{saved['attempt']:04d}"


def kills(*steps: int) -> Disturb:
    """The last rank is killed after so many steps, each time."""

    def disturb(run: OptLaunch) -> None:
        for step in steps:
            reaches(run, step)
            os.kill(run.rank_pids()[-1], signal.SIGKILL)

    return disturb


def kills_supervisor(step: int) -> Disturb:
    def disturb(run: OptLaunch) -> None:
        reaches(run, step)
        os.kill(run.status()["supervisor"]["pid"], signal.SIGKILL)

    return disturb


def stops_ranks(step: int, seconds: float) -> Disturb:
    """All ranks stand still for a while, as when a machine is suspended."""

    def disturb(run: OptLaunch) -> None:
        reaches(run, step)
        pids = run.rank_pids()
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        time.sleep(seconds)
        for pid in pids:
            os.kill(pid, signal.SIGCONT)

    return disturb


def pauses(step: int) -> Disturb:
    def disturb(run: OptLaunch) -> None:
        reaches(run, step)
        run.command("pause", "bench")
        wait_for(run, "paused", lambda: run.status()["state"] == "PAUSED")
        run.command("unpause", "bench")

    return disturb


def asks(step: int, deed: str) -> Disturb:
    """A person has something done."""

    def disturb(run: OptLaunch) -> None:
        reaches(run, step)
        run.command("do", "bench", deed, "--why", "a person says so", "--yes")

    return disturb


def stops_and_resumes(step: int, *settings: str) -> Disturb:
    """A person stops the run and goes on with other settings."""

    def disturb(run: OptLaunch) -> None:
        reaches(run, step)
        run.command("stop", "bench")
        wait_for(run, "stopped", lambda: not run.is_alive())
        run.command("resume", "bench", *(word for setting in settings for word in ("--set", setting)))

    return disturb


# ---------------------------------------------------------------- faults


@dataclass(frozen=True)
class Fault:
    """A training that goes wrong, and the same as it is recommended."""

    name: str
    title: str
    recommended: Training
    training: Training


_FP16 = {"dtype": "fp16"}
# Batches whose losses differ less, and time for a trouble to be judged.
_LONGER = {"steps": 400, "batch_tokens": 16 * SEQ_LEN, "warmup_tokens": 50 * 16 * SEQ_LEN}
_PLAIN = Training("recommended")
FAULTS = (
    Fault(
        "lr",
        "a learning rate far too high",
        Training("recommended-longer", _LONGER),
        Training("lr", _LONGER, disturb=asks(230, "{set: {lr: 1.0}}")),
    ),
    Fault(
        "poison",
        "poisoned batches",
        _PLAIN,
        Training("poison", poison=range(150, 210)),
    ),
    Fault(
        "flip",
        "a bit flips in a weight",
        _PLAIN,
        Training("flip", disturb=flips(190)),
    ),
    Fault(
        "scale",
        "the loss scale collapses, fp16",
        Training("recommended-fp16", _FP16),
        Training("scale", _FP16, disturb=flips(190)),
    ),
)


# ---------------------------------------------------------------- healthy runs

_TWO = {"ranks": 2, "nodes": 2}
_FSDP = {"parallel": {"fsdp": 2, "tensor": 1}}
_TOKENS = STEPS * BATCH * SEQ_LEN
HEALTHY = (
    Training("plain"),
    Training("no-warm-up", {"warmup_tokens": 1}),
    Training("a-long-warm-up", {"warmup_tokens": _TOKENS // 2}),
    Training("two-sequences-a-batch", {"batch_tokens": 2 * SEQ_LEN}),
    Training("four-times-the-batch", {"batch_tokens": 4 * BATCH * SEQ_LEN, "steps": STEPS // 2}),
    Training("a-third-of-the-learning-rate", {"lr": RECOMMENDED["lr"] / 3}),
    Training("twice-the-learning-rate", {"lr": RECOMMENDED["lr"] * 2}),
    Training("dropout", {"dropout": 0.1, "attention_dropout": 0.1}),
    Training("clipped-hard,-no-decay", {"clip": 0.1, "weight_decay": 0.0}),
    Training("bf16", {"dtype": "bf16"}),
    Training("fp16", _FP16),
    Training("fp16-that-begins-at-a-scale-of-2^30", _FP16 | {"loss_scale": {"init": 2.0**30}}),
    Training("fp16-that-overflows-all-the-time", _FP16 | {"loss_scale": {"init": 65536, "window": 4}}),
    Training("JSON-lines", {"as_lines": True}),
    Training("a-validation-every-ten-steps", {"validate_every": 10}),
    Training("tensor-parallel", {"parallel": {"fsdp": 1, "tensor": 2}}, **_TWO),
    Training("a-rank-is-killed-three-times", _FSDP, **_TWO, disturb=kills(70, 150, 230)),
    Training("fp16,-and-a-rank-is-killed", _FSDP | _FP16, **_TWO, disturb=kills(150)),
    Training("the-supervisor-is-killed", disturb=kills_supervisor(150)),
    Training("paused", disturb=pauses(150)),
    Training("suspended-for-five-seconds", _FSDP, **_TWO, disturb=stops_ranks(150, 5.0)),
    Training("a-person-sets-half-the-learning-rate", disturb=asks(200, "{set: {lr: x0.5}}")),
    Training("a-person-sets-twice-the-learning-rate", disturb=asks(200, "{set: {lr: x2}}")),
    Training("a-person-goes-back-to-step-60", disturb=asks(200, "{restart: {from: step 60}}")),
    Training("resumed-with-a-batch-four-times-smaller",
             disturb=stops_and_resumes(200, f"trainer.batch_tokens={BATCH * SEQ_LEN // 4}")),
)  # fmt: skip
