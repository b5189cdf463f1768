"""The training loop. `main(env)` is one rank of an attempt; importing this module computes nothing.

    torchrun --nproc-per-node 4 -m model.train --config trainer.yaml --out runs/demo     (no launcher needed)

A resumed run goes on with the same bits as an undisturbed one: weights, moments, schedule, data position and dropout
are restored or are pure functions of the step.
"""

import argparse
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # torch imports these two before its first step; here, ranks forked of a warm process have them
import torch._inductor
import torch.distributed as dist
import yaml

from launcher.reporter import EXIT_CHECKPOINT_REJECTED, STOP, Reporter, connect
from model import checkpoint, parallel, resume
from model.checkpoint import CheckpointRejected
from model.config import TrainerConfig
from model.saver import Committer, Saver, ViaFiles, ViaReporter
from model.trainer import Trainer

COMMIT_LIMIT_S = 120.0  # for the last save to be written and committed, before the process ends without


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
    config = replace(config, skip=(*config.skip, *map(tuple, reporter.skips)))
    parallel.be_deterministic()
    world = parallel.join(config, env)
    root = Path(env["OPT_LAUNCH_CHECKPOINTS"])
    start = resume.find_start(env, root, attached=reporter.attached)
    tokens = (root.parent if reporter.attached else root) / "tokens"  # of a run, or where there is none beside it
    trainer = Trainer(config, world, reporter, tokens)
    if start.folder is None:
        parallel.initialise(trainer.model, config)
    else:
        state = resume.restore(start.folder, start.digest, trainer.tensors, trainer.identity(), world.device)
        trainer.go_to(state)
    trainer.begin()
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
