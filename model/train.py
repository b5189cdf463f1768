"""The training loop. `main(env)` is one rank of an attempt; importing this module computes nothing.

    torchrun --nproc-per-node 4 -m model.train --config trainer.yaml --out runs/demo     (no launcher needed)

A resumed run goes on with the same bits as an undisturbed one: weights, moments, schedule, data position and dropout
are restored or are pure functions of the step.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # torch imports these two before its first step; here, ranks forked of a warm process have them
import torch._inductor
import torch.distributed as dist
import torch.nn.functional as F
import yaml

from launcher.reporter import EXIT_CHECKPOINT_REJECTED, SAVE, STOP, Reporter, connect
from model import checkpoint, parallel, resume
from model.checkpoint import CheckpointRejected
from model.config import TrainerConfig
from model.data import Corpus, find_documents, merge, next_samples, sequence_of, split
from model.optim import Optimizer
from model.parallel import World
from model.saver import Committer, Saver, ViaFiles, ViaReporter

COMMIT_LIMIT_S = 120.0  # for the last save to be written and committed, before the process ends without


class Trainer:
    """One rank's part of an attempt: the distributed model, its data, and where the run is."""

    def __init__(self, config: TrainerConfig, world: World, reporter: Reporter) -> None:
        self.config, self.world, self.reporter = config, world, reporter
        train, held_out = split(find_documents(config.data), config.held_out)
        self.corpus = Corpus(train, config.seq_len)
        self.held_out = Corpus(held_out, config.seq_len, may_be_empty=True)
        if not parallel.agree(self.corpus.fingerprint, world):
            raise ValueError(
                f"data: {len(train)} files here, other files on other ranks; give all nodes the same files"
            )
        self.model = parallel.build(config, world)
        self.optimizer = Optimizer(self.model, config)
        self.tensors = self.optimizer.tensors()
        self.step = 0  # completed steps, and so the index of the next one
        self.tokens = 0  # trained on so far
        self.position = 0  # the next absolute sample index
        self.skip = merge(config.skip)
        self.blocked_s = 0.0  # by saves, since the last report
        self.val_loss: float | None = None  # of the weights the next step begins with
        self._watch_sections()

    def train_step(self) -> int:
        """One optimizer step on all ranks; returns the bits that any rank's agent asks for."""
        began = time.monotonic()
        config, world = self.config, self.world
        with self.reporter.phase("data"):
            first = self.position
            samples, self.position = next_samples(self.position, config.batch_sequences, self.skip)
            tokens = self._rank_batch(samples)
        loss_sum = torch.zeros((), device=world.device, dtype=torch.float64)
        activation = torch.zeros_like(loss_sum)
        self.model.draws.step = self.step
        for number, micro in enumerate(tokens.split(config.micro_sequences)):
            self.model.draws.micro_batch = number
            loss = self._loss(micro)
            (loss / config.micro_batches).backward()
            loss_sum += loss.detach() * micro[:, 1:].numel()
            activation += self.model.activation_norm / config.micro_batches
        wanted = self.reporter.wanted()
        # All that ranks must agree on in one small sum. Tensor-parallel ranks repeat the loss of the same tokens.
        shared = torch.tensor(
            [0.0, 0.0, 0.0, tokens[:, 1:].numel(), bool(wanted & SAVE), bool(wanted & STOP)], dtype=torch.float64
        ).to(world.device)
        shared[:3] = torch.stack([self.optimizer.squared_norm(world.tensor_rank), loss_sum, activation])
        dist.all_reduce(shared)
        squared, loss_total, activation_total, counted, save, stop = shared.tolist()
        self.tokens += config.batch_tokens
        norm, rate = self.optimizer.step(squared, self.tokens)
        step_s = time.monotonic() - began
        metrics = {
            "loss": loss_total / counted,
            "grad_norm": norm,
            "lr": rate,
            "tokens": self.tokens,
            "tokens_per_s": config.batch_tokens / step_s,
            "activation_norm": activation_total / world.size,
        }
        if self.val_loss is not None:
            metrics["val_loss"] = self.val_loss
        self._report(metrics, (first, self.position), step_s)
        self.step += 1
        return (SAVE if save else 0) | (STOP if stop else 0)

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

    def state(self) -> dict[str, Any]:
        """All that a checkpoint holds besides tensors."""
        return {
            "step": self.step,
            "tokens": self.tokens,
            "position": self.position,
            "skip": [list(span) for span in self.skip],
            "identity": self.identity(),
            "settings": asdict(self.config),
            "world": {"size": self.world.size, "fsdp": self.config.fsdp, "tensor": self.config.tensor},
        }

    def identity(self) -> dict[str, Any]:
        """What a checkpoint must have in common with the run that goes on from it."""
        names = ("size", "tokenizer", "seq_len", "seed")
        return {name: getattr(self.config, name) for name in names} | {"data": self.corpus.fingerprint}

    def go_to(self, state: Mapping[str, Any]) -> None:
        """Be where the checkpoint of this state was. Settings are those asked for now; what differs is said."""
        self.step, self.tokens, self.position = state["step"], state["tokens"], state["position"]
        self.skip = merge(self.skip, state["skip"])
        self.optimizer.set_steps(self.step)
        self.optimizer.check()
        now = json.loads(json.dumps(asdict(self.config)))
        changed = [f"{k} {state['settings'].get(k)} -> {v}" for k, v in now.items() if state["settings"].get(k) != v]
        if self.world.rank == 0:
            print(f"resumed after step {self.step - 1}; changed: {', '.join(changed) or 'nothing'}", flush=True)

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

    def _report(self, metrics: dict[str, Any], samples: tuple[int, int], step_s: float) -> None:
        if self.world.rank == 0:
            numbers = " ".join(f"{name} {value:.6g}" for name, value in metrics.items())
            print(f"step {self.step} {numbers}", flush=True)
        mine = metrics if self.world.rank == 0 else None
        self.reporter.step(self.step, mine, samples, step_s, self.blocked_s)
        self.blocked_s = 0.0
        self.val_loss = None

    def _watch_sections(self) -> None:
        """Count each layer's forward and backward pass as progress, so that slow is told from stuck."""

        def entered(_module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            self.reporter.section()
            if inputs[0].requires_grad:
                inputs[0].register_hook(lambda _gradient: self.reporter.section())

        for layer in self.model.layers:
            layer.register_forward_pre_hook(entered)


def main(env: Mapping[str, str]) -> int:
    """Train as one rank; returns the exit status. `env` holds torchrun's variables and ours (OPT_LAUNCH_*)."""
    reporter = connect(env)
    try:
        return _run(env, reporter)
    except CheckpointRejected as error:
        print(f"rank {env['RANK']}: {error}", file=sys.stderr, flush=True)
        if str(error) != resume.ELSEWHERE:  # the rank that found it says what it found
            reporter.checkpoint_rejected(error)
        return EXIT_CHECKPOINT_REJECTED
    except Exception as error:
        reporter.error(type(error).__name__, error)
        raise
    finally:
        reporter.close()


def _run(env: Mapping[str, str], reporter: Reporter) -> int:
    asked = TrainerConfig.from_mapping(_settings(Path(env["OPT_LAUNCH_TRAINER"])))
    config = asked.for_ranks(int(env["WORLD_SIZE"]))  # a run short of nodes goes on with fewer
    if config != asked and env["RANK"] == "0":
        print(f"parallel.fsdp {config.fsdp} instead of {asked.fsdp}, as {env['WORLD_SIZE']} ranks need", flush=True)
    parallel.be_deterministic()
    world = parallel.join(config, env)
    root = Path(env["OPT_LAUNCH_CHECKPOINTS"])
    start = resume.find_start(env, root, attached=reporter.attached)
    trainer = Trainer(config, world, reporter)
    if start.folder is None:
        parallel.initialise(trainer.model, config)
    else:
        state = resume.restore(start.folder, start.digest, trainer.tensors, trainer.identity(), world.device)
        trainer.go_to(state)
    plan = checkpoint.make_plan(trainer.tensors)
    committer: Committer
    if reporter.attached:
        committer = ViaReporter(reporter, plan.metadata)
    else:
        parent = start.folder.name if start.folder else None
        committer = ViaFiles(plan.metadata, rank=world.rank, ranks=world.size, attempt=start.attempt, parent=parent)
    saver = Saver(plan, trainer.tensors, committer, rank=world.rank, root=root, attempt=start.attempt)
    stopped = _loop(trainer, saver)
    if not stopped:
        digest = checkpoint.final_digest({k: v for k, v in trainer.tensors.items() if k.startswith("model.")})
        val_loss = trainer.validate()
        if world.rank == 0:
            print(f"done step {trainer.step} final_digest {digest} val_loss {val_loss}", flush=True)
            result = {} if val_loss is None else {"val_loss": val_loss}
            reporter.done(trainer.step, digest, **result)
    parallel.leave()
    return 0


def _settings(path: Path) -> Mapping[str, Any]:
    """The `trainer:` section, from a JSON or YAML file that holds it alone or among others."""
    text = path.read_text()
    try:
        settings = json.loads(text)
    except ValueError:
        settings = yaml.safe_load(text)
    if not isinstance(settings, Mapping):
        raise ValueError(f"{path}: expected a mapping of the trainer's settings")
    return settings.get("trainer", settings)


def _loop(trainer: Trainer, saver: Saver) -> bool:
    """Train to the end, or until asked to stop, with everything saved; returns whether it was stopped."""
    config, reporter = trainer.config, trainer.reporter
    stopped = False
    while trainer.step < config.steps and not stopped:
        wanted = trainer.train_step()
        stopped = bool(wanted & STOP)
        last = stopped or trainer.step == config.steps
        if wanted or last or (config.save_every and trainer.step % config.save_every == 0):
            with reporter.phase("save"):
                trainer.blocked_s += saver.save(trainer.step, trainer.state())
        reporter.acted(wanted)
        if config.validate_every and trainer.step % config.validate_every == 0 and not last:
            trainer.val_loss = trainer.validate()
    if saver.last_step is not None:
        with reporter.phase("save"):
            # A collective, but not during a save: this rank's is written, and the others wait here for theirs.
            written = torch.tensor(float(saver.wait(COMMIT_LIMIT_S)), device=trainer.world.device)
            dist.all_reduce(written, dist.ReduceOp.MIN)
            if written.item():
                saver.committer.wait(saver.last_step, COMMIT_LIMIT_S)
    return stopped


def _torchrun() -> int:
    """Without a launcher: settings from a file, checkpoints in `--out`, and torchrun's variables."""
    parser = argparse.ArgumentParser(prog="model.train", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--config", type=Path, required=True, help="YAML or JSON: the `trainer:` section of a RUN.yaml")
    parser.add_argument("--out", type=Path, required=True, help="folder of checkpoints; training resumes from there")
    arguments = parser.parse_args()
    paths = {"OPT_LAUNCH_TRAINER": str(arguments.config), "OPT_LAUNCH_CHECKPOINTS": str(arguments.out)}
    return main({**os.environ, **paths})


if __name__ == "__main__":
    sys.exit(_torchrun())
