"""Which nodes Slurm is asked not to give: those of RUN.yaml, and those that the host ledger leaves out."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from pathlib import Path

from launcher.backends.slurm_calls import show_nodes
from launcher.errors import LaunchError
from launcher.hosts.guard import applied
from launcher.hosts.ledger import Ledger
from launcher.hosts.names import folded
from launcher.hosts.records import Excluded
from launcher.hosts.standing import excluded
from launcher.sections import RunSpec


def to_exclude(spec: RunSpec, left_out: Mapping[str, Excluded]) -> list[str]:
    """Of the hosts that are left out those that Slurm might give; as many nodes as the job asks for are left.

    Slurm refuses a job that excludes a node it does not know. None where it does not answer.
    """
    if not left_out or spec.cluster.backend != "slurm":
        return []
    partition = spec.cluster.slurm.partition
    candidates = [
        node.name
        for node in show_nodes() or ()
        if node.takes_jobs and (partition is None or set(partition.split(",")) & set(node.partitions))
    ]
    return sorted(applied(left_out, candidates, spec.cluster.nodes + spec.cluster.spares))


def exclude(spec: RunSpec) -> str | None:
    """The value of sbatch's --exclude; None where nothing is to be excluded.

    A ledger that cannot be read keeps no run from being submitted: its supervisor tells of it.
    """
    try:
        left_out = excluded(Ledger(Path(spec.hosts.ledger)).read().hosts, time.time())
    except LaunchError:
        left_out = {}
    return joined([spec.cluster.slurm.exclude], to_exclude(spec, left_out))


def joined(written: Iterable[str | None], names: Iterable[str]) -> str | None:
    """What people have written, as they have, and more names."""
    lists = [*filter(None, written), *filter(None, [folded(names)])]
    return ",".join(lists) or None
