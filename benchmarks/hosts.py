"""`opt-launch hosts`: `list` over 10,000 hosts and 100,000 findings; `check` of this machine, and of 64 over ssh.

The 64 are names of this machine, whose ssh server and checks share its cores with us. Without sshd they are left out.

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
sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "launcher"))

from sshd import Sshd, missing

from launcher.health.checks import of_tier
from launcher.health.context import Context
from launcher.health.runner import Examination
from launcher.hosts.ledger import Ledger
from launcher.hosts.records import Blamed, Excluded, Found, Record, Seen, Served

REPOSITORY = Path(__file__).parents[1]
HOSTS, WRITERS = 10_000, 10
FINDINGS, INCIDENTS, EXCLUSIONS, ATTEMPTS = 100_000, 3_000, 100, 30
DAYS = 20
REPEATS, TARGETS = 7, 64


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


def seconds_of(folder: Path, *arguments: str) -> tuple[float, float]:
    """(wall, CPU) of one call of `opt-launch hosts`; CPU of all that it has started and waited for."""
    environment = {**os.environ, "OPT_LAUNCH_SITE": str(folder / "site.yaml")}
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    command = [sys.executable, "-m", "cli", "hosts", *arguments]
    subprocess.run(command, cwd=REPOSITORY, env=environment, stdout=subprocess.DEVNULL, check=True)
    wall, after = time.monotonic() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def bench_list(folder: Path) -> None:
    for writer in range(WRITERS):
        Ledger(folder / "ledger").append(*records(writer, time.time()))
    size = sum(file.stat().st_size for file in (folder / "ledger").iterdir())
    print(f"{HOSTS:,} hosts, {FINDINGS:,} findings, {size / 1e6:.0f} MB in {WRITERS} files\n")
    print("| | wall, s | CPU, s |\n| --- | --- | --- |")
    print(f"| the first reader | {told([seconds_of(folder, 'list')])} |")
    print(f"| hosts list | {told([seconds_of(folder, 'list') for _ in range(REPEATS)])} |")
    print(f"| hosts list --all | {told([seconds_of(folder, 'list', '--all') for _ in range(REPEATS)])} |")


def fast_tier() -> tuple[float, float]:
    """(wall, CPU) of the fast tier by itself, its process included, without the command around it."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    findings = [*Examination(Context()).findings(of_tier("fast"))]
    assert findings
    wall, after = time.monotonic() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def bench_check(folder: Path) -> None:
    print("\n| | wall, s | CPU, s |\n| --- | --- | --- |")
    print(f"| the fast tier, its process included | {told([fast_tier() for _ in range(REPEATS)])} |")
    print(f"| hosts check | {told([seconds_of(folder, 'check') for _ in range(REPEATS)])} |")
    if lacks := missing():
        print(f"hosts check of {TARGETS} over ssh: not measured, as this machine has not {', '.join(lacks)}")
        return
    with Sshd(folder / "sshd").running() as server:
        (folder / "known_hosts").write_text(server.known_host)
        (folder / "ssh").write_text(
            f"Host *\nHostName 127.0.0.1\nPort {server.port}\nIdentitiesOnly yes\n"
            f"IdentityFile {server.folder}/user_key\nUserKnownHostsFile {folder}/known_hosts\n"
        )
        for count in (1, TARGETS):
            asked = (
                "check",
                f"gpu-[1-{count}]",
                "--ssh-config",
                str(folder / "ssh"),
                "--timeout",
                "300s",
                "--no-record",
            )
            print(f"| hosts check of {count} over ssh | {told([seconds_of(folder, *asked) for _ in range(3)])} |")


def told(times: list[tuple[float, float]]) -> str:
    walls, cpus = zip(*times, strict=True)
    return f"{statistics.median(walls):.2f} ({min(walls):.2f} to {max(walls):.2f}) | {statistics.median(cpus):.2f}"


def main() -> None:
    random.seed(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "site.yaml").write_text("hosts: {ledger: ledger}\n")
        bench_list(folder)
        bench_check(folder)


if __name__ == "__main__":
    main()
