"""Ranks for tests of the trainer: real processes, forked warm, on gloo with a fresh port each time."""

import json
import os
import selectors
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from agent_for_trainer import FakeAgent

TRAINER = {
    "size": "tiny",
    "steps": 8,
    "batch_tokens": 512,
    "seq_len": 32,
    "lr": 3.0e-3,
    "seed": 1,
    "parallel": {"fsdp": 2, "tensor": 2},
}


class Ranks:
    """Starts functions of `rank_programs` or the trainer as the ranks of one process group."""

    def __init__(self) -> None:
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        command = [sys.executable, str(Path(__file__).with_name("warm_ranks.py"))]
        self._server = subprocess.Popen(command, stdin=-1, stdout=-1, env=environment, text=True, bufsize=1)
        self.pids: list[int] = []

    def start(self, target: str, environments: list[dict[str, str]], logs: Path) -> list[int]:
        """Fork the ranks; returns their process ids."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        count = len(environments)
        common = {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1"}
        full = [
            common | {"MASTER_PORT": str(port), "RANK": str(rank), "LOCAL_RANK": str(rank)} | environment
            for rank, environment in enumerate(environments)
        ]
        request = {"target": target, "environments": full, "logs": str(logs)}
        assert self._server.stdin
        self._server.stdin.write(json.dumps(request) + "\n")
        self.pids = self._answer(30)["pids"]
        return self.pids

    def wait(self, limit_s: float = 60.0) -> list[int]:
        """The exit statuses of all ranks; kills what is left at the deadline."""
        try:
            return self._answer(limit_s)["statuses"]
        except TimeoutError:
            for pid in self.pids:
                os.kill(pid, signal.SIGKILL)
            self._answer(10)
            raise

    def stop(self) -> None:
        """End the server."""
        assert self._server.stdin
        self._server.stdin.close()
        self._server.wait(10)

    def _answer(self, limit_s: float) -> dict[str, Any]:
        assert self._server.stdout
        with selectors.DefaultSelector() as selector:
            selector.register(self._server.stdout, selectors.EVENT_READ)
            if not selector.select(limit_s):
                raise TimeoutError(f"the ranks did not answer within {limit_s} s")
        return json.loads(self._server.stdout.readline())


class Training:
    """Attempts of one run under a fake agent."""

    def __init__(self, ranks: Ranks, text: Path, folder: Path, short: Path) -> None:
        self.ranks, self.text, self.folder, self.short = ranks, text, folder, short
        self.checkpoints = folder / "checkpoints"
        self.attempt = 0

    def start(
        self,
        restore: tuple[str, str] | None = None,
        agent: bool = True,
        count: int | None = None,
        env: Mapping[str, str] | None = None,
        **settings: Any,
    ) -> FakeAgent | None:
        """Begin the next attempt, with `count` ranks instead of those asked for; without an agent it resumes itself.

        `env`: variables of all ranks, beside those an attempt always has.
        """
        self.attempt += 1
        config = TRAINER | {"data": str(self.text / "*.txt")} | settings
        count = count or config["parallel"]["fsdp"] * config["parallel"]["tensor"]
        self.logs = self.folder / f"attempt{self.attempt}"
        self.logs.mkdir()
        (self.logs / "trainer.json").write_text(json.dumps(config))
        fake = FakeAgent(self.short / str(self.attempt), count) if agent else None
        common = {
            "OPT_LAUNCH_TRAINER": str(self.logs / "trainer.json"),
            "OPT_LAUNCH_CHECKPOINTS": str(self.checkpoints),
            "OPT_LAUNCH_ATTEMPT": str(self.attempt),
            **(env or {}),
        }
        if restore:
            common |= {"OPT_LAUNCH_RESTORE": restore[0], "OPT_LAUNCH_RESTORE_DIGEST": restore[1]}
        environments = [common | (fake.environment(rank) if fake else {}) for rank in range(count)]
        self.ranks.start("model.train:main", environments, self.logs)
        return fake

    def run(self, restore: tuple[str, str] | None = None, **settings: Any) -> tuple[FakeAgent, list[int]]:
        """One attempt to its end: the agent and the ranks' exit statuses."""
        agent = self.start(restore, **settings)
        assert agent
        return agent, self.ranks.wait()

    def log(self, rank: int = 0) -> str:
        """What a rank of the last attempt wrote."""
        return (self.logs / f"rank{rank}.log").read_text()
