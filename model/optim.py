"""AdamW on local shards, and the learning rate as a pure function of tokens.

AdamW works element by element, so it needs no distributed tensors: it updates the local shards in place, which is
the memory FSDP gathers from. Only norms need all ranks: one sum of one number each.
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


def local(tensor: torch.Tensor) -> torch.Tensor:
    """This rank's part of a distributed tensor; any other as it is."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


class Optimizer:
    """torch's AdamW over the local shards of a distributed model, with decoupled decay of matrices only."""

    def __init__(self, model: nn.Module, config: TrainerConfig, tensor_rank: int) -> None:
        self.config = config  # another one with other `lr` and `clip` may take its place between steps
        self.parameters = dict(model.named_parameters())
        # What is replicated over the tensor axis counts once in a norm.
        self._counted = [n for n, p in self.parameters.items() if tensor_rank == 0 or is_sharded_over_tensor(p)]
        self._device = next(model.parameters()).device
        self.local = {name: local(parameter.detach()) for name, parameter in self.parameters.items()}
        decayed = [shard for name, shard in self.local.items() if _decays(name)]
        plain = [shard for name, shard in self.local.items() if not _decays(name)]
        groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": plain, "weight_decay": 0.0}]
        self.adam = torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=True)
        for shard in self.local.values():
            # There from the start, so that the plan of a checkpoint can be made before the first step.
            moments = {moment: torch.zeros_like(shard) for moment in MOMENTS}
            self.adam.state[shard] = {"step": torch.zeros((), device=shard.device), **moments}

    @property
    def parts(self) -> list[str]:
        """Names of the parts of the model that have a norm of their own: its layers, and what is not in a layer."""
        return list(dict.fromkeys(_part(name) for name in self.parameters))

    def squared_norm(self, part: str | None = None) -> torch.Tensor:
        """This rank's part of the squared norm of the gradient, of one part of the model or of all of it.

        float64, to be summed over all ranks.
        """
        names = (name for name in self._counted if part in (None, _part(name)))
        return self._squared([local(self._gradient(name)) for name in names])

    def squared_weights(self) -> torch.Tensor:
        """This rank's part of the squared norm of all weights, to be summed over all ranks."""
        return self._squared([self.local[name] for name in self._counted])

    def _squared(self, tensors: list[torch.Tensor]) -> torch.Tensor:
        return nn.utils.get_total_norm(tensors).double().square().to(self._device)

    def _gradient(self, name: str) -> torch.Tensor:
        gradient = self.parameters[name].grad
        assert gradient is not None, f"{name} has no gradient"
        return gradient

    def step(self, norm: float, tokens: int, scale: float = 1.0) -> tuple[float, bool]:
        """Clip and update; returns the rate used, and whether the gradient was clipped.

        `norm`: of the whole gradient, which is `scale` times too large itself; `tokens`: those of the run, this step's
        included. A gradient that is not finite is applied like any other: what to do about it is decided outside.
        """
        rate = learning_rate(self.config, tokens)
        for group in self.adam.param_groups:
            group["lr"] = rate
        share = self.config.clip / (norm + 1e-6)  # as torch's clip_grad_norm_
        clipped = not share >= 1
        factor = (share if clipped else 1.0) / scale
        for name, shard in self.local.items():
            shard.grad = local(self._gradient(name))
            if factor != 1:
                shard.grad.mul_(factor)
        self.adam.step()
        self.drop()
        return rate, clipped

    def drop(self) -> None:
        """Leave the gradients unused."""
        for name, parameter in self.parameters.items():
            self.local[name].grad = parameter.grad = None

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
        """Say how many updates the loaded moments have had (AdamW corrects their bias by it)."""
        for shard in self.local.values():
            self.adam.state[shard]["step"].fill_(steps)

    def check(self) -> None:
        """Raise ValueError when the next update would not use the settings asked for, but left-overs of others."""
        c = self.config
        for group, decay in zip(self.adam.param_groups, (c.weight_decay, 0.0), strict=True):
            asked = {"betas": c.betas, "eps": c.eps, "weight_decay": decay, "amsgrad": False, "maximize": False}
            if wrong := {name: group[name] for name, value in asked.items() if group[name] != value}:
                raise ValueError(f"the optimizer would use {wrong} where {asked} were asked for")


def _part(name: str) -> str:
    words = name.split(".")
    return ".".join(words[:2]) if words[0] == "layers" else words[0]


def _decays(name: str) -> bool:
    return name.endswith("weight") and "layer_norm" not in name


def is_sharded_over_tensor(parameter: torch.Tensor) -> bool:
    """Whether tensor-parallel ranks hold different parts of a parameter, and not all of them the same."""
    assert isinstance(parameter, DTensor)
    axes = parameter.device_mesh.mesh_dim_names or ()
    pairs = zip(axes, parameter.placements, strict=True)
    return any(axis == "tensor" and placement.is_shard() for axis, placement in pairs)
