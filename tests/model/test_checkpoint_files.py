"""Checkpoints come back bit by bit, on any mesh; damage of any byte is found before anything is used."""

import errno
import json
import shutil
from pathlib import Path

import pytest
import torch
from rank_harness import Training
from test_opt_model import launch

from launcher.reporter import EXIT_CHECKPOINT_REJECTED
from model import checkpoint
from model.checkpoint import CheckpointRejected, Metadata
from model.saver import Part, ViaFiles

REJECTED = [EXIT_CHECKPOINT_REJECTED] * 4


@pytest.fixture(scope="module")
def saved(ranks, tmp_path_factory) -> Path:
    """A folder with a checkpoint of random weights and moments, saved on 2 x 2."""
    folder = tmp_path_factory.mktemp("saved")
    launch(ranks, "save_tensors", folder, 2, 2)
    return folder


@pytest.mark.parametrize(("fsdp", "tensor"), [(2, 2), (4, 1), (1, 2), (3, 1), (1, 1)])
def test_weights_and_moments_come_back_exactly_on_any_mesh_and_through_dcp_itself(ranks, saved, fsdp, tensor):
    """Each rank compares each tensor with the random numbers it was made of, twice: see `load_tensors`."""
    assert launch(ranks, "load_tensors", saved, fsdp, tensor, batch_tokens=32 * 12) == fsdp * tensor


def test_a_checkpoint_of_4_ranks_goes_through_2_and_6_and_back_without_changing_a_bit(ranks, saved, tmp_path):
    folder = tmp_path
    copy_of(saved, folder)
    for fsdp in (1, 3):
        launch(ranks, "pass_on", folder, fsdp, 2, batch_tokens=32 * 12)
        folder /= "onward"
    assert len([*(folder / "checkpoint").glob("*.distcp")]) == 6
    launch(ranks, "load_tensors", folder, 2, 2)


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def copy_of(saved: Path, folder: Path) -> Path:
    shutil.copytree(saved / "checkpoint", folder / "checkpoint")
    return folder / "checkpoint"


def test_verification_covers_every_byte_of_every_file(saved, tmp_path):
    folder = copy_of(saved, tmp_path)
    manifest = checkpoint.verify(folder)
    covered = {}
    for chunk in manifest["chunks"]:
        covered[chunk["path"]] = covered.get(chunk["path"], 0) + chunk["length"]
    assert covered == {path.name: path.stat().st_size for path in folder.glob("*.distcp")}


@pytest.mark.parametrize(
    ("damage", "word"),
    [
        (lambda folder: flip(folder / "__2_0.distcp", 5000), "digest differs"),
        (lambda folder: flip(folder / ".metadata", 100), "metadata"),
        (lambda folder: (folder / "__1_0.distcp").unlink(), "cannot be read"),
        (lambda folder: (folder / ".metadata").unlink(), "cannot be read"),
        (lambda folder: (folder / "manifest.json").unlink(), "cannot be read"),
        (lambda folder: (folder / "manifest.json").write_text("{"), "malformed"),
        (lambda folder: (folder / "manifest.json").write_text('{"schema": 2}'), "schema"),
    ],
)
def test_damage_is_found(saved, tmp_path, damage, word):
    folder = copy_of(saved, tmp_path)
    damage(folder)
    with pytest.raises(CheckpointRejected, match=word):
        checkpoint.verify(folder)


def test_metadata_is_not_unpickled_before_its_digest_is_known_to_match(saved, tmp_path):
    folder = copy_of(saved, tmp_path)
    (folder / ".metadata").write_bytes(b"cposix\nsystem\n(S'touch " + str(tmp_path / "owned").encode() + b"'\ntR.")
    with pytest.raises(CheckpointRejected, match="damaged"):
        checkpoint.read_tensors(folder, checkpoint.read_manifest(folder), {})
    assert not (tmp_path / "owned").exists()


def test_a_manifest_other_than_the_committed_one_is_refused(saved):
    folder = saved / "checkpoint"
    right = checkpoint.digest_of((folder / "manifest.json").read_bytes())
    assert checkpoint.read_manifest(folder, right)
    with pytest.raises(CheckpointRejected, match="not the one"):
        checkpoint.read_manifest(folder, "0" * 32)


def test_a_full_disk_leaves_no_half_file_behind(tmp_path, monkeypatch):
    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint.os, "fsync", full)
    index = checkpoint.MetadataIndex("weight", torch.Size([0]))
    with pytest.raises(OSError, match="No space"):
        checkpoint.write_part(tmp_path / "new", 0, [(index, torch.zeros(4))])
    assert not list((tmp_path / "new").iterdir())


def test_without_a_launcher_a_rank_that_cannot_save_keeps_the_others_from_waiting(tmp_path):
    common = {"ranks": 2, "attempt": 1, "parent": None}
    ViaFiles(None, rank=1, **common).failed(2, tmp_path, OSError("No space left"))
    first = ViaFiles(Metadata({}), rank=0, **common)
    with pytest.raises(OSError, match="rank 1: No space left"):
        first.written(Part(2, tmp_path, [], {}, 0.0))
    assert not (tmp_path / "manifest.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: flip(folder / "__3_0.distcp", 4000),
        lambda folder: flip(folder / ".metadata", 50),
        lambda folder: flip(folder / "manifest.json", 50),
        lambda folder: (folder / "manifest.json").unlink(),
        lambda folder: (folder / "__0_0.distcp").write_bytes((folder / "__0_0.distcp").read_bytes()[:-1]),
    ],
    ids=["chunk", "metadata", "manifest", "no manifest", "truncated"],
)
def test_ranks_refuse_a_damaged_checkpoint_with_their_own_exit_status(training: Training, damage):
    agent, statuses = training.run(steps=1)
    assert statuses == [0, 0, 0, 0], training.log()
    damage(Path(agent.commits[1][0]))
    refusing, statuses = training.run(restore=agent.commits[1], steps=2)
    assert statuses == REJECTED, training.log()
    reasons = [one["reason"] for one in refusing.of("checkpoint_rejected")]
    assert reasons  # at least by the rank that found it
    assert not [reason for reason in reasons if "another rank" in reason]
    assert not refusing.of("step_done")


@pytest.mark.slow
def test_training_survives_saves_that_fail_and_the_next_one_works(training: Training):
    training.checkpoints.write_text("a file where the folder should be")
    agent = training.start(steps=10_000, checkpoint={"every": 2})
    assert agent
    failures = agent.wait_for("save_failed", 4)
    assert {failure["rank"] for failure in failures} == {0, 1, 2, 3}
    assert "Error" in failures[0]["error"]
    training.checkpoints.unlink()
    agent.wait_for("save_finished")
    agent.ask(0, 2)
    assert training.ranks.wait() == [0, 0, 0, 0], training.log()
    assert checkpoint.verify(Path(agent.commits[max(agent.commits)][0]))


@pytest.mark.slow
def test_asking_twice_for_the_last_act_gives_the_same_twice(training: Training):
    agent = training.start(steps=10_000, checkpoint={"every": 2})
    assert agent
    agent.finish_twice = True
    first, second = agent.wait_for("save_finished", 2)[:2]
    agent.ask(0, 2)
    assert training.ranks.wait() == [0, 0, 0, 0], training.log()
    assert first["step"] == second["step"]
    for folder, digest in agent.commits.values():
        checkpoint.verify(Path(folder), digest)


@pytest.mark.slow
def test_the_state_beside_the_tensors_is_plain_json_and_says_where_the_run_was(training: Training):
    agent, _ = training.run(steps=2, skip=[[3, 5]])
    folder, digest = agent.commits[2]
    state = checkpoint.verify(Path(folder), digest)["state"]
    assert (state["step"], state["tokens"], state["position"], state["skip"]) == (2, 1024, 34, [[3, 5]])
    assert json.loads(json.dumps(state)) == state
    assert not [part for part in agent.of("save_part") if part["rank"] and part["state"]]


def test_a_checkpoint_folder_is_named_after_step_and_attempt():
    assert checkpoint.folder_name(1000, 3) == "step_00001000.a0003"
