"""Checksums of what ranks must hold the same bits of: sums of the bits as whole numbers, the same in any order.

Three things must agree. `tensor T`: the weights that FSDP has gathered for computing, of the ranks with
tensor-parallel rank T. `gathered`: those of them that are replicated over the tensor axis, of all ranks. `fsdp F`: the
shards of these, of the tensor-parallel ranks of data-parallel rank F, each of which updates its own. A shard that only
one rank holds has nothing to be compared with: what is wrong in it all ranks gather alike.
"""

from collections.abc import Callable, Iterable

import torch
from torch import nn

from model.optim import Optimizer, is_sharded_over_tensor, local
from model.parallel import World
from model.transformer import Transformer

Checksums = dict[str, dict[int, int]]  # what -> rank -> checksum

SLOTS = 3  # numbers of each rank
_BELOW = 2**52  # a double holds every whole number up to there, and so a sum with zeros of the other ranks
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_STIR = 1_000_003  # so that equal weights that have changed places are seen


def checksum(tensors: Iterable[torch.Tensor], device: torch.device) -> torch.Tensor:
    """A scalar int64 on the device, of all bits of the tensors in their order."""
    total = torch.zeros((), dtype=torch.int64, device=device)
    for tensor in tensors:
        bits = tensor.detach().contiguous().view(_BITS[tensor.element_size()])
        total = total * _STIR + bits.sum(dtype=torch.int64)  # modulo 2^64
    return total


class Watch:
    """Takes checksums in the forward pass that follows `begin`, when the weights are gathered."""

    def __init__(self, model: Transformer, optimizer: Optimizer, world: World) -> None:
        self._world = world
        self.due = False  # whether they are being taken
        self._sharded = {name for name, parameter in optimizer.parameters.items() if is_sharded_over_tensor(parameter)}
        self._kept = [shard for name, shard in optimizer.local.items() if name not in self._sharded]
        self._totals = torch.zeros(SLOTS, dtype=torch.int64, device=world.device)
        for prefix, module in (("", model), *((f"layers.{i}.", layer) for i, layer in enumerate(model.layers))):
            module.register_forward_pre_hook(self._gathered(prefix))

    def begin(self) -> None:
        """From here on, until `read`."""
        self.due = True
        self._totals.zero_()
        self._totals[2] = checksum(self._kept, self._world.device)

    def read(self) -> torch.Tensor:
        """This rank's numbers [SLOTS], float64 and whole."""
        self.due = False
        return (self._totals % _BELOW).double()

    def add(self, prefix: str, module: nn.Module) -> None:
        """Take those of a module whose weights are gathered: a layer, or what is in none."""
        named = {prefix + name: tensor for name, tensor in module.named_parameters()}
        if not prefix:  # the layers are gathered one by one, later
            named = {name: tensor for name, tensor in named.items() if not name.startswith("layers.")}
        for slot, is_sharded in enumerate((True, False)):
            mine = (local(tensor) for name, tensor in named.items() if (name in self._sharded) == is_sharded)
            self._totals[slot] = self._totals[slot] * _STIR + checksum(mine, self._world.device)

    def _gathered(self, prefix: str) -> Callable[[nn.Module, object], None]:
        def entered(module: nn.Module, _inputs: object) -> None:
            if self.due:
                self.add(prefix, module)

        return entered


def named(numbers: list[list[float]], fsdp: int, tensor: int) -> Checksums:
    """The numbers [ranks][SLOTS, or 0] by what must agree; ranks are numbered along the tensor axis first."""
    if not numbers[0]:
        return {}
    ranks = range(fsdp * tensor)
    found: Checksums = {f"tensor {t}": {r: int(numbers[r][0]) for r in ranks if r % tensor == t} for t in range(tensor)}
    found["gathered"] = {r: int(numbers[r][1]) for r in ranks}
    found |= {f"fsdp {f}": {r: int(numbers[r][2]) for r in ranks if r // tensor == f} for f in range(fsdp)}
    return {what: of for what, of in found.items() if len(of) > 1}
