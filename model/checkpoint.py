"""Checkpoints on disk: torch.distributed.checkpoint (DCP) files with a digest of every chunk.

DCP's planner decides who writes what and describes it in `.metadata`; its readers can load what is written here. The
bytes are written and read here, because DCP itself loads a flipped bit without a word. Only tensors are in these
files: `.metadata` is a pickle, unpickled only when its digest matches, and all else is the JSON state in the manifest.

A chunk is one rank's part of one tensor: {"key", "at" (offsets in the tensor), "path", "offset", "length", "digest"}.
"""

import copy
import ctypes
import io
import json
import os
import pickle
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import xxhash
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.filesystem import FileSystemWriter, _StorageInfo
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex
from torch.distributed.checkpoint.planner import ReadItem, SavePlan, WriteItem
from torch.distributed.checkpoint.storage import WriteResult
from torch.distributed.tensor import DTensor, Replicate

METADATA, MANIFEST = ".metadata", "manifest.json"
SCHEMA = 1

Chunk = dict[str, Any]


class CheckpointRejected(Exception):
    """A checkpoint is damaged or incomplete, and nothing of it may be used."""


@dataclass(frozen=True)
class Plan:
    """What this rank writes at every save of an attempt, and on rank 0 what `.metadata` says of all ranks."""

    items: Sequence[WriteItem]
    metadata: Metadata | None


def folder_name(step: int, attempt: int) -> str:
    """The folder of the checkpoint after `step` completed steps, as the given attempt reached them."""
    return f"step_{step:08d}.a{attempt:04d}"


def digest_of(data: bytes | memoryview) -> str:
    """The digest used everywhere in checkpoints: xxh3, 128 bits, in hex."""
    return xxhash.xxh3_128_hexdigest(data)


# ---------------------------------------------------------------- writing


def make_plan(tensors: Mapping[str, DTensor]) -> Plan:
    """Agree with all ranks on who writes what: a collective, once per attempt, never during a save."""
    planner = DefaultSavePlanner()
    planner.set_up_planner(dict(tensors), is_coordinator=dist.get_rank() == 0)
    local = planner.create_local_plan()
    mine: list[SavePlan | None] = [None]
    if dist.get_rank() == 0:
        locals_: list[Any] = [None] * dist.get_world_size()
        dist.gather_object(local, locals_)
        plans, metadata = planner.create_global_plan(locals_)
        dist.scatter_object_list(mine, plans)
    else:
        metadata = None
        dist.gather_object(local)
        dist.scatter_object_list(mine)
    assert mine[0] is not None
    return Plan(mine[0].items, metadata)


def write_part(folder: Path, rank: int, shards: Iterable[tuple[MetadataIndex, torch.Tensor]]) -> list[Chunk]:
    """Write and fsync this rank's file; returns its chunks. Raises OSError, and then leaves no file behind."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"__{rank}_0.distcp"
    chunks: list[Chunk] = []
    try:
        with open(path, "wb") as file:
            for index, tensor in shards:
                buffer = io.BytesIO()
                torch.save(tensor, buffer)
                data = buffer.getbuffer()
                place = {"path": path.name, "offset": file.tell(), "length": len(data), "digest": digest_of(data)}
                chunks.append({"key": index.fqn, "at": list(index.offset or ()), **place})
                file.write(data)
            file.flush()
            os.fsync(file.fileno())
        sync_folder(folder)
    except OSError:
        path.unlink(missing_ok=True)  # on a full disk half a file is in the way of the next save
        raise
    return chunks


def write_metadata(folder: Path, metadata: Metadata, parts: Iterable[Sequence[Chunk]]) -> dict[str, Any]:
    """The last act: write `.metadata` with DCP's own `finish`; returns its {"bytes", "digest"}.

    Asked again, it leaves the file alone: DCP would delete it first, and it may be part of a committed checkpoint.
    """
    if not (folder / METADATA).exists():
        _finish(folder, metadata, parts)
    data = (folder / METADATA).read_bytes()
    return {"bytes": len(data), "digest": digest_of(data)}


def _finish(folder: Path, metadata: Metadata, parts: Iterable[Sequence[Chunk]]) -> None:
    results = [
        [
            WriteResult(
                index=MetadataIndex(chunk["key"], torch.Size(chunk["at"])),
                size_in_bytes=chunk["length"],
                storage_data=_StorageInfo(chunk["path"], chunk["offset"], chunk["length"]),
            )
            for chunk in chunks
        ]
        for chunks in parts
    ]
    FileSystemWriter(folder).finish(copy.copy(metadata), results)
    sync_folder(folder)


def sync_folder(folder: Path) -> None:
    """Wait until a folder's entries are on the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# ---------------------------------------------------------------- reading


def read_manifest(folder: Path, digest: str | None = None) -> dict[str, Any]:
    """The manifest of a checkpoint. Raises CheckpointRejected where it is missing, damaged, or not the expected one."""
    try:
        data = (folder / MANIFEST).read_bytes()
    except OSError as error:
        raise CheckpointRejected(f"{folder}: its {MANIFEST} cannot be read: {error}") from error
    if digest is not None and digest_of(data) != digest:
        raise CheckpointRejected(f"{folder}: its {MANIFEST} is not the one that was committed (digest differs)")
    try:
        manifest = json.loads(data)
        if manifest["schema"] != SCHEMA:
            raise CheckpointRejected(f"{folder}: schema {manifest['schema']} is unknown here; expected {SCHEMA}")
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointRejected(f"{folder}: its {MANIFEST} is malformed: {error!r}") from error
    return manifest


def read_tensors(folder: Path, manifest: Mapping[str, Any], tensors: Mapping[str, DTensor]) -> None:
    """Fill this rank's shards, in place, from a checkpoint of any topology. No communication.

    Every byte used is verified first. Raises CheckpointRejected at the first that is wrong or missing; some
    tensors may be overwritten by then.
    """
    metadata = _read_metadata(folder, manifest)
    planner = DefaultLoadPlanner()
    planner.set_up_planner(dict(tensors), metadata, is_coordinator=False)
    try:
        items = planner.create_local_plan().items
    except (RuntimeError, ValueError) as error:
        raise CheckpointRejected(f"{folder}: does not hold the tensors of this model: {error}") from error
    chunks = {(chunk["path"], chunk["offset"]): chunk for chunk in manifest["chunks"]}
    wanted: dict[tuple[str, int], list[ReadItem]] = {}
    for item in items:
        stored = metadata.storage_data[item.storage_index]
        wanted.setdefault((stored.relative_path, stored.offset), []).append(item)
    for place in sorted(wanted):  # in the order of the files, one chunk in memory at a time
        if place not in chunks:
            raise CheckpointRejected(f"{folder}: no digest of {place[0]} at {place[1]} in the manifest")
        chunk = torch.load(io.BytesIO(read_chunk(folder, chunks[place])), weights_only=True)
        for item in wanted[place]:
            part = chunk
            for dim, (offset, length) in enumerate(zip(item.storage_offsets, item.lengths, strict=True)):
                part = part.narrow(dim, offset, length)
            planner.resolve_tensor(item).detach().copy_(part)


def read_chunk(folder: Path, chunk: Mapping[str, Any]) -> bytes:
    """The verified bytes of one chunk. Raises CheckpointRejected."""
    where = f"{chunk['key']} in {folder / chunk['path']} at {chunk['offset']}"
    try:
        with open(folder / chunk["path"], "rb") as file:
            file.seek(chunk["offset"])
            data = file.read(chunk["length"])
    except OSError as error:
        raise CheckpointRejected(f"{where}: cannot be read: {error}") from error
    if len(data) < chunk["length"]:
        raise CheckpointRejected(f"{where}: {len(data)} bytes of {chunk['length']}: the file is cut short")
    if digest_of(data) != chunk["digest"]:
        raise CheckpointRejected(f"{where}: the digest differs: damaged")
    return data


def verify(folder: Path, digest: str | None = None) -> dict[str, Any]:
    """The manifest of a checkpoint, each byte of which was read and verified. Raises CheckpointRejected."""
    manifest = read_manifest(folder, digest)
    _metadata_bytes(folder, manifest)
    for chunk in manifest["chunks"]:
        read_chunk(folder, chunk)
    return manifest


def _metadata_bytes(folder: Path, manifest: Mapping[str, Any]) -> bytes:
    try:
        data = (folder / METADATA).read_bytes()
    except OSError as error:
        raise CheckpointRejected(f"{folder}: its {METADATA} cannot be read: {error}") from error
    if digest_of(data) != manifest["metadata"]["digest"]:
        raise CheckpointRejected(f"{folder}: the digest of its {METADATA} differs: damaged")
    return data


def _read_metadata(folder: Path, manifest: Mapping[str, Any]) -> Metadata:
    # Verified bytes only: unpickling foreign ones could run anything.
    return pickle.loads(_metadata_bytes(folder, manifest))


# ---------------------------------------------------------------- the run's last word


def final_digest(tensors: Mapping[str, DTensor]) -> str:
    """One digest of name-sorted full tensors: names, types, shapes and bytes; the same on all ranks. A collective."""
    whole = xxhash.xxh3_128()
    for name in sorted(tensors):
        tensor = tensors[name]  # one at a time: the model may not fit one rank
        rows = tensor.redistribute(placements=[Replicate(), *tensor.placements[1:]])  # torch warns of both at once
        full = rows.full_tensor().cpu().contiguous()
        whole.update(f"{name} {full.dtype} {list(full.shape)}\n".encode())
        size = full.numel() * full.element_size()
        if size:
            whole.update((ctypes.c_char * size).from_address(full.data_ptr()))
    return whole.hexdigest()
