"""What the values of a RUN.yaml mean together: mistakes that would otherwise show hours later, in the queue.

Each check yields what is wrong and the keys it looked at, the one to point at first, so that nothing is
said about a value whose own mistake is already known.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Mapping, Sequence

from launcher import sizes
from launcher.access import why_not
from launcher.declared import Problem, foreign_problems
from launcher.launch_checks import launch_problems
from launcher.sections import BYTES, OPT_VOCABULARY, SIZES, RunSpec, Trainer

# Grammar whose deeds do not exist yet: the key, and the values that ask for nothing.
NOT_BUILT: dict[str, tuple[object, ...]] = {
    "trainer.checkpoint.memory": (None, False),
    "health.before_start": ("none",),
    "health.every": (None,),
    "on_good_checkpoint": (None, {}),
}


def problems(spec: RunSpec, environment: Mapping[str, str]) -> Iterator[Problem]:
    """Everything that is wrong with the values of a spec taken together, policies aside."""
    yield from _not_built(spec)
    yield from _what_is_trained(spec)
    yield from _cluster(spec)
    yield from launch_problems(spec, environment)
    yield from foreign_problems(spec)
    yield from _access(spec)
    if spec.trainer:
        yield from _batch(spec.trainer)
        yield from _checkpoints(spec.trainer)
        yield from _corpus(spec.trainer)
        yield from _tokenizer(spec.trainer)


def value_at(spec: object, key: str) -> object:
    """The value of a dotted key; None where a section on the way was not given."""
    for part in key.split("."):
        spec = getattr(spec, part, None)
    return spec


def _not_built(spec: RunSpec) -> Iterator[Problem]:
    for key, unasked in NOT_BUILT.items():
        value = value_at(spec, key)
        if value is None or value in unasked:
            continue
        choice = f": {value}" if isinstance(value, str) else ""
        yield f"'{key}{choice}' is not built yet", (key,)


def _what_is_trained(spec: RunSpec) -> Iterator[Problem]:
    if spec.trainer and spec.command:
        yield "'trainer' and 'command' exclude each other: write one of them", ("command", "trainer")
    if not spec.trainer and not spec.command:
        yield "nothing to train: 'trainer' or 'command' is missing", ("trainer", "command")


def _cluster(spec: RunSpec) -> Iterator[Problem]:
    cluster = spec.cluster
    if cluster.backend == "own" and cluster.continue_by == "chain":
        message = "'cluster.continue_by: chain' submits jobs ahead, and this one is your own: write requeue or none"
        yield message, ("cluster.continue_by",)
    if cluster.backend == "slurm" and cluster.slurm.time and cluster.slurm.time <= cluster.slurm.lead:
        message = (
            f"the job ends after {cluster.slurm.time:g} s and is to be saved {cluster.slurm.lead:g} s before: "
            "nothing would be trained"
        )
        yield message, ("cluster.slurm.time", "cluster.slurm.lead")
    least = cluster.min_nodes
    if least is not None and least > cluster.nodes:
        message = f"min_nodes is {least}, more than the {cluster.nodes} nodes of the run"
        yield message, ("cluster.min_nodes", "cluster.nodes")
    if spec.trainer is None:
        if least is not None and least < cluster.nodes and not spec.can.elastic:
            message = (
                f"whether the command can go on with fewer nodes than {cluster.nodes} is not known: if it and its "
                "checkpoints fit any WORLD_SIZE, say capabilities: {elastic: true}; else leave this out"
            )
            yield message, ("cluster.min_nodes", "cluster.nodes", "trainer", "capabilities.elastic")
        return
    fewer = sizes.asked(spec)
    if fewer and all(fewer.values()):
        told = "; ".join(f"{nodes}: {reason}" for nodes, reason in fewer.items())
        batch = ("trainer.batch_tokens", "trainer.seq_len", "trainer.micro_batch", "trainer.parallel")
        yield f"no number of nodes below {cluster.nodes} fits: {told}", ("cluster.min_nodes", "cluster.nodes", *batch)
    fsdp, tensor = spec.trainer.parallel.fsdp, spec.trainer.parallel.tensor
    ranks = cluster.nodes * cluster.ranks_per_node
    if fsdp * tensor != ranks:
        yield (
            f"fsdp {fsdp} x tensor {tensor} is {fsdp * tensor}, but nodes {cluster.nodes} x ranks_per_node "
            f"{cluster.ranks_per_node} is {ranks}",
            ("trainer.parallel", "cluster.nodes", "cluster.ranks_per_node"),
        )


def _batch(trainer: Trainer) -> Iterator[Problem]:
    fsdp, tensor = trainer.parallel.fsdp, trainer.parallel.tensor
    heads = SIZES[trainer.size].heads
    if heads % tensor:
        message = f"the {heads} heads of {trainer.size} cannot be divided among {tensor} tensor-parallel ranks"
        yield message, ("trainer.parallel.tensor", "trainer.size")
    share = trainer.seq_len * fsdp
    if trainer.batch_tokens % share:
        yield (
            f"batch_tokens {trainer.batch_tokens} is not a multiple of {share}, "
            f"one sequence of {trainer.seq_len} tokens for each of {fsdp} fsdp ranks",
            ("trainer.batch_tokens", "trainer.seq_len", "trainer.parallel.fsdp"),
        )
    elif trainer.micro_batch and (trainer.batch_tokens // share) % trainer.micro_batch:
        yield (
            f"micro_batch {trainer.micro_batch} does not divide the {trainer.batch_tokens // share} sequences "
            "a rank has in each step",
            ("trainer.micro_batch", "trainer.batch_tokens", "trainer.seq_len", "trainer.parallel.fsdp"),
        )


def _checkpoints(trainer: Trainer) -> Iterator[Problem]:
    checkpoint = trainer.checkpoint
    section = "trainer.checkpoint"
    if checkpoint.keep * checkpoint.every <= checkpoint.probation:
        yield (
            f"the {checkpoint.keep} newest checkpoints reach back {checkpoint.keep * checkpoint.every} steps: all are "
            f"removed before their probation of {checkpoint.probation} steps ends, and none is ever good",
            (f"{section}.probation", f"{section}.keep", f"{section}.every"),
        )
    if checkpoint.keep_every and checkpoint.keep_every % checkpoint.every:
        yield (
            f"keep_every {checkpoint.keep_every} is not a multiple of every {checkpoint.every}",
            (f"{section}.keep_every", f"{section}.every"),
        )


def _corpus(trainer: Trainer) -> Iterator[Problem]:
    missing = [
        (f"{item}: {reason}", (f"trainer.data.{index}",))
        for index, item in enumerate(trainer.data)
        if item != "python" and (reason := _why_no_corpus(item))
    ]
    yield from missing
    # Of the standard library there is always enough, and how many tokens JSON or a tokenizer make is not known yet.
    counted = trainer.tokenizer == BYTES and not any(item.endswith(".jsonl") for item in trainer.data)
    if not missing and counted and "python" not in trainer.data:
        yield from _length(trainer)


def _tokenizer(trainer: Trainer) -> Iterator[Problem]:
    if trainer.tokenizer == BYTES:
        return
    import tokenizers

    key = "trainer.tokenizer"
    if not trainer.tokenizer.endswith(".json"):
        yield f"{trainer.tokenizer} is neither 'bytes' nor the path of a tokenizer.json", (key,)
        return
    try:
        vocabulary = tokenizers.Tokenizer.from_file(trainer.tokenizer).get_vocab(with_added_tokens=True)
    except Exception as error:  # the library raises nothing else
        yield f"{trainer.tokenizer} is no tokenizer.json that can be read: {error}", (key,)
        return
    ids, known = max(vocabulary.values(), default=-1) + 1, trainer.vocabulary or OPT_VOCABULARY
    if ids > known:
        message = f"its {ids} token ids are more than the {known} of the model: set vocabulary to {-(-ids // 8) * 8}"
        yield message, (key, "trainer.vocabulary")


def _length(trainer: Trainer) -> Iterator[Problem]:
    lengths = corpus_lengths(trainer)
    kept = trained_on(lengths, trainer.held_out)
    tokens = sum(kept) + len(kept)  # a byte is a token, and each file ends with one more
    if tokens <= trainer.seq_len:
        yield (
            f"{sum(kept)} of {sum(lengths)} bytes are left to train on (held_out {trainer.held_out:g}): "
            f"too few for one sequence of {trainer.seq_len} tokens",
            ("trainer.data", "trainer.seq_len", "trainer.held_out"),
        )


def corpus_lengths(trainer: Trainer) -> list[int]:
    """The bytes of each file of the corpus, in the order of their paths; those of the standard library aside."""
    paths = {path for pattern in trainer.data for path in _files(pattern)}
    return [length for path in sorted(paths) if (length := os.path.getsize(path))]


def trained_on(lengths: Sequence[int], held_out: float) -> list[int]:
    """The bytes of each file that are trained on: every n-th file is held out, of a single one its last part."""
    if not held_out:
        return [*lengths]
    if len(lengths) == 1:
        return [round(lengths[0] * (1 - held_out))]
    every = min(len(lengths), round(1 / held_out))
    return [length for index, length in enumerate(lengths) if index % every != every - 1]


def _files(pattern: str) -> list[str]:
    return [path for path in glob.glob(pattern, recursive=True) if os.path.isfile(path)]


def _why_no_corpus(pattern: str) -> str:
    """Why a path or glob names nothing to train on; empty when it does."""
    if "\0" in pattern:
        return "no file can have this name"
    named = glob.glob(pattern, recursive=True)
    files = [path for path in named if os.path.isfile(path)]
    if not files and not named:
        return "no such file" if pattern == glob.escape(pattern) else "matches no file"
    if not files:
        return "is a folder: write FOLDER/** for the files in it"
    if locked := next((path for path in files if not os.access(path, os.R_OK)), None):
        return "may not be read: permission denied" if locked == pattern else f"{locked} may not be read"
    if not any(os.path.getsize(path) for path in files):
        return "the file is empty" if files == [pattern] else "all its files are empty"
    return ""


def _access(spec: RunSpec) -> Iterator[Problem]:
    access = spec.access
    if access.control and access.group is None:
        yield "'access.control' lets a group steer, and 'access.group' names none", ("access.control", "access.group")
    if access.group is not None and (reason := why_not(access.group)):
        yield reason, ("access.group",)
