"""Checks in a process of their own: what blocks, crashes or may not be read is named, and the rest goes on."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from launcher.health.checks import CHECKS, Check, by_name, of_tier
from launcher.health.context import Context
from launcher.health.finding import Finding
from launcher.health.runner import Examination

Children = Callable[[], list[psutil.Process]]
MEMINFO = "MemTotal: 2000000 kB\nMemAvailable: 1900000 kB\n"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc" / "meminfo").write_text(MEMINFO)
    (tmp_path / "proc" / "cpuinfo").write_text("processor : 0\n")
    return tmp_path


def examined(root: Path, *checks: Check) -> dict[str, Finding]:
    return {one.code: one for one in Examination(Context(root=root)).findings(checks)}


def quick(name: str, deadline_s: float = 0.3) -> Check:
    return replace(by_name(name), deadline_s=deadline_s)


def test_this_machine_can_be_examined_and_nothing_is_left_behind(children: Children) -> None:
    findings = [*Examination(Context(folders=("/tmp",))).findings(of_tier("standard"))]
    assert {"memory-available", "cpu-count", "space", "writing"} <= {one.code for one in findings}
    assert children() == []


def test_a_check_that_is_stuck_is_named_and_the_others_go_on(root: Path, children: Children) -> None:
    (root / "proc" / "meminfo").unlink()
    os.mkfifo(root / "proc" / "meminfo")  # whoever opens it waits for ever
    began = time.monotonic()
    found = examined(root, by_name("processors"), quick("memory"), by_name("interface"))
    assert time.monotonic() - began < 30
    assert [*found] == ["cpu-count", "memory", "interface"]
    stuck = found["memory"]
    assert (stuck.verdict, stuck.summary, stuck.limit) == ("unknown", "no answer within 0.3 s", 0.3)
    assert children() == []


def test_a_folder_that_does_not_answer_is_a_fault(root: Path) -> None:
    (root / "proc" / "meminfo").unlink()
    os.mkfifo(root / "proc" / "meminfo")
    found = examined(root, replace(quick("memory"), stuck="fail", remedy="drain"))
    assert (found["memory"].verdict, found["memory"].remedy) == ("fail", "drain")


def test_a_check_that_crashes_takes_nothing_else_with_it(root: Path, children: Children) -> None:
    (root / "proc" / "meminfo").unlink()
    os.mkfifo(root / "proc" / "meminfo")
    killer = threading.Thread(target=kill_who_reads, args=[root / "proc" / "meminfo", children])
    killer.start()
    found = examined(root, by_name("processors"), quick("memory", 30), by_name("interface"))
    killer.join()
    assert [*found] == ["cpu-count", "memory", "interface"]
    assert (found["memory"].verdict, found["memory"].summary) == ("unknown", "its process ended by SIGKILL")


def kill_who_reads(pipe: Path, children: Children, limit_s: float = 30) -> None:
    """Wait until our child is about to read from the pipe, and kill it."""
    deadline = time.monotonic() + limit_s
    while True:
        try:
            writer = os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
            break
        except OSError:  # nobody reads yet
            assert time.monotonic() < deadline
            time.sleep(0.01)
    [child] = children()
    child.kill()
    os.close(writer)


@pytest.mark.parametrize("text", ["", "garbage\n", "MemTotal: x kB\n"])
def test_what_makes_no_sense_is_not_known(root: Path, text: str) -> None:
    (root / "proc" / "meminfo").write_text(text)
    found = examined(root, by_name("memory"), by_name("processors"))
    assert found["memory"].verdict == "unknown"
    assert "Error" in found["memory"].summary
    assert "Traceback" in str(found["memory"].evidence["traceback"])
    assert found["cpu-count"].verdict == "ok"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_what_may_not_be_read_is_not_known(root: Path) -> None:
    (root / "proc" / "meminfo").chmod(0)
    found = examined(root, by_name("memory"))
    assert found["memory"].summary == f"not permitted: {root / 'proc' / 'meminfo'}"


def test_where_no_process_can_be_started_one_finding_says_so(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", "/bin/false")
    assert [one.summary for one in examined(root, *CHECKS).values()] == ["the process for checks could not be started"]


def test_what_an_examination_leaves_the_next_one_goes_on_from(root: Path) -> None:
    folder = root / "sys/devices/system/edac/mc/mc0"
    folder.mkdir(parents=True)
    (folder / "ue_count").write_text("0")
    (folder / "ce_count").write_text("5")
    checks: Sequence[Check] = [by_name("memory-errors")]
    first = Examination(Context(root=root))
    [*first.findings(checks)]
    (folder / "ce_count").write_text("500")
    [found] = Examination(Context(root=root, before=first.after)).findings(checks)
    assert (found.verdict, found.evidence["corrected_since_last_check"]) == ("warn", 495)
