"""XIDs in the kernel's log: what each means, how old it is, and who may read it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from launcher.health.checks import by_name
from launcher.health.context import Context, Heard
from launcher.health.finding import Finding
from launcher.health.kernel_log import kernel_log
from launcher.health.runner import Examination
from launcher.health.xid import MEANINGS, meaning, xids

UPTIME_S = 100_000


@pytest.fixture
def node(tmp_path: Path) -> Path:
    """A machine with a GPU that is up for a day."""
    device = tmp_path / "sys/bus/pci/devices/0000:00:00.0"
    device.mkdir(parents=True)
    (device / "vendor").write_text("0x10de\n")
    (device / "class").write_text("0x030200\n")
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc" / "uptime").write_text(f"{UPTIME_S}.51 1000.00\n")
    (tmp_path / "dev").mkdir()
    return tmp_path


def found(node: Path, *lines: tuple[float, str]) -> dict[str, Finding]:
    """Of a log with these texts, so many seconds ago."""
    head = "6,1,5,-;Linux version 6.1\n SUBSYSTEM=x\n"
    text = "".join(f"4,{n},{int((UPTIME_S - ago) * 1e6)},-;{line}\n" for n, (ago, line) in enumerate(lines))
    (node / "dev" / "kmsg").write_text(head + text)
    return {one.subject: one for one in xids(Context(root=node, environment={}))}


def xid(code: int, text: str = "pid=7, name=python") -> str:
    return f"NVRM: Xid (PCI:0000:3b:00): {code}, {text}"


@pytest.mark.parametrize(
    ("code", "verdict", "remedy"),
    [
        (79, "fail", "reboot_node"), (48, "fail", "reset_gpu"), (95, "fail", "reset_gpu"), (119, "fail", "reset_gpu"),
        (54, "fail", "service"), (63, "warn", "reset_gpu"), (13, "ok", "none"), (31, "ok", "none"), (94, "ok", "none"),
        (45, "ok", "none"), (999, "warn", "none"), (157, "warn", "none"), (145, "warn", "reset_gpu"),
    ],
)  # fmt: skip
def test_an_xid_means_what_nvidia_says_it_does(node: Path, code: int, verdict: str, remedy: str) -> None:
    [one] = found(node, (60, xid(code))).values()
    assert (one.verdict, one.remedy, one.subject) == (verdict, remedy, f"0000:3b:00 XID {code}")
    assert one.summary.startswith(f"XID {code} 1 min ago, ")


def test_what_the_driver_asks_for_in_words_is_followed() -> None:
    def asked(action: str) -> tuple[str, str]:
        what = meaning(154, f"GPU recovery action changed from 0x0 (None) to {action}")
        return what.verdict, what.remedy

    assert asked("0x2 (Node Reboot Required)") == ("fail", "reboot_node")
    assert asked("0x1 (GPU Reset Required)") == ("fail", "reset_gpu")
    assert asked("0x0 (None)") == ("ok", "none")
    assert asked("0x9 (Something new)") == ("warn", "none")


def test_an_old_xid_condemns_nobody_until_the_next_boot(node: Path) -> None:
    [one] = found(node, (5 * 3600, xid(79))).values()
    assert (one.verdict, one.summary[:15]) == ("warn", "XID 79 5 h ago,")


def test_the_same_log_read_twice_says_the_same(node: Path) -> None:
    lines = (60, xid(79)), (30, xid(79, "again")), (20, xid(13))
    first = found(node, *lines)
    assert first == found(node, *lines)
    assert {key: one.verdict for key, one in first.items()} == {"0000:3b:00 XID 79": "fail", "0000:3b:00 XID 13": "ok"}
    assert first["0000:3b:00 XID 79"].evidence["text"] == "again"


def test_errors_of_switches_are_told_too(node: Path) -> None:
    fatal = "nvidia-nvswitch0: SXid (PCI:0000:c1:00.0): 20034, Fatal, Link 28 LTSSM Fault Up"
    [one] = found(node, (1, fatal)).values()
    assert (one.verdict, one.subject) == ("fail", "0000:c1:00.0 SXid 20034")


def test_a_log_without_xids_is_well_and_one_of_a_machine_without_gpus_is_not_read(node: Path) -> None:
    [one] = found(node).values()
    assert (one.verdict, one.summary) == ("ok", "the kernel's log tells of no XID")
    (node / "sys/bus/pci/devices/0000:00:00.0/vendor").write_text("0x8086\n")
    (node / "dev" / "kmsg").unlink()
    [one] = xids(Context(root=node, environment={}))
    assert (one.verdict, one.summary) == ("skipped", "there is no NVIDIA GPU, and none is expected")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_log_that_may_not_be_read_is_not_known(node: Path) -> None:
    (node / "dev" / "kmsg").write_text("")
    (node / "dev" / "kmsg").chmod(0)
    [one] = Examination(Context(root=node, environment={})).findings([by_name("xids")])
    assert (one.code, one.verdict) == ("xids", "unknown")
    assert one.summary.startswith("not permitted: ")


def test_what_the_driver_has_told_counts_as_if_it_stood_in_the_log(node: Path) -> None:
    (node / "dev" / "kmsg").write_text("")
    heard = (Heard("0000:3b:00", 79, UPTIME_S - 60), Heard("0000:3c:00", 13, UPTIME_S - 30))
    told = {one.subject: one for one in xids(Context(root=node, environment={}, heard=heard, heard_since=1.0))}
    assert {key: one.verdict for key, one in told.items()} == {"0000:3b:00 XID 79": "fail", "0000:3c:00 XID 13": "ok"}


def test_what_log_and_driver_both_tell_is_one_finding_with_the_text_of_the_log(node: Path) -> None:
    found(node, (50, xid(79, "it has fallen off")))
    at = Context(root=node, environment={}, heard=(Heard("0000:3b:00", 79, UPTIME_S - 60),), heard_since=1.0)
    [one] = xids(at)
    assert (one.subject, one.evidence["text"]) == ("0000:3b:00 XID 79", "it has fallen off")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_who_listens_to_the_driver_needs_no_log(node: Path) -> None:
    (node / "dev" / "kmsg").write_text("")
    (node / "dev" / "kmsg").chmod(0)
    [one] = xids(Context(root=node, environment={}, heard_since=UPTIME_S - 600.0))
    assert (one.verdict, one.summary) == ("ok", "no XID for 10 min, since the driver is listened to")


def test_the_log_of_this_kernel_can_be_read_or_says_why_not() -> None:
    try:
        entries = kernel_log(Path("/"))
    except PermissionError:
        return
    assert [one.at for one in entries] == sorted(one.at for one in entries)


def test_no_code_stands_for_two_things() -> None:
    assert len(MEANINGS) > 80
    assert all(code in range(1, 200) for code in MEANINGS)
