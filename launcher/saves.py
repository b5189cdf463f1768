"""Checkpoints on disk: parts collected and committed, read back in full, and deleted by retention.

parts of all ranks -> (finish by rank 0) -> manifest, fsynced -> `checkpoint_committed` -> scrub -> good
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import xxhash

from launcher.events import CheckpointId
from launcher.paths import RunPaths, checkpoint_of, write_atomically
from launcher.run import Checkpoint, Run

SCHEMA = 1
_READ_BYTES = 4 << 20

Message = dict[str, Any]


@dataclass
class Pending:
    """A save some ranks have reported their part of. `said`: what to acknowledge when it is over."""

    step: int
    attempt: int
    directory: Path
    parts: dict[int, Message] = field(default_factory=dict)
    said: list[tuple[str, int]] = field(default_factory=list)
    finish_asked: bool = False
    files: Mapping[str, Message] | None = None

    def is_whole(self, ranks: int) -> bool:
        return len(self.parts) == ranks

    @property
    def needs_finish(self) -> bool:
        return any(part["results"] for part in self.parts.values()) and self.files is None


def manifest_of(run: Run, save: Pending, parent: CheckpointId | None) -> Message:
    """What the manifest of a whole save says."""
    parts = [save.parts[rank] for rank in sorted(save.parts)]
    files = {
        chunk["path"]: {"bytes": (save.directory / chunk["path"]).stat().st_size}
        for part in parts
        for chunk in part["chunks"]
    }
    metadata = (save.files or {}).get(".metadata")
    return {
        "schema": SCHEMA,
        "run": run.name,
        "step": save.step,
        "attempt": save.attempt,
        "parent": parent,
        "world_size": len(parts),
        "created_at": time.time(),
        "files": files,
        "metadata": metadata,
        "chunks": [chunk for part in parts for chunk in part["chunks"]],
        "state": next((part["state"] for part in parts if part["state"] is not None), {}),
    }


def write_manifest(paths: RunPaths, manifest: Message) -> tuple[str, int]:
    """Write it durably; (digest of its bytes, bytes of the whole checkpoint). Raises OSError."""
    text = json.dumps(manifest, separators=(",", ":"))
    write_atomically(paths.manifest(manifest["step"], manifest["attempt"]), text)
    size = sum(file["bytes"] for file in manifest["files"].values()) + len(text)
    return xxhash.xxh3_128_hexdigest(text.encode()), size + (manifest["metadata"] or {}).get("bytes", 0)


def inspect(paths: RunPaths, checkpoint: Checkpoint) -> str:
    """What is wrong with a checkpoint at first sight: manifest, sizes, `.metadata`; "" if nothing is."""
    folder = paths.checkpoint(*checkpoint.id)
    try:
        text = paths.manifest(*checkpoint.id).read_bytes()
    except OSError as error:
        return f"manifest.json: {error.strerror}"
    if xxhash.xxh3_128_hexdigest(text) != checkpoint.manifest_digest:
        return "manifest.json is not the one that was committed"
    manifest = json.loads(text)
    for name, expected in manifest["files"].items():
        try:
            size = (folder / name).stat().st_size
        except OSError as error:
            return f"{name}: {error.strerror}"
        if size != expected["bytes"]:
            return f"{name} has {size} bytes instead of {expected['bytes']}"
    if manifest["metadata"]:
        try:
            found = xxhash.xxh3_128_hexdigest((folder / ".metadata").read_bytes())
        except OSError as error:
            return f".metadata: {error.strerror}"
        if found != manifest["metadata"]["digest"]:
            return ".metadata does not match its digest"
    return ""


def scrub(paths: RunPaths, checkpoint: Checkpoint) -> str:
    """Read every byte back; what is wrong, or ""."""
    wrong = inspect(paths, checkpoint)
    if wrong:
        return wrong
    folder = paths.checkpoint(*checkpoint.id)
    manifest = json.loads(paths.manifest(*checkpoint.id).read_bytes())
    for chunk in manifest["chunks"]:
        try:
            found = _chunk_digest(folder / chunk["path"], chunk["offset"], chunk["length"])
        except OSError as error:
            return f"{chunk['path']}: {error.strerror}"
        if found != chunk["digest"]:
            return f"{chunk['key']} in {chunk['path']} does not match its digest"
    return ""


def _chunk_digest(file: Path, offset: int, length: int) -> str:
    hasher = xxhash.xxh3_128()
    with file.open("rb") as stream:
        stream.seek(offset)
        while length > 0 and (data := stream.read(min(length, _READ_BYTES))):
            hasher.update(data)
            length -= len(data)
    return hasher.hexdigest()


def remove_unreferenced(paths: RunPaths, run: Run) -> None:
    """Delete what saves that never came to anything have left: folders of ended attempts that no event names."""
    live = run.live_attempt.number if run.live_attempt else len(run.attempts) + 1
    known = {checkpoint.id for checkpoint in run.checkpoints.values() if not checkpoint.removed}
    for folder in paths.checkpoints.iterdir():
        id_ = checkpoint_of(folder)
        if id_ is not None and id_ not in known and id_[1] < live:
            shutil.rmtree(folder, ignore_errors=True)
