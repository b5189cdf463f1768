"""What becomes of checkpoints: committed, read back, tried by the steps after them, doubted, removed. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping

from launcher.events import (
    CheckpointCommitted,
    CheckpointFailed,
    CheckpointId,
    CheckpointRejected,
    CheckpointRemoved,
    CheckpointSetAside,
    CheckpointVerified,
    StepDone,
)
from launcher.evolve import evolve
from launcher.run import Checkpoint, Run
from launcher.settings import saved


def committed(run: Run, event: CheckpointCommitted) -> Run:
    """A late commit of an ended attempt exists too, but is not the head of another attempt's line.

    Steps done while it was being written count for its probation already. One told twice changes nothing.
    The one that a branch begins with is there before any attempt.
    """
    if (event.step, event.attempt) in run.checkpoints:
        return run
    current = event.attempt == (run.attempt.number if run.attempt else 0)  # 0: it was there before the run
    already = max(0, run.step - event.step) if current else 0
    finite = was_skipped(run.metrics) or _is_finite(run.metrics) if current else True
    checkpoint = Checkpoint(
        event.step, event.attempt, event.parent, event.manifest_digest, event.bytes, event.at,
        healthy_steps=already if finite else 0, doubted=not finite, path=event.path, written_at=event.written_at,
    )  # fmt: skip
    run = evolve(run, checkpoints={**run.checkpoints, checkpoint.id: checkpoint})
    if current:
        run = saved(evolve(run, head=checkpoint.id))
        if event.step > run.save_beyond:  # one that was begun before a save was asked for is not the one asked for
            run = evolve(run, save_requested_at=None)
    return run


def save_failed(run: Run, _event: CheckpointFailed) -> Run:
    return evolve(run, save_requested_at=None)


def verified(run: Run, event: CheckpointVerified) -> Run:
    return _with_checkpoint(run, (event.step, event.attempt), verified=True)


def rejected(run: Run, event: CheckpointRejected) -> Run:
    return _with_checkpoint(run, (event.step, event.attempt), rejected=event.reason)


def removed(run: Run, event: CheckpointRemoved) -> Run:
    return _with_checkpoint(run, (event.step, event.attempt), removed=True)


def set_aside(run: Run, event: CheckpointSetAside) -> Run:
    moved = {id_: evolve(one, removed=True) for id_, one in run.checkpoints.items() if one.path == event.path}
    return evolve(run, checkpoints={**run.checkpoints, **moved})


def healthy_step(run: Run, event: StepDone, before: int) -> Run:
    """Count for every checkpoint of the line on probation the steps done since `before`, or cast doubt on it."""
    if was_skipped(event.metrics):
        return run  # the weights are those of before: no proof of health, and no doubt
    changed: dict[CheckpointId, Checkpoint] = {}
    for checkpoint in run.lineage():
        if checkpoint.healthy_steps >= run.probation:
            break  # older ones have passed as well
        if event.step < checkpoint.step:
            continue
        changed[checkpoint.id] = (
            evolve(checkpoint, healthy_steps=checkpoint.healthy_steps + run.step - max(before, checkpoint.step))
            if _is_finite(event.metrics)
            else evolve(checkpoint, doubted=True)
        )
    return evolve(run, checkpoints={**run.checkpoints, **changed}) if changed else run


def was_skipped(metrics: Mapping[str, float]) -> bool:
    """Whether the update of a step was left out, as a loss scale does when it finds its size."""
    return metrics.get("skipped", 0.0) >= 1


def _is_finite(metrics: Mapping[str, float]) -> bool:
    return all(map(math.isfinite, metrics.values()))


def _with_checkpoint(run: Run, id_: CheckpointId, **changes: object) -> Run:
    known = run.checkpoints.get(id_)
    if known is None:
        return run
    return evolve(run, checkpoints={**run.checkpoints, id_: evolve(known, **changes)})  # type: ignore[arg-type]
