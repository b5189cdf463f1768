"""An examination of this machine: what checks remember from one to the next, and what is told of it."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from launcher.doctor.checks import Verdict as Line
from launcher.errors import LaunchError
from launcher.health.checks import Tier, of_tier
from launcher.health.context import Context
from launcher.health.finding import Finding
from launcher.health.runner import Examination
from launcher.hosts.fold import Hosts
from launcher.hosts.ledger import Ledger
from launcher.hosts.records import Found, Remedy, Verdict
from launcher.machine import boot_id
from launcher.paths import write_atomically

MEMORY = "~/.opt-launch/health"  # a file a host: counters and ports as they were
PROFILE_S = 60.0
_FIXES: dict[Remedy, str] = {
    "none": "",
    "restart_app": "restart the run",
    "reset_gpu": "reset the GPU (nvidia-smi --gpu-reset), or reboot the node",
    "reboot_node": "reboot the node",
    "drain": "leave the node out: opt-launch hosts exclude NODE --reason ...",
    "service": "have the node looked at",
    "raise_limit": "ulimit -n 65536 where you submit: Slurm passes it on; ssh takes it from /etc/security/limits.conf",
}


def node_name() -> str:
    """As Slurm calls this machine, or as it calls itself."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def examine(tier: Tier, folders: Sequence[str], interface: str) -> list[Finding]:
    """Run the checks of a tier here."""
    memory = Path(os.path.expanduser(MEMORY)) / f"{socket.gethostname()}.json"
    boot = boot_id()
    at = Context(folders=tuple(folders), interface=interface, before=_remembered(memory, boot))
    examination = Examination(at)
    findings = [*examination.findings(of_tier(tier))]
    return [*findings, *_remember(memory, boot, examination)]


def profile() -> str:
    """What the GPU driver here says, as lines of the recorder. Raises LaunchError if it does not answer."""
    command = [sys.executable, "-P", "-m", "launcher.health.recorder"]
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        text, said = process.communicate(timeout=PROFILE_S)
    except subprocess.TimeoutExpired:
        process.kill()  # and nobody waits for one that the kernel does not let go
        raise LaunchError(f"the GPU driver has not answered within {PROFILE_S:.0f} s", "nvidia-ml-py") from None
    if process.returncode:
        raise LaunchError(f"nothing was recorded: {said.strip().rpartition(chr(10))[2]}", "nvidia-ml-py")
    return text


def record(ledger: Ledger, found: Mapping[str, Sequence[Finding]], by: str) -> None:
    """Write to the host ledger what is wrong with hosts, and what no longer is. Raises LaunchError."""
    now, hosts = time.time(), ledger.read().hosts
    records = [
        Found(
            id=f"{host}/{key}@{now:.3f}", at=now, by=by, host=host, code=key, verdict=one.verdict, summary=one.summary,
            evidence=one.evidence,
        )
        for host, findings in found.items()
        for one in findings
        if (key := f"{one.code} {one.subject}".strip())
        and one.verdict != "skipped"
        and (one.verdict != "ok" or _last(hosts, host, key) != "ok")
    ]  # fmt: skip
    if records:
        ledger.append(*records)


def _last(hosts: Hosts, host: str, key: str) -> Verdict:
    """What the ledger has of a check; what it does not know was well."""
    known = hosts[host].checks.get(key) if host in hosts else None
    return known.verdict if known else "ok"


def line_of(finding: Finding) -> Line:
    """As a line of the doctor's. A limit that came from nowhere but our own table needs no source."""
    said = finding.summary
    if finding.limit_source and finding.verdict in ("warn", "fail"):
        source = "" if finding.limit_source == "table" else f", from the {finding.limit_source}"
        said += f" (limit {finding.limit}{source})"
    return Line(finding.code, finding.verdict, said, _FIXES[finding.remedy], finding.subject)


def _remembered(file: Path, boot: str) -> dict[str, int | str]:
    """What the last examination of this boot has left; counters begin anew with each boot."""
    try:
        told = json.loads(file.read_text())
        return dict(told["after"]) if told["boot_id"] == boot else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _remember(file: Path, boot: str, examination: Examination) -> Iterator[Finding]:
    """Leave what the next examination compares with; that this cannot be done is told, and keeps nothing back."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        kept = {**examination.at.before, **examination.after}
        write_atomically(file, json.dumps({"boot_id": boot, "after": kept}), mode=0o600)
    except OSError as error:
        why = (error.strerror or str(error)).lower()
        summary = f"what counters are now cannot be kept for the next check: {why}"
        yield Finding(code="counters", verdict="skipped", subject=str(file), summary=summary)
