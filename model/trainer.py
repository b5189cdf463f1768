"""One rank's part of an attempt: forward and backward, the update, and what a checkpoint has to keep of them."""

import json
import math
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F

from launcher.reporter import SAVE, SET, STOP, Reporter
from model import checksums, corpus, live, parallel
from model.config import TrainerConfig
from model.data import Corpus, merge, next_samples, sequence_of, split
from model.optim import Optimizer, learning_rate
from model.parallel import Numbers, World
from model.scaler import LossScale
from model.stopwatch import Stopwatch

RECENT = 100  # updates of which `clip_fraction` is the share that were clipped
_BITS = {"save": SAVE, "stop": STOP, "set": SET}


class Trainer:
    """The distributed model, its data, and where the run is."""

    def __init__(self, config: TrainerConfig, world: World, reporter: Reporter, folder: Path) -> None:
        """A collective. `folder`: for files of tokens, the same for all ranks. Raises ValueError for unusable data."""
        self.config, self.world, self.reporter = config, world, reporter
        with reporter.phase("data"):
            documents, self.tokenizer = corpus.load(config, world, folder)
        train, held_out = split(documents, config.held_out)
        self.corpus = Corpus(train, config.seq_len)
        self.held_out = Corpus(held_out, config.seq_len, may_be_empty=True)
        self.model = parallel.build(config, world)
        self.optimizer = Optimizer(self.model, config, world.tensor_rank)
        self.tensors = self.optimizer.tensors()
        self.step = 0  # steps done, those with a skipped update among them, and so the index of the next one
        self.applied = 0  # updates done
        self.tokens = 0  # trained on so far
        self.position = 0  # the next absolute sample index
        self.skip = merge(config.skip)
        self.scale = LossScale.of(config) if config.dtype == "fp16" else None
        self.changes: dict[str, Any] = {}  # settings that were asked for while the run went on
        self.clipped: deque[bool] = deque(maxlen=RECENT)
        self.blocked_s = 0.0  # by saves, since the last report
        self.val_loss: float | None = None  # of the weights the next step begins with
        self.checksums = checksums.Watch(self.model, self.optimizer, world)
        self.stopwatch = Stopwatch(world.device)
        self.stopwatch.watch(self.model, reporter.section)

    # ------------------------------------------------------------ a step

    def train_step(self) -> int:
        """One step on all ranks; returns the bits that any rank's agent asks for.

        All that ranks must agree on goes into one small sum. After a gradient that has overflowed in fp16 no rank
        updates anything.
        """
        began = time.monotonic()
        with self.reporter.phase("data"):
            first = self.position
            samples, self.position = next_samples(first, self.config.batch_sequences, self.skip)
            tokens = self._rank_batch(samples)
        numbers, sums = self._forward_and_backward(tokens)
        wanted = self.reporter.wanted()
        numbers |= {name: float(bool(wanted & bit)) for name, bit in _BITS.items()}
        mine = {"compute_s": torch.tensor([self.stopwatch.read()], dtype=torch.float64), "checksums": sums}
        agreed, by_rank = parallel.sum_over_ranks(numbers, mine, self.world)
        metrics = self._update(agreed)
        step_s = time.monotonic() - began
        metrics["tokens_per_s"] = self.config.batch_tokens / step_s
        self._report(metrics, (first, self.position), step_s, by_rank)
        self.step += 1
        if agreed["set"]:
            self._change_settings()
        return sum(bit for name, bit in _BITS.items() if agreed[name] and bit != SET)

    def _forward_and_backward(self, tokens: torch.Tensor) -> tuple[Numbers, torch.Tensor]:
        """What is to be summed over all ranks of this one's part of the batch, and its checksums if they are due."""
        config, scale = self.config, self.scale.scale if self.scale else 1.0
        loss_sum = torch.zeros((), device=self.world.device, dtype=torch.float64)
        activation, sums = torch.zeros_like(loss_sum), loss_sum.new_empty(0)
        self.model.draws.step = self.step
        if config.checksum_every and self.step % config.checksum_every == 0:
            self.checksums.begin()
        self.stopwatch.read()  # what a validation has left
        for number, micro in enumerate(tokens.split(config.micro_sequences)):
            self.model.draws.micro_batch = number
            loss = self._loss(micro)
            if self.checksums.due:
                sums = self.checksums.read()
            (loss * (scale / config.micro_batches)).backward()
            loss_sum += loss.detach() * micro[:, 1:].numel()
            activation += self.model.activation_norm / config.micro_batches
        numbers: Numbers = {"loss": loss_sum, "activation": activation, "counted": float(tokens[:, 1:].numel())}
        numbers |= {"gradient": self.optimizer.squared_norm(), "weights": self.optimizer.squared_weights()}
        if config.layer_norms and self.step % config.layer_norms == 0:
            numbers |= {f"grad_norm.{name}": self.optimizer.squared_norm(part=name) for name in self.optimizer.parts}
        return numbers, sums

    def _update(self, agreed: Mapping[str, float]) -> dict[str, float]:
        """Update the weights, or after an overflow only the loss scale; returns the metrics of the step.

        Tensor-parallel ranks repeat loss and activations of the same tokens.
        """
        scale = self.scale.scale if self.scale else 1.0
        norms = {name: agreed[name] ** 0.5 / scale for name in agreed if name.startswith("grad_norm.")}
        norm = agreed["gradient"] ** 0.5 / scale
        overflow = self.scale is not None and not math.isfinite(norm)
        after = self.tokens + self.config.batch_tokens
        if overflow:
            self.optimizer.drop()
            rate = learning_rate(self.optimizer.config, after)
        else:
            rate, clipped = self.optimizer.step(norm, after, scale)
            self.clipped.append(clipped)
            self.tokens, self.applied = after, self.applied + 1
        metrics = {
            "loss": agreed["loss"] / agreed["counted"],
            "grad_norm": norm,
            "clip_fraction": sum(self.clipped) / max(1, len(self.clipped)),
            "activation_norm": agreed["activation"] / self.world.size,
            "param_norm": agreed["weights"] ** 0.5,
            "lr": rate,
            "tokens": self.tokens,
        }
        if self.scale:
            metrics |= {"loss_scale": self.scale.scale, "loss_scale_window": self.scale.window}
            self.scale = self.scale.after(overflow=overflow, least=self.config.loss_scale_min)
        if overflow:
            metrics["skipped"] = 1.0
        if self.val_loss is not None:
            metrics["val_loss"] = self.val_loss
        return metrics | norms

    def _rank_batch(self, samples: list[int]) -> torch.Tensor:
        """Tokens [sequences of this data-parallel rank, seq_len + 1]."""
        per_rank = len(samples) // self.config.fsdp
        mine = samples[self.world.data_rank * per_rank :][:per_rank]
        indices = [sequence_of(sample, self.corpus.sequences, self.config.seed) for sample in mine]
        return self.corpus.batch(indices).to(self.world.device)

    def _loss(self, tokens: torch.Tensor) -> torch.Tensor:
        """Mean loss per token of sequences [n, seq_len + 1]."""
        logits = self.model(tokens[:, :-1])
        return F.cross_entropy(logits.float().flatten(0, 1), tokens[:, 1:].flatten())

    def _report(
        self,
        metrics: Mapping[str, float],
        samples: tuple[int, int],
        step_s: float,
        by_rank: Mapping[str, list[list[float]]],
    ) -> None:
        blocked_s, self.blocked_s, self.val_loss = self.blocked_s, 0.0, None
        if self.world.rank:
            self.reporter.step(self.step)
            return
        numbers = " ".join(f"{name} {value:.6g}" for name, value in metrics.items())
        print(f"step {self.step} {numbers}", flush=True)
        compute_s = [float(f"{seconds:.4g}") for (seconds,) in by_rank["compute_s"]]
        sums = checksums.named(by_rank["checksums"], self.config.fsdp, self.config.tensor)
        self.reporter.step(self.step, metrics, samples, step_s, blocked_s, compute_s, sums)

    @torch.no_grad()
    def validate(self) -> float | None:
        """Mean loss per token over held-out sequences, the same on all ranks; None where too few are held out."""
        per_rank = min(self.config.validate_sequences, self.held_out.sequences) // self.config.fsdp
        if not per_rank:
            return None
        with self.reporter.phase("eval"):
            self.model.eval()
            first = self.world.data_rank * per_rank
            tokens = self.held_out.batch(range(first, first + per_rank)).to(self.world.device)
            total = torch.zeros((), device=self.world.device, dtype=torch.float64)
            for micro in tokens.split(self.config.micro_sequences):
                total += self._loss(micro) * len(micro)
            dist.all_reduce(total)
            self.model.train()
        return total.item() / (per_rank * self.world.size)

    # ------------------------------------------------------------ settings that change

    def begin(self) -> None:
        """Take over the settings the attempt is asked to begin with. A collective.

        Raises ValueError where they make no sense, are not in effect afterwards, or are not the same on all ranks.
        """
        asked = {**self.changes, **self.reporter.asked}
        self._set(asked)
        effective = self.effective()
        if not parallel.agree(live.digest(effective, self.skip), self.world):
            raise ValueError(f"settings: {effective} here, others on other ranks; give all ranks the same")
        if self.reporter.asked:
            self.reporter.applied(None, self.step, effective)

    def effective(self) -> dict[str, float]:
        """The settings that can change, as the next step will use them."""
        have = {"lr": self.optimizer.config.lr, "clip": self.optimizer.config.clip}
        return have | ({"loss_scale": self.scale.scale} if self.scale else {})

    def _change_settings(self) -> None:
        """Any rank may have been told of a change: all make it now, before the next step."""
        told: list[Any] = [None] * self.world.size
        dist.all_gather_object(told, self.reporter.settings())
        for id, asked in {id: asked for changes in told for id, asked in changes.items()}.items():
            problem = ""
            try:
                self._set(asked)
            except ValueError as error:  # a mistake of who asked: training goes on as it was
                problem = str(error)
            if self.world.rank == 0:
                print(f"settings {asked} from step {self.step} on: {problem or self.effective()}", flush=True)
            self.reporter.applied(id, self.step, self.effective(), problem)

    def _set(self, asked: Mapping[str, Any]) -> None:
        lasting = live.lasting(self.changes, asked)
        config = live.changed(self.config, {**lasting, **asked})
        scale = live.rescaled(self.scale, self.config, asked)
        self.optimizer.config, self.scale, self.changes = config, scale, lasting
        wanted = {"lr": config.lr, "clip": config.clip} | ({"loss_scale": scale.scale} if scale else {})
        if wanted != (have := self.effective()):
            raise RuntimeError(f"settings: {have} are in effect where {wanted} were asked for")

    # ------------------------------------------------------------ checkpoints

    def state(self) -> dict[str, Any]:
        """All that a checkpoint holds besides tensors."""
        return {
            "step": self.step,
            "applied": self.applied,
            "tokens": self.tokens,
            "position": self.position,
            "skip": [list(span) for span in self.skip],
            "loss_scale": self.scale.state() if self.scale else None,
            "changes": self.changes,
            "clipped": [int(clipped) for clipped in self.clipped],
            "identity": self.identity(),
            "settings": asdict(self.config),
            "world": {"size": self.world.size, "fsdp": self.config.fsdp, "tensor": self.config.tensor},
        }

    def identity(self) -> dict[str, Any]:
        """What a checkpoint must have in common with the run that goes on from it."""
        same = {name: getattr(self.config, name) for name in ("size", "seq_len", "seed")}
        return same | {"tokenizer": self.tokenizer, "data": self.corpus.fingerprint}

    def go_to(self, state: Mapping[str, Any]) -> None:
        """Be where the checkpoint of this state was. Settings are those asked for now; what differs is said."""
        self.step, self.tokens, self.position = state["step"], state["tokens"], state["position"]
        self.applied = state.get("applied", self.step)
        self.skip = merge(self.skip, state["skip"])
        self.changes = state.get("changes", {})
        self.clipped.extend(map(bool, state.get("clipped", ())))
        if self.scale and state.get("loss_scale"):
            self.scale = LossScale.from_state(state["loss_scale"])
        self.optimizer.set_steps(self.applied)
        self.optimizer.check()
        now = json.loads(json.dumps(asdict(self.config)))
        changed = [f"{k} {state['settings'].get(k)} -> {v}" for k, v in now.items() if state["settings"].get(k) != v]
        if self.world.rank == 0:
            print(f"resumed after step {self.step - 1}; changed: {', '.join(changed) or 'nothing'}", flush=True)
