"""A trainer without torch: ranks that count together, save, restore, and can be told to misbehave.

    python counting.py --steps 60 --step-s 0.05 --save-every 10

Each step sums a number over all ranks (through rank 0, at MASTER_ADDR:MASTER_PORT) and chains the sum into a state,
so that the final digest tells whether every step happened exactly once. Wishes to save or stop travel with the
sum. It speaks to the launcher as any trainer would: through the reporter, loaded by path.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import socket
import struct
import sys
import time
from pathlib import Path
from typing import Any

import xxhash

BATCH = 8  # samples a step
POISON = 8  # beside SAVE, STOP and SET: this step's numbers are not numbers
REDUCE = struct.Struct("<QQ")
CONNECT_S = 30.0


def contribution(step: int, rank: int) -> int:
    """The number a rank adds in a step."""
    return xxhash.xxh64_intdigest(f"{step}.{rank}".encode())


def chained(state: str, step: int, total: int) -> str:
    """The state after a step."""
    return xxhash.xxh3_128_hexdigest(f"{state}.{step}.{total % 2**64}".encode())


def expected(steps: int, ranks: int) -> str:
    """The digest of an undisturbed run."""
    state = ""
    for step in range(steps):
        state = chained(state, step, sum(contribution(step, rank) for rank in range(ranks)))
    return state


def load_reporter() -> Any:
    path = os.environ.get("OPT_LAUNCH_REPORTER")
    path = path or str(Path(__file__).resolve().parents[1] / "launcher" / "reporter.py")
    spec = importlib.util.spec_from_file_location("reporter", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Group:
    """All ranks, joined in a star around rank 0. A broken peer raises ConnectionError."""

    def __init__(self, rank: int, ranks: int, host: str, port: int) -> None:
        self.rank, self.ranks = rank, ranks
        self.peers: list[socket.socket] = []
        if rank == 0:
            self._listen(host, port)
        else:
            self.peers.append(self._connect(host, port))

    def _listen(self, host: str, port: int) -> None:
        with socket.socket() as server:
            server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            server.bind((host, port))
            server.listen(self.ranks)
            while len(self.peers) < self.ranks - 1:
                peer, _ = server.accept()
                peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self.peers.append(peer)

    def _connect(self, host: str, port: int) -> socket.socket:
        deadline = time.monotonic() + CONNECT_S
        while True:
            peer = socket.socket()
            try:
                peer.connect((host, port))
            except OSError as error:
                peer.close()
                if time.monotonic() > deadline:
                    raise ConnectionError(f"connect to rank 0 failed: {error}") from error
                time.sleep(0.05)
            else:
                peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                return peer

    def reduce(self, number: int, bits: int) -> tuple[int, int]:
        """The sum of the numbers and the union of the bits of all ranks."""
        if self.rank:
            self._send(self.peers[0], number, bits)
            return self._receive(self.peers[0])
        for peer in self.peers:
            theirs, their_bits = self._receive(peer)
            number, bits = (number + theirs) % 2**64, bits | their_bits
        for peer in self.peers:
            self._send(peer, number, bits)
        return number, bits

    def _send(self, peer: socket.socket, number: int, bits: int) -> None:
        peer.sendall(REDUCE.pack(number, bits))

    def _receive(self, peer: socket.socket) -> tuple[int, int]:
        data = b""
        while len(data) < REDUCE.size:
            more = peer.recv(REDUCE.size - len(data))
            if not more:
                raise ConnectionError("Connection closed by peer")
            data += more
        return REDUCE.unpack(data)


class Trainer:
    """One rank."""

    def __init__(self, args: argparse.Namespace, reporter: Any, bits: Any) -> None:
        env = os.environ
        self.args, self.reporter, self.bits = args, reporter, bits
        self.rank, self.ranks = int(env.get("RANK", "0")), int(env.get("WORLD_SIZE", "1"))
        self.attempt = int(env.get("OPT_LAUNCH_ATTEMPT", "1"))
        self.checkpoints = Path(env.get("OPT_LAUNCH_CHECKPOINTS", "checkpoints"))
        self.state, self.step, self.poisoned = "", 0, False
        self.position = 0  # of the next sample
        self.skips = json.loads(env.get("OPT_LAUNCH_SKIPS") or "[]")

    def run(self) -> int:
        if folder := os.environ.get("OPT_LAUNCH_RESTORE"):
            wrong = self.restore(Path(folder))
            if wrong:
                print(f"checkpoint rejected: {wrong}", file=sys.stderr, flush=True)
                self.reporter.checkpoint_rejected(wrong)
                self.reporter.close()
                return self.bits.EXIT_CHECKPOINT_REJECTED
        address = os.environ.get("MASTER_ADDR", "127.0.0.1"), int(os.environ.get("MASTER_PORT", "29500"))
        group = Group(self.rank, self.ranks, *address)
        if self.reporter.asked:
            self.reporter.applied(None, self.step, self.effective(self.reporter.asked))
        while self.step < self.args.steps:
            wanted = self.train(group)
            for id_, settings in self.reporter.settings().items():
                self.reporter.applied(id_, self.step, self.effective(settings))
            due = bool(self.args.save_every) and self.step % self.args.save_every == 0
            if due or wanted & (self.bits.SAVE | self.bits.STOP):
                self.save()
            self.reporter.acted(wanted & (self.bits.SAVE | self.bits.STOP))
            if wanted & self.bits.STOP:
                break
        if self.rank == 0 and self.step == self.args.steps:
            self.reporter.done(self.step, final_digest=self.state)
        self.reporter.close()
        return 0

    def effective(self, asked: dict[str, Any]) -> dict[str, float]:
        """Of settings that were asked for, what counts from now on; every one was 1 at first."""
        if self.args.deaf:
            return dict.fromkeys(asked, 1.0)
        return {name: float(str(value).lstrip("x")) for name, value in asked.items()}

    # ------------------------------------------------------------ a step

    def train(self, group: Group) -> int:
        args, step, began = self.args, self.step, time.monotonic()
        if step == args.eval_at:
            with self.reporter.phase("eval"):
                time.sleep(args.eval_s)
        slow = args.slow_from is not None and step >= args.slow_from
        time.sleep(args.step_s * (args.slow_factor if slow else 1.0))
        self.reporter.section()
        if step == args.exit_at and self.rank == 1:
            raise ValueError("a shape that does not fit")
        bits = self.reporter.wanted() | (POISON if self.rank == 0 and self.goes_wrong(step) else 0)
        total, bits = group.reduce(contribution(step, self.rank), bits)
        self.reporter.section()
        self.poisoned = self.poisoned or bool(bits & POISON)
        self.state = chained(self.state, step, total + self.poisoned)
        self.step += 1
        metrics = None
        if self.rank == 0:
            metrics = {"loss": float("nan") if self.poisoned else 2.0 + 1.0 / (1 + step)}
        samples = (self.position, self.after(self.position))
        self.position = samples[1]
        self.reporter.step(step, metrics, samples=samples, step_s=time.monotonic() - began)
        return bits

    def after(self, position: int) -> int:
        """The position after the next batch: what is left out is whole batches."""
        for first, end in self.skips:
            position = end if first <= position < end else position
        return position + BATCH

    def goes_wrong(self, step: int) -> bool:
        """Whether the numbers go wrong now: once in the whole run, or at every visit with --nan-always."""
        if step != self.args.nan_at:
            return False
        marker = Path(self.args.run) / "went_wrong"
        if marker.exists() and not self.args.nan_always:
            return False
        marker.touch()
        return True

    # ------------------------------------------------------------ checkpoints

    def save(self) -> None:
        folder = self.checkpoints / f"step_{self.step:08d}.a{self.attempt:04d}"
        began = time.monotonic()
        with self.reporter.phase("save"):
            state = {"step": self.step, "digest": self.state, "poisoned": self.poisoned, "rank": self.rank}
            state |= {"position": self.position}
            data = json.dumps(state).encode() + b"\n" + bytes(self.args.part_kb << 10)
            try:
                folder.mkdir(parents=True, exist_ok=True)
                time.sleep(self.args.save_s)
                self.write(folder / f"part.{self.rank:04d}", data)
            except OSError as error:
                self.reporter.save_failed(self.step, error)
                return
        chunk = {"key": f"part.{self.rank}", "path": f"part.{self.rank:04d}", "offset": 0, "length": len(data)}
        chunks = [{**chunk, "digest": xxhash.xxh3_128_hexdigest(data)}]
        about = {"step": self.step, "samples": self.position} if self.rank == 0 else None
        self.reporter.save_part(self.step, folder, chunks, state=about, blocked_s=time.monotonic() - began)

    def write(self, path: Path, data: bytes) -> None:
        with path.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())

    def restore(self, folder: Path) -> str:
        """Load this rank's part; what is wrong with it, or ""."""
        try:
            text = (folder / "manifest.json").read_bytes()
            if xxhash.xxh3_128_hexdigest(text) != os.environ["OPT_LAUNCH_RESTORE_DIGEST"]:
                return "manifest.json does not match its digest"
            chunk = next(one for one in json.loads(text)["chunks"] if one["key"] == f"part.{self.rank}")
            data = (folder / chunk["path"]).read_bytes()[chunk["offset"] :][: chunk["length"]]
        except OSError as error:
            return str(error)
        if xxhash.xxh3_128_hexdigest(data) != chunk["digest"]:
            return f"{chunk['path']} does not match its digest"
        state = json.loads(data.split(b"\n", 1)[0])
        self.step, self.state, self.poisoned = state["step"], state["digest"], state["poisoned"]
        self.position = state["position"]
        return ""


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--run", default=".", help="the run's folder: names the run on the command line of every rank")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--step-s", type=float, default=0.05)
    parser.add_argument("--save-every", type=int, default=10)
    parser.add_argument("--save-s", type=float, default=0.0)
    parser.add_argument("--part-kb", type=int, default=1)
    parser.add_argument("--eval-at", type=int)
    parser.add_argument("--eval-s", type=float, default=5.0)
    parser.add_argument("--nan-at", type=int)
    parser.add_argument("--nan-always", action="store_true")
    parser.add_argument("--slow-from", type=int)
    parser.add_argument("--slow-factor", type=float, default=5.0)
    parser.add_argument("--raise-at-import", action="store_true")
    parser.add_argument("--raise-on-node", default="", help="with --raise-at-import: on this node only")
    parser.add_argument("--say", default="", help="every rank prints it, its number and its attempt at its start")
    parser.add_argument("--deaf", action="store_true", help="settings that are asked for change nothing")
    parser.add_argument("--exit-at", type=int, help="every attempt's rank 1 fails by itself at this step")
    return parser.parse_args()


def main() -> int:
    args = parsed()
    if args.say:
        print(args.say, os.environ.get("RANK"), os.environ.get("OPT_LAUNCH_ATTEMPT"), flush=True)
    if args.raise_at_import and args.raise_on_node in ("", os.environ.get("OPT_LAUNCH_NODE")):
        raise ImportError("No module named 'frobnicate'")
    module = load_reporter()
    reporter = module.connect()
    try:
        return Trainer(args, reporter, module).run()
    except Exception as error:
        reporter.error(type(error).__name__, error)
        reporter.close()
        raise


if __name__ == "__main__":
    sys.exit(main())
