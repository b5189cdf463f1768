"""What appears on the standard streams of an agent in the foreground."""

import subprocess
import sys

import pytest

from launcher.foreground import BACKLOG_BYTES, Foreground

LOUD = f"""
import sys
from launcher.foreground import Foreground
foreground = Foreground({{"out": [0], "err": []}})
hear = foreground.hearer(0)
for _ in range(40):
    hear("out", bytes(1 << 20), 0.0)
print("all said", file=sys.stderr, flush=True)
foreground.close(60)
foreground.tell("too late")
assert {BACKLOG_BYTES} < 39 << 20
"""


def test_a_reader_who_stalls_costs_output_and_no_time() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", LOUD], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace"
    )
    assert process.stderr
    assert process.stderr.readline() == "all said\n"  # before anything was read

    out, err = process.communicate(timeout=60)

    assert process.returncode == 0
    assert BACKLOG_BYTES < len(out) < 40 << 20
    dropped = (40 << 20) - len(out)
    assert err == f"opt-launch: {dropped:,} bytes were not shown, they are in the run's logs\n"


def test_only_what_is_to_be_seen_is_shown(capfd: pytest.CaptureFixture[str]) -> None:
    foreground = Foreground({"out": [1], "err": [0, 1]})
    for rank in (0, 1):
        for stream in ("out", "err"):
            foreground.hearer(rank)(stream, f"{stream} of {rank}\n".encode(), 0.0)
    foreground.close(5)
    shown = capfd.readouterr()
    assert shown.out == "out of 1\n"
    assert sorted(shown.err.splitlines()) == ["err of 0", "err of 1"]


def test_the_exit_code_tells_the_outcome() -> None:
    foreground = Foreground({"out": [], "err": []})
    assert [foreground.exit_code(state) for state in ("SUCCEEDED", "FAILED", "STOPPED", "")] == [0, 1, 1, 1]
    assert (foreground.is_first(2), foreground.is_first(2)) == (True, False)
    assert [foreground.exit_code(state) for state in ("SUCCEEDED", "STOPPED", "")] == [0, 130, 130]
    foreground.close(1)
