"""What ranks do in tests of single parts; each is one function of the environment, and asserts on its own."""

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.distributed.tensor import DTensor

from launcher.reporter import Reporter
from model import checkpoint, parallel
from model.config import TrainerConfig
from model.optim import Optimizer
from model.parallel import World
from model.trainer import Trainer
from model.transformer import Transformer


def _start(env: Mapping[str, str]) -> tuple[TrainerConfig, World, Transformer]:
    parallel.be_deterministic()
    config = TrainerConfig.from_mapping(json.loads(env["SETTINGS"]))
    world = parallel.join(config, env)
    model = parallel.build(config, world)
    parallel.initialise(model, config)
    return config, world, model


def forward(env: Mapping[str, str]) -> None:
    """Logits of given weights on given tokens, from rank 0 into a file."""
    _, world, model = _start(env)
    weights = torch.load(Path(env["FOLDER"]) / "weights.pt", weights_only=True)
    for name, parameter in model.named_parameters():
        parallel.fill(parameter, weights[name])
    tokens = torch.load(Path(env["FOLDER"]) / "tokens.pt", weights_only=True)
    with torch.no_grad():
        logits = model.eval()(tokens)
    torch.save(logits, Path(env["FOLDER"]) / f"logits{world.rank}.pt")
    parallel.leave()


def initial_weights(env: Mapping[str, str]) -> None:
    """The full initial weights, from rank 0 into a file."""
    _, world, model = _start(env)
    full = {name: parameter.full_tensor().detach() for name, parameter in model.named_parameters()}
    if world.rank == 0:
        torch.save(full, Path(env["FOLDER"]) / "initial.pt")
    parallel.leave()


def masks(env: Mapping[str, str]) -> None:
    """Masks of each rank, sharded and replicated, into files."""
    _, world, model = _start(env)
    model.draws.step = 5
    ones = torch.ones(4, 256)
    drawn = {
        "sharded": model.draws.dropout(ones, 0.5, 1, 0, sharded=True),
        "replicated": model.draws.dropout(ones, 0.5, 1, 1, sharded=False),
        "place": (world.data_rank, world.tensor_rank),
    }
    torch.save(drawn, Path(env["FOLDER"]) / f"masks{world.rank}.pt")
    parallel.leave()


def learn(env: Mapping[str, str]) -> None:
    """Three optimizer steps without dropout in double precision; norms and final weights from rank 0 into a file."""
    torch.set_default_dtype(torch.float64)
    config, world, model = _start(env)
    optimizer = Optimizer(model, config, world.tensor_rank)
    tokens = torch.load(Path(env["FOLDER"]) / "tokens.pt", weights_only=True)
    share = len(tokens) // config.fsdp
    mine = tokens[world.data_rank * share :][:share]
    norms = []
    for step in range(3):
        logits = model(mine[:, :-1])
        F.cross_entropy(logits.flatten(0, 1), mine[:, 1:].flatten()).backward()
        squared = optimizer.squared_norm()
        dist.all_reduce(squared)
        norms.append(squared.item() ** 0.5)
        optimizer.step(norms[-1], (step + 1) * config.batch_tokens)
    full = {name: parameter.full_tensor().detach() for name, parameter in model.named_parameters()}
    if world.rank == 0:
        torch.save({"norms": norms, "weights": full}, Path(env["FOLDER"]) / "learned.pt")
    parallel.leave()


def save_tensors(env: Mapping[str, str]) -> None:
    """One checkpoint of random weights and moments, written without a committer; full tensors into a file."""
    config, world, model = _start(env)
    optimizer = Optimizer(model, config, world.tensor_rank)
    tensors = optimizer.tensors()
    for number, (name, tensor) in enumerate(sorted(tensors.items())):
        full = torch.randn(tensor.shape, generator=torch.Generator().manual_seed(number))
        parallel.fill(tensor, full)
        assert torch.equal(tensor.full_tensor(), full), name
    _write(tensors, world, Path(env["FOLDER"]) / "checkpoint")
    parallel.leave()


def _write(tensors: Mapping[str, DTensor], world: World, folder: Path) -> None:
    plan = checkpoint.make_plan(tensors)
    pairs = [(item.index, tensors[item.index.fqn].to_local().detach().clone()) for item in plan.items]
    chunks = checkpoint.write_part(folder, world.rank, pairs)
    parts = [None] * world.size
    dist.all_gather_object(parts, chunks)
    if plan.metadata:
        checkpoint.write_metadata(folder, plan.metadata, parts)
        metadata = checkpoint.write_metadata(folder, plan.metadata, parts)  # a request may come twice
        manifest = {"schema": 1, "metadata": metadata, "chunks": [chunk for part in parts for chunk in part]}
        (folder / "manifest.json").write_text(json.dumps(manifest))
    dist.barrier()


def load_tensors(env: Mapping[str, str]) -> None:
    """Read that checkpoint with the mesh of this process group, and with DCP's own loader; both must be exact."""
    import torch.distributed.checkpoint as dcp

    config, world, model = _start(env)
    tensors = Optimizer(model, config, world.tensor_rank).tensors()
    folder = Path(env["FOLDER"]) / "checkpoint"
    expected = {
        name: torch.randn(tensors[name].shape, generator=torch.Generator().manual_seed(number))
        for number, name in enumerate(sorted(tensors))
    }
    checkpoint.read_tensors(folder, checkpoint.verify(folder), tensors)
    assert all(torch.equal(tensors[name].full_tensor(), full) for name, full in expected.items())
    for tensor in tensors.values():
        tensor.to_local().detach().zero_()
    dcp.load(dict(tensors), checkpoint_id=os.fspath(folder))
    assert all(torch.equal(tensors[name].full_tensor(), full) for name, full in expected.items())
    parallel.leave()


def pass_on(env: Mapping[str, str]) -> None:
    """Load the checkpoint with the mesh of this process group, and save what was loaded for the next group."""
    config, world, model = _start(env)
    tensors = Optimizer(model, config, world.tensor_rank).tensors()
    folder = Path(env["FOLDER"])
    checkpoint.read_tensors(folder / "checkpoint", checkpoint.verify(folder / "checkpoint"), tensors)
    _write(tensors, world, folder / "onward" / "checkpoint")
    parallel.leave()


class Listener(Reporter):
    """Keeps what is told of steps."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[dict[str, Any]] = []

    def step(self, step, metrics=None, samples=None, step_s=0.0, blocked_s=0.0, compute_s=(), checksums=None):
        self.told.append({"compute_s": compute_s, "checksums": checksums})


def _trainer(env: Mapping[str, str]) -> tuple[World, Trainer, Listener]:
    parallel.be_deterministic()
    config = TrainerConfig.from_mapping(json.loads(env["SETTINGS"]))
    world, listener = parallel.join(config, env), Listener()
    trainer = Trainer(config, world, listener, Path(env["FOLDER"]))
    parallel.initialise(trainer.model, config)
    return world, trainer, listener


def one_slow_rank(env: Mapping[str, str]) -> None:
    """Rank 2 sleeps 0.2 s in each step, half of it in the forward pass; times of computing from rank 0 into a file."""
    world, trainer, listener = _trainer(env)
    if world.rank == 2:
        slow = trainer.model.layers[0].fc2
        slow.register_forward_pre_hook(lambda *_: time.sleep(0.1))
        slow.register_full_backward_pre_hook(lambda *_: time.sleep(0.1))
    for _ in range(trainer.config.steps):
        trainer.train_step()
    if world.rank == 0:
        (Path(env["FOLDER"]) / "steps.json").write_text(json.dumps([told["compute_s"] for told in listener.told]))
    parallel.leave()


def one_flipped_bit(env: Mapping[str, str]) -> None:
    """Three steps: a good one; one with a bit flipped in what rank 3 has gathered; one with a bit flipped in its shard.

    The first is of a weight that is sharded over the tensor axis, the second of one that is replicated.
    """
    world, trainer, listener = _trainer(env)
    trainer.train_step()
    if world.rank == 3:
        layer = trainer.model.layers[0]

        def flip(_module: torch.nn.Module, _inputs: object) -> None:
            handle.remove()
            weight = layer.fc1.weight
            assert isinstance(weight, DTensor)
            with torch.no_grad():
                weight.to_local().view(torch.int32).view(-1)[5] ^= 1 << 3

        handle = layer.register_forward_pre_hook(flip, prepend=False)
        # Before the hook that takes the checksum, after the one that gathers.
        hooks = layer._forward_pre_hooks
        order = [key for key in hooks if key != handle.id]
        hooks.move_to_end(handle.id)
        for key in order[1:]:
            hooks.move_to_end(key)
    trainer.train_step()
    if world.rank == 3:
        trainer.optimizer.local["layers.1.fc2.bias"].view(torch.int32)[2] ^= 1 << 3
    trainer.train_step()
    if world.rank == 0:
        (Path(env["FOLDER"]) / "steps.json").write_text(json.dumps([told["checksums"] for told in listener.told]))
    parallel.leave()
