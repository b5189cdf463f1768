"""A branch: a new run that begins from a checkpoint of another one, and afterwards needs nothing of it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher import saves
from launcher.amend import IDENTITY, respecified
from launcher.errors import ConfigError, LaunchError, Mistake, WrongUse
from launcher.events import Branch, CheckpointCommitted, Event, RunSubmitted, StepDone
from launcher.evolve import evolve
from launcher.paths import RunPaths, sync_folder
from launcher.preflight import corpus_lengths, trained_on
from launcher.reader import Reader
from launcher.run import Checkpoint, Run
from launcher.sections import RunSpec
from launcher.snapshots import read_run
from launcher.spec import ResolvedSpec, load_spec, read_resolved
from launcher.view.locate import find_run

LATEST, LAST_GOOD = "latest", "last_good"
ROOT_ATTEMPT = 0  # in the new run the checkpoint was there before any attempt
_COPY_BYTES = 8 << 20

Progress = Callable[[int], None]  # told the bytes that have been copied since it was last told


@dataclass(frozen=True)
class Source:
    """A checkpoint of another run, and what of that run matters: `first_sample` is the next one not yet used."""

    paths: RunPaths
    checkpoint: Checkpoint
    first_sample: int

    @property
    def branch(self) -> Branch:
        return Branch(run=self.paths.name, step=self.checkpoint.step, attempt=self.checkpoint.attempt)

    @property
    def folder(self) -> Path:
        return self.paths.checkpoint(*self.checkpoint.id)

    def committed(self, at: float) -> CheckpointCommitted:
        """The checkpoint as the root of a new lineage."""
        one = self.checkpoint
        return CheckpointCommitted(
            at=at, step=one.step, attempt=ROOT_ATTEMPT, parent=None, manifest_digest=one.manifest_digest,
            bytes=one.bytes,
        )  # fmt: skip


def resolve(
    file: Path | None, origin: str | None, root: Path, overrides: Sequence[str], flags: Mapping[str, Any]
) -> tuple[ResolvedSpec, Source | None]:
    """What is asked for, and the checkpoint to begin from if `origin` names one ("RUN@STEP").

    Without a RUN.yaml it is what that run was asked for. Raises LaunchError.
    """
    if origin is None:
        if file is None:
            raise WrongUse("nothing to submit", "submit", "name a RUN.yaml, or a run to branch from: --from RUN@STEP")
        return load_spec(file, overrides, flags), None
    name, _, where = origin.partition("@")
    source = find_source(find_run(root, name), where or LATEST)
    resolved = load_spec(file, overrides, flags) if file else respecified(source.paths, overrides, flags)
    check_identity(source, resolved.spec, resolved.origins)
    return resolved, source


def find_source(paths: RunPaths, where: str) -> Source:
    """The checkpoint meant by `where`: a step, "latest" or "last_good". Raises LaunchError if it cannot be used."""
    run = read_run(paths)
    checkpoint = _meant(run, where, f"--from {paths.name}@{where}")
    if checkpoint.path:
        unbuilt = "to branch from a checkpoint that the trainer keeps by itself ('checkpoints') is not built yet"
        raise _refusal(unbuilt, f"--from {paths.name}@{where}", "submit a run whose command begins from it")
    if wrong := saves.inspect(paths, checkpoint):
        damaged = f"the checkpoint of step {checkpoint.step} is damaged: {wrong}"
        raise _refusal(damaged, str(paths.checkpoint(*checkpoint.id)), _others(run, checkpoint))
    return Source(paths, checkpoint, _first_sample(Reader(paths).events(), checkpoint))


def _meant(run: Run, where: str, flag: str) -> Checkpoint:
    line = [one for one in run.lineage() if one.usable]
    abandoned = sorted((one for one in run.checkpoints.values() if one.usable and one not in line), key=lambda o: o.id)
    if where == LATEST:
        found, lacks = line[:1], "has no usable checkpoint"
    elif where == LAST_GOOD:
        found, lacks = [one for one in line if run.is_good(one)], "has no checkpoint yet that is known to be good"
    elif where.isdigit():
        found = [one for one in (*line, *reversed(abandoned)) if one.step == int(where)]
        lacks = f"has no usable checkpoint of step {where}"
    else:
        raise _refusal(f"'{where}' names no checkpoint", flag, "RUN@STEP, RUN@latest or RUN@last_good")
    if not found:
        raise _refusal(f"run {run.name} {lacks}", flag, _others(run))
    return found[0]


def _others(run: Run, but: Checkpoint | None = None) -> str:
    steps = sorted({one.step for one in run.checkpoints.values() if one.usable and one is not but})
    return f"one of step {', '.join(map(str, steps[-8:]))}" if steps else ""


def _refusal(message: str, where: str, hint: str) -> LaunchError:
    refused = LaunchError(message, where, hint)
    refused.exit_code = ConfigError.exit_code
    return refused


def _first_sample(events: Iterable[Event], checkpoint: Checkpoint) -> int:
    """The sample after the last one that went into the checkpoint, as far as its run has told."""
    first = 0
    for event in events:
        match event:
            case RunSubmitted():
                first = event.first_sample
            case StepDone() if event.step < checkpoint.step and event.samples:
                first = event.samples[1]
            case CheckpointCommitted() if (event.step, event.attempt) == checkpoint.id:
                break
    return first


# ---------------------------------------------------------------- whether it fits


def check_identity(source: Source, spec: RunSpec, origins: Mapping[str, str]) -> None:
    """Raises ConfigError with all that the checkpoint has not in common with the run that is to begin from it."""
    mistakes = [Mistake(origins.get(key, key), message) for key, message in _differences(source, spec)]
    if mistakes:
        raise ConfigError(mistakes)


def _differences(source: Source, spec: RunSpec) -> Iterator[tuple[str, str]]:
    former, there = read_resolved(source.paths.spec), f"run {source.paths.name}"
    if (former.trainer is None) != (spec.trainer is None):
        yield "trainer", f"{there} is of the other kind of trainer: its checkpoints mean nothing to this one"
        return
    if spec.trainer is None or former.trainer is None:
        return
    for name in IDENTITY:
        before, after = getattr(former.trainer, name), getattr(spec.trainer, name)
        if name not in ("data", "held_out") and before != after:
            yield f"trainer.{name}", f"{name} is {before} in the checkpoints of {there}, not {after}"
    if _is_other_corpus(former, spec):
        yield "trainer.data", f"the files to train on are not those of {there}"
    if spec.trainer.steps <= source.checkpoint.step:
        yield "trainer.steps", f"{source.checkpoint.step} steps are done in that checkpoint: more are needed"


def _is_other_corpus(former: RunSpec, spec: RunSpec) -> bool:
    """Whether that is certain; a corpus may have moved, and the other run's files may be gone."""
    assert former.trainer
    assert spec.trainer
    if ("python" in former.trainer.data) != ("python" in spec.trainer.data):
        return True
    before, after = (trained_on(corpus_lengths(one), one.held_out) for one in (former.trainer, spec.trainer))
    return bool(before) and sorted(before) != sorted(after)


# ---------------------------------------------------------------- the files


def adopt(source: Source, into: RunPaths, progress: Progress) -> None:
    """Have the checkpoint's files in the new run too: as hard links, or copied where there can be none.

    A link outlives the other run's retention, and nobody writes to a committed checkpoint. Raises OSError, or
    LaunchError if what has arrived is not whole: the other run may have deleted it meanwhile.
    """
    folder = into.checkpoint(source.checkpoint.step, ROOT_ATTEMPT)
    for file in sorted(path for path in source.folder.rglob("*") if path.is_file()):
        target = folder / file.relative_to(source.folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(file, target)
        except OSError:  # another file system, one without links, or files that are not ours
            _copy(file, target, progress)
        else:
            progress(file.stat().st_size)
    sync_folder(folder)
    if wrong := saves.inspect(into, evolve(source.checkpoint, attempt=ROOT_ATTEMPT)):
        raise _refusal(
            f"the checkpoint of step {source.checkpoint.step} has not come whole: {wrong}", str(source.folder), ""
        )


def _copy(file: Path, target: Path, progress: Progress) -> None:
    with file.open("rb") as reading, target.open("wb") as writing:
        while data := reading.read(_COPY_BYTES):
            writing.write(data)
            progress(len(data))
        writing.flush()
        os.fsync(writing.fileno())
