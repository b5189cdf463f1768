"""AdamW on local shards, and the learning rate as a pure function of tokens.

AdamW works element by element, so it needs no distributed tensors: it updates the local shards in place, which is
the memory FSDP gathers from. Only the gradient norm needs all ranks: one sum of one number.
"""

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from model.config import TrainerConfig

MOMENTS = ("exp_avg", "exp_avg_sq")


def learning_rate(config: TrainerConfig, tokens: int) -> float:
    """The rate of the step that brings the run to `tokens`: linear rise, then linear fall to a tenth at the end."""
    if tokens < config.ramp_tokens:
        return config.lr * tokens / config.ramp_tokens
    falling = config.total_tokens - config.ramp_tokens
    done = min(1.0, (tokens - config.ramp_tokens) / falling) if falling > 0 else 1.0
    return config.lr * (1 - (1 - config.end_lr_ratio) * done)


def _local(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


class Optimizer:
    """torch's AdamW over the local shards of a distributed model, with decoupled decay of matrices only."""

    def __init__(self, model: nn.Module, config: TrainerConfig) -> None:
        self.config = config
        self.parameters = dict(model.named_parameters())
        self.local = {name: _local(parameter.detach()) for name, parameter in self.parameters.items()}
        decayed = [shard for name, shard in self.local.items() if _decays(name)]
        plain = [shard for name, shard in self.local.items() if not _decays(name)]
        groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": plain, "weight_decay": 0.0}]
        self.adam = torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=True)
        for shard in self.local.values():
            # There from the start, so that the plan of a checkpoint can be made before the first step.
            moments = {moment: torch.zeros_like(shard) for moment in MOMENTS}
            self.adam.state[shard] = {"step": torch.zeros((), device=shard.device), **moments}

    def squared_norm(self, tensor_rank: int) -> torch.Tensor:
        """This rank's part of the squared norm of the whole gradient: float64, to be summed over all ranks.

        What is replicated over the tensor axis is counted by its first rank only.
        """
        mine = [
            _local(gradient)
            for gradient in (parameter.grad for parameter in self.parameters.values())
            if isinstance(gradient, DTensor) and (tensor_rank == 0 or _sharded_over_tensor(gradient))
        ]
        return nn.utils.get_total_norm(mine).double().square()

    def step(self, squared_norm: float, tokens: int) -> tuple[float, float]:
        """Clip, update, and drop the gradients; returns the gradient's norm before clipping and the rate used.

        `squared_norm`: of the whole gradient; `tokens`: those of the run, this step's included. A gradient that is
        not finite is applied like any other: what to do about it is decided outside.
        """
        rate = learning_rate(self.config, tokens)
        for group in self.adam.param_groups:
            group["lr"] = rate
        norm = squared_norm**0.5
        for name, parameter in self.parameters.items():
            assert parameter.grad is not None, f"{name} has no gradient"
            self.local[name].grad = _local(parameter.grad)
        nn.utils.clip_grads_with_norm_(self.local.values(), self.config.clip, torch.tensor(norm))
        self.adam.step()
        for name, parameter in self.parameters.items():
            self.local[name].grad = parameter.grad = None
        return norm, rate

    def tensors(self) -> dict[str, DTensor]:
        """Weights and moments by name, as distributed tensors over the very memory that training changes."""
        named: dict[str, DTensor] = {}
        for name, parameter in self.parameters.items():
            assert isinstance(parameter, DTensor)
            named[f"model.{name}"] = parameter
            for moment in MOMENTS:
                named[f"optimizer.{moment}.{name}"] = DTensor.from_local(
                    self.adam.state[self.local[name]][moment],
                    parameter.device_mesh,
                    parameter.placements,
                    run_check=False,
                    shape=parameter.shape,
                    stride=parameter.stride(),
                )
        return named

    def set_steps(self, steps: int) -> None:
        """Say how many updates the loaded moments have seen (AdamW corrects their bias by it)."""
        for shard in self.local.values():
            self.adam.state[shard]["step"].fill_(steps)

    def check(self) -> None:
        """Raise ValueError when the next update would not use the settings asked for, but left-overs of others."""
        c = self.config
        for group, decay in zip(self.adam.param_groups, (c.weight_decay, 0.0), strict=True):
            asked = {"betas": c.betas, "eps": c.eps, "weight_decay": decay, "amsgrad": False, "maximize": False}
            if wrong := {name: group[name] for name, value in asked.items() if group[name] != value}:
                raise ValueError(f"the optimizer would use {wrong} where {asked} were asked for")


def _decays(name: str) -> bool:
    return name.endswith("weight") and "layer_norm" not in name


def _sharded_over_tensor(gradient: DTensor) -> bool:
    axes = gradient.device_mesh.mesh_dim_names or ()
    pairs = zip(axes, gradient.placements, strict=True)
    return any(axis == "tensor" and placement.is_shard() for axis, placement in pairs)
