"""What the benchmarks do to runs: a file with garbage where a run will read it, and a bit that flips in a process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from injections import WEIGHT, flip_a_bit, poisoned

from model.data import Corpus, Document, sequence_of, split

BATCH, SEQ_LEN, SEED = 4, 16, 7
HOLDER = """
import sys, torch
weight = torch.load(sys.argv[1])
moved = weight + 1e-3
print("ready", flush=True)
sys.stdin.readline()
print(moved[0].item(), moved[1].item(), weight[0].item())
"""


def test_poison_is_in_the_sequences_of_its_steps_and_nowhere_else() -> None:
    text = bytes(range(32, 127)) * 40
    spoiled = poisoned(text, range(3, 5), batch=BATCH, seq_len=SEQ_LEN, seed=SEED)
    train, _ = split([Document("", 0, len(text))], 0.05)
    sequences = Corpus(train, SEQ_LEN).sequences
    differ = {at // SEQ_LEN for at in range(len(text)) if text[at] != spoiled[at]}
    assert differ == {sequence_of(sample, sequences, SEED) for sample in range(3 * BATCH, 5 * BATCH)}
    assert len(spoiled) == len(text)


def test_a_bit_flips_in_the_weight_of_a_process_and_not_in_the_copy_of_its_checkpoint(tmp_path: Path) -> None:
    weight = 1 + 0.01 * torch.randn(64, generator=torch.Generator().manual_seed(1))
    dcp.save({WEIGHT: weight}, checkpoint_id=tmp_path / "checkpoint", no_dist=True)
    torch.save(weight, tmp_path / "weight.pt")
    command = [sys.executable, "-c", HOLDER, str(tmp_path / "weight.pt")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdin
        assert holder.stdout
        assert holder.stdout.readline() == "ready\n"
        try:
            found = flip_a_bit(holder.pid, tmp_path / "checkpoint")
        except PermissionError as error:
            holder.kill()
            pytest.skip(f"this machine lets nobody write into the memory of another process: {error}")
        told = holder.communicate("go on\n")[0].split()
    assert found >= 1
    assert not 0.9 < float(told[0]) < 1.1
    assert float(told[1]) == pytest.approx(weight[1].item() + 1e-3)
    assert float(told[2]) == weight[0].item()
