"""What the ranks of a node run, with which Python, through which prefix, and in which environment."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from launcher import warm
from launcher.code.record import Code, code_of_ranks, original_folder
from launcher.network import addresses, interface_of
from launcher.paths import RunPaths
from launcher.sections import PLACES, RunSpec
from launcher.telemetry import Patterns, Speaker
from launcher.variables import read_variables, wanted

_SEARCH_PATH = "PYTHONPATH"
_PLACE = re.compile(r"\{(" + "|".join(PLACES) + r")\}")


@dataclass(frozen=True)
class Program:
    """What a rank runs: a target of modules imported beforehand, or a command; and where.

    `speaker`: the rank whose output tells of the steps, and what to look for in it. `starts_ranks`: how many ranks the
    node's only process starts itself; 0 when each is one of ours. `python`, started through `prefix`, is the warm
    process and so the ranks' own; one that is not ready within `start_limit_s` is started anew. `log_limit`: bytes that
    are kept of what is printed on the node. `problem`: why no rank
    can be started on this node, "" when one can.
    """

    modules: tuple[str, ...]
    target: str
    command: tuple[str, ...]
    cwd: str
    env: Mapping[str, str]
    threads: int
    starts_ranks: int = 0
    python: str = sys.executable
    prefix: tuple[str, ...] = ()
    speaker: tuple[Speaker, Patterns] | None = None
    start_limit_s: float = 1800.0
    log_limit: int = 512 * 10**6
    problem: str = ""


def program_of(spec: RunSpec, paths: RunPaths, node: str, scratch: Path, host: str) -> Program:
    """What the ranks of this spec run on this node, whose agent is reached at `host`."""
    launch, trains, told = spec.launch, spec.trainer is not None, spec.telemetry
    code = code_of_ranks(paths)
    places = {
        "run": str(paths.root),
        "scratch": str(scratch),
        "launcher": str(Path(warm.__file__).parent),
        "cwd": str(original_folder(paths)),
        "node": node,
    }
    return Program(
        modules=("model.train",) if trains else (),
        target="model.train:main" if trains else "",
        command=() if trains else _command(spec, paths, code),
        cwd=str(code.working_folder(paths) if code else Path.cwd()),
        env={**defaults(spec, scratch, host), **_placed(paths, code, _asked(spec, paths))},
        threads=launch.threads,
        starts_ranks=spec.cluster.ranks_per_node if launch.mode == "per_node" else 0,
        python=launch.python or ("python3" if launch.prefix else sys.executable),
        speaker=(told.speaker, told.patterns(spec.abilities.done_step)) if told and told.by_lines else None,
        prefix=tuple(_PLACE.sub(lambda match: places[match[1]], item) for item in launch.prefix),
        start_limit_s=launch.first_step,
        log_limit=launch.log_limit,
        problem=_network_problem(launch.network.interface, host),
    )


def _command(spec: RunSpec, paths: RunPaths, code: Code | None) -> tuple[str, ...]:
    words = spec.command or ()
    return tuple(code.mapped(paths, word) for word in words) if code else tuple(words)


def _placed(paths: RunPaths, code: Code | None, asked: Mapping[str, str]) -> dict[str, str]:
    """The variables, with those that name the working folder or folders of modules fit for a copy of the code."""
    if code is None or code.mode != "snapshot":
        return {**asked}
    search_path = {**os.environ, **asked}.get(_SEARCH_PATH)
    modules = {_SEARCH_PATH: code.mapped_folders(paths, search_path)} if search_path else {}
    return {"PWD": str(code.working_folder(paths)), **asked, **modules}


def defaults(spec: RunSpec, scratch: Path, host: str) -> dict[str, str]:
    """What is set for ranks unless RUN.yaml or the environment says otherwise.

    Ranks talk over the interface by which the agents reach each other. What compilers keep stays on the node, from
    one attempt to the next.
    """
    caches = {
        "TORCHINDUCTOR_CACHE_DIR": str(scratch / "cache" / "inductor"),
        "TRITON_CACHE_DIR": str(scratch / "cache" / "triton"),
    }
    interface = interface_of(host)
    network = dict.fromkeys(("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"), interface) if interface else {}
    unset = {name: value for name, value in {**caches, **network}.items() if name not in os.environ}
    return unset if spec.launch.network.interface == "auto" else unset | network


def for_ours(env: Mapping[str, str]) -> dict[str, str]:
    """Variables of ranks, as far as they suit a program of ours: where theirs find modules is not where ours does."""
    return {**os.environ, **{name: value for name, value in env.items() if not name.startswith("PYTHON")}}


def _asked(spec: RunSpec, paths: RunPaths) -> dict[str, str]:
    """The variables of `launch.env`."""
    taken, names = read_variables(paths), wanted(spec)
    written = {name: value for name, value in spec.launch.env.items() if name not in names}
    return {**written, **{name: taken[name] for name in names if name in taken}}


def _network_problem(asked: str, host: str) -> str:
    if asked in ("auto", interface_of(host)):
        return ""
    return f"launch.network.interface: no interface {asked!r} with an IPv4 address here, only {', '.join(addresses())}"
