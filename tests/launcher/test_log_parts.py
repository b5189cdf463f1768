"""What ranks print fills no disk, and what is kept of it is read as if it were one log."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from launcher.arrivals import Arrivals
from launcher.evidence import collect
from launcher.log_parts import PARTS, LogParts, named, newest, parts
from launcher.paths import RunPaths
from launcher.rank_log import RankLog, first_error
from launcher.view.logs import Follower, Wanted, merged

LIMIT = 8000  # bytes: parts of 1000


def line(number: int) -> str:
    return f"2026-01-02T10:00:{number // 1000:02d}.{number % 1000:03d}+00:00 rank 0 out line {number}\n"


def texts(lines: Iterator[object]) -> list[int]:
    return [int(str(getattr(one, "text", "")).removeprefix("line ")) for one in lines]


@pytest.fixture
def paths(tmp_path: Path) -> RunPaths:
    return RunPaths(tmp_path / "run")


def log_of(paths: RunPaths, attempt: int, node: str = "node0") -> LogParts:
    first = paths.log(attempt, node)
    first.parent.mkdir(parents=True, exist_ok=True)
    return LogParts(first, LIMIT)


def kept(paths: RunPaths, node: str = "node0") -> int:
    return sum(path.stat().st_size for path in parts(paths.logs, node=node))


def test_the_beginning_and_the_end_are_kept_and_no_more_than_the_limit(paths: RunPaths) -> None:
    log = log_of(paths, 1)
    for number in range(1000):
        log.append(line(number))
        assert kept(paths) <= LIMIT

    read = texts(merged(paths, Wanted()))
    assert read[0] == 0, "the first part tells what was asked for"
    assert read[-1] == 999
    gaps = [(a, b) for a, b in pairwise(read) if b != a + 1]
    assert len(gaps) == 1, "what went is in one piece, after the first part"
    assert kept(paths) > LIMIT * (PARTS - 1) / PARTS
    assert parts(paths.logs)[0] == paths.log(1, "node0")


def test_logs_of_earlier_attempts_make_room_and_those_of_other_nodes_do_not(paths: RunPaths) -> None:
    for attempt in (1, 2, 3):
        log, other = log_of(paths, attempt), log_of(paths, attempt, "node0.a")
        other.append(line(attempt))
        for number in range(60):
            log.append(line(number))

    assert kept(paths) <= LIMIT
    assert not paths.log(1, "node0").exists()
    assert texts(merged(paths, Wanted(attempt=3, node="node0"))) == list(range(60))
    assert texts(merged(paths, Wanted(node="node0.a"))) == [1, 2, 3]


def test_a_short_log_is_one_file_and_stays(paths: RunPaths) -> None:
    for attempt in range(1, 30):
        log_of(paths, attempt).append(line(attempt))

    assert [path.name for path in parts(paths.logs)] == ["node0.log"] * 29


def test_a_writer_that_begins_again_goes_on_where_the_last_one_was(paths: RunPaths) -> None:
    for number in range(50):
        log_of(paths, 1).append(line(number))

    assert len(parts(paths.logs)) == 3
    assert texts(merged(paths, Wanted())) == list(range(50))


def test_a_follower_loses_no_line_when_a_part_ends(paths: RunPaths) -> None:
    log, follower = log_of(paths, 1), Follower(paths, Wanted())
    seen: list[int] = []
    for number in range(200):
        log.append(line(number))
        if number % 7 == 0:
            seen += texts(iter(follower.read()))

    seen += texts(iter(follower.read()))
    assert seen == list(range(200))


def test_a_part_that_goes_while_it_is_to_be_read_is_left_out(paths: RunPaths) -> None:
    log = log_of(paths, 1)
    for number in range(60):
        log.append(line(number))
    reading = merged(paths, Wanted())
    first = next(reading)
    parts(paths.logs)[1].unlink()

    rest = texts(reading)
    assert first.text == "line 0"
    assert rest[-1] == 59
    assert rest == sorted({*rest})


def test_a_text_longer_than_a_part_is_written_whole(paths: RunPaths) -> None:
    log = log_of(paths, 1)
    log.append(line(0))
    log.append("".join(map(line, range(1, 40))))
    log.append(line(40))

    assert texts(merged(paths, Wanted())) == list(range(41))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("node0.log", ("node0", 1)),
        ("node0.log.12", ("node0", 12)),
        ("gpu.7.cluster.log", ("gpu.7.cluster", 1)),
        ("node0.rank3.failed.log", None),
        ("node0.txt", None),
    ],
)
def test_a_part_tells_its_node(name: str, expected: tuple[str, int] | None) -> None:
    assert named(Path(name)) == expected


def test_the_last_lines_of_a_failed_rank_are_beside_parts_that_have_gone_round(paths: RunPaths) -> None:
    arrivals = Arrivals()
    log = RankLog(paths.log(1, "node0"), arrivals, LIMIT)
    out, err = log.pipes(0)
    for number in range(300):
        os.write(err, f"line {number}\n".encode())
        arrivals.take()
        if number % 20 == 0:
            log.finish(0, failed=False)  # hands over what was gathered
    for descriptor in (out, err):
        os.close(descriptor)
    arrivals.take()
    tail = log.finish(0, failed=True)
    log.close(10.0)
    arrivals.close()

    assert tail[-1] == "line 299"
    assert paths.log(1, "node0").with_name("node0.rank0.failed.log").read_text().splitlines()[-1] == "line 299"
    assert kept(paths) <= LIMIT
    assert texts(merged(paths, Wanted()))[-1] == 299


async def evidence(paths: RunPaths, folder: Path) -> None:
    await collect([], folder, "node0", paths.log(1, "node0"))


def test_evidence_holds_the_end_of_the_newest_part(paths: RunPaths, tmp_path: Path) -> None:
    log = log_of(paths, 1)
    for number in range(100):
        log.append(line(number))
    asyncio.run(evidence(paths, tmp_path / "evidence"))

    assert newest(paths.log(1, "node0")).name != "node0.log"
    assert (tmp_path / "evidence" / "node0.log").read_text().endswith(line(99))


PLAIN = """
Traceback (most recent call last):
  File "train.py", line 5, in <module>
ZeroDivisionError: division by zero

The above exception was the direct cause of the following exception:

RuntimeError: Connection closed by peer
and more
"""
IN_A_PROCESS_GROUP = "\n".join(f"[rank13]: {line}" if line else "" for line in PLAIN.splitlines())
ABORTED = """
frame #0: some noise
terminate called after throwing an instance of 'c10::DistBackendError'
  what():  [PG ID 0 Rank 1] watchdog: NCCL error: remote process exited or there was a network error
Exception raised from run at ProcessGroupNCCL.cpp:2057 (most recent call first):
frame #1: <unknown function>
"""


@pytest.mark.parametrize(
    ("tail", "kind", "text"),
    [
        (PLAIN, "ZeroDivisionError", "division by zero"),
        (IN_A_PROCESS_GROUP, "ZeroDivisionError", "division by zero"),
        ("[rank0]: torch.OutOfMemoryError: CUDA out of memory", "OutOfMemoryError", "CUDA out of memory"),
        (ABORTED, "DistBackendError", "[PG ID 0 Rank 1] watchdog: NCCL error: remote process exited or there was a"
         " network error"),
        ("terminate called after throwing an instance of 'std::bad_alloc'", "bad_alloc", ""),
        ("terminate called without an active exception", "", "terminate called without an active exception"),
        ("[rank2]: 17 files are missing\n\n", "", "17 files are missing"),
        ("", "", ""),
    ],
)  # fmt: skip
def test_the_first_error_at_the_end_of_what_a_rank_printed_is_what_it_died_of(tail: str, kind: str, text: str) -> None:
    assert first_error(tail.splitlines()) == (kind, text)
