"""How long this rank computes in a step, waits for other ranks left out: in lockstep only that shows who is slow.

Measured are the layers, forward and backward: from when FSDP has gathered a layer's weights to when its output or its
input's gradient is there, without the waits for sums over tensor-parallel ranks in between. On CPUs by the clock; on
GPUs by events in the stream that computes, so that it costs no synchronisation.
"""

import time
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed._functional_collectives as collectives
from torch import nn

from model.transformer import Transformer

Stamp = Any  # of the clock seconds, of a GPU an event


class Stopwatch:
    """Adds up stretches of time. Starting twice, or stopping twice, is once."""

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._since: Stamp | None = None
        self._stretches: list[tuple[Stamp, Stamp]] = []
        self._spare: list[torch.cuda.Event] = []  # making one costs more than recording it

    def start(self) -> None:
        """From here on it computes."""
        if self._since is None:
            self._since = self._now()

    def stop(self) -> None:
        """From here on it waits, or does what is not counted."""
        if self._since is not None:
            self._stretches.append((self._since, self._now()))
            self._since = None

    def read(self) -> float:
        """Seconds since the last reading. On a GPU it waits for what was measured."""
        self.stop()
        stretches, self._stretches = self._stretches, []
        if not self._on_gpu:
            return sum(ended - began for began, ended in stretches)
        if stretches:
            stretches[-1][1].synchronize()
        self._spare += (event for stretch in stretches for event in stretch)
        return sum(began.elapsed_time(ended) for began, ended in stretches) / 1e3

    def _now(self) -> Stamp:
        if not self._on_gpu:
            return time.perf_counter()
        event = self._spare.pop() if self._spare else torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def watch(self, model: Transformer, moved: Callable[[], None]) -> None:
        """Measure a model that is distributed already; `moved` is called when a layer begins, and when it is done.

        Where a layer begins FSDP's own hooks come before ours; of its backward pass what comes after ours is FSDP's.
        """

        def entered(_layer: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            moved()
            if inputs[0].requires_grad:
                inputs[0].register_hook(lambda _gradient: done())
            self.start()

        def left(_layer: nn.Module, _inputs: object, output: torch.Tensor) -> None:
            done()
            if output.requires_grad:
                output.register_hook(lambda _gradient: self.start())

        def done() -> None:
            self.stop()
            moved()

        for layer in model.layers:
            layer.register_forward_pre_hook(entered)
            layer.register_forward_hook(left)
        collectives.wait_tensor = self._left_out(collectives.wait_tensor)

    def _left_out(self, wait: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[torch.Tensor], torch.Tensor]:
        """Every wait of tensor parallelism comes through this one function of torch's; it has no hook."""

        def waited(tensor: torch.Tensor) -> torch.Tensor:
            if self._since is None:
                return wait(tensor)
            self.stop()
            try:
                return wait(tensor)
            finally:
                self.start()

        return waited
