"""A real run of the real trainer: FSDP times tensor parallel on gloo, dropout on."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import Any

import psutil
from live_run import LIMIT_S, POLL_S, LiveRun

from launcher.events import TrainerDone
from launcher.view.snapshot import snapshot

TRAINER = """
trainer:
  {size: tiny, data: ["CORPUS"], steps: STEPS, batch_tokens: 512, seq_len: 64, lr: 1.0e-3, dropout: 0.1,
   attention_dropout: 0.1, parallel: {fsdp: 2, tensor: 2}, checkpoint: {every: EVERY, keep: 20, probation: 5 steps}}
"""


class TrainedRun(LiveRun):
    """Its ranks are known by what the status tells."""

    first_step = "90s"

    def trainer(self, *, corpus: Path, every: str = "8 steps", **_: Any) -> str:
        return TRAINER.replace("CORPUS", str(corpus)).replace("STEPS", str(self.steps)).replace("EVERY", every)

    def check_history(self) -> None:
        """Every step and every sample once; whether the digest is that of an undisturbed run, the test asks."""
        samples = [sample for first, last in self.kept() for sample in range(first, last)]
        assert samples == list(range(len(samples)))
        assert len(self.kept()) == self.steps

    def digest(self) -> str:
        """The digest of the trained tensors, as the trainer told it at its end."""
        digest = self.of(TrainerDone)[-1].final_digest
        assert digest is not None
        return digest

    def is_written(self, checkpoint: tuple[int, int]) -> bool:
        return (self.paths.checkpoint(*checkpoint) / ".metadata").exists()

    def told_ranks(self) -> dict[str, dict[int, int]]:
        """Node -> rank -> process id, as the newest status tells."""
        nodes = snapshot(self.paths)["nodes"]
        return {node["name"]: {one["rank"]: one["pid"] for one in node["ranks"] if one["pid"]} for node in nodes}

    def rank(self, rank: int) -> psutil.Process:
        deadline = time.monotonic() + LIMIT_S
        while True:
            for ranks in self.told_ranks().values():
                with contextlib.suppress(psutil.Error, KeyError):
                    return psutil.Process(ranks[rank])
            assert time.monotonic() < deadline, f"rank {rank} does not live\n{self.story()}"
            time.sleep(POLL_S)

    def ranks_of(self, node: str) -> list[psutil.Process]:
        return [psutil.Process(pid) for pid in self.told_ranks().get(node, {}).values() if psutil.pid_exists(pid)]
