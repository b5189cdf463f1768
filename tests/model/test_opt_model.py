"""The decoder equals the published OPT, whole and in parts; dropout and initial weights depend on no process."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from rank_harness import TRAINER, Ranks

from model.config import TrainerConfig
from model.transformer import Draws, Transformer, initial_weight

CONFIG = TrainerConfig.from_mapping(TRAINER | {"data": "unused"})
PARALLEL = [(2, 2), (4, 1), (1, 2)]


def launch(ranks: Ranks, program: str, folder: Path, fsdp: int, tensor: int, **settings) -> int:
    """Run a rank program on a mesh; how many ranks have found all they look at right. Fails with the ranks' logs."""
    asked = TRAINER | {"data": "unused", "parallel": {"fsdp": fsdp, "tensor": tensor}} | settings
    environment = {"SETTINGS": json.dumps(asked), "FOLDER": str(folder)}
    ranks.start(f"rank_programs:{program}", [environment] * (fsdp * tensor), folder)
    statuses = ranks.wait()
    assert set(statuses) == {0}, "\n".join(path.read_text() for path in sorted(folder.glob("*.log")))
    return len(statuses)


@pytest.fixture(scope="module")
def published():
    """Transformers' OPT of our tiny size with random weights, its weights under our names, tokens, its logits."""
    from transformers import OPTConfig, OPTForCausalLM

    torch.manual_seed(1)
    size = CONFIG.shape
    theirs = OPTForCausalLM(
        OPTConfig(
            vocab_size=CONFIG.token_ids,
            hidden_size=size.d_model,
            word_embed_proj_dim=size.d_model,
            num_hidden_layers=size.layers,
            ffn_dim=4 * size.d_model,
            num_attention_heads=size.heads,
            max_position_embeddings=CONFIG.seq_len,
            attn_implementation="eager",
        )
    ).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.normal_(0, 0.2)
    tokens = torch.randint(3, CONFIG.token_ids, (4, CONFIG.seq_len))
    with torch.no_grad():
        logits = theirs(tokens).logits
    prefix = "model.decoder."
    weights = {k.removeprefix(prefix): v.clone() for k, v in theirs.state_dict().items() if k.startswith(prefix)}
    return weights, tokens, logits


def test_the_logits_are_those_of_the_published_model(published):
    weights, tokens, logits = published
    ours = Transformer(CONFIG, Draws(1)).eval()
    ours.load_state_dict(weights)
    with torch.no_grad():
        torch.testing.assert_close(ours(tokens), logits, atol=1e-5, rtol=1e-5)


def test_the_attention_written_out_for_dropout_equals_the_fused_one(published):
    weights, tokens, logits = published
    config = replace(CONFIG, dropout=0.0, attention_dropout=1e-9)  # rounds to keeping every element
    ours = Transformer(config, Draws(1)).train()
    ours.load_state_dict(weights)
    with torch.no_grad():
        torch.testing.assert_close(ours(tokens), logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("fsdp", "tensor"), PARALLEL)
def test_the_logits_stay_the_same_when_the_model_is_distributed(published, ranks, tmp_path, fsdp, tensor):
    weights, tokens, logits = published
    torch.save(weights, tmp_path / "weights.pt")
    torch.save(tokens, tmp_path / "tokens.pt")
    launch(ranks, "forward", tmp_path, fsdp, tensor)
    for rank in range(fsdp * tensor):
        torch.testing.assert_close(torch.load(tmp_path / f"logits{rank}.pt"), logits, atol=1e-5, rtol=1e-5)


def test_initial_weights_are_the_same_on_any_mesh(ranks, tmp_path):
    launch(ranks, "initial_weights", tmp_path, 2, 2)
    distributed = torch.load(tmp_path / "initial.pt")
    for name, weight in distributed.items():
        assert torch.equal(weight, initial_weight(name, weight.shape, CONFIG.shape.layers, CONFIG.seed)), name
    assert set(distributed) == set(dict(Transformer(CONFIG, Draws(1)).named_parameters()))


def test_initial_weights_have_the_spread_of_the_paper():
    assert initial_weight("layers.0.fc1.weight", (256, 64), 2, 1).std().item() == pytest.approx(0.006, rel=0.05)
    assert initial_weight("layers.0.fc2.weight", (64, 256), 2, 1).std().item() == pytest.approx(0.003, rel=0.05)
    assert not initial_weight("layers.0.fc1.bias", (256,), 2, 1).any()
    assert not torch.equal(*(initial_weight(f"layers.{i}.fc1.weight", (8, 8), 2, 1) for i in (0, 1)))
    assert not torch.equal(*(initial_weight("layers.0.fc1.weight", (8, 8), 2, seed) for seed in (1, 2)))


def test_dropout_differs_where_tensors_are_sharded_and_agrees_where_they_are_replicated(ranks, tmp_path):
    launch(ranks, "masks", tmp_path, 2, 2)
    drawn = {d["place"]: d for d in (torch.load(tmp_path / f"masks{rank}.pt") for rank in range(4))}
    for data in (0, 1):
        assert torch.equal(drawn[data, 0]["replicated"], drawn[data, 1]["replicated"])
        assert not torch.equal(drawn[data, 0]["sharded"], drawn[data, 1]["sharded"])
    assert not torch.equal(drawn[0, 0]["replicated"], drawn[1, 0]["replicated"])
    assert not torch.equal(drawn[0, 0]["sharded"], drawn[1, 0]["sharded"])


def test_dropout_is_drawn_anew_at_each_place_and_the_same_again_at_the_same():
    draws, ones = Draws(1), torch.ones(8, 64)
    seen = []
    for step, micro, layer, site in [(0, 0, 0, 0), (1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1)]:
        draws.step, draws.micro_batch = step, micro
        seen.append(draws.dropout(ones, 0.25, layer, site, sharded=False))
        assert torch.equal(seen[-1], draws.dropout(ones, 0.25, layer, site, sharded=False))
    assert all(not torch.equal(a, b) for i, a in enumerate(seen) for b in seen[:i])
    assert seen[0].unique().tolist() == [0.0, pytest.approx(4 / 3)]
    assert torch.stack(seen).mean().item() == pytest.approx(1, abs=0.05)


def test_dropout_leaves_the_global_random_state_alone():
    before = torch.get_rng_state()
    model = Transformer(replace(CONFIG, dropout=0.5), Draws(1))
    torch.set_rng_state(before)
    model.train()(torch.zeros(1, 8, dtype=torch.int64))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.fixture
def double_precision():
    """In single precision a rounding can tip a ReLU, and then the gradients are others."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.usefixtures("double_precision")
def test_learning_is_the_same_on_any_mesh_and_equals_plain_torch(ranks, tmp_path):
    tokens = torch.randint(0, 256, (16, CONFIG.seq_len + 1), generator=torch.Generator().manual_seed(3))
    torch.save(tokens, tmp_path / "tokens.pt")
    config = TrainerConfig(**(asdict(CONFIG) | {"dropout": 0.0, "attention_dropout": 0.0, "eps": 1e-4}))
    plain = Transformer(config, Draws(1))
    with torch.no_grad():
        for name, parameter in plain.named_parameters():
            parameter.copy_(initial_weight(name, parameter.shape, config.shape.layers, config.seed))
    decayed = [p for n, p in plain.named_parameters() if p.dim() == 2]
    others = [p for n, p in plain.named_parameters() if p.dim() == 1]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    adam = torch.optim.AdamW(groups, lr=config.lr, betas=(0.9, 0.95), eps=1e-4)
    norms = []  # eps is large above, else Adam makes a step of full size out of the rounding of a gradient near 0
    for step in range(3):
        adam.zero_grad()
        logits = plain(tokens[:, :-1])
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()).backward()
        norms.append(torch.nn.utils.clip_grad_norm_(plain.parameters(), config.clip).item())
        fall = (step + 1) * 512 - config.ramp_tokens
        for group in adam.param_groups:
            group["lr"] = config.lr * (1 - 0.9 * fall / (config.total_tokens - config.ramp_tokens))
        adam.step()
    for fsdp, tensor in PARALLEL:
        launch(ranks, "learn", tmp_path, fsdp, tensor, dropout=0.0, attention_dropout=0.0, eps=1e-4)
        learned = torch.load(tmp_path / "learned.pt")
        assert learned["norms"] == pytest.approx(norms, rel=1e-4)
        for name, parameter in plain.named_parameters():
            torch.testing.assert_close(learned["weights"][name], parameter.detach(), atol=2e-5, rtol=1e-3)
