"""Checks in a process of their own: what blocks, crashes or may not be read is named, and the rest goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from launcher.health import runner
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


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """What fails is looked at again without waiting."""
    monkeypatch.setattr(runner, "AGAIN_S", 0.0)


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


def test_what_fails_for_a_moment_is_no_fault(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    errors = counted_errors(root, lost=1)
    monkeypatch.setattr(runner.time, "sleep", lambda _: errors.write_text("0"))
    assert examined(root, by_name("memory-errors"))["memory-errors"].verdict == "ok"


def test_what_fails_twice_is_a_fault_and_told_once(root: Path) -> None:
    counted_errors(root, lost=1)
    examination = Examination(Context(root=root))
    told = [*examination.findings([by_name("memory-errors"), by_name("memory")])]
    assert [(one.code, one.verdict) for one in told] == [("memory-available", "ok"), ("memory-errors", "fail")]
    assert examination.completed == {"health", "memory-errors", "memory"}


def counted_errors(root: Path, lost: int) -> Path:
    """The file of errors that were not corrected."""
    folder = root / "sys/devices/system/edac/mc/mc0"
    folder.mkdir(parents=True)
    (folder / "ce_count").write_text("5")
    (folder / "ue_count").write_text(str(lost))
    return folder / "ue_count"


def test_a_check_whose_process_was_stopped_says_nothing_of_the_machine(root: Path, children: Children) -> None:
    (root / "proc" / "meminfo").unlink()
    os.mkfifo(root / "proc" / "meminfo")
    stopper = threading.Thread(target=signal_who_reads, args=[root / "proc" / "meminfo", children, signal.SIGSTOP])
    stopper.start()
    found = examined(root, replace(quick("memory", 2), stuck="fail", remedy="drain"))["memory"]
    stopper.join()
    assert (found.verdict, found.summary) == ("unknown", "no answer within 2 s, and it could not run")


def test_a_process_that_survives_is_left_behind_once_and_nothing_is_kept_open(
    root: Path, children: Children, monkeypatch: pytest.MonkeyPatch
) -> None:
    (root / "proc" / "meminfo").unlink()
    os.mkfifo(root / "proc" / "meminfo")
    monkeypatch.setattr(runner, "DIE_S", 0.1)
    monkeypatch.setattr(runner.os, "killpg", lambda *_: None)
    left: dict[str, subprocess.Popen[bytes]] = {}
    opened = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        examination = Examination(Context(root=root), left_behind=left)
        [found] = examination.findings([replace(quick("memory"), stuck="fail", remedy="drain")])
        assert (found.verdict, found.remedy) == ("fail", "reboot_node")
        assert "survives SIGKILL" in found.summary
    [child] = children()
    assert (len(os.listdir("/proc/self/fd")), child.pid) == (opened, left["memory"].pid)
    child.kill()
    left["memory"].wait()
    (root / "proc" / "meminfo").unlink()
    (root / "proc" / "meminfo").write_text(MEMINFO)
    monkeypatch.undo()
    [found] = Examination(Context(root=root), left_behind=left).findings([quick("memory", 9)])
    assert found.verdict == "ok"


def test_a_check_that_crashes_takes_nothing_else_with_it(root: Path, children: Children) -> None:
    (root / "proc" / "meminfo").unlink()
    os.mkfifo(root / "proc" / "meminfo")
    killer = threading.Thread(target=signal_who_reads, args=[root / "proc" / "meminfo", children, signal.SIGKILL])
    killer.start()
    found = examined(root, by_name("processors"), quick("memory", 30), by_name("interface"))
    killer.join()
    assert [*found] == ["cpu-count", "memory", "interface"]
    assert (found["memory"].verdict, found["memory"].summary) == ("unknown", "its process ended by SIGKILL")


def signal_who_reads(pipe: Path, children: Children, number: signal.Signals, limit_s: float = 30) -> None:
    """Wait until our child is about to read from the pipe, and send it a signal."""
    deadline = time.monotonic() + limit_s
    while True:
        try:
            writer = os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
            break
        except OSError:  # nobody reads yet
            assert time.monotonic() < deadline
            time.sleep(0.01)
    [child] = children()
    child.send_signal(number)
    os.close(writer)


@pytest.mark.parametrize("text", ["", "garbage\n", "MemTotal: x kB\n"])
def test_what_makes_no_sense_is_not_known(root: Path, text: str) -> None:
    (root / "proc" / "meminfo").write_text(text)
    examination = Examination(Context(root=root))
    told = [*examination.findings([by_name("memory"), by_name("processors"), by_name("interface")])]
    assert [one.code for one in told] == ["memory", "cpu-count", "interface"]
    assert examination.check_of == {"memory": "memory", "cpu-count": "processors", "interface": "interface"}
    assert examination.completed == {"health", "processors", "interface"}
    found = {one.code: one for one in told}
    assert found["memory"].verdict == "unknown"
    assert "Error" in found["memory"].summary
    assert "Traceback" in str(found["memory"].evidence["traceback"])
    assert found["cpu-count"].verdict == "ok"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_what_may_not_be_read_is_not_known(root: Path) -> None:
    (root / "proc" / "meminfo").chmod(0)
    found = examined(root, by_name("memory"))
    assert found["memory"].summary == f"not permitted: {root / 'proc' / 'meminfo'}"


@pytest.mark.parametrize(
    ("program", "why"),
    [
        ("/bin/false", "its process ended: 1"),
        ("/bin/echo", "it told nonsense"),
        ("/no/such/python", "No such file or directory"),
    ],
)
def test_where_no_process_can_be_started_one_finding_says_so(
    root: Path, monkeypatch: pytest.MonkeyPatch, program: str, why: str
) -> None:
    monkeypatch.setattr("sys.executable", program)
    [told] = examined(root, *CHECKS).values()
    assert (told.verdict, told.summary) == ("unknown", f"the process for checks could not be started: {why}")


def test_what_an_examination_leaves_the_next_one_goes_on_from(root: Path) -> None:
    folder = counted_errors(root, lost=0).parent
    checks: Sequence[Check] = [by_name("memory-errors")]
    first = Examination(Context(root=root))
    [*first.findings(checks)]
    (folder / "ce_count").write_text("500")
    [found] = Examination(Context(root=root, before=first.after)).findings(checks)
    assert (found.verdict, found.evidence["corrected_since_last_check"]) == ("warn", 495)
