"""What a node computes in a trial: a real all-reduce with others, every number of it checked; or a burn-in by itself.

    python -P -m launcher.health.collective PARENT ASKED

Runs as a child of `launcher.health.trial` and is imported by nobody: it needs torch. NCCL, a process for each GPU; gloo
and one process where there is none. PARENT is the process without which nobody wants to know. ASKED is JSON: `base`,
the rank of this node's first process, `world` (0: no other node takes part), `host` and `port` of the first one's
store, `limit_s`, `burn_s`. Writes lines of JSON: what it has got to.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import socket
import subprocess
import sys
import time
from typing import Any

import torch
import torch.distributed as dist

from launcher.warm import die_with

EXIT_TAKEN = 3  # the port of the store is in use by somebody else
SMALL, LARGE, LARGE_ON_GPU = 1 << 8, 1 << 20, 1 << 26  # elements of 4 bytes
TIMES = 3  # the best counts: single runs flutter
MATRIX, MATRIX_ON_GPU = 1024, 8192  # rows and columns
COPIED, COPIED_ON_GPU = 64 << 20, 4 << 30  # bytes; more than caches hold


def main(argv: list[str]) -> int:
    parent, asked = int(argv[0]), json.loads(argv[1])
    die_with(parent)
    if "local" in asked:
        return work(asked, asked["local"])
    devices = torch.cuda.device_count() if torch.cuda.is_available() else 1
    tell(devices=devices)
    if not asked["world"]:
        asked |= {"world": devices, "base": 0, "host": "127.0.0.1", "port": free_port()}
    if devices == 1:
        return work(asked, 0)
    commands = [[*command(), str(os.getpid()), json.dumps({**asked, "local": local})] for local in range(devices)]
    processes = [subprocess.Popen(one, stdin=subprocess.DEVNULL) for one in commands]
    return max(abs(process.wait()) for process in processes)


def command() -> list[str]:
    return [sys.executable, "-P", "-m", "launcher.health.collective"]


def work(asked: dict[str, Any], local: int) -> int:
    """One process: the device with this number, or the processors."""
    device = torch.device("cuda", local) if torch.cuda.is_available() else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    tell(started=asked["base"] + local)
    if asked.get("burn_s"):
        burn(device, asked["burn_s"])
    try:
        join(asked, asked["base"] + local, device)
    except dist.DistNetworkError as error:
        if "EADDRINUSE" not in str(error):
            raise
        tell(taken=asked["port"])
        return EXIT_TAKEN
    large = LARGE_ON_GPU if device.type == "cuda" else LARGE
    wrong = reduced(SMALL, device)[1]
    runs = [reduced(large, device) for _ in range(TIMES + 1)][1:]  # the first one makes connections
    wrong += sum(count for _, count in runs)
    tell(wrong=wrong, bandwidth=bus_bandwidth(4 * large, min(seconds for seconds, _ in runs)))
    dist.destroy_process_group()
    return 1 if wrong else 0


def join(asked: dict[str, Any], rank: int, device: torch.device) -> None:
    """The process group of the trial. The first rank's store is its meeting point."""
    limit = datetime.timedelta(seconds=asked["limit_s"])
    store = dist.TCPStore(  # pyright: ignore[reportPrivateImportUsage]
        asked["host"], asked["port"], asked["world"], is_master=rank == 0, timeout=limit
    )
    dist.init_process_group(
        "nccl" if device.type == "cuda" else "gloo", store=store, rank=rank, world_size=asked["world"], timeout=limit
    )


def reduced(size: int, device: torch.device) -> tuple[float, int]:
    """Seconds that an all-reduce of so many integers takes, and how many of the sums are wrong.

    Each rank's numbers differ by place and rank, so that a value that is lost, doubled or misplaced changes a sum.
    """
    rank, world = dist.get_rank(), dist.get_world_size()
    place = torch.arange(size, dtype=torch.int32, device=device) % 251
    values = place * (rank % 7 + 1)
    wait(device)
    began = time.perf_counter()
    dist.all_reduce(values)
    wait(device)
    seconds = time.perf_counter() - began
    return seconds, int((values != place * sum(one % 7 + 1 for one in range(world))).sum())


def bus_bandwidth(size: int, seconds: float) -> float | None:
    """Bytes a second on the busiest link of a ring (nccl-tests, PERFORMANCE.md); None without a link."""
    world = dist.get_world_size()
    return size / seconds * 2 * (world - 1) / world if world > 1 else None


def burn(device: torch.device, seconds: float) -> None:
    """The same product of matrices again and again, whose bits must be the same each time; then memory is copied.

    The numbers are random but seeded: products of ones would hide most wrong bits.
    """
    size = MATRIX_ON_GPU if device.type == "cuda" else MATRIX
    kind = torch.bfloat16 if device.type == "cuda" else torch.float32
    random = torch.Generator(device).manual_seed(1)
    a, b = (torch.randn(size, size, generator=random, device=device, dtype=kind) for _ in range(2))
    product = torch.empty_like(a)
    first, times, differ, ends_at = "", 0, 0, time.monotonic() + seconds
    while times < 2 or time.monotonic() < ends_at:
        torch.matmul(a, b, out=product)
        digest = hashlib.sha256(product.view(torch.uint8).cpu().numpy().tobytes()).hexdigest()
        first = first or digest
        differ += digest != first
        times += 1
    tell(products=times, differ=differ, digest=first[:16], copied=copy_speed(device))


def copy_speed(device: torch.device) -> float:
    """Bytes of memory copied a second, the best of a few times."""
    source = torch.ones(COPIED_ON_GPU if device.type == "cuda" else COPIED, dtype=torch.uint8, device=device)
    target, best = torch.empty_like(source), float("inf")
    for _ in range(TIMES):
        wait(device)
        began = time.perf_counter()
        target.copy_(source)
        wait(device)
        best = min(best, time.perf_counter() - began)
    return source.numel() / best


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]


def tell(**line: Any) -> None:
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
