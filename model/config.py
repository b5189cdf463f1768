"""What to train: the table of model sizes and the settings of one training run. No torch in here."""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, fields, replace
from typing import Any, NamedTuple

BYTES = "bytes"
BYTES_VOCABULARY = 264  # 256 of them and the end-of-document token, padded to a multiple of 8
OPT_VOCABULARY = 50272  # of the published models: GPT-2's tokens and OPT's own, padded to a multiple of 8
DTYPES = ("fp32", "bf16", "fp16")
# Of the checkpoint section only `every` is the trainer's; what is kept, and for how long, is the launcher's business.
CHECKPOINT_KEYS = {"every", "keep", "keep_every", "probation"}
PARALLEL_KEYS = {"fsdp", "tensor"}
LOSS_SCALE_KEYS = {"init", "window", "min"}
MICRO_BATCH_TOKENS = 16384  # a derived micro-batch is no larger than this, in tokens per rank


class Size(NamedTuple):
    """The shape of one model. The feed-forward width is always four times `d_model`."""

    layers: int
    d_model: int
    heads: int


# `tiny` is for tests, `8m` and `760m` are metaseq's, the others table 1 of the OPT paper (arXiv 2205.01068).
SIZES = {
    "tiny": Size(2, 64, 2),
    "8m": Size(4, 128, 2),
    "125m": Size(12, 768, 12),
    "350m": Size(24, 1024, 16),
    "760m": Size(24, 1536, 16),
    "1.3b": Size(24, 2048, 32),
    "2.7b": Size(32, 2560, 32),
    "6.7b": Size(32, 4096, 32),
    "13b": Size(40, 5120, 40),
    "30b": Size(48, 7168, 56),
    "66b": Size(64, 9216, 72),
    "175b": Size(96, 12288, 96),
}


@dataclass(frozen=True)
class TrainerConfig:
    """The settings of one training run. Constants without a comment are those of the OPT paper, section 2."""

    size: str
    steps: int
    batch_tokens: int  # of all ranks together, per step
    seq_len: int
    lr: float  # peak

    data: tuple[str, ...] = ("python",)  # text or .jsonl files, or globs; "python" is Python's own standard library
    text_key: str = "text"  # where the text is in a line of a .jsonl file
    tokenizer: str = BYTES  # or the path of a tokenizer.json
    vocabulary: int = 0  # token ids of the model; 0: as many as bytes need, or OPT's
    held_out: float = 0.05  # fraction of the files kept for validation
    micro_batch: int = 0  # sequences per data-parallel rank and micro-batch; 0: derived
    warmup_tokens: int = 0  # 0: 375e6 as in the paper, but at most a twentieth of the run
    end_lr_ratio: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.1
    clip: float = 1.0
    dropout: float = 0.1
    attention_dropout: float = 0.1
    seed: int = 1
    dtype: str = "fp32"  # of the computation; weights and moments are fp32 always
    loss_scale_init: float = 4.0  # with fp16; these three are metaseq's
    loss_scale_window: int = 256  # steps
    loss_scale_min: float = 2**-5
    layer_norms: int = 0  # steps between reports of the gradient norm of each layer; 0: never
    checksum_every: int = 100  # steps between checksums of what ranks must hold in common; 0: never
    fsdp: int = 1
    tensor: int = 1
    save_every: int = 0  # steps; 0: only at the end
    validate_every: int = 0  # steps; 0: only at the end
    validate_sequences: int = 64
    skip: tuple[tuple[int, int], ...] = ()  # absolute sample ranges, half-open, never trained on

    def __post_init__(self) -> None:
        problems = list(_problems(self))
        if problems:
            raise ValueError("the trainer's settings: " + "; ".join(problems))

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any]) -> "TrainerConfig":
        """The settings from the nested `trainer:` section of a RUN.yaml.

        Raises ValueError that names every unknown key, missing key and bad value at once.
        """
        flat, problems = _flatten(mapping)
        known = {field.name: field for field in fields(cls)}
        problems += [f"unknown key {key!r}" for key in flat if key not in known]
        values: dict[str, Any] = {}
        for name, field in known.items():
            if name not in flat:
                if field.default is MISSING:
                    problems.append(f"{name!r} is missing")
                continue
            try:
                values[name] = _READERS[name](flat[name])
            except (ValueError, TypeError) as error:
                problems.append(f"{name}: {error}")
        complete = all(name in values or field.default is not MISSING for name, field in known.items())
        if complete:
            draft = object.__new__(cls)  # not constructed: its problems are to be listed with the others
            for name, field in known.items():
                object.__setattr__(draft, name, values.get(name, field.default))
            problems += _problems(draft)
        if problems:
            raise ValueError("the trainer's settings: " + "; ".join(problems))
        return cls(**values)

    def for_ranks(self, ranks: int) -> "TrainerConfig":
        """The same training, its global batch included, on so many ranks: `fsdp` follows, `tensor` stays.

        Raises ValueError where the model or the batch cannot be divided like that.
        """
        fsdp, rest = divmod(ranks, self.tensor)
        if rest:
            raise ValueError(f"{ranks} ranks were started, no multiple of parallel.tensor = {self.tensor}")
        return replace(self, fsdp=fsdp)

    @property
    def shape(self) -> Size:
        """Layers, width and heads of the model."""
        return SIZES[self.size]

    @property
    def token_ids(self) -> int:
        """Number of token ids that the model knows, a multiple of 8."""
        return self.vocabulary or (BYTES_VOCABULARY if self.tokenizer == BYTES else OPT_VOCABULARY)

    @property
    def batch_sequences(self) -> int:
        """Sequences per step, of all ranks together."""
        return self.batch_tokens // self.seq_len

    @property
    def micro_sequences(self) -> int:
        """Sequences per data-parallel rank and micro-batch."""
        per_rank = self.batch_sequences // self.fsdp
        most = max(1, MICRO_BATCH_TOKENS // self.seq_len)
        return self.micro_batch or max(n for n in range(1, per_rank + 1) if per_rank % n == 0 and n <= most)

    @property
    def micro_batches(self) -> int:
        """Micro-batches per step over which gradients are accumulated."""
        return self.batch_sequences // self.fsdp // self.micro_sequences

    @property
    def total_tokens(self) -> int:
        """Tokens of the whole run: where the decay of the learning rate ends."""
        return self.steps * self.batch_tokens

    @property
    def ramp_tokens(self) -> int:
        """Tokens after which the learning rate has reached its peak."""
        return self.warmup_tokens or min(375_000_000, self.total_tokens // 20)


# Sections of the `trainer:` section -> (their keys, what their keys are called here).
_SECTIONS: dict[str, tuple[set[str], dict[str, str]]] = {
    "parallel": (PARALLEL_KEYS, {key: key for key in PARALLEL_KEYS}),
    "checkpoint": (CHECKPOINT_KEYS, {"every": "save_every"}),
    "loss_scale": (LOSS_SCALE_KEYS, {key: f"loss_scale_{key}" for key in LOSS_SCALE_KEYS}),
}


def _flatten(mapping: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The keys of the sections brought to the top level, and what is wrong with them."""
    flat = {key: value for key, value in mapping.items() if key not in _SECTIONS}
    problems = []
    for name, (allowed, names) in _SECTIONS.items():
        section = mapping.get(name) or {}
        if not isinstance(section, Mapping):
            problems.append(f"{name}: expected a section with the keys {sorted(allowed)}, not {section!r}")
            continue
        problems += [f"unknown key '{name}.{key}'" for key in section if key not in allowed]
        flat |= {names[key]: value for key, value in section.items() if key in names}
    return flat, problems


_MORE_THAN_0 = (
    *("steps", "batch_tokens", "seq_len", "fsdp", "tensor", "validate_sequences", "lr", "clip", "eps"),
    *("loss_scale_init", "loss_scale_window", "loss_scale_min"),
)
_NOT_NEGATIVE = (
    *("micro_batch", "warmup_tokens", "save_every", "validate_every", "weight_decay", "seed"),
    *("vocabulary", "layer_norms", "checksum_every"),
)


def _problems(config: TrainerConfig) -> list[str]:
    """What is wrong with these settings, in words; empty when nothing is."""
    c, found = config, []
    for name, value, table in (("size", c.size, SIZES), ("dtype", c.dtype, DTYPES)):
        if value not in table:
            found.append(f"{name}: {value!r} is none of {', '.join(table)}")
    if not c.data:
        found.append("data: name at least one file, glob, or the word 'python'")
    if c.tokenizer != BYTES and not c.tokenizer.endswith(".json"):
        found.append(f"tokenizer: {c.tokenizer!r} is neither 'bytes' nor the path of a tokenizer.json")
    if c.vocabulary % 8 or 0 < c.vocabulary < BYTES_VOCABULARY:
        found.append(f"vocabulary: {c.vocabulary} must be a multiple of 8, and at least {BYTES_VOCABULARY}")
    for name in _MORE_THAN_0:
        if not getattr(c, name) > 0:
            found.append(f"{name}: {getattr(c, name)} must be more than 0")
    for name in _NOT_NEGATIVE:
        if not getattr(c, name) >= 0:
            found.append(f"{name}: {getattr(c, name)} must not be negative")
    for name in ("held_out", "dropout", "attention_dropout"):
        if not 0 <= getattr(c, name) < 1:
            found.append(f"{name}: {getattr(c, name)} must be at least 0 and below 1")
    if not all(0 <= beta < 1 for beta in c.betas):
        found.append(f"betas: {list(c.betas)} must be at least 0 and below 1")
    if not 0 <= c.end_lr_ratio <= 1:
        found.append(f"end_lr_ratio: {c.end_lr_ratio} must be between 0 and 1")
    found += [f"skip: {list(span)} is no range [first, last + 1]" for span in c.skip if not 0 <= span[0] < span[1]]
    if min(c.batch_tokens, c.seq_len, c.fsdp, c.tensor) > 0:
        found += _fit_problems(c)
    return found


def _fit_problems(c: TrainerConfig) -> list[str]:
    """Numbers that are fine alone and do not fit each other."""
    found = []
    if c.batch_tokens % (c.seq_len * c.fsdp):
        found.append(
            f"batch_tokens: {c.batch_tokens} must be a multiple of seq_len x parallel.fsdp = {c.seq_len} x {c.fsdp}"
        )
    elif c.micro_batch > 0 and (c.batch_sequences // c.fsdp) % c.micro_batch:
        found.append(f"micro_batch: {c.micro_batch} must divide the {c.batch_sequences // c.fsdp} sequences of a rank")
    if c.size in SIZES and SIZES[c.size].heads % c.tensor:
        found.append(f"parallel.tensor: {c.tensor} must divide the {SIZES[c.size].heads} attention heads of {c.size}")
    return found


def _integer(value: Any) -> int:
    if isinstance(value, bool) or float(value) != int(float(value)):
        raise ValueError(f"{value!r} is no whole number")
    return int(float(value)) if not isinstance(value, int) else value


def _number(value: Any) -> float:
    # Strings too: YAML reads 6e-4, without a point, as a word.
    number = float(value)
    if isinstance(value, bool) or not math.isfinite(number):
        raise ValueError(f"{value!r} is no finite number")
    return number


def _steps(value: Any) -> int:
    written = re.fullmatch(r"\s*(\d+)\s*steps?\s*", value) if isinstance(value, str) else None
    return int(written[1]) if written else _integer(value)


def _word(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is no word")
    return value


def _words(value: Any) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(_word(word) for word in value)


def _pair(value: Any) -> tuple[float, float]:
    first, second = value
    return _number(first), _number(second)


def _ranges(value: Any) -> tuple[tuple[int, int], ...]:
    return tuple((_integer(first), _integer(end)) for first, end in value)


_BY_TYPE: dict[Any, Callable[[Any], Any]] = {
    int: _integer,
    float: _number,
    str: _word,
    tuple[str, ...]: _words,
    tuple[float, float]: _pair,
    tuple[tuple[int, int], ...]: _ranges,
}
_READERS = {field.name: _BY_TYPE[field.type] for field in fields(TrainerConfig)}
_READERS |= dict.fromkeys(
    ("save_every", "validate_every", "layer_norms", "checksum_every", "loss_scale_window"), _steps
)
