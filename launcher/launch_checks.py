"""What the `launch:` section of a RUN.yaml means: mistakes that would otherwise show on the nodes.

A check that is about a machine is made only where the run will be on this one.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator, Mapping

from launcher.network import addresses
from launcher.sections import FROM_ENV, PLACES, RunSpec

Problem = tuple[str, tuple[str, ...]]  # the message, and the dotted keys it is about

# Set for every rank by the launcher itself, as is what begins with OPT_LAUNCH_.
OWN_VARIABLES = frozenset(
    {"RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "GROUP_WORLD_SIZE", "NODE_RANK", "NNODES"}
    | {"ROLE_RANK", "ROLE_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "OMP_NUM_THREADS"}
    | {"TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT", "TORCHELASTIC_USE_AGENT_STORE"}
)
_PLACE = re.compile(r"(?<!\$)\{([a-z_]+)\}")


def launch_problems(spec: RunSpec, environment: Mapping[str, str]) -> Iterator[Problem]:
    """Everything that is wrong with the values of the section taken together and with the rest."""
    launch, cluster = spec.launch, spec.cluster
    if launch.setup and cluster.backend != "slurm":
        message = f"'launch.setup' runs in the script of a Slurm job, and backend {cluster.backend} has none"
        yield message, ("launch.setup", "cluster.backend")
    if launch.mode == "per_node" and spec.trainer:
        message = "'launch.mode: per_node' is for a command that starts the ranks of a node itself, not for our trainer"
        yield message, ("launch.mode", "trainer")
    if launch.code == "snapshot" and (spec.trainer or cluster.backend == "own"):
        why = "of our own trainer nothing is copied" if spec.trainer else "opt-launch run starts what is there"
        yield f"'launch.code: snapshot' is for a command that is submitted: {why}", ("launch.code",)
    for index, item in enumerate(launch.prefix):
        for name in sorted({*_PLACE.findall(item)} - PLACES.keys()):
            yield f"{{{name}}} stands for nothing: {{{'}, {'.join(PLACES)}}} do", (f"launch.prefix.{index}",)
    yield from _variables(launch.env, environment)
    if cluster.backend == "local":
        yield from _here(spec, environment)


def _variables(asked: Mapping[str, str], environment: Mapping[str, str]) -> Iterator[Problem]:
    for name, value in asked.items():
        key = (f"launch.env.{name}",)
        if name in OWN_VARIABLES or name.startswith("OPT_LAUNCH_"):
            own = " (see 'launch.threads')" if name == "OMP_NUM_THREADS" else ""
            yield f"{name} is set by the launcher for each rank{own}", key
        elif value == FROM_ENV and name not in environment:
            yield f"{name} is to be taken from the environment, where it is not set", key


def _here(spec: RunSpec, environment: Mapping[str, str]) -> Iterator[Problem]:
    """What this machine lacks."""
    launch = spec.launch
    asked = launch.env.get("PATH", FROM_ENV)
    path = environment.get("PATH") if asked == FROM_ENV else asked
    first, key = (launch.prefix[0], "launch.prefix.0") if launch.prefix else (launch.python, "launch.python")
    if first and "{" not in first and shutil.which(first, path=path) is None:
        yield f"{first}: no such program", (key,)
    yield from _command(spec, path)
    interface = launch.network.interface
    if interface != "auto" and interface not in (known := addresses()):
        message = f"no interface {interface!r} with an IPv4 address here, only {', '.join(known)}"
        yield message, ("launch.network.interface",)


def _command(spec: RunSpec, path: str | None) -> Iterator[Problem]:
    """Behind a prefix programs may be others; and a path that is relative is so to the folder of the ranks."""
    program = spec.command[0] if spec.command and not spec.launch.prefix else ""
    is_name = program == os.path.basename(program)
    if program and (is_name or os.path.isabs(program)) and shutil.which(program, path=path) is None:
        where = " in PATH: correct it, or write its whole path" if is_name else " that can be run: correct its path"
        yield f"{program}: no such program{where}", ("command.0",)
