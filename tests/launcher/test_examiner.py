"""An agent's examinations: real processes beside a real loop that none of them holds up."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from simulated_driver import HEALTHY, built, written

from launcher import examiner as examiner_module
from launcher.examiner import MOST_TOLD, Examiner, examiner_of
from launcher.health.context import Context, SiteCheck
from launcher.health.site import found
from launcher.sections import RunSpec

Children = Callable[[], list[psutil.Process]]
LIMIT_S = 30.0


def running(children: Children) -> list[psutil.Process]:
    return [one for one in children() if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]


class Node:
    """An examiner over a made-up machine, one check of whose site says what the file `says` says."""

    def __init__(
        self, folder: Path, every_s: float | None = None, deadline_s: float = 10.0, burn_every_s: float | None = None
    ) -> None:
        (folder / "proc").mkdir()
        (folder / "proc" / "meminfo").write_text("MemTotal: 2000000 kB\nMemAvailable: 1900000 kB\n")
        self.says = folder / "says"
        self.says.write_text("exit 0")
        check = SiteCheck("own", ("/bin/sh", str(self.says)), nagios=True, tier="fast", deadline_s=deadline_s)
        self.told: list[dict[str, Any]] = []
        at = Context(root=folder, folders=(str(folder),), site=(check,))
        self.examiner = Examiner(at, every_s, self.told.append, burn_every_s)

    async def until(self, count: int) -> float:
        """Turn the loop until so many examinations have been told of; the longest that it stood still."""
        deadline, longest = time.monotonic() + LIMIT_S, 0.0
        while len(self.told) < count:
            assert time.monotonic() < deadline, self.told
            began = time.monotonic()
            self.examiner.turn()
            await asyncio.sleep(0.01)
            longest = max(longest, time.monotonic() - began)
        return longest

    def verdicts(self, code: str = "site-own") -> list[str]:
        return [one["verdict"] for told in self.told for one in told["findings"] if one["code"] == code]


def test_what_was_asked_for_is_told_once_and_in_full(tmp_path: Path) -> None:
    node = Node(tmp_path)
    node.examiner.ask("standard", "start")
    node.examiner.ask("standard", "start")
    node.examiner.ask("fast", "again")
    asyncio.run(node.until(2))
    assert [(one["id"], one["tier"], one["number"]) for one in node.told] == [
        ("start", "standard", 1),
        ("again", "fast", 2),
    ]
    assert all(one["measured"] >= 5 and one["took_s"] > 0 for one in node.told)


def test_what_nobody_asked_for_is_told_when_it_changes(tmp_path: Path) -> None:
    node = Node(tmp_path, every_s=1)

    async def story() -> None:
        node.examiner.ask("fast", "start")
        await node.until(1)
        node.says.write_text("echo the disk is broken; exit 2")
        await node.until(2)
        node.says.write_text("exit 0")
        await node.until(3)

    asyncio.run(story())
    assert node.verdicts() == ["fail", "ok"]
    (broken,) = [one for one in node.told[1]["findings"] if one["code"] == "site-own"]
    assert broken["summary"] == "the disk is broken (exit code 2)"


def test_a_check_that_is_stuck_holds_nothing_up_and_is_ended(tmp_path: Path, children: Children) -> None:
    node = Node(tmp_path, deadline_s=3)
    node.says.write_text("sleep 100 & sleep 100")
    node.examiner.ask("fast", "start")
    longest = asyncio.run(node.until(1))
    assert longest < 2.5
    assert node.verdicts() == ["unknown"]
    assert children() == []


def test_checks_give_way_to_ranks(tmp_path: Path) -> None:
    node = Node(tmp_path)
    node.says.write_text("nice; exit 1")
    node.examiner.ask("fast", "start")
    asyncio.run(node.until(1))
    (found,) = [one for one in node.told[0]["findings"] if one["code"] == "site-own"]
    assert int(found["summary"].split()[0]) >= min(19, os.nice(0) + 10)


def test_a_failing_rank_has_its_node_looked_at_and_many_failing_ranks_no_more_often(tmp_path: Path) -> None:
    node = Node(tmp_path, every_s=3600)
    node.says.write_text("exit 2")

    async def story() -> None:
        for _ in range(8):
            node.examiner.rank_failed()
        await node.until(1)
        node.examiner.rank_failed()
        node.examiner.ask("fast", "end")
        await node.until(2)

    asyncio.run(story())
    assert [one["id"] for one in node.told] == ["", "end"]


def test_an_xid_is_told_at_once_also_where_the_log_of_the_kernel_is_empty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, children: Children
) -> None:
    says = tmp_path / "driver.txt"
    lines = written({**HEALTHY, "1.events": 1, "1.pci": "00000000:3B:00.0"})
    says.write_text(lines + "xid.0=1 48\n")  # before anybody listened
    monkeypatch.setenv("FAKE_NVML", str(says))
    monkeypatch.setenv("LD_LIBRARY_PATH", str(built(tmp_path / "driver")))
    node = Node(tmp_path, every_s=3600)
    for number in range(2):
        device = tmp_path / f"sys/bus/pci/devices/0000:{number:02x}:00.0"
        device.mkdir(parents=True)
        (device / "vendor").write_text("0x10de\n")
        (device / "class").write_text("0x030200\n")
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev" / "kmsg").write_text("")
    (tmp_path / "proc" / "uptime").write_text(f"{time.clock_gettime(time.CLOCK_BOOTTIME)} 1.0\n")

    async def story() -> None:
        node.examiner.ask("fast", "start")
        await node.until(1)
        watch = node.examiner._xids
        assert watch is not None
        while watch.since is None:
            await asyncio.sleep(0.01)
        assert node.verdicts("gpu-xid") == []
        with says.open("a") as file:
            file.write("xid.1=1 79\n")
        await node.until(2)
        watch.close()

    asyncio.run(asyncio.wait_for(story(), LIMIT_S))
    (told,) = [one for one in node.told[1]["findings"] if one["code"] == "gpu-xid"]
    assert (told["verdict"], told["subject"], told["remedy"]) == ("fail", "0000:3b:00 XID 79", "reboot_node")
    assert children() == []


def test_a_node_that_is_idle_is_burnt_in_after_a_while_and_makes_way_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, children: Children
) -> None:
    monkeypatch.setattr(examiner_module, "IDLE_S", 0.5)
    node = Node(tmp_path, burn_every_s=3600)

    async def story() -> None:
        began = time.monotonic()
        while not any("launcher.health.collective" in " ".join(one.cmdline()) for one in running(children)):
            node.examiner.turn(is_idle=True)
            await asyncio.sleep(0.05)
        assert time.monotonic() - began > 0.5
        began = time.monotonic()
        node.examiner.make_way()
        while node.examiner._is_busy:
            node.examiner.turn()
            await asyncio.sleep(0.05)
        assert time.monotonic() - began < 5

    asyncio.run(asyncio.wait_for(story(), 60))
    assert node.verdicts("burn-in") == []
    assert children() == []


def test_a_node_with_ranks_is_never_burnt_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(examiner_module, "IDLE_S", 0.0)
    examiner = Node(tmp_path, burn_every_s=60).examiner
    for _ in range(3):
        examiner._watch_idleness(False)
    assert not examiner._due
    examiner._watch_idleness(True)
    assert [one.tier for one in examiner._due] == ["deep"]


def test_the_first_examination_is_told_and_later_ones_only_if_they_are_news(tmp_path: Path) -> None:
    node = Node(tmp_path, every_s=1)

    async def story() -> None:
        node.examiner.look_soon("fast")
        await node.until(1)
        node.examiner.look_soon("standard")
        node.examiner.ask("fast", "end")
        await node.until(2)

    asyncio.run(story())
    assert [one["id"] for one in node.told] == ["", "end"]


def test_of_very_many_findings_all_are_told_in_the_end_and_so_is_that_they_are_gone(tmp_path: Path) -> None:
    node = Node(tmp_path)
    names = [f"own{number}" for number in range(MOST_TOLD + 8)]
    checks = tuple(SiteCheck(name, ("/bin/sh", str(node.says)), nagios=True, tier="fast") for name in names)
    node.examiner = Examiner(Context(root=tmp_path, site=checks), None, node.told.append)

    async def story() -> None:
        for code in (1, 0):
            node.says.write_text(f"exit {code}")
            for _ in range(2):
                node.examiner.ask("fast")
                await node.until(len(node.told) + 1)

    asyncio.run(story())
    for verdict, told in (("warn", node.told[:2]), ("ok", node.told[2:])):
        found = [one["code"] for all_of in told for one in all_of["findings"] if one["verdict"] == verdict]
        assert {f"site-{name}" for name in names} <= {*found}
        assert len(found) == len({*found})


@pytest.mark.parametrize(
    ("health", "due"),
    [({}, "standard"), ({"before_start": "fast"}, "fast"), ({"before_start": "none"}, None)],
)
def test_the_first_examination_is_the_one_that_the_run_asks_for(
    tmp_path: Path, health: dict[str, str], due: str | None
) -> None:
    asked = {"name": "r", "command": ["x"], "cluster": {"backend": "slurm"}, "health": health}
    examiner = examiner_of(RunSpec.model_validate(asked), tmp_path, lambda _: None)
    assert [one.tier for one in examiner._due] == ([due] if due else [])


def test_virtual_nodes_are_examined_only_if_that_is_asked_for() -> None:
    asked = {"name": "r", "command": ["x"]}
    spec = RunSpec.model_validate(asked)
    assert (spec.health.before_start, spec.health.every, spec.health.burn_in) == ("none", None, None)
    spec = RunSpec.model_validate(asked | {"health": {"every": "5s"}})
    assert (spec.health.before_start, spec.health.every) == ("none", 5)
    spec = RunSpec.model_validate(asked | {"cluster": {"backend": "own"}})
    assert (spec.health.before_start, spec.health.every) == ("standard", 60)


@pytest.mark.parametrize(
    ("nagios", "code", "output", "verdict", "summary"),
    [
        (True, 0, "\nOK: 3 disks | time=1s\nmore", "ok", "OK: 3 disks | time=1s"),
        (True, 1, "WARNING: slow", "warn", "WARNING: slow (exit code 1)"),
        (True, 2, "", "fail", "exit code 2"),
        (True, 3, "?", "unknown", "? (exit code 3)"),
        (True, 7, "odd", "unknown", "odd (exit code 7)"),
        (True, -9, "", "unknown", "ended by signal 9"),
        (False, 0, "", "ok", "exit code 0"),
        (False, 7, "no", "fail", "no (exit code 7)"),
        (False, -11, "", "unknown", "ended by signal 11"),
    ],
)
def test_a_check_of_the_site_speaks_by_its_exit_code(
    nagios: bool, code: int, output: str, verdict: str, summary: str
) -> None:
    said = found(SiteCheck("own", ("x",), nagios), code, output)
    assert (said.code, said.verdict, said.summary) == ("site-own", verdict, summary)
