"""A branch: which checkpoint is meant, what it must have in common, and that its files are the new run's own."""

# ruff: noqa: E501  messages are compared whole
from __future__ import annotations

import os
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
from tale import Tale

from launcher import saves
from launcher.branch import Source, adopt, check_identity, find_source
from launcher.errors import ConfigError, LaunchError
from launcher.events import CheckpointCommitted, EpochStarted, Event
from launcher.journal import write_first_epoch
from launcher.paths import RunPaths
from launcher.run import Checkpoint
from launcher.spec import ResolvedSpec, load_spec
from launcher.submit import write_spec

RUN = """\
name: parent
trainer: {size: tiny, steps: 300, data: [corpus/*.txt], held_out: 0, seq_len: 8, batch_tokens: 64}
"""


def make_checkpoint(paths: RunPaths, step: int, attempt: int) -> tuple[str, int]:
    """Its files, with one in a folder of its own; the digest of its manifest, and its bytes."""
    folder = paths.checkpoint(step, attempt)
    (folder / "deep").mkdir(parents=True)
    for name in ("part", "deep/part"):
        (folder / name).write_bytes(b"x" * 1000)
    files = {"part": {"bytes": 1000}, "deep/part": {"bytes": 1000}}
    manifest = {"step": step, "attempt": attempt, "files": files, "metadata": None, "chunks": []}
    return saves.write_manifest(paths, manifest)


@pytest.fixture
def parent(tmp_path: Path) -> RunPaths:
    """Checkpoints of step 10 (good), 20 and, abandoned, 25; the run went on from step 20."""
    paths = RunPaths(tmp_path / "parent")
    paths.make_folders()
    (tmp_path / "corpus").mkdir()
    for number, length in enumerate((100, 200)):
        (tmp_path / "corpus" / f"{number}.txt").write_text("x" * length)
    write_spec(paths, asked(tmp_path))
    tale = Tale(probation=5).train(10).save().verify().steps(10).save().steps(5).save()
    tale.start(restore=(20, 1)).steps(10)
    write_first_epoch(paths, [stored(paths, event) for event in tale.events if not isinstance(event, EpochStarted)])
    return paths


def stored(paths: RunPaths, event: Event) -> Event:
    if not isinstance(event, CheckpointCommitted):
        return event
    digest, size = make_checkpoint(paths, event.step, event.attempt)
    return replace(event, manifest_digest=digest, bytes=size)


def asked(folder: Path, *overrides: str) -> ResolvedSpec:
    (folder / "RUN.yaml").write_text(RUN)
    return load_spec(folder / "RUN.yaml", overrides)


@pytest.mark.parametrize(
    ("where", "meant"), [("latest", (20, 1)), ("last_good", (10, 1)), ("10", (10, 1)), ("20", (20, 1)), ("25", (25, 1))]
)
def test_a_checkpoint_is_meant_by_its_step_or_by_what_it_is(
    parent: RunPaths, where: str, meant: tuple[int, int]
) -> None:
    source = find_source(parent, where)
    assert source.checkpoint.id == meant
    assert (source.branch.run, source.branch.step) == ("parent", meant[0])


@pytest.mark.parametrize(
    ("where", "told"),
    [
        ("15", "run tale has no usable checkpoint of step 15\n  while: --from parent@15\n  try:   one of step 10, 20, 25"),
        ("newest", "'newest' names no checkpoint\n  while: --from parent@newest\n  try:   RUN@STEP, RUN@latest or RUN@last_good"),
    ],
)  # fmt: skip
def test_what_is_not_there_is_told_with_what_is(parent: RunPaths, where: str, told: str) -> None:
    with pytest.raises(LaunchError) as raised:
        find_source(parent, where)
    assert (str(raised.value), raised.value.exit_code) == (told, 3)


def test_a_damaged_checkpoint_is_not_begun_from(parent: RunPaths) -> None:
    (parent.checkpoint(20, 1) / "part").write_bytes(b"")
    with pytest.raises(LaunchError, match="step 20 is damaged: part has 0 bytes instead of 1000") as raised:
        find_source(parent, "latest")
    assert raised.value.hint == "one of step 10, 25"


@pytest.mark.parametrize("elsewhere", [False, True], ids=["same disk", "another disk"])
def test_the_files_are_the_new_runs_own(parent: RunPaths, tmp_path: Path, elsewhere: bool) -> None:
    root = Path(tempfile.mkdtemp(dir="/dev/shm")) if elsewhere else tmp_path
    try:
        assert (os.stat(root).st_dev != os.stat(parent.root).st_dev) is elsewhere
        new, told = RunPaths(root / "new"), []
        source = find_source(parent, "20")

        adopt(source, new, told.append)
        shutil.rmtree(parent.root)

        committed = source.committed(at=1.0)
        root_of_line = Checkpoint(20, 0, None, committed.manifest_digest, committed.bytes, 1.0)
        assert (committed.attempt, committed.parent, saves.scrub(new, root_of_line)) == (0, None, "")
        assert sum(told) == source.checkpoint.bytes
    finally:
        if elsewhere:
            shutil.rmtree(root)


def test_one_that_is_deleted_meanwhile_is_not_taken_for_whole(parent: RunPaths, tmp_path: Path) -> None:
    source = find_source(parent, "20")
    (parent.checkpoint(20, 1) / "deep" / "part").unlink()
    with pytest.raises(LaunchError, match="has not come whole: deep/part"):
        adopt(source, RunPaths(tmp_path / "new"), lambda _: None)


def refused(source: Source, resolved: ResolvedSpec) -> list[str]:
    try:
        check_identity(source, resolved.spec, resolved.origins)
    except ConfigError as error:
        return [f"{one.where}: {one.message}" for one in error.mistakes]
    return []


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        ((), []),
        (("trainer.lr=1e-5", "trainer.batch_tokens=128"), []),
        (("trainer.data=[MOVED/*.txt]",), []),
        (("trainer.data=[OTHER/*.txt]",), ["--set trainer.data=[OTHER/*.txt]: the files to train on are not those of run parent"]),
        (("trainer.data=[python]",), ["--set trainer.data=[python]: the files to train on are not those of run parent"]),
        (("trainer.size=8m", "trainer.seed=7"), ["--set trainer.size=8m: size is tiny in the checkpoints of run parent, not 8m", "--set trainer.seed=7: seed is 1 in the checkpoints of run parent, not 7"]),
        (("trainer.steps=20",), ["--set trainer.steps=20: 20 steps are done in that checkpoint: more are needed"]),
    ],
)  # fmt: skip
def test_a_checkpoint_of_something_else_is_refused(
    parent: RunPaths, tmp_path: Path, overrides: tuple[str, ...], told: list[str]
) -> None:
    shutil.copytree(tmp_path / "corpus", tmp_path / "MOVED")
    (tmp_path / "OTHER").mkdir()
    (tmp_path / "OTHER" / "0.txt").write_text("x" * 300)
    given = [text.replace("MOVED", f"{tmp_path}/MOVED").replace("OTHER", f"{tmp_path}/OTHER") for text in overrides]
    found = refused(find_source(parent, "20"), asked(tmp_path, *given))
    assert [text.replace(f"{tmp_path}/", "") for text in found] == told
