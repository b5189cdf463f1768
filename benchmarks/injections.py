"""Faults as a user meets them, made from outside: a file with garbage in it, a bit that flips in a rank's memory."""

from __future__ import annotations

import os
import random
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
import torch.distributed.checkpoint as dcp

from model.data import Corpus, Document, find_documents, sequence_of, split

TEXT_BYTES = 4_000_000
TOP_EXPONENT_BIT = 30  # of a float32: a weight near 1 becomes infinite, not a number, or about 1e38
WEIGHT = "model.final_layer_norm.weight"
_REGION = re.compile(r"([0-9a-f]+)-([0-9a-f]+) rw-p ")
_MOVED = 0.2  # at most, since its checkpoint: its values are near 1


def corpus() -> bytes:
    """Text to train on: the beginning of what the word `python` stands for, as one file."""
    text = b"\0".join(Path(document.path).read_bytes() for document in find_documents(["python"]))
    return text[:TEXT_BYTES]


def poisoned(text: bytes, steps: range, *, batch: int, seq_len: int, seed: int, held_out: float = 0.05) -> bytes:
    """The text with garbage in all sequences that a run trains on in these steps, and in no other.

    `batch`: sequences of a step. The garbage is bytes drawn at random, as of a file that is compressed or encrypted.
    """
    draw, spoiled = random.Random(seed), bytearray(text)
    train, _ = split([Document("", 0, len(text))], held_out)
    sequences = Corpus(train, seq_len).sequences
    for sample in range(steps.start * batch, steps.stop * batch):
        first = sequence_of(sample, sequences, seed) * seq_len
        spoiled[first : first + seq_len] = draw.randbytes(seq_len)
    return bytes(spoiled)


def flip_a_bit(pid: int, checkpoint: Path) -> int:
    """Flip a bit of one weight in the memory of a rank that trains; returns in how many places it was found.

    The last layer norm is known by its values of a while ago, in a checkpoint. What equals them to the bit is the copy
    that the checkpoint was written from, and is let be.
    """
    weight = torch.empty(dcp.FileSystemReader(checkpoint).read_metadata().state_dict_metadata[WEIGHT].size[0])
    dcp.load({WEIGHT: weight}, checkpoint_id=checkpoint, no_dist=True)
    found = 0
    with open(f"/proc/{pid}/mem", "r+b", buffering=0) as memory:
        for address, value in list(_places(pid, memory.fileno(), weight.numpy())):
            memory.seek(address)
            found += memory.write((value.view(np.uint32) ^ np.uint32(1 << TOP_EXPONENT_BIT)).tobytes()) == 4
    return found


def _places(pid: int, memory: int, known: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Where a process holds a tensor that has hardly moved since it was known, and its first value there [1]."""
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        if not (region := _REGION.match(line)):
            continue
        start, end = (int(number, 16) for number in region.groups())
        with suppress(OSError):  # a region may be gone by now, or not be for reading
            values = np.frombuffer(os.pread(memory, end - start, start), np.float32)
            yield from ((start + 4 * at, values[at : at + 1]) for at in _found(values, known))


def _found(values: np.ndarray, known: np.ndarray) -> list[int]:
    """Where the values are near the known ones without being the same; of places that overlap, the nearest."""
    at = np.flatnonzero(_is_near(values[: 1 - len(known)], known[0]))
    for number, value in enumerate(known):
        at = at[_is_near(values[at + number], value)]
    moved = {int(place): float(np.abs(values[place : place + len(known)] - known).max()) for place in at}
    best: list[int] = []
    for place in sorted(moved, key=lambda place: moved[place]):
        if all(abs(place - other) >= len(known) for other in best):
            best.append(place)
    return [place for place in best if moved[place]]


def _is_near(values: np.ndarray, value: float) -> np.ndarray:
    return (values > value - _MOVED) & (values < value + _MOVED)
