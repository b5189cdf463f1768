"""The grammar of RUN.yaml: one frozen model for each of its sections.

Shape only: what a value may be by itself. What several values mean together is checked in `preflight`.
Durations are seconds and spans are steps once they are read.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, Strict, model_validator

from launcher.abilities import SETTINGS, Abilities
from launcher.foreign import Capabilities, CheckpointFiles, Telemetry, abilities_of
from launcher.grammar import LIMIT, Positive, Section, StepCount, Texts
from policies.units import Bytes, Duration, Steps

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")  # safe as the name of a folder, a job and a file
VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def _a_name(text: str) -> str:
    if not NAME.fullmatch(text):
        raise ValueError(
            f"{text[:80]!r} cannot be a name: at most 64 letters, digits, '.', '_' and '-', the first a letter or digit"
        )
    return text


def _a_variable(text: str) -> str:
    if not VARIABLE.fullmatch(text):
        raise ValueError(f"{text[:80]!r} cannot be the name of an environment variable")
    return text


Name = Annotated[str, AfterValidator(_a_name)]
Variable = Annotated[str, AfterValidator(_a_variable)]
Size = Literal["tiny", "8m", "125m", "350m", "760m", "1.3b", "2.7b", "6.7b", "13b", "30b", "66b", "175b"]
ONE_LINE = r"^[^\n\r]+$"
Word = Annotated[str, Field(pattern=ONE_LINE)]
Fraction = Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)]


@dataclass(frozen=True)
class SizeDefaults:
    """What a model size implies unless RUN.yaml says otherwise."""

    heads: int
    batch_tokens: int
    lr: float
    seq_len: int = 2048


# Heads, batch and learning rate as trained by the OPT paper (arXiv:2205.01068, table 1), whose 0.5M are
# 2^19 tokens; tiny, 8m and 760m are not in it and follow metaseq's launcher.
SIZES: dict[str, SizeDefaults] = {
    "tiny": SizeDefaults(2, 8192, 6.0e-4, seq_len=128),
    "8m": SizeDefaults(2, 2**17, 1.0e-3),
    "125m": SizeDefaults(12, 2**19, 6.0e-4),
    "350m": SizeDefaults(16, 2**19, 3.0e-4),
    "760m": SizeDefaults(16, 2**19, 2.5e-4),
    "1.3b": SizeDefaults(32, 2**20, 2.0e-4),
    "2.7b": SizeDefaults(32, 2**20, 1.6e-4),
    "6.7b": SizeDefaults(32, 2**21, 1.2e-4),
    "13b": SizeDefaults(40, 2**22, 1.0e-4),
    "30b": SizeDefaults(56, 2**22, 1.0e-4),
    "66b": SizeDefaults(72, 2**21, 0.8e-4),
    "175b": SizeDefaults(96, 2**21, 1.2e-4),
}


BYTES = "bytes"
OPT_VOCABULARY = 50272  # token ids of the published models


class Parallel(Section):
    """How the ranks share the model: their product is the number of ranks."""

    fsdp: Positive = 1
    tensor: Positive = 1


class Checkpoint(Section):
    """When checkpoints are written, how many are kept, and when one counts as good."""

    every: StepCount = 100
    keep: Positive = 5
    keep_every: StepCount | None = None
    probation: Annotated[Steps, Field(ge=0, lt=LIMIT)] = 20
    memory: Annotated[Any, Field(exclude=True)] = None  # known, and refused until it is built


class LossScale(Section):
    """Of fp16: the first scale of the loss, after how many clean steps it is doubled, and its floor; metaseq's."""

    init: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 4.0
    window: StepCount = 256
    min: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 2**-5


class Trainer(Section):
    """Our own trainer. `data`: text or .jsonl files or globs, or the word python for the standard library's sources.

    `tokenizer`: bytes, or the path of a tokenizer.json. `batch_tokens` is the global batch; `micro_batch` sequences go
    through a rank at once.
    """

    size: Size
    data: Annotated[Texts, Field(min_length=1)] = ("python",)
    text_key: Annotated[str, Field(min_length=1)] = "text"
    tokenizer: Annotated[str, Field(min_length=1)] = BYTES
    vocabulary: Annotated[int, Field(ge=264, multiple_of=8, lt=LIMIT)] | None = None
    held_out: Fraction = 0.05
    steps: StepCount
    batch_tokens: Positive
    seq_len: Positive
    micro_batch: Positive | None = None
    lr: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    warmup_tokens: Annotated[int, Field(ge=0, lt=LIMIT)] = 0
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.1
    clip: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    dropout: Fraction = 0.1
    attention_dropout: Fraction = 0.1
    seed: Annotated[int, Field(ge=0, lt=LIMIT)] = 1
    dtype: Literal["fp32", "bf16", "fp16"] = "fp32"
    loss_scale: LossScale = LossScale()
    layer_norms: Annotated[Steps, Field(ge=0, lt=LIMIT)] = 0
    checksum_every: Annotated[Steps, Field(ge=0, lt=LIMIT)] = 100
    parallel: Parallel = Parallel()
    validate_every: Annotated[Steps, Field(ge=0, lt=LIMIT)] = 0
    checkpoint: Checkpoint = Checkpoint()

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_the_size(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        size = SIZES.get(str(values.get("size")), SIZES["tiny"])
        return {"batch_tokens": size.batch_tokens, "seq_len": size.seq_len, "lr": size.lr} | values


class Local(Section):
    """The local backend: virtual nodes as processes. A dead agent is started again after `return_after`."""

    return_after: Annotated[Duration, Field(ge=0)] = 10.0


class Slurm(Section):
    """What the job asks of Slurm; what is not said is left to the site.

    `lead`: the run is saved so long before the limit. `chain`: jobs that are submitted ahead with continue_by: chain.
    `drain`: nodes that are left out for what looks like hardware are drained, where Slurm lets us.
    """

    partition: Word | None = None
    account: Word | None = None
    qos: Word | None = None
    constraint: Word | None = None
    reservation: Word | None = None
    nodelist: Word | None = None
    exclude: Word | None = None
    comment: Word | None = None
    wckey: Word | None = None
    time: Annotated[Duration, Field(gt=0)] | None = None
    gpus_per_node: Annotated[int, Field(ge=0)] | None = None
    cpus_per_task: Positive | None = None
    mem: Word | None = None
    exclusive: bool = False
    python: Word | None = None
    lead: Annotated[Duration, Field(gt=0)] = 120.0
    chain: Annotated[int, Field(ge=1, le=20)] = 2
    drain: bool = False
    extra: dict[Word, Annotated[str, Field(pattern=ONE_LINE)] | int | bool] = Field(default_factory=dict)


class Cluster(Section):
    """Where the ranks run. `silence`: an agent not heard for so long makes its node suspect (2s locally, else 10s).

    `unsupervised`: agents that cannot have a supervisor for so long end their ranks and give the allocation back.
    """

    backend: Literal["local", "slurm", "own"] = "local"
    nodes: Positive = 1
    ranks_per_node: Positive = 1
    spares: Annotated[int, Field(ge=0, lt=LIMIT)] = 0
    min_nodes: Positive | None = None
    wait_for_node: Annotated[Duration, Field(ge=0)] = 120.0
    silence: Annotated[Duration, Field(gt=0)]
    unsupervised: Annotated[Duration, Field(gt=0)] = 600.0
    continue_by: Literal["requeue", "chain", "none"] = "requeue"
    local: Local = Local()
    slurm: Slurm = Slurm()

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_the_backend(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        return {"silence": "10s" if values.get("backend") == "slurm" else "2s"} | values


class Network(Section):
    """The interface over which agents and ranks talk; auto is the one by which they reach each other."""

    interface: Annotated[str, Field(min_length=1, max_length=15)] = "auto"


LEDGER = "~/.opt-launch/hosts"  # the host ledger, unless another is named
FROM_ENV = "from-env"  # the value of a variable in `launch.env` that is taken from the submitter's environment
# What {NAME} stands for in `launch.prefix` when it is used on a node.
PLACES: dict[str, str] = {
    "run": "the run folder",
    "scratch": "a folder of the node, with the sockets and pages of its ranks",
    "launcher": "the folder of the two files of ours that ranks load",
    "cwd": "the folder in which the run was submitted",
    "node": "the name of the node",
}


class Launch(Section):
    """How a rank is started. `threads` becomes OMP_NUM_THREADS; `first_step` is how long the first may take.

    `prefix` wraps the ranks, and `python` is theirs: unset, that of the agent, or python3 behind a prefix. `code`: a
    copy of the user's code, taken when the run is submitted, or the code as it is; auto copies where that is possible.
    `log_limit`: bytes that are kept of what the ranks of a node print.
    """

    prefix: Texts = ()
    python: Annotated[str, Field(min_length=1)] | None = None
    setup: Texts = ()
    env: dict[Variable, str] = Field(default_factory=dict)
    code: Literal["auto", "snapshot", "in_place"] = "auto"
    bind: Literal["auto", "none", "cores"] = "auto"
    network: Network = Network()
    mode: Literal["per_rank", "per_node"] = "per_rank"
    threads: Positive = 1
    first_step: Annotated[Duration, Field(gt=0)] = 1800.0
    log_limit: Annotated[Bytes, Field(ge=10**6)] = 512 * 10**6


class OwnCheck(Section):
    """A check of the site's own: a program and its arguments, started without a shell on each node.

    With `nagios` it speaks as plugins of Nagios do: 0 ok, 1 warn, 2 fail, 3 unknown; else 0 is ok and all else a fault.
    `tier`: fast ones also run while ranks train. Who takes longer than `timeout` is ended, and nothing is known then.
    """

    name: Name
    command: Annotated[Texts, Field(min_length=1)]
    nagios: bool = False
    tier: Literal["fast", "standard"] = "standard"
    timeout: Annotated[Duration, Field(gt=0, le=60)] = 10.0


class Health(Section):
    """Which checks of nodes run before a start, and how often fast ones do from then on; `checks` are the site's own.

    `burn_in`: how often nodes that have no ranks, spares above all, compute for some seconds what can be compared.
    Virtual nodes are one machine, and are examined only if that is asked for.
    """

    before_start: Literal["none", "fast", "standard", "deep"] = "standard"
    every: Annotated[Duration, Field(ge=1)] | None = 60.0
    burn_in: Annotated[Duration, Field(ge=60)] | None = 1800.0
    checks: Annotated[tuple[OwnCheck, ...], Strict(False)] = ()


class Hosts(Section):
    """What runs remember of hosts together. `ledger`: a folder that all who share hosts may write."""

    ledger: Annotated[str, Field(min_length=1)] = Field(default_factory=lambda: os.path.expanduser(LEDGER))


class Access(Section):
    """Who else may see the run (`group`) and steer it (`control`)."""

    group: str | None = None
    control: bool = False


class RunSpec(Section):
    """A run as asked for: what is trained, where, how it is started, and what is done when it fails."""

    name: Name
    trainer: Trainer | None = None
    command: Annotated[Texts, Field(min_length=1)] | None = None
    cluster: Cluster = Field(default_factory=lambda: Cluster.model_validate({}))
    launch: Launch = Launch()
    policy: Annotated[Texts, Field(min_length=1)] = ("default",)
    health: Health = Health()
    hosts: Hosts = Field(default_factory=Hosts)
    access: Access = Access()
    notify: dict[Name, Annotated[str, Field(min_length=1)]] = Field(default_factory=dict)
    checkpoints: CheckpointFiles | None = None
    telemetry: Telemetry | None = None
    capabilities: Capabilities | None = None
    on_good_checkpoint: dict[str, Any] | None = None

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_the_backend(cls, values: Any) -> Any:
        """Virtual nodes are examined only if that is asked for."""
        if not isinstance(values, dict):
            return values
        cluster, health = values.get("cluster"), values.get("health", {})
        backend = cluster.get("backend", "local") if isinstance(cluster, dict) else "local"
        if backend != "local" or not isinstance(health, dict):
            return values
        return values | {"health": {"before_start": "none", "every": None, "burn_in": None} | health}

    @property
    def starts_per_node(self) -> int:
        """Processes that are started on a node: one for each of its ranks, or one that starts those itself."""
        return 1 if self.launch.mode == "per_node" else self.cluster.ranks_per_node

    @property
    def world_size(self) -> int:
        """Processes of an attempt."""
        return self.cluster.nodes * self.starts_per_node

    @property
    def can(self) -> Capabilities:
        """What the command says it can do."""
        return self.capabilities or Capabilities()

    @property
    def abilities(self) -> Abilities:
        """What the trainer can do."""
        if self.trainer is None:
            return abilities_of(self.telemetry, self.can, self.checkpoints)
        scales = self.trainer.dtype == "fp16"
        return Abilities(settings=SETTINGS if scales else SETTINGS - {"loss_scale"})
