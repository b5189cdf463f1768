"""Snapshots of the fold: where supervisors and viewers of a long run start from, in place of its first event.

`state/EPOCH.SEQ.json` holds all that follows from the events up to that place. It can be deleted at any time: what it
says the journal says too. One that is damaged, of another version of the fold or of another policy, or whose last event
is not among those that count, is passed over, and so is one that was made upon other seals than those in force.
"""

from __future__ import annotations

import contextlib
import json
import logging
import threading
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import xxhash

from launcher.codec import Undecodable, decode, encode
from launcher.events import Sealed
from launcher.fold import Fold, Memory, View
from launcher.paths import RunPaths, write_atomically
from launcher.reader import Damage, Place, Reader
from launcher.run import Run
from policies.schema import Policy

FORMAT = 1
EVERY = 4096  # events between two snapshots: folding as many again takes a fraction of a second
KEEP = 3  # the newest; one may be damaged, or of a supervisor that was superseded meanwhile

# All modules of launcher/ that the fold consists of, besides policies/: a snapshot of other code than this is void.
FOLDED_BY = (
    "accounting",
    "advance",
    "attempts",
    "codec",
    "drain",
    "events",
    "evolve",
    "examined",
    "fold",
    "incidents",
    "ledger",
    "lineage",
    "localize",
    "nodes",
    "run",
    "search",
    "settings",
    "terms",
    "trials",
)
_BODY = ',"fold":'

log = logging.getLogger("supervisor")


# ---------------------------------------------------------------- reading


def read_run(paths: RunPaths, *, steps: bool = True) -> Run:
    """The run as its journal tells it now; without `steps` as if no step had been told since the last snapshot."""
    return read_view(paths, steps=steps).run


def read_view(paths: RunPaths, *, steps: bool = True) -> View:
    """What viewers show of the run now. It takes no more memory when the run has more steps."""
    reader = Reader(paths)
    for body in _bodies(paths, reader):
        with contextlib.suppress(Undecodable):
            view = decode(View, body["view"])
            break
    else:
        view = View()
    return view.taken(reader.events((view.epoch, view.seq), steps=steps))


def read_fold(paths: RunPaths, policy: Policy, sealed: tuple[Sealed, ...]) -> tuple[Fold, list[Damage]]:
    """All that a new supervisor goes on from, and what of the journal could not be read on the way."""
    reader = Reader(paths, sealed)
    for body in _bodies(paths, reader, policy_version(paths)):
        with contextlib.suppress(Undecodable):
            fold = Fold(policy, decode(View, body["view"]), decode(Memory, body["memory"]))
            break
    else:
        fold = Fold(policy)
    place = (fold.view.epoch, fold.view.seq)
    for event in reader.events(place):
        fold.take(event)
    log.info("folded %d events after %s", fold.taken, "snapshot {}.{}".format(*place) if any(place) else "the start")
    return fold, reader.damage


def _bodies(paths: RunPaths, reader: Reader, policy: str = "") -> Iterator[dict[str, Any]]:
    """The content of snapshots that hold, the newest first; of any policy, or of this one."""
    for place, file in sorted(_files(paths), reverse=True):
        with contextlib.suppress(OSError, ValueError):
            head, _, body = file.read_text().partition(_BODY)
            body = body[:-1]
            told = json.loads(f"{head}}}")
            wanted = _head(reader, place[0], body, policy or told.get("policy"))
            if told == wanted and reader.has(place):
                yield json.loads(body)


def _files(paths: RunPaths) -> Iterator[tuple[Place, Path]]:
    for file in paths.state.glob("*.json"):
        epoch, _, seq = file.stem.partition(".")
        if epoch.isdigit() and seq.isdigit():
            yield (int(epoch), int(seq)), file


def _head(reader: Reader, epoch: int, body: str, policy: str | None) -> dict[str, Any]:
    """What a snapshot says of itself, and must say to be used."""
    return {
        "format": FORMAT,
        "code": code_version(),
        "policy": policy,
        "seals": _digest(repr(reader.sealed_before(epoch)).encode()),
        "digest": _digest(body.encode()),
    }


@cache
def code_version() -> str:
    """Of all code that the fold consists of: other code may come to another fold from the same events."""
    ours = Path(__file__).parent
    files = [*(ours / f"{name}.py" for name in FOLDED_BY), *sorted((ours.parent / "policies").glob("*.py"))]
    return _digest(b"".join(file.read_bytes() for file in files))


def policy_version(paths: RunPaths) -> str:
    """Of the policy of a run. Raises OSError."""
    return _digest(paths.policy.read_bytes())


def _digest(data: bytes) -> str:
    return xxhash.xxh3_128_hexdigest(data)


# ---------------------------------------------------------------- writing


class Snapshots:
    """Those of one supervisor, written now and then on a thread of its own. None is worth a run: failing is logged."""

    def __init__(self, paths: RunPaths, policy: str) -> None:
        self._paths, self._policy = paths, policy
        code_version()  # as it is now: while we run, other code may be installed in its place
        self._written = 0  # so many events the fold had taken by then
        self._thread: threading.Thread | None = None

    def durable(self, fold: Fold) -> None:
        """The fold has gone on; what it took to take over counts too, and need not be folded once more."""
        if fold.taken - self._written < EVERY or (self._thread and self._thread.is_alive()):
            return
        self._written = fold.taken
        arguments = (fold.view.copied(), fold.memory)
        self._thread = threading.Thread(target=self._write, args=arguments, name="snapshot", daemon=True)
        self._thread.start()

    def close(self, timeout_s: float = 10.0) -> None:
        """Let what is being written be finished."""
        if self._thread:
            self._thread.join(timeout_s)

    def _write(self, view: View, memory: Memory) -> None:
        try:
            write_snapshot(self._paths, self._policy, view, memory)
        except (OSError, TypeError) as error:
            log.warning("no snapshot of %d.%d: %r", view.epoch, view.seq, error)


def write_snapshot(paths: RunPaths, policy: str, view: View, memory: Memory) -> None:
    """Write a snapshot, and delete all but the newest few. Raises OSError; TypeError for a type that has no JSON."""
    body = json.dumps({"view": encode(View, view), "memory": encode(Memory, memory)}, separators=(",", ":"))
    head = json.dumps(_head(Reader(paths), view.epoch, body, policy))
    paths.state.mkdir(exist_ok=True)
    for draft in paths.state.glob(".*"):
        draft.unlink(missing_ok=True)  # of a supervisor that died over it
    write_atomically(paths.snapshot(view.epoch, view.seq), f"{head[:-1]}{_BODY}{body}}}")
    for _, file in sorted(_files(paths), reverse=True)[KEEP:]:
        file.unlink(missing_ok=True)
