"""Files as packed sequences of tokens, in an order that is a pure function of (seed, sample index).

All documents, each followed by an end-of-document token, form one long stream. Sequence k is the `seq_len` tokens
from k * seq_len on, and the one after them as the last target. A sequence is read from its files when it is needed, so
that building the index costs one stat per file and ranks share the page cache. Text files whose bytes are the tokens
are read as they are; of others `tokens` makes files of token ids first.
"""

import glob
import os
import sysconfig
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

import numpy as np
import torch
import xxhash

END_OF_DOCUMENT = 256
PYTHON = "python"
# The default corpus: the modules at the top of the standard library and these packages, about 9 MB.
PYTHON_PACKAGES = ("asyncio", "collections", "concurrent", "email", "html", "http", "importlib", "json", "logging")
_ROUNDS = 4

Span = tuple[int, int]


class Document(NamedTuple):
    """A stretch of a file: where it starts and how long it is, in tokens.

    `width`: bytes of a token; 0: its bytes are the tokens, and the end-of-document token is not in the file. `source`:
    the name of the file that it was made of.
    """

    path: str
    start: int
    length: int
    width: int = 0
    source: str = ""

    @property
    def name(self) -> str:
        """The name of the file, without folders: the same files elsewhere are the same corpus."""
        return self.source or os.path.basename(self.path)

    @property
    def tokens(self) -> int:
        """How many tokens it adds to the stream."""
        return self.length if self.width else self.length + 1

    def read(self, first: int, count: int) -> np.ndarray:
        """Token ids [count] of those in the file, from `first` on. Raises OSError."""
        width = self.width or 1
        with open(self.path, "rb", buffering=0) as file:
            data = os.pread(file.fileno(), count * width, (self.start + first) * width)
        if len(data) < count * width:
            raise OSError(f"{self.path} is shorter than when training began: it must not change during a run")
        return np.frombuffer(data, f"u{width}")


def find_documents(patterns: Sequence[str]) -> list[Document]:
    """Every file that the paths and globs name, sorted; the word "python" stands for Python's standard library.

    Raises ValueError for a pattern without files, a file that cannot be read, or nothing but empty files.
    """
    paths: set[str] = set()
    for pattern in patterns:
        found = _python_files() if pattern == PYTHON else _files(pattern)
        if not found:
            raise ValueError(f"data: no file matches {pattern!r} on {os.uname().nodename}; check the path in `data:`")
        paths.update(found)
    documents = []
    for path in sorted(paths):
        if not os.access(path, os.R_OK):
            raise ValueError(f"data: {path} cannot be read on {os.uname().nodename}; check its permissions")
        documents.append(Document(path, 0, os.stat(path).st_size))
    if not any(document.length for document in documents):
        raise ValueError(f"data: all {len(documents)} files of {list(patterns)} are empty; name files with text")
    return [document for document in documents if document.length]


def _files(pattern: str) -> list[str]:
    return [path for path in glob.glob(os.path.expanduser(pattern), recursive=True) if os.path.isfile(path)]


def _python_files() -> list[str]:
    root = sysconfig.get_paths()["stdlib"]
    folders = [root, *(os.path.join(root, package) for package in PYTHON_PACKAGES)]
    return [path for folder in folders for path in _files(os.path.join(folder, "*.py"))]


def split(documents: Sequence[Document], held_out: float) -> tuple[list[Document], list[Document]]:
    """Documents for training and for validation: every n-th is held out, of a single one its last part."""
    if not held_out:
        return list(documents), []
    if len(documents) == 1:
        whole = documents[0]
        kept = round(whole.length * (1 - held_out))
        rest = whole._replace(start=whole.start + kept, length=whole.length - kept)
        return [whole._replace(length=kept)], [rest]
    every = min(len(documents), round(1 / held_out))
    train = [document for i, document in enumerate(documents) if i % every != every - 1]
    return train, list(documents[every - 1 :: every])


def fingerprint(documents: Sequence[Document]) -> int:
    """A number below 2^63 that stands for names and lengths of the documents."""
    names = "\0".join(f"{document.name}:{document.start}:{document.length}" for document in documents)
    return xxhash.xxh3_64_intdigest(names.encode()) >> 1


class Corpus:
    """Documents as one stream of tokens, cut into sequences."""

    def __init__(self, documents: Sequence[Document], seq_len: int, *, may_be_empty: bool = False) -> None:
        """Raises ValueError where the documents make less than one sequence, unless that `may_be_empty`."""
        self.documents = list(documents)
        self.seq_len = seq_len
        self._starts = [0, *accumulate(document.tokens for document in documents)]
        self.sequences = max(0, self._starts[-1] - 1) // seq_len
        if not self.sequences and not may_be_empty:
            raise ValueError(
                f"data: {self._starts[-1]} tokens in {len(documents)} files are less than one sequence of {seq_len}; "
                "name more files or a smaller seq_len"
            )
        self.fingerprint = fingerprint(documents)

    def sequence(self, index: int) -> torch.Tensor:
        """Tokens [seq_len + 1] int64 of one sequence. Raises OSError where its files cannot be read."""
        position, missing = index * self.seq_len, self.seq_len + 1
        number = bisect_right(self._starts, position) - 1
        parts: list[np.ndarray] = []
        while missing > 0:
            document, inside = self.documents[number], position - self._starts[number]
            part = document.read(inside, min(missing, document.length - inside))
            if not document.width and len(part) < missing:
                part = np.append(part.astype(np.uint16), np.uint16(END_OF_DOCUMENT))
            parts.append(part)
            missing -= len(part)
            number, position = number + 1, self._starts[number + 1]
        return torch.from_numpy(np.concatenate(parts).astype(np.int64))

    def batch(self, indices: Sequence[int]) -> torch.Tensor:
        """Tokens [len(indices), seq_len + 1] int64."""
        return torch.stack([self.sequence(index) for index in indices])


def permute(index: int, size: int, key: int) -> int:
    """Where `index` goes in a permutation of range(size) that `key` chooses, without a table.

    A Feistel network permutes the numbers of an even count of bits; applied again until it lands below `size`
    ("cycle walking") it permutes range(size), in less than four turns on average.
    """
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    mask = (1 << half) - 1
    while True:
        left, right = index >> half, index & mask
        for turn in range(_ROUNDS):
            mixed = xxhash.xxh3_64_intdigest(right.to_bytes(8, "little") + turn.to_bytes(1, "little"), seed=key)
            left, right = right, left ^ (mixed & mask)
        index = left << half | right
        if index < size:
            return index


def sequence_of(sample: int, sequences: int, seed: int) -> int:
    """The sequence that an absolute sample index stands for: each epoch visits every sequence once."""
    epoch, place = divmod(sample, sequences)
    key = xxhash.xxh3_64_intdigest(epoch.to_bytes(8, "little"), seed=seed)
    return permute(place, sequences, key)


def merge(*lists: Sequence[Span]) -> list[Span]:
    """Ranges of all lists, half-open, sorted and joined where they touch."""
    merged: list[Span] = []
    for first, end in sorted((int(first), int(end)) for spans in lists for first, end in spans):
        if merged and first <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((first, end))
    return merged


def next_samples(position: int, count: int, skip: Sequence[Span]) -> tuple[list[int], int]:
    """The next `count` samples from `position` on that no range of `skip` holds, and the position after them.

    Skipped samples are never used; those after them move up.
    """
    samples: list[int] = []
    spans = merge(skip)
    while len(samples) < count:
        span = next((span for span in spans if span[0] <= position < span[1]), None)
        if span:
            position = span[1]
            continue
        limit = min((first for first, _ in spans if first > position), default=position + count)
        taken = min(limit - position, count - len(samples))
        samples.extend(range(position, position + taken))
        position += taken
    return samples, position
