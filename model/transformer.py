"""The OPT decoder: pre-norm, learned positions, ReLU, tied embeddings, biases, dropout on attention and residuals.

Parameter names are those of the published OPT checkpoints (without their leading `model.decoder.`). Differences of
OPT's own code are kept: positions are offset by 2, the query is scaled before the product, embeddings have no
dropout and no scaling. Source: OPT paper (arXiv 2205.01068) and metaseq.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
import xxhash
from torch import nn

from model.config import TrainerConfig

POSITION_OFFSET = 2
SIGMA = 0.006
ATTENTION, AFTER_ATTENTION, AFTER_FEED_FORWARD = 0, 1, 2  # the sites of dropout in a layer


class Draws:
    """Dropout without a random state: each mask is a pure function of where and when it is drawn.

    So a resumed run draws what an undisturbed one would, and recomputation draws the same again. `step` and
    `micro_batch` are set by the training loop.
    """

    def __init__(self, seed: int, data_rank: int = 0, tensor_rank: int = 0) -> None:
        self.seed, self.data_rank, self.tensor_rank = seed, data_rank, tensor_rank
        self.step = self.micro_batch = 0
        self._generators: dict[torch.device, torch.Generator] = {}

    def dropout(self, x: torch.Tensor, p: float, layer: int, site: int, *, sharded: bool) -> torch.Tensor:
        """Elements of `x` kept with probability 1 - p, and scaled to keep the mean; any shape.

        `sharded`: tensor-parallel ranks hold different parts of x, and draw different masks; else the same.
        """
        if not p:
            return x
        place = (self.step, self.micro_batch, self.data_rank, layer, site, self.tensor_rank if sharded else -1)
        generator = self._generators.setdefault(x.device, torch.Generator(x.device))
        generator.manual_seed(_hash(self.seed, place))
        mask = torch.empty_like(x).bernoulli_(1 - p, generator=generator)
        return x * mask.div_(1 - p)


def _hash(seed: int, place: Sequence[int | str]) -> int:
    return xxhash.xxh3_64_intdigest(repr(tuple(place)).encode(), seed=seed) >> 1


class Attention(nn.Module):
    """Causal self-attention. Under tensor parallelism the projections hold a part of the heads only."""

    def __init__(self, d_model: int, heads: int, p: float, layer: int, draws: Draws) -> None:
        super().__init__()
        self.head_width, self.p, self.layer, self.draws = d_model // heads, p, layer, draws
        self.k_proj = nn.Linear(d_model, d_model)
        self.v_proj = nn.Linear(d_model, d_model)
        self.q_proj = nn.Linear(d_model, d_model)
        self.out_proj = nn.Linear(d_model, d_model)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[batch, length, d_model] to the same."""
        query = self._heads(self.q_proj(x) * self.head_width**-0.5)
        key, value = self._heads(self.k_proj(x)), self._heads(self.v_proj(x))
        if self.training and self.p:
            # F.scaled_dot_product_attention would draw from the global random state.
            length = x.size(1)
            future = torch.ones(length, length, dtype=torch.bool, device=x.device).triu_(1)
            scores = (query @ key.transpose(-1, -2)).masked_fill(future, -math.inf)
            weights = scores.softmax(-1, dtype=torch.float32).to(x.dtype)
            mixed = self.draws.dropout(weights, self.p, self.layer, ATTENTION, sharded=True) @ value
        else:
            mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=1.0)
        return self.out_proj(mixed.transpose(1, 2).flatten(2))

    def _heads(self, x: torch.Tensor) -> torch.Tensor:
        """[batch, length, heads * width] to [batch, heads, length, width]."""
        return x.unflatten(-1, (-1, self.head_width)).transpose(1, 2)


class Layer(nn.Module):
    """Attention and feed-forward, each behind a layer norm and beside a residual."""

    def __init__(self, config: TrainerConfig, layer: int, draws: Draws) -> None:
        super().__init__()
        width = config.shape.d_model
        self.p, self.layer, self.draws = config.dropout, layer, draws
        self.self_attn_layer_norm = nn.LayerNorm(width)
        self.self_attn = Attention(width, config.shape.heads, config.attention_dropout, layer, draws)
        self.final_layer_norm = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[batch, length, d_model] to the same."""
        x = x + self._dropout(self.self_attn(self.self_attn_layer_norm(x)), AFTER_ATTENTION)
        return x + self._dropout(self.fc2(F.relu(self.fc1(self.final_layer_norm(x)))), AFTER_FEED_FORWARD)

    def _dropout(self, x: torch.Tensor, site: int) -> torch.Tensor:
        return self.draws.dropout(x, self.p, self.layer, site, sharded=False) if self.training else x


class Transformer(nn.Module):
    """The decoder with its language-model head, which shares the token embedding.

    `activation_norm` is the mean norm, per token, of what the last layer gave in the last forward pass: in the
    OPT-175B run it rose before the loss did.
    """

    activation_norm: torch.Tensor

    def __init__(self, config: TrainerConfig, draws: Draws) -> None:
        super().__init__()
        shape = config.shape
        self.draws = draws
        self.embed_tokens = nn.Embedding(config.token_ids, shape.d_model)
        self.embed_positions = nn.Embedding(config.seq_len + POSITION_OFFSET, shape.d_model)
        self.layers = nn.ModuleList(Layer(config, i, draws) for i in range(shape.layers))
        self.final_layer_norm = nn.LayerNorm(shape.d_model)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Tokens [batch, length] int64 to logits [batch, length, vocabulary]."""
        positions = torch.arange(tokens.size(1), device=tokens.device) + POSITION_OFFSET
        x = self.embed_tokens(tokens) + self.embed_positions(positions)
        for layer in self.layers:
            x = layer(x)
        self.activation_norm = x.detach().float().norm(dim=-1).mean()
        return F.linear(self.final_layer_norm(x), self.embed_tokens.weight)


def initial_weight(name: str, shape: Sequence[int], layers: int, seed: int) -> torch.Tensor:
    """The full initial value, fp32 on the CPU, of the parameter `name`: a function of its name and the seed only."""
    if "layer_norm" in name:
        return torch.ones(*shape) if name.endswith("weight") else torch.zeros(*shape)
    if name.endswith("bias"):
        return torch.zeros(*shape)
    into_residual = name.endswith(("out_proj.weight", "fc2.weight"))
    sigma = SIGMA / math.sqrt(2 * layers) if into_residual else SIGMA
    generator = torch.Generator().manual_seed(_hash(seed, (name,)))
    return torch.empty(*shape).normal_(0.0, sigma, generator=generator)
