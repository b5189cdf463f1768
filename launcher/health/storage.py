"""Checks of the folders of a run. A file system that does not answer stops the check: its deadline tells."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from pathlib import Path

from launcher.health.context import Context
from launcher.health.finding import Finding

LEAST_INODES = 10_000
PROBE_BYTES = 4096


def space(at: Context) -> Iterator[Finding]:
    """Whether the folders are there, with room for what is to be written."""
    if not at.folders:
        yield Finding(code="space", verdict="skipped", summary="no folder was named")
    for folder in at.folders:
        try:
            about = os.statvfs(folder)
        except OSError as error:
            summary = (error.strerror or str(error)).lower()
            yield Finding(code="space", verdict="fail", subject=folder, summary=summary, remedy="drain")
            continue
        free, inodes = about.f_bavail * about.f_frsize, about.f_favail
        few = about.f_files > 0 and inodes < LEAST_INODES
        yield Finding(
            code="space",
            verdict="fail" if free < at.bytes_needed else "warn" if few else "ok",
            subject=folder,
            summary=f"{free / 2**30:.1f} GiB free" + (f", room for {inodes} more files" if few else ""),
            evidence={"bytes": free, "inodes": inodes},
            limit=LEAST_INODES if few and free >= at.bytes_needed else at.bytes_needed,
            limit_source="table" if few else "config",
        )


def writing(at: Context) -> Iterator[Finding]:
    """Whether a small file can be written to each folder, read back and deleted."""
    if not at.folders:
        yield Finding(code="writing", verdict="skipped", summary="no folder was named")
    for folder in at.folders:
        try:
            same = _written_and_read(Path(folder))
        except OSError as error:
            summary = f"cannot be written: {(error.strerror or str(error)).lower()}"
            yield Finding(code="writing", verdict="fail", subject=folder, summary=summary, remedy="drain")
            continue
        yield Finding(
            code="writing",
            verdict="ok" if same else "fail",
            subject=folder,
            summary="can be written" if same else "what was read back is not what was written",
            remedy="none" if same else "drain",
        )


def _written_and_read(folder: Path) -> bool:
    probe, data = folder / f".opt-launch-probe-{secrets.token_hex(8)}", secrets.token_bytes(PROBE_BYTES)
    try:
        descriptor = os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        return probe.read_bytes() == data
    finally:
        probe.unlink(missing_ok=True)
