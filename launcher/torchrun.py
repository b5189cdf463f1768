"""The command line of `opt-launch run`: torchrun's flags, read as torchrun reads them, and ours.

Pure: nothing of this machine is looked at. What torchrun would do otherwise than we do is in `Asked.unused`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from launcher.errors import WrongUse

COMMAND = "opt-launch run"
KINDS_OF_RANKS = ("auto", "cpu", "gpu", "xpu")  # beside a number
_OUT, _ERR, _BOTH = 1, 2, 3  # what torchrun calls streams
_EVERY_RANK = -1

_MEETING = ("master-addr", "rdzv-endpoint", "rdzv-id", "rdzv-backend", "rdzv-conf", "master-port")
_UNUSED = (
    "monitor-interval", "start-method", "event-log-handler", "log-dir", "logs-specs", "numa-binding",
    "signals-to-handle", "shutdown-timeout", "duplicate-stdout-filters", "duplicate-stderr-filters",
)  # fmt: skip
_NOT_BUILT = ("run-path", "virtual-local-rank")  # they change what a script gets to see


@dataclass(frozen=True)
class Asked:
    """What a person asked for. `nodes`: the least and the most; `ranks`: of a node, a number or a kind."""

    command: tuple[str, ...]
    title: str  # of the script or module, for a name
    ranks: str = "1"
    nodes: tuple[int, int] | None = None
    node_rank: int | None = None
    first_host: str = ""
    local_address: str = ""
    meeting_id: str = ""
    role: str = "default"
    max_restarts: int | None = None
    redirects: Mapping[int, int] | None = None  # local rank -> streams; _EVERY_RANK for all
    tee: Mapping[int, int] | None = None
    shown_ranks: frozenset[int] = frozenset()  # empty: all
    meeting: tuple[str, ...] = ()  # flags given that say which node this is, and where they meet
    unused: tuple[str, ...] = ()  # flags given that change nothing
    name: str | None = None
    policy: tuple[str, ...] = ()
    changes: tuple[str, ...] = ()
    spares: int | None = None
    root: Path = Path("runs")
    config: Path | None = None

    @property
    def is_elastic(self) -> bool:
        """Whether --nnodes is a range: the script is fit for any number of nodes in it."""
        return self.nodes is not None and self.nodes[0] < self.nodes[1]

    def shown(self, ranks: int) -> dict[str, list[int]]:
        """The local ranks of a node whose "out" and "err" appear on the task's own."""
        return {
            name: [local for local in range(ranks) if self._is_shown(local, stream)]
            for name, stream in (("out", _OUT), ("err", _ERR))
        }

    def _is_shown(self, local: int, stream: int) -> bool:
        redirected = _streams_of(self.redirects, local) & stream and not _streams_of(self.tee, local) & stream
        return not redirected and (not self.shown_ranks or local in self.shown_ranks)


def _streams_of(asked: Mapping[int, int] | None, local: int) -> int:
    return (asked or {}).get(local, (asked or {}).get(_EVERY_RANK, 0))


def parse(arguments: Sequence[str], environment: Mapping[str, str], python: str) -> Asked:
    """What these arguments ask for. Raises WrongUse; SystemExit after --help.

    As with torchrun, a variable PET_NNODES stands for --nnodes where that is not given, and so on.
    """
    parser = _parser(environment)
    given = parser.parse_args([*arguments])
    for name in _NOT_BUILT:
        if getattr(given, name.replace("-", "_")):
            parser.error(f"--{name} is not built")
    if given.module and given.no_python:
        parser.error("--module and --no-python exclude each other")
    flags = [] if given.no_python else [environment.get("PYTHON_EXEC", python), "-u", *(["-m"] if given.module else [])]
    script = given.training_script
    zero = ("--max-restarts 0",) if given.max_restarts == 0 else ()
    return Asked(
        command=(*flags, script, *given.training_script_args),
        title=script.rpartition(".")[2] if given.module else Path(script).stem,
        ranks=given.nproc_per_node,
        nodes=(1, 1) if given.standalone else given.nnodes,
        node_rank=given.node_rank,
        first_host=_host(given.master_addr or given.rdzv_endpoint or ""),
        local_address=given.local_addr or "",
        meeting_id=given.rdzv_id or "",
        role=given.role or "default",
        max_restarts=given.max_restarts,
        redirects=given.redirects,
        tee=given.tee,
        shown_ranks=given.local_ranks_filter or frozenset(),
        meeting=_given(arguments, given.training_script_args, ("node-rank", *_MEETING)),
        unused=(*_given(arguments, given.training_script_args, _UNUSED), *zero),
        name=given.name,
        policy=tuple(given.policy or ()),
        changes=tuple(given.set or ()),
        spares=given.spares,
        root=given.root,
        config=given.config,
    )


class _Parser(argparse.ArgumentParser):
    """Its mistakes are told as all others are."""

    def error(self, message: str) -> NoReturn:
        raise WrongUse(message, COMMAND, f"{COMMAND} --help")


def _parser(environment: Mapping[str, str]) -> _Parser:
    parser = _Parser(
        prog=COMMAND,
        allow_abbrev=False,  # else a flag of the script may be taken for the beginning of one of these
        usage="%(prog)s [FLAGS] SCRIPT ARGUMENTS",
        description="Start a script as torchrun does, supervised: on this machine, or by srun as one task a node.",
        epilog="All other flags of torchrun are accepted; those that change nothing are told when the run starts.",
    )
    ours = parser.add_argument_group("ours")
    root = Path(environment.get("OPT_LAUNCH_ROOT", "runs"))
    ours.add_argument("--name", help="the run's name; else the script's with the job's id or the time")
    ours.add_argument("--spares", type=_count, metavar="K", help="so many of the nodes are kept in reserve")
    ours.add_argument("--policy", action="append", metavar="P", help="a shipped policy or a file; may be repeated")
    ours.add_argument("--set", action="append", metavar="KEY=VALUE", help="as in RUN.yaml: launch.first_step=30m")
    ours.add_argument("--config", type=Path, metavar="RUN.yaml", help="for its policy, launch, telemetry, ...")
    ours.add_argument("--root", type=Path, default=root, help="the folder of the runs")

    used = parser.add_argument_group("torchrun's")

    def add(name: str, kind: Callable[[str], Any], told: str, letter: str = "", default: str | None = None) -> None:
        default = environment.get(_variable(name), default)
        flags = [*([letter] if letter else []), *_spellings(name)]
        used.add_argument(*flags, type=kind, default=default, metavar="X", help=told)

    add("nnodes", _range, "N, or MIN:MAX for a script that goes on with fewer; in a Slurm job those of the step")
    add("nproc-per-node", _ranks, "a number, or auto, cpu, gpu, xpu", default="1")
    add("node-rank", _count, "without Slurm: which of the nodes this is")
    add("local-addr", str, "the address by which the other nodes reach this one")
    add("role", str, "for the script: ROLE_NAME")
    add("max-restarts", _count, "the policy's budget of restarts; after it the run is held")
    add("local-ranks-filter", _local_ranks, "only these are shown here: 0,1")
    add("redirects", _streams, "0 to 3, or 0:1,1:2: in the run's logs only, not here", "-r")
    add("tee", _streams, "in the run's logs and here: so it is anyway", "-t")
    add("master-addr", str, "without Slurm: the host of the first node; else not used")
    for name in (*_MEETING[1:], *_UNUSED):
        add(name, str, argparse.SUPPRESS)
    told = {
        "module": "SCRIPT is a module, as in python -m",
        "no-python": "SCRIPT is a program",
        "standalone": "one node",
    }
    for name in (*told, *_NOT_BUILT):
        flags = [*(["-m"] if name == "module" else []), *_spellings(name)]
        is_set = environment.get(_variable(name), "0") not in ("0", "")
        used.add_argument(*flags, action="store_true", default=is_set, help=told.get(name, argparse.SUPPRESS))
    parser.add_argument("training_script", metavar="SCRIPT")
    parser.add_argument("training_script_args", metavar="ARGUMENTS", nargs=argparse.REMAINDER)
    return parser


def _spellings(name: str) -> list[str]:
    return list(dict.fromkeys((f"--{name}", f"--{name.replace('-', '_')}")))


def _variable(name: str) -> str:
    return f"PET_{name.replace('-', '_').upper()}"


def _given(arguments: Sequence[str], of_script: Sequence[str], names: Sequence[str]) -> tuple[str, ...]:
    """Those of the flags that stand on the command line; of the environment nobody expects an answer."""
    before = arguments[: len(arguments) - len(of_script) - 1]
    written = {word.partition("=")[0].replace("_", "-") for word in before}
    return tuple(flag for name in names if (flag := f"--{name}") in written)


# ---------------------------------------------------------------- values


def _host(address: str) -> str:
    """Without the port; an IPv6 address with a port stands in brackets."""
    if address.startswith("["):
        return address[1:].partition("]")[0]
    return address if address.count(":") > 1 else address.partition(":")[0]


def _count(text: str) -> int:
    if not text.isascii() or not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0")
    return int(text)


def _range(text: str) -> tuple[int, int]:
    least, _, most = text.partition(":")
    try:
        found = _count(least), _count(most or least)
    except argparse.ArgumentTypeError:
        found = 0, 0
    if not 0 < found[0] <= found[1]:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number of nodes nor MIN:MAX")
    return found


def _ranks(text: str) -> str:
    if text not in KINDS_OF_RANKS and not (text.isdigit() and int(text)):
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number of ranks nor {', '.join(KINDS_OF_RANKS)}")
    return text


def _local_ranks(text: str) -> frozenset[int]:
    return frozenset(map(_count, text.split(","))) if text else frozenset()


def _streams(text: str) -> dict[int, int]:
    """Streams (0 none, 1 out, 2 err, 3 both) of all local ranks, or of each: 0:3,1:1."""
    found: dict[int, int] = {}
    for part in text.split(","):
        local, colon, stream = part.rpartition(":")
        if stream not in ("0", "1", "2", "3") or (colon and not local.isdigit()) or (not colon and "," in text):
            raise argparse.ArgumentTypeError(f"{text!r} is neither 0, 1, 2 or 3 nor such as 0:1,1:3")
        found[int(local) if colon else _EVERY_RANK] = int(stream)
    return found
