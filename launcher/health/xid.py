"""XIDs: what the NVIDIA driver tells, by events and in the kernel's log, when something goes wrong on a GPU.

What to do about each is NVIDIA's own sorting (its XID catalogue of October 2025, as gpud carries it). A code that is
not in it is told, and excludes nobody. XIDs that follow from another one, or from a program's mistake, are no fault of
the machine. A log of many days is no reason either: only what was written lately counts.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from launcher.health.context import Context
from launcher.health.finding import Finding
from launcher.health.gpu import given, on_bus
from launcher.health.kernel_log import Entry, kernel_log
from launcher.hosts.records import Remedy, Verdict

LATELY_S = 2 * 3600.0  # as AzNHC looks back
_XID = re.compile(r"NVRM: Xid \(PCI:([0-9a-fA-F:.]+)\): (\d+)(?:, (.*))?")
_SXID = re.compile(r"nvidia-nvswitch\d*: SXid \(PCI:([0-9a-fA-F:.]+)\): (\d+), (Fatal|Non-fatal)(.*)")
RECOVERY_CHANGED = 154  # its text carries the verdict


@dataclass(frozen=True)
class Meaning:
    verdict: Verdict
    remedy: Remedy
    what: str


_RESET = Meaning("fail", "reset_gpu", "the GPU needs a reset")
_REBOOT = Meaning("fail", "reboot_node", "the node needs a reboot")
_SERVICE = Meaning("fail", "service", "somebody has to look at it")
_APP = Meaning("ok", "restart_app", "a program's affair")
_NOTE = Meaning("ok", "none", "it follows from something else")
_WARN = Meaning("warn", "reset_gpu", "to be reset when there is time")
_UNKNOWN = Meaning("warn", "none", "not in the table")
MEANINGS: dict[int, Meaning] = {
    **dict.fromkeys((46, 48, 62, 64, 74, 95, 109, 110, 119, 120, 136, 140, 143, 155, 156, 158), _RESET),
    **dict.fromkeys((79, 151), _REBOOT),
    54: _SERVICE,
    **dict.fromkeys((63, 92, 93, *range(144, 151)), _WARN),
    **dict.fromkeys((8, 11, 13, 25, 31, 32, 39, 40, 41, *range(69, 73), 75, 76, 77, 80, 85, *range(126, 136)), _APP),
    **dict.fromkeys((60, 68, 82, 83, 84, 86, 88, 89, 94, *range(96, 106), 139), _APP),
    **dict.fromkeys((37, 38, 43, 44, 45, 66, 67, 121, 137, 141, 152, 153), _NOTE),
}
# Of XID 154: "GPU recovery action changed from 0x0 (None) to 0x2 (Node Reboot Required)".
_ASKED: tuple[tuple[str, Meaning], ...] = (("reboot", _REBOOT), ("reset", _RESET), ("drain", _RESET), ("none", _NOTE))


def xids(at: Context) -> Iterator[Finding]:
    """Of each GPU and code the newest. Raises PermissionError where neither log nor driver tells: not known, then."""
    if not max(on_bus(at), given(at)):
        yield Finding(code="gpu-xid", verdict="skipped", summary="there is no NVIDIA GPU, and none is expected")
        return
    now = float(at.text("proc/uptime").split()[0])
    newest: dict[tuple[str, int, bool], tuple[float, Meaning, str]] = {
        (one.bus, one.xid, False): (now - one.at, meaning(one.xid, ""), "") for one in at.heard
    }
    log, quiet = _log(at, now)
    for entry in log:
        if found := _XID.search(entry.text):
            bus, code, text = found[1], int(found[2]), found[3] or ""
            newest[bus, code, False] = (now - entry.at, meaning(code, text), text)
        elif found := _SXID.search(entry.text):
            fatal = _RESET if found[3] == "Fatal" else _WARN
            newest[found[1], int(found[2]), True] = (now - entry.at, fatal, found[3] + found[4])
    for (bus, code, is_switch), (age_s, what, text) in newest.items():
        xid, name = None if is_switch else code, f"{'SXid' if is_switch else 'XID'} {code}"
        yield _finding(bus, xid, name, age_s, what, text)
    if not newest:
        yield Finding(code="gpu-xid", verdict="ok", summary=quiet)


def _log(at: Context, now: float) -> tuple[list[Entry], str]:
    """The kernel's log, and what it means that no XID is found. Without it there is what the driver has told since."""
    try:
        return kernel_log(at.root), "the kernel's log tells of no XID"
    except PermissionError:
        if at.heard_since is None:
            raise
        return [], f"no XID for {(now - at.heard_since) / 60:.0f} min, since the driver is listened to"


def meaning(code: int, text: str) -> Meaning:
    """What an XID asks for. Pure."""
    if code == RECOVERY_CHANGED:
        asked = text.rpartition(" to ")[2].lower()
        return next((what for word, what in _ASKED if word in asked), _UNKNOWN)
    return MEANINGS.get(code, _UNKNOWN)


def _finding(bus: str, xid: int | None, name: str, age_s: float, what: Meaning, text: str) -> Finding:
    is_old = age_s > LATELY_S
    verdict: Verdict = "warn" if is_old and what.verdict == "fail" else what.verdict
    ago = f"{age_s / 3600:.0f} h ago" if age_s > 3600 else f"{max(age_s, 0) / 60:.0f} min ago"
    return Finding(
        code="gpu-xid",
        verdict=verdict,
        subject=f"{bus} {name}",
        summary=f"{name} {ago}, {what.what}" + (f": {text[:200]}" if text else ""),
        evidence={"xid": xid, "seconds_ago": round(age_s), "text": text[:500]},
        remedy=what.remedy if verdict in ("warn", "fail") else "none",
    )
