"""What each step tells: the same on any mesh as without one, and who computes slowly shows."""

import json
import statistics

import pytest
import torch
from rank_harness import TRAINER, Ranks, Training
from test_opt_model import launch

from model import checksums
from model.config import TrainerConfig
from model.transformer import Draws, Transformer, initial_weight

pytestmark = pytest.mark.slow
PLAIN = {"dropout": 0.0, "attention_dropout": 0.0}
NORMS = ("loss", "grad_norm", "param_norm", "activation_norm", "clip_fraction")


def test_the_signals_are_the_same_on_any_mesh_and_the_norms_of_layers_add_up(training: Training):
    told = {}
    for fsdp, tensor in ((1, 1), (2, 2), (4, 1), (1, 2)):
        parallel = {"fsdp": fsdp, "tensor": tensor}
        agent, _ = training.run(steps=3, parallel=parallel, layer_norms="2 steps", clip=0.5, **PLAIN)
        told[fsdp, tensor] = [message["metrics"] for message in agent.of("step_done")]
    alone = told.pop((1, 1))
    for lines in told.values():
        for line, expected in zip(lines, alone, strict=True):
            assert [line[name] for name in NORMS] == pytest.approx([expected[name] for name in NORMS], rel=1e-4)
            assert line.keys() == expected.keys()
    layers = [{name for name in line if name.startswith("grad_norm.")} for line in alone]
    parts = ("embed_tokens", "embed_positions", "layers.0", "layers.1", "final_layer_norm")
    assert layers == [{f"grad_norm.{part}" for part in parts}, set(), {f"grad_norm.{part}" for part in parts}]
    assert sum(alone[0][name] ** 2 for name in layers[0]) == pytest.approx(alone[0]["grad_norm"] ** 2, rel=1e-5)

    config = TrainerConfig.from_mapping(TRAINER | {"data": "unused"})
    named = Transformer(config, Draws(1)).named_parameters()
    first = [initial_weight(name, weight.shape, 2, config.seed) for name, weight in named]
    expected = torch.nn.utils.get_total_norm(first).item()
    assert alone[0]["param_norm"] == pytest.approx(expected, rel=1e-5)


def test_the_share_of_recent_steps_that_were_clipped_survives_a_restart(training: Training):
    def fractions(agent):
        return [message["metrics"]["clip_fraction"] for message in agent.of("step_done")]

    never, _ = training.run(steps=3, clip=1e9)
    always, _ = training.run(steps=3, clip=1e-3)
    assert fractions(never) == [0.0] * 3
    assert fractions(always) == [1.0] * 3
    loosened, _ = training.run(restore=always.commits[3], steps=5, clip=1e9)
    assert fractions(loosened) == [pytest.approx(3 / 4), pytest.approx(3 / 5)]


@pytest.mark.parametrize(("fsdp", "tensor"), [(4, 1), (2, 2)])
def test_the_rank_that_computes_slowly_shows_though_all_wait_for_it(ranks: Ranks, text, tmp_path, fsdp, tensor):
    launch(ranks, "one_slow_rank", tmp_path, fsdp, tensor, data=str(text / "*.txt"), steps=6)
    steps = json.loads((tmp_path / "steps.json").read_text())
    computed = [statistics.median(step[rank] for step in steps) for rank in range(4)]
    others = [computed[rank] for rank in (0, 1, 3)]
    assert computed[2] > max(others) + 0.1  # of 0.2 s that it sleeps in each step
    assert max(others) < 0.15


def test_checksums_agree_on_all_ranks_and_tell_who_computes_with_other_bits(ranks: Ranks, text, tmp_path):
    launch(ranks, "one_flipped_bit", tmp_path, 3, 2, data=str(text / "*.txt"), batch_tokens=32 * 12, checksum_every=1)
    well, gathered, kept = json.loads((tmp_path / "steps.json").read_text())
    what = {"tensor 0": "024", "tensor 1": "135", "gathered": "012345", "fsdp 0": "01", "fsdp 1": "23", "fsdp 2": "45"}
    assert {name: "".join(of) for name, of in well.items()} == what
    assert parted(well) == {}
    assert parted(gathered) == {"tensor 1": {"15", "3"}}
    assert parted(kept) == {"fsdp 1": {"2", "3"}, "gathered": {"024", "135"}}


def parted(sums: dict[str, dict[str, int]]) -> dict[str, set[str]]:
    """Of what differs, the ranks that agree with each other."""
    found: dict[str, set[str]] = {}
    for what, of in sums.items():
        parts = {"".join(rank for rank in of if of[rank] == number) for number in of.values()}
        if len(parts) > 1:
            found[what] = parts
    return found


def test_a_checksum_sees_each_bit_and_the_order_of_equal_tensors():
    weights = [torch.randn(5, 3), torch.randn(7), torch.randn(0), torch.randn(4).bfloat16()]
    first = checksums.checksum(weights, torch.device("cpu"))
    assert checksums.checksum(weights, torch.device("cpu")) == first
    assert checksums.checksum(weights[::-1], torch.device("cpu")) != first
    for tensor in (weights[0], weights[3]):
        for bit in range(8 * tensor.element_size()):
            raw = tensor.view(torch.uint8)
            raw.view(-1)[bit // 8] ^= 1 << bit % 8
            assert checksums.checksum(weights, torch.device("cpu")) != first
            raw.view(-1)[bit // 8] ^= 1 << bit % 8
