"""`opt-launch hosts list` over a ledger of 10,000 hosts and 100,000 findings: the first time, and with a snapshot.

python benchmarks/hosts.py
"""

from __future__ import annotations

import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from launcher.hosts.ledger import Ledger
from launcher.hosts.records import Blamed, Excluded, Found, Record, Seen, Served

REPOSITORY = Path(__file__).parents[1]
HOSTS, WRITERS = 10_000, 10
FINDINGS, INCIDENTS, EXCLUSIONS, ATTEMPTS = 100_000, 3_000, 100, 30
DAYS = 20
REPEATS = 7


def records(writer: int, now: float) -> Iterator[Record]:
    """What one of the writers has met with in the last weeks."""
    names = [f"gpu-{number:05d}" for number in range(HOSTS)]
    for number in range(FINDINGS // WRITERS):
        at = now - random.random() * DAYS * 86400
        verdict = "fail" if random.random() < 0.01 else "ok"
        yield Found(
            id=f"f{writer}-{number}", at=at, by="run x of me", host=random.choice(names), verdict=verdict,
            code=f"code-{random.randrange(20)}", summary="84 C, the device's limit is 87 C",
            evidence={"reading": 84, "limit": 87, "source": "device"},
        )  # fmt: skip
    for number in range(INCIDENTS // WRITERS):
        at, host = now - random.random() * DAYS * 86400, random.choice(names)
        why = f"rank 3 on {host}: RuntimeError: CUDA error"
        yield Blamed(id=f"b{writer}-{number}", at=at, by="run x of me", host=host, run="x", code="exit", why=why)
    for number in range(EXCLUSIONS // WRITERS):
        yield Excluded(
            id=f"e{writer}-{number}", at=now - 60, by="run x of me", host=random.choice(names), reason="xid 79",
            until=now + 86400, automatic=True,
        )  # fmt: skip
    for number in range(ATTEMPTS // WRITERS):
        hosts = tuple(random.sample(names, HOSTS // 5))
        yield Served(id=f"s{writer}-{number}", at=now - number * 86400, by="run x of me", hosts=hosts, hours=20)
    for number in range(writer, HOSTS, WRITERS):
        gpus = tuple(f"GPU-{number:08d}-aaaa-bbbb-cccc-{gpu:012d}" for gpu in range(8))
        yield Seen(id=f"i{number}", at=now, by="run x of me", host=names[number], boot_id="b" * 36, gpus=gpus)


def seconds_of_list(folder: Path, *flags: str) -> tuple[float, float]:
    """(wall, CPU) of one call."""
    environment = {**os.environ, "OPT_LAUNCH_SITE": str(folder / "site.yaml")}
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    command = [sys.executable, "-m", "cli", "hosts", "list", *flags]
    subprocess.run(command, cwd=REPOSITORY, env=environment, stdout=subprocess.DEVNULL, check=True)
    wall, after = time.monotonic() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def told(times: list[tuple[float, float]]) -> str:
    walls, cpus = zip(*times, strict=True)
    return f"{statistics.median(walls):.2f} ({min(walls):.2f} to {max(walls):.2f}) | {statistics.median(cpus):.2f}"


def main() -> None:
    random.seed(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "site.yaml").write_text("hosts: {ledger: ledger}\n")
        for writer in range(WRITERS):
            Ledger(folder / "ledger").append(*records(writer, time.time()))
        size = sum(file.stat().st_size for file in (folder / "ledger").iterdir())
        print(f"{HOSTS:,} hosts, {FINDINGS:,} findings, {size / 1e6:.0f} MB in {WRITERS} files\n")
        print("| | wall, s | CPU, s |\n| --- | --- | --- |")
        print(f"| the first reader | {told([seconds_of_list(folder)])} |")
        print(f"| hosts list | {told([seconds_of_list(folder) for _ in range(REPEATS)])} |")
        print(f"| hosts list --all | {told([seconds_of_list(folder, '--all') for _ in range(REPEATS)])} |")


if __name__ == "__main__":
    main()
