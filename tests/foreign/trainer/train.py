"""A trainer like many: torchrun's variables, a line per so many steps, checkpoints of its own. No launcher in sight.

It has a `model`, a `launcher` and a `cli` of its own, and would not get far with anybody else's.
"""

import json
import os
import re
import signal
import sys
import time
from pathlib import Path

import cli
from launcher import Group
from model import Model

SAVE = 1


class Trainer:
    def __init__(self, args):
        self.args, self.out = args, Path(args.out)
        self.rank, self.ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        self.asked = 0
        self.model, self.done = Model(), 0
        self.load()
        self.group = Group(self.rank, self.ranks, os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]))
        if args.saves_on_signal:
            signal.signal(signal.SIGUSR1, self.ask)

    def ask(self, *_):
        self.asked = SAVE

    def load(self):
        folder = Path(self.args.load) if self.args.load else self.newest()
        if folder is None:
            return
        saved = json.loads((folder / "state.json").read_text())
        assert self.args.ckpt_step in (None, saved["done"]), "not the checkpoint that was asked for"
        self.model, self.done = Model(saved["state"]), saved["done"]
        print(f"loaded {folder}", flush=True)

    def newest(self):
        folders = [folder for folder in self.out.glob("ckpt-*") if self.args.newest]
        return max(folders, key=lambda folder: int(re.sub(r"\D", "", folder.name)), default=None)

    def save(self):
        folder = self.out / f"ckpt-{self.done}"
        if self.rank == 0:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "state.json").write_text(json.dumps({"done": self.done, "state": self.model.state}))
        self.group.reduce(0)
        if self.rank == 0:
            (folder / "DONE").touch()

    def is_due(self):
        every = self.args.save_every
        return every and self.done % every == 0 and self.done <= self.args.save_until

    def run(self):
        while self.done < self.args.steps:
            self.end_if_told()
            wanted = self.step()
            if wanted & SAVE or self.is_due():
                self.save()
        if self.rank == 0:
            (self.out / "final.json").write_text(json.dumps({"done": self.done, "state": self.model.state}))

    def step(self):
        args, step, began = self.args, self.done, time.monotonic()
        if step == args.quiet_at:
            time.sleep(args.quiet_s)
        if step == args.hang_at and self.rank == 1 and first_time(self.out / "has_hung"):
            time.sleep(1000)
        time.sleep(args.step_s)
        asked, self.asked = self.asked, 0
        total, wanted = self.group.reduce(Model.gradient(step, self.rank), asked)
        loss = self.model.step(step, total)
        self.done += 1
        if self.rank == 0 and step % args.log_every == 0:
            took = (time.monotonic() - began) * 1000
            print(f"iter {step}: loss {loss:.4f}, time {took:.2f}ms, mfu -100.00%", flush=True)
        return wanted

    def end_if_told(self):
        for place in filter(None, self.args.end_at.split(",")):
            step, code = map(int, place.split(":"))
            if step == self.done and first_time(self.out / f"ended_{step}.{self.rank}"):
                sys.exit(code)


def first_time(marker):
    if marker.exists():
        return False
    marker.touch()
    return True


if __name__ == "__main__":
    arguments = cli.arguments()
    Path(arguments.out).mkdir(exist_ok=True)
    Trainer(arguments).run()
