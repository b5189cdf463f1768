"""The settings: what RUN.yaml says becomes one frozen object, or one error that names every mistake."""

import ast
import os
import subprocess
import sys

import pytest
from rank_harness import TRAINER

from model.config import SIZES, TrainerConfig
from model.optim import learning_rate

MAPPING = TRAINER | {"data": ["a.txt"]}


def test_the_nested_form_of_a_run_file_is_understood():
    asked = {"checkpoint": {"every": "25 steps", "keep": 5, "keep_every": "1000 steps", "probation": "20 steps"}}
    config = TrainerConfig.from_mapping(MAPPING | asked | {"lr": "6e-4", "data": "python", "skip": [[10, 20]]})
    assert (config.fsdp, config.tensor, config.save_every, config.lr) == (2, 2, 25, 6e-4)
    assert config.data == ("python",)
    assert config.skip == ((10, 20),)
    assert TrainerConfig.from_mapping(MAPPING | {"checkpoint": {"every": 7}}).save_every == 7


def test_every_mistake_is_named_at_once():
    wrong = {"size": "9m", "dtype": "fp8", "lr": -1, "stepz": 3, "dropout": "much", "batch_tokens": 1000}
    wrong |= {"parallel": {"fsdp": 2, "pipeline": 2}, "checkpoint": {"every": "often"}, "skip": [[5, 5]]}
    with pytest.raises(ValueError, match="settings") as caught:
        TrainerConfig.from_mapping({key: MAPPING[key] for key in ("seq_len", "steps", "data")} | wrong)
    for word in ("9m", "fp8", "lr: -1", "stepz", "dropout", "1000", "pipeline", "often", "skip"):
        assert word in str(caught.value)


def test_missing_keys_are_named():
    with pytest.raises(ValueError, match=r"'size' is missing.*'lr' is missing"):
        TrainerConfig.from_mapping({})


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"batch_tokens": 32 * 3}, "multiple"),
        ({"micro_batch": 3}, "micro_batch"),
        ({"parallel": {"fsdp": 1, "tensor": 3}}, "heads"),
        ({"steps": True}, "steps"),
        ({"steps": 1.5}, "steps"),
        ({"betas": [0.9]}, "betas"),
        ({"data": []}, "data"),
        ({"lr": float("nan")}, "lr"),
    ],
)
def test_numbers_that_do_not_fit_are_refused(settings, word):
    with pytest.raises(ValueError, match=word):
        TrainerConfig.from_mapping(MAPPING | settings)


def test_micro_batches_cover_a_rank_s_share_of_the_batch():
    for micro in (0, 1, 2, 4, 8):
        config = TrainerConfig.from_mapping(MAPPING | {"micro_batch": micro})
        assert config.micro_sequences * config.micro_batches * config.fsdp == config.batch_sequences == 16
    large = {"batch_tokens": 2**20, "seq_len": 2048, "parallel": {"fsdp": 4}}
    config = TrainerConfig.from_mapping(MAPPING | large)
    assert (config.micro_sequences, config.micro_batches) == (8, 16)


def test_the_data_parallel_degree_follows_the_ranks_and_the_batch_stays():
    config = TrainerConfig.from_mapping(MAPPING)
    fewer = config.for_ranks(2)
    assert (fewer.fsdp, fewer.tensor, fewer.batch_sequences, fewer.total_tokens) == (1, 2, 16, config.total_tokens)
    assert fewer.micro_sequences * fewer.micro_batches == 16
    assert config.for_ranks(4) == config
    with pytest.raises(ValueError, match=r"3 ranks were started, no multiple of parallel\.tensor = 2"):
        config.for_ranks(3)
    with pytest.raises(ValueError, match=r"512 must be a multiple of seq_len x parallel\.fsdp = 32 x 3"):
        config.for_ranks(6)


def test_sizes_have_the_parameters_of_their_names():
    for name, size in SIZES.items():
        if name == "tiny":
            continue
        weights = 12 * size.layers * size.d_model**2 + 50272 * size.d_model * (name != "8m")
        named = float(name[:-1]) * {"m": 1e6, "b": 1e9}[name[-1]]
        assert 0.09 < weights / named < 1.1, name
        assert size.d_model % size.heads == 0


@pytest.mark.parametrize(
    ("tokens", "share"),
    [(50, 0.5), (100, 1.0), (550, 0.55), (1000, 0.1), (2000, 0.1)],
)
def test_the_rate_rises_then_falls_to_a_tenth(tokens, share):
    settings = {"seq_len": 1, "batch_tokens": 2, "steps": 500, "lr": 1.0, "warmup_tokens": 100}
    config = TrainerConfig.from_mapping(MAPPING | settings)
    assert learning_rate(config, tokens) == pytest.approx(share)


def facts(code: str, timeout_s: float, **variables: str) -> list[object]:
    """The list that a Python of its own prints."""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=timeout_s, check=False,
        env={**os.environ, **variables},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return ast.literal_eval(done.stdout)


def test_the_configuration_needs_no_torch():
    loaded = facts("import model.config, sys; print(['torch' in sys.modules])", timeout_s=20)
    assert loaded == [False]


def test_importing_the_trainer_starts_no_thread_and_computes_nothing():
    code = """
import os, threading
import model.train
threads = [threading.active_count(), len(os.listdir('/proc/self/task'))]
import torch
begun = [torch.cuda.is_initialized(), torch.distributed.is_initialized(), torch.are_deterministic_algorithms_enabled()]
print([*threads, *begun])
"""
    # As the launcher sets it: numpy's would start threads.
    assert facts(code, timeout_s=60, OPENBLAS_NUM_THREADS="1") == [1, 1, False, False, False]
