"""Who keeps the checkpoints of a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from launcher.code.record import original_folder
from launcher.events import Event
from launcher.finder import Finder
from launcher.keeper import Keeper
from launcher.paths import RunPaths
from launcher.sections import RunSpec


def keeper_of(
    spec: RunSpec,
    paths: RunPaths,
    emit: Callable[[Event], Event],
    ack: Callable[[str, int], None],
    send: Callable[[str, Mapping[str, object]], None],
) -> Keeper | Finder:
    """For a trainer that says where its checkpoints are, one that looks there; else one that is told of each."""
    if spec.checkpoints:
        return Finder(spec.checkpoints, spec.can.resume == "newest", original_folder(paths), emit, ack)
    return Keeper(paths, spec.trainer.checkpoint if spec.trainer else None, emit, ack, send)
