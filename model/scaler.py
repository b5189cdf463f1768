"""Dynamic loss scaling for fp16: gradients too small for fp16 survive, and an overflow costs one update. No torch."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from model.config import TrainerConfig


@dataclass(frozen=True)
class LossScale:
    """What the loss is multiplied with, and how long until it is tried with twice as much.

    As OPT had it (metaseq/optim/dynamic_loss_scaler.py): from 4 on, doubled after a window of 256 steps without an
    overflow, halved at each overflow; the window doubles and halves with it, but is never below one step. With powers
    of two metaseq's two floors, `threshold` (0.25 for OPT-175B) and `min_loss_scale` (2^-5), act alike: here they are
    one, at which updates go on to be skipped. Restarting then is for who watches from outside. `clean`: steps since the
    last overflow. Unlike metaseq's, the window is part of the state that a checkpoint keeps.
    """

    scale: float
    window: int
    clean: int = 0

    @classmethod
    def of(cls, config: TrainerConfig) -> "LossScale":
        """The first one of a run."""
        return cls(config.loss_scale_init, config.loss_scale_window)

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> "LossScale":
        """The one of a checkpoint."""
        return cls(**state)

    def state(self) -> dict[str, Any]:
        """All of it, as JSON."""
        return asdict(self)

    def after(self, *, overflow: bool, least: float) -> "LossScale":
        """The scale of the next step, never below `least`."""
        if overflow:
            scale = max(self.scale / 2, min(least, self.scale))
            return LossScale(scale, max(self.window // 2, 1))
        clean = self.clean + 1
        if clean % self.window:
            return replace(self, clean=clean)
        return LossScale(self.scale * 2, self.window * 2, clean)
