"""Checkpoints that a trainer has made by itself: where they lie, whether they are whole, what they hold."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import xxhash

from launcher.foreign import CheckpointFiles, Complete
from launcher.run import Attempt, Run

STEP = "{step}"
SET_ASIDE = "set_aside"
ADOPTED = 3  # of the checkpoints that were there before the run, so many are of use
MARKER_S = 2.0  # by so much a file may seem younger than the marker that was written after it
_SAMPLE_BYTES = 64 << 10
_SAMPLES = 16  # of each file
_READ_BYTES = 4 << 20


@dataclass(frozen=True, order=True)
class Place:
    """Where a checkpoint may be: its step, its absolute path, and the step as it is written there."""

    step: int
    path: str
    digits: str


@dataclass(frozen=True)
class File:
    """A file of a checkpoint; `name` is relative to it, "" where the checkpoint is one file."""

    name: str
    path: str
    bytes: int
    written_at: float


@dataclass(frozen=True)
class Found:
    """A whole checkpoint."""

    step: int
    path: str
    digest: str
    bytes: int
    written_at: float


@dataclass(frozen=True)
class Look:
    """What a look has shown: whole ones that are new, by step; paths of those that are not whole; known ones gone."""

    new: tuple[Found, ...] = ()
    unfinished: tuple[str, ...] = ()
    gone: tuple[tuple[int, int], ...] = ()


def look(files: CheckpointFiles, folder: Path, run: Run, now: float) -> Look:
    """Look for what the run does not know yet, beyond its newest. `now`: Unix seconds."""
    there = matches(files.glob, folder)
    new: list[Found] = []
    unfinished: list[str] = []
    for place in reversed([one for one in there if run.head is None or one.step > run.head[0]]):
        if run.attempt is None and len(new) == ADOPTED:
            break
        listing = listed(place.path)
        if listing and _is_old(run, place.path, _written_at(listing)):
            continue
        whole = listing and is_whole(files.complete, place, listing, folder, run.attempts, now)
        if whole and (digest := digest_of(listing, files.verify)):
            size = sum(file.bytes for file in listing)
            new.append(Found(place.step, place.path, digest, size, _written_at(listing)))
        else:
            unfinished.append(place.path)
    paths = {place.path for place in there}
    known = [one for one in run.checkpoints.values() if not one.removed]
    gone = tuple(one.id for one in known if one.path not in paths)
    # A folder without any of them is rather not there itself.
    return Look(tuple(reversed(new)), tuple(unfinished), gone if len(gone) < len(known) else ())


def _is_old(run: Run, path: str, written_at: float) -> bool:
    """Whether what lies there was found before, and the present attempt has not written it anew."""
    before = [one.written_at for one in run.checkpoints.values() if one.path == path]
    return bool(before) and written_at <= max(*before, run.attempt.started_at if run.attempt else 0.0)


# ---------------------------------------------------------------- names


def matches(pattern: str, folder: Path) -> list[Place]:
    """Everything that a pattern names, by step."""
    pattern = pattern.rstrip("/")
    whole = os.path.join(glob.escape(str(folder)), pattern.replace("[", "[[]"))
    named = _regex(os.path.join(str(folder), pattern))
    found = [(path, named.fullmatch(path)) for path in glob.glob(whole.replace(STEP, "*"))]
    places = [Place(int(match["step"]), path, match["step"]) for path, match in found if match]
    return sorted(place for place in places if SET_ASIDE not in Path(place.path).parts)


def _regex(pattern: str) -> re.Pattern[str]:
    parts = re.split(r"(\{step\}|\*|\?)", pattern)
    seen = False
    text = ""
    for part in parts:
        if part == STEP:
            text += r"(?P=step)" if seen else r"(?P<step>\d+)"
            seen = True
        else:
            text += {"*": "[^/]*", "?": "[^/]"}.get(part, re.escape(part))
    return re.compile(text)


def _written_at(listing: Sequence[File]) -> float:
    return max(file.written_at for file in listing)


def listed(path: str) -> list[File]:
    """The files of a checkpoint by name; none where it is gone or cannot be read."""
    try:
        if not os.path.isdir(path):
            return [_file("", path)]
        return sorted(_walk(path), key=lambda file: file.name)
    except OSError:
        return []


def _walk(path: str) -> Iterator[File]:
    for folder, _, names in os.walk(path, onerror=_raise):
        for name in names:
            whole = os.path.join(folder, name)
            yield _file(os.path.relpath(whole, path), whole)


def _raise(error: OSError) -> None:
    raise error


def _file(name: str, path: str) -> File:
    about = os.stat(path)
    return File(name, path, about.st_size, about.st_mtime)


# ---------------------------------------------------------------- whole or not


def is_whole(
    sign: Complete, place: Place, listing: Sequence[File], folder: Path, attempts: Sequence[Attempt], now: float
) -> bool:
    """Whether a checkpoint has all that belongs to it."""
    if sign.marker is None:
        return _has_settled(_written_at(listing), sign.settled or 0.0, attempts, now)
    beside = STEP in sign.marker
    where = folder / sign.marker.replace(STEP, place.digits) if beside else Path(place.path, sign.marker)
    try:
        marked_at = where.stat().st_mtime
    except OSError:
        return False
    # Written last: where files are younger, the checkpoint of an earlier attempt is being written anew.
    return all(file.written_at <= marked_at + MARKER_S for file in listing)


def _has_settled(written_at: float, settled_s: float, attempts: Sequence[Attempt], now: float) -> bool:
    """Whether nothing was written for a while, by a trainer that could have gone on writing for that while."""
    by = next((one for one in reversed(attempts) if one.started_at <= written_at), None)
    if by and len(by.exits) == by.ranks and not any(by.exits.values()):
        return True
    until = by.ended_at if by and by.ended_at is not None else now
    return until - written_at >= settled_s


# ---------------------------------------------------------------- content


def digest_of(listing: Iterable[File], verify: str) -> str:
    """Digest of names, sizes and, as asked, parts or all of the content; "" if something cannot be read."""
    whole = xxhash.xxh3_128()
    try:
        for file in listing:
            content = "" if verify == "sizes" else _content(file, everything=verify == "full")
            whole.update(f"{file.name}\0{file.bytes}\0{content}\n".encode())
    except OSError:
        return ""
    return whole.hexdigest()


def _content(file: File, *, everything: bool) -> str:
    hasher = xxhash.xxh3_128()
    with open(file.path, "rb") as stream:
        if everything or file.bytes <= _SAMPLES * _SAMPLE_BYTES:
            while data := stream.read(_READ_BYTES):
                hasher.update(data)
            return hasher.hexdigest()
        for index in range(_SAMPLES):
            stream.seek((file.bytes - _SAMPLE_BYTES) * index // (_SAMPLES - 1))
            hasher.update(stream.read(_SAMPLE_BYTES))
    return hasher.hexdigest()


def inspect(path: str, expected: str, verify: str) -> str:
    """What is wrong with a checkpoint before it is used; "" if nothing is."""
    listing = listed(path)
    if not listing:
        return f"{path} is not there"
    return "" if digest_of(listing, verify) == expected else f"{path} is not as it was when it was found"


def set_aside(pattern: str, folder: Path, beyond: int) -> list[tuple[str, str]]:
    """Move everything of later steps out of the trainer's sight: (from, to) of each. Raises OSError."""
    moved: list[tuple[str, str]] = []
    for place in matches(pattern, folder):
        if place.step <= beyond:
            continue
        path = Path(place.path)
        aside = path.parent / SET_ASIDE
        aside.mkdir(exist_ok=True)
        free = (
            to for again in count() if not (to := aside / (f"{path.name}.{again}" if again else path.name)).exists()
        )
        moved.append((place.path, str(path.rename(next(free)))))
    return moved
