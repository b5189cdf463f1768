"""Where a model lives: the process group, one mesh of fsdp x tensor, and the distribution of its weights over it."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Replicate
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    PrepareModuleInput,
    RowwiseParallel,
    parallelize_module,
)
from torch.utils import deterministic

from model.config import TrainerConfig
from model.transformer import Draws, Transformer, initial_weight

Numbers = dict[str, torch.Tensor | float]  # float64 scalars on the device, and plain ones

# A collective waits this long for its peers. Long, because the launcher ends stuck ranks by judging progress.
COLLECTIVE_LIMIT = timedelta(minutes=30)


COMPUTED_IN = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class World:
    """The ranks of one attempt, and the place of this one among them."""

    mesh: DeviceMesh
    device: torch.device
    rank: int
    data_rank: int
    tensor_rank: int

    @property
    def size(self) -> int:
        """Number of ranks."""
        return self.mesh.size()


def join(config: TrainerConfig, env: Mapping[str, str]) -> World:
    """Join the process group that torchrun's variables name; gloo on CPUs, NCCL on GPUs."""
    if torch.cuda.is_available():
        device = torch.device("cuda", int(env["LOCAL_RANK"]))
        torch.cuda.set_device(device)
        dist.init_process_group("nccl", timeout=COLLECTIVE_LIMIT, device_id=device)
    else:
        device = torch.device("cpu")
        dist.init_process_group("gloo", timeout=COLLECTIVE_LIMIT)
    mesh = init_device_mesh(device.type, (config.fsdp, config.tensor), mesh_dim_names=("fsdp", "tensor"))
    return World(mesh, device, dist.get_rank(), mesh.get_local_rank("fsdp"), mesh.get_local_rank("tensor"))


def agree(number: int, world: World) -> bool:
    """Whether all ranks hold the same number, less than 2^63. A collective."""
    least = torch.tensor([number, -number], dtype=torch.int64, device=world.device)
    dist.all_reduce(least, dist.ReduceOp.MIN)
    return least[0].item() == -least[1].item()


def sum_over_ranks(
    numbers: Numbers, own: Mapping[str, torch.Tensor], world: World
) -> tuple[dict[str, float], dict[str, list[list[float]]]]:
    """Scalars summed over all ranks; and of each vector, as long on all ranks, what each rank has, in their order.

    One all-reduce, in double precision, and one wait for the device.
    """
    scalars = [n for n in numbers.values() if isinstance(n, torch.Tensor)]
    plain = [n for n in numbers.values() if not isinstance(n, torch.Tensor)]
    names = sorted(numbers, key=lambda name: not isinstance(numbers[name], torch.Tensor))
    mine = torch.cat([vector.to(world.device) for vector in own.values()])
    table = mine.new_zeros(world.size, len(mine))
    table[world.rank] = mine  # the others add zeros
    told = torch.tensor(plain, dtype=torch.float64).to(world.device)
    vector = torch.cat([torch.stack(scalars), told, table.flatten()])
    dist.all_reduce(vector)
    values = vector.tolist()
    rows = [values[len(names) + rank * len(mine) :][: len(mine)] for rank in range(world.size)]
    by_rank, at = {}, 0
    for name, part in own.items():
        by_rank[name] = [row[at : at + len(part)] for row in rows]
        at += len(part)
    return dict(zip(names, values, strict=False)), by_rank


def leave() -> None:
    """Leave the process group. Only after a run that went well: with peers missing this could wait for them."""
    dist.destroy_process_group()


def be_deterministic() -> None:
    """Only kernels that give the same bits for the same input, on this kind of hardware."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it at its first call
    torch.use_deterministic_algorithms(True)
    # All of ours is written before it is read.
    deterministic.fill_uninitialized_memory = False  # pyright: ignore[reportAttributeAccessIssue]


def build(config: TrainerConfig, world: World) -> Transformer:
    """The model, distributed over the mesh, its weights not yet written: `initialise` or a checkpoint does that.

    Tensor parallelism splits attention heads and the feed-forward width; embeddings and norms are replicated over
    the tensor axis (at OPT's widths the output projection is under 3 % of the work). FSDP then shards everything.
    """
    with torch.device("meta"):
        model = Transformer(config, Draws(config.seed, world.data_rank, world.tensor_rank))
    column, row = ColwiseParallel(), RowwiseParallel()
    plan: dict[str, ParallelStyle] = {
        # One distributed input for all three projections: their gradients are added before the sum over ranks.
        "self_attn": PrepareModuleInput(input_layouts=Replicate(), desired_input_layouts=Replicate()),
        "self_attn.q_proj": column,
        "self_attn.k_proj": column,
        "self_attn.v_proj": column,
        "self_attn.out_proj": row,
        "fc1": column,
        "fc2": row,
    }
    policy = MixedPrecisionPolicy()
    if config.dtype in COMPUTED_IN:
        policy = MixedPrecisionPolicy(param_dtype=COMPUTED_IN[config.dtype], reduce_dtype=torch.float32)
    for layer in model.layers:
        if config.tensor > 1:
            parallelize_module(layer, world.mesh["tensor"], plan)
        # Parameters stay gathered until their gradients are there, as in metaseq's baselines.
        fully_shard(layer, mesh=world.mesh["fsdp"], mp_policy=policy, reshard_after_forward=False)
    fully_shard(model, mesh=world.mesh["fsdp"], mp_policy=policy)
    model.to_empty(device=world.device)
    return model


def initialise(model: Transformer, config: TrainerConfig) -> None:
    """Write the initial weights: each is made in full on every rank, which keeps its part. No communication."""
    for name, parameter in model.named_parameters():
        fill(parameter, initial_weight(name, parameter.shape, config.shape.layers, config.seed))


@torch.no_grad()
def fill(parameter: torch.Tensor, full: torch.Tensor) -> None:
    """Write this rank's part of the full tensor into a distributed parameter. No communication."""
    assert isinstance(parameter, DTensor)
    (chunk,) = parameter.__create_chunk_list__()
    for dim, (offset, size) in enumerate(zip(chunk.offsets, chunk.sizes, strict=True)):
        full = full.narrow(dim, offset, size)
    parameter.to_local().copy_(full)
