"""Where an attempt begins: at step 0, or exactly where a verified checkpoint was."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor

from model import checkpoint
from model.checkpoint import CheckpointRejected

_FOLDER = re.compile(r"step_(\d{8,})\.a(\d{4,})")


@dataclass(frozen=True)
class Start:
    """The number of this attempt, and the checkpoint to go on from; no folder: from step 0."""

    attempt: int
    folder: Path | None
    digest: str | None


def find_start(env: Mapping[str, str], root: Path, *, attached: bool) -> Start:
    """What the launcher says, or without one what the folder of checkpoints holds (a collective, rank 0 looks).

    Raises CheckpointRejected where the folder holds checkpoints and none of them is whole: beginning at step 0
    would throw the run's history away.
    """
    if attached:
        restore = env.get("OPT_LAUNCH_RESTORE")
        digest = env.get("OPT_LAUNCH_RESTORE_DIGEST")
        return Start(int(env["OPT_LAUNCH_ATTEMPT"]), Path(restore) if restore else None, digest if restore else None)
    found: list[Any] = [None]
    if dist.get_rank() == 0:
        found = [_newest(root)]
    dist.broadcast_object_list(found)
    if isinstance(found[0], str):
        raise CheckpointRejected(found[0])
    return found[0]


def _newest(root: Path) -> Start | str:
    """The newest checkpoint that is whole, or why there is none."""
    numbers = [(int(m[1]), int(m[2]), path) for path in root.glob("step_*") if (m := _FOLDER.fullmatch(path.name))]
    attempt = 1 + max((number for _, number, _ in numbers), default=0)
    damaged = []
    for _, _, folder in sorted(numbers, reverse=True):
        if not (folder / checkpoint.MANIFEST).exists():
            continue  # a save that did not complete: never a checkpoint
        try:
            checkpoint.verify(folder)
        except CheckpointRejected as error:
            print(error, flush=True)
            damaged.append(folder.name)
            continue
        return Start(attempt, folder, None)
    if damaged:
        return f"{root}: none of its checkpoints is whole ({', '.join(damaged)}); move them away to begin at step 0"
    return Start(attempt, None, None)


ELSEWHERE = "another rank found the checkpoint damaged"


def restore(
    folder: Path, digest: str | None, tensors: Mapping[str, DTensor], identity: Mapping[str, Any], device: torch.device
) -> dict[str, Any]:
    """Fill the tensors from a checkpoint and return its JSON state. A collective: all ranks go on, or all raise.

    Raises CheckpointRejected for damage, ValueError where the checkpoint is of another model, data or seed.
    """
    problem: CheckpointRejected | None = None
    state: dict[str, Any] = {}
    try:
        manifest = checkpoint.read_manifest(folder, digest)
        state = manifest["state"]
        if state["identity"] == identity:
            checkpoint.read_tensors(folder, manifest, tensors)
    except CheckpointRejected as error:
        problem = error
    whole = torch.tensor(float(problem is None), device=device)
    dist.all_reduce(whole, dist.ReduceOp.MIN)
    if problem:
        raise problem
    if not whole.item():
        raise CheckpointRejected(ELSEWHERE)
    if state["identity"] != identity:
        differing = [
            f"{name} is {state['identity'].get(name)!r} there and {value!r} here"
            for name, value in identity.items()
            if state["identity"].get(name) != value
        ]
        raise ValueError(f"{folder} is of another run: {'; '.join(differing)}; go on with the settings it began with")
    return state
