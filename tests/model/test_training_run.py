"""The whole loop on four gloo ranks (2 x 2), under a fake agent and under plain torchrun."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import yaml
from rank_harness import TRAINER, Training

from launcher.reporter import EXIT_CHECKPOINT_REJECTED, SAVE, STOP

pytestmark = pytest.mark.slow


def digest(agent) -> str:
    (done,) = agent.of("done")
    return done["final_digest"]


def test_a_killed_and_resumed_run_ends_in_the_same_bits_as_an_undisturbed_one(training: Training):
    straight, statuses = training.run()
    assert statuses == [0, 0, 0, 0], training.log()

    broken = training.start(checkpoint={"every": "3 steps"}, steps=8)
    broken.wait_for("step_done", 5)
    broken.wait_for("save_finished")
    for pid in training.ranks.pids:
        os.kill(pid, signal.SIGKILL)
    training.ranks.wait()

    resumed, statuses = training.run(restore=broken.commits[3], checkpoint={"every": "3 steps"})
    assert statuses == [0, 0, 0, 0], training.log()
    assert [m["step"] for m in resumed.of("step_done")] == [3, 4, 5, 6, 7]
    assert digest(resumed) == digest(straight)
    first = {m["step"]: (m["metrics"]["loss"], m["samples"]) for m in straight.of("step_done")}
    assert all(first[m["step"]] == (m["metrics"]["loss"], m["samples"]) for m in resumed.of("step_done"))


def test_a_run_goes_on_with_fewer_ranks_and_with_all_again_on_the_same_batches(training: Training):
    plain = {"dropout": 0.0, "attention_dropout": 0.0, "checkpoint": {"every": 2}, "steps": 6}
    whole, statuses = training.run(**plain)
    assert statuses == [0, 0, 0, 0], training.log()

    fewer, statuses = training.run(restore=whole.commits[2], count=2, **plain)
    assert statuses == [0, 0], training.log()
    assert "parallel.fsdp 1 instead of 2, as 2 ranks need" in training.log()
    again, statuses = training.run(restore=fewer.commits[4], **plain)
    assert statuses == [0, 0, 0, 0], training.log()

    expected = {m["step"]: (m["samples"], m["metrics"]["loss"]) for m in whole.of("step_done")}
    told = [*fewer.of("step_done")[:2], *again.of("step_done")]
    assert [m["step"] for m in told] == [2, 3, 4, 5]
    for message in told:
        samples, loss = expected[message["step"]]
        assert message["samples"] == samples
        assert message["metrics"]["loss"] == pytest.approx(loss, rel=1e-4)


def test_each_step_reports_its_metrics_and_the_samples_it_used(training: Training):
    agent, _ = training.run(steps=3, validate_every=1, skip=[[20, 40]])
    steps = agent.of("step_done")
    assert [m["samples"] for m in steps] == [[0, 16], [16, 52], [52, 68]]
    assert {"loss", "grad_norm", "lr", "tokens", "tokens_per_s", "activation_norm"} <= set(steps[0]["metrics"])
    assert [m["metrics"]["tokens"] for m in steps] == [512, 1024, 1536]
    assert "val_loss" not in steps[0]["metrics"]
    assert 4 < steps[1]["metrics"]["val_loss"] < 6
    assert all(m["rank"] == 0 for m in steps)
    assert agent.of("done")[0]["result"]["val_loss"] > 0
    step, section, *_ = agent.page(3)
    assert step == 2
    assert section > 3 * 4  # two layers, forward and backward, in each step


def test_a_wish_told_to_one_rank_is_fulfilled_by_all_at_the_same_step(training: Training):
    agent = training.start(steps=10_000)
    agent.wait_for("step_done", 2)
    agent.ask(2, SAVE)
    agent.wait_for("save_finished")
    agent.ask(1, STOP)
    assert training.ranks.wait() == [0, 0, 0, 0], training.log()
    saves = [{m["step"] for m in agent.of("save_part") if m["rank"] == rank} for rank in range(4)]
    assert saves[0] == saves[1] == saves[2] == saves[3]
    assert len(saves[0]) == len(agent.commits) == 2
    last = agent.of("step_done")[-1]["step"]
    assert max(agent.commits) == last + 1
    assert not agent.of("done")


def test_a_dead_peer_ends_the_others_quickly_and_with_an_error(training: Training):
    agent = training.start(steps=10_000)
    agent.wait_for("step_done", 2)
    os.kill(training.ranks.pids[3], signal.SIGKILL)
    killed = time.monotonic()
    statuses = training.ranks.wait(20)
    assert statuses == [1, 1, 1, -9]
    assert time.monotonic() - killed < 5
    assert agent.wait_for("error")[0]["kind"]


def test_a_mistake_in_the_settings_is_reported_with_all_its_parts(training: Training):
    agent, statuses = training.run(size="enormous", dropout=2)
    assert statuses == [1, 1, 1, 1]
    message = agent.of("error")[0]["message"]
    assert "enormous" in message
    assert "dropout" in message


def test_ranks_that_see_different_files_stop_before_the_first_step(training: Training, tmp_path):
    (tmp_path / "one.txt").write_text("a single file, on one node only\n" * 100)
    environments = []
    for rank in range(4):
        data = str(tmp_path / "one.txt") if rank == 3 else str(training.text / "*.txt")
        (tmp_path / f"{rank}.json").write_text(json.dumps(TRAINER | {"data": data}))
        paths = {"OPT_LAUNCH_TRAINER": str(tmp_path / f"{rank}.json"), "OPT_LAUNCH_CHECKPOINTS": str(tmp_path)}
        environments.append(paths)
    training.ranks.start("model.train:main", environments, tmp_path)
    assert training.ranks.wait() == [1, 1, 1, 1]
    assert "give all nodes the same files" in (tmp_path / "rank0.log").read_text()


def test_settings_that_the_checkpoint_cannot_continue_stop_the_attempt_and_others_do_not(training: Training):
    agent, _ = training.run(steps=2)
    _, statuses = training.run(restore=agent.commits[2], steps=3, seed=2)
    assert statuses == [1, 1, 1, 1]
    assert "seed is 1 there and 2 here" in training.log()
    changed, statuses = training.run(restore=agent.commits[2], steps=3, lr=1e-4)
    assert statuses == [0, 0, 0, 0], training.log()
    assert changed.of("step_done")[0]["metrics"]["lr"] <= 1e-4


def test_a_loss_that_is_not_finite_is_reported_and_training_goes_on(training: Training):
    agent, statuses = training.run(steps=3, lr=1e30, warmup_tokens=1)
    assert statuses == [0, 0, 0, 0], training.log()
    assert "nan" in [m["metrics"]["loss"] for m in agent.of("step_done")]
    assert [m["step"] for m in agent.of("step_done")] == [0, 1, 2]


def test_a_run_resumed_at_its_end_says_again_that_it_is_done(training: Training):
    first, _ = training.run(steps=2)
    again, statuses = training.run(restore=first.commits[2], steps=2)
    assert statuses == [0, 0, 0, 0], training.log()
    assert digest(again) == digest(first)
    assert not again.of("save_part")


def test_accumulating_gradients_over_micro_batches_changes_nothing_but_rounding(training: Training):
    def losses(**settings):
        agent, statuses = training.run(steps=4, dropout=0.0, attention_dropout=0.0, **settings)
        assert statuses == [0, 0, 0, 0], training.log()
        return [m["metrics"]["loss"] for m in agent.of("step_done")]

    assert losses(micro_batch=2) == pytest.approx(losses(micro_batch=8), rel=1e-4)


def test_bf16_trains_and_resumes_to_the_same_bits(training: Training):
    straight, statuses = training.run(steps=4, dtype="bf16", checkpoint={"every": 2})
    assert statuses == [0, 0, 0, 0], training.log()
    resumed, _ = training.run(restore=straight.commits[2], steps=4, dtype="bf16")
    assert digest(resumed) == digest(straight)
    losses = [m["metrics"]["loss"] for m in straight.of("step_done")]
    assert losses[-1] < losses[0]


def test_without_a_launcher_a_run_whose_checkpoints_are_all_damaged_does_not_begin_anew(training: Training):
    training.start(agent=False, steps=2)
    training.ranks.wait()
    (training.checkpoints / "step_00000002.a0001" / ".metadata").unlink()
    training.start(agent=False, steps=2)
    assert training.ranks.wait() == [EXIT_CHECKPOINT_REJECTED] * 4
    assert "none of its checkpoints is whole" in training.log()


def test_plain_torchrun_trains_saves_and_resumes_without_a_launcher(training: Training, tmp_path):
    settings = TRAINER | {"data": str(training.text / "*.txt"), "checkpoint": {"every": 3}}
    (tmp_path / "t.yaml").write_text(yaml.safe_dump({"trainer": settings}))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "4"]
    command += ["-m", "model.train", "--config", str(tmp_path / "t.yaml"), "--out", str(tmp_path / "out")]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    said = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=90, check=False)
    assert "done step 8" in said.stdout, said.stderr
    done = said.stdout.split("final_digest ")[1].split()[0]
    folders = sorted(path.name for path in (tmp_path / "out").glob("step_*"))
    assert folders == ["step_00000003.a0001", "step_00000006.a0001", "step_00000008.a0001"]

    # What is younger than step 3 is damaged or incomplete: the next attempt goes on from there, to the same bits.
    newest, middle = (tmp_path / "out" / folder for folder in (folders[2], folders[1]))
    part = newest / "__2_0.distcp"
    part.write_bytes(part.read_bytes()[:-1])
    (middle / "manifest.json").unlink()
    training.checkpoints = tmp_path / "out"
    training.start(agent=False, checkpoint={"every": 3})
    assert training.ranks.wait() == [0, 0, 0, 0], training.log()
    assert "resumed after step 2" in training.log()
    assert f"final_digest {done}" in training.log()
    assert (tmp_path / "out" / "step_00000008.a0002" / "manifest.json").exists()
