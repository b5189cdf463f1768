"""All that the doctor looks at, in the order in which it is told."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from launcher.backends.slurm_calls import call
from launcher.backends.slurm_words import AS_OF, Node, Partition, moment, nodes_of, partitions_of, settings_of
from launcher.doctor import checks, cluster_checks, probe, readings
from launcher.doctor.checks import Verdict
from launcher.document import Document
from launcher.errors import LaunchError
from launcher.sections import RunSpec
from launcher.spec import resolve

COMMANDS = ("sbatch", "srun", "squeue", "sinfo", "scontrol", "scancel")
# What the probe finds on nodes -> what that says of this machine's folders: our Python was started there.
_ANSWERS = {"--root": "--root", "versions": "python", "requeue": "requeue"}
CONTROLLER_SKEW_S = 2.0  # it tells its time in whole seconds
# The defaults of the site, and in their place what is right for so short a job.
RUN: dict[str, Any] = {"name": "opt-launch-doctor", "command": ["true"], "cluster": {"backend": "slurm"}}
PROBE = {"nodes": 2, "spares": 0, "min_nodes": None, "slurm": {"time": "5m", "lead": "30s"}}


def asked_spec(changes: Sequence[str], flags: Mapping[str, Any], *, probed: bool) -> RunSpec:
    """What runs ask of Slurm here, or what the probe does. Raises ConfigError."""
    values = {**RUN, "cluster": {**RUN["cluster"], **(PROBE if probed else {})}}
    return resolve(Document("opt-launch doctor", values), changes, flags).spec


def examine_here(root: Path, spec: RunSpec) -> Iterator[Verdict]:
    """What can be told on this machine, touching nothing."""
    yield from _slurm(spec)
    yield checks.root_folder(readings.folder(root))
    yield checks.python_folders(readings.python_folders())
    yield checks.versions(readings.versions())
    limits = readings.limits()
    yield checks.open_files(limits)
    yield checks.processes(limits)
    yield checks.locked_memory(limits)
    yield checks.ptrace(readings.ptrace_scope())


def examine_nodes(root: Path, spec: RunSpec, timeout_s: float, tell: Callable[[str], None]) -> list[Verdict]:
    """What the nodes tell; one where there are no two."""
    if readings.missing(COMMANDS):
        return [Verdict("probe", "fail", "this machine has no Slurm to submit a job to", "a login node of the cluster")]
    partitions, nodes = _partitions(), _nodes()
    names = _names(spec.cluster.slurm.partition, partitions)
    taking = sum(node.takes_jobs for node in nodes if set(node.partitions) & set(names))
    if taking == 1:
        spec = spec.model_copy(update={"cluster": spec.cluster.model_copy(update={"nodes": 1})})
    settings = settings_of(_said("scontrol", "show", "config"))
    try:
        return probe.probe(spec, root, settings, timeout_s, tell)
    except LaunchError as error:
        return [Verdict("probe", "fail", error.message, "--set cluster.slurm.partition=... or site.yaml")]
    except OSError as error:
        return [Verdict("probe", "fail", f"{error.filename or root}: {error.strerror}", "--root: a folder of yours")]


def with_answers(here: Sequence[Verdict], nodes: Sequence[Verdict]) -> list[Verdict]:
    """All verdicts, but for what could only be supposed here and the nodes have answered."""
    answered = {_ANSWERS[one.about] for one in nodes if one.about in _ANSWERS}
    supposed = [one for one in here if one.about in answered and one.state in ("warn", "unknown")]
    return [*(one for one in here if one not in supposed), *nodes]


def _slurm(spec: RunSpec) -> Iterator[Verdict]:
    missing = readings.missing(COMMANDS)
    yield cluster_checks.commands(missing)
    if missing:
        return
    ping = call("scontrol", "ping")
    reached = cluster_checks.controller(ping.stdout + ping.stderr if ping else None)
    yield reached
    if reached.state != "ok":
        return
    asked_at = time.time()
    settings = settings_of(_said("scontrol", "show", "config"))
    told_at = time.time()
    yield cluster_checks.version(settings)
    wanted, partitions = spec.cluster.slurm.partition, _partitions()
    found = cluster_checks.partition(wanted, partitions, spec.cluster.slurm.time)
    yield found
    if found.state != "fail":
        yield cluster_checks.nodes(_names(wanted, partitions), _nodes())
    sacct = call("sacct", "-n", "-X", "-S", "now")
    yield cluster_checks.accounting(sacct.returncode if sacct else None)
    yield cluster_checks.munge(settings.get("AuthType", ""), readings.munge(settings.get("AuthInfo", "")))
    yield cluster_checks.requeue(settings)
    yield cluster_checks.timeouts(settings)
    at = moment(settings.get(AS_OF, ""))
    if at is not None:  # told in whole seconds
        yield checks.clock(asked_at - at - 1, told_at - at, "the controller", CONTROLLER_SKEW_S)


def _names(wanted: str | None, partitions: Sequence[Partition]) -> list[str]:
    return wanted.split(",") if wanted else [one.name for one in partitions if one.default]


def _partitions() -> list[Partition]:
    return [*partitions_of(_said("scontrol", "-o", "show", "partition"))]


def _nodes() -> list[Node]:
    return [*nodes_of(_said("scontrol", "-o", "show", "node"))]


def _said(*command: str) -> str:
    done = call(*command)
    return done.stdout if done else ""
