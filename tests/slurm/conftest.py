"""A cluster for the tests of this folder; runs on it belong to a user without rights."""

from __future__ import annotations

import itertools
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "chaos"))

import wires
from cluster import Cluster, missing
from slurm_run import SlurmRun


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest test first, so that it is not the last that one process runs while the other has nothing to do."""
    items.sort(key=lambda item: item.path.name != "test_training.py")


def _cluster(what: str, lacks: list[str], nodes: int, **how: bool) -> Iterator[Cluster]:
    """Up and idle; nothing of it is left afterwards. Skipped, and failed in CI, where something is lacking."""
    if lacks:
        why = f"{what} NOT TESTED: missing {', '.join(lacks)} (make slurm installs it where root and apt allow)"
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(why)
    cluster = Cluster(Path(tempfile.mkdtemp(prefix="opt-slurm-")))
    try:
        cluster.up(nodes, **how)
        yield cluster
    finally:
        cluster.down()


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """Eight nodes."""
    yield from _cluster("SLURM", missing(), 8)


@pytest.fixture
def spoilt() -> Iterator[Cluster]:
    """A cluster that is not to be used again."""
    yield from _cluster("SLURM", missing(), 4)


@pytest.fixture(scope="session")
def accounted() -> Iterator[Cluster]:
    """A cluster that keeps accounts, for who restores it."""
    yield from _cluster("ACCOUNTING", missing(accounting=True), 4, accounting=True)


@pytest.fixture(scope="session")
def wired() -> Iterator[Cluster]:
    """A cluster whose nodes have addresses of their own, for who restores it."""
    yield from _cluster("NETWORK FAULTS", missing() or wires.missing(), 3, wired=True)


@pytest.fixture
def ledger(cluster: Cluster, request: pytest.FixtureRequest) -> Iterator[Path]:
    """The one that the cluster's users share, for this test."""
    ledger, before = cluster.runs / f".hosts.{request.node.name}", cluster.site.read_text()
    cluster.site.write_text(f"hosts: {{ledger: {ledger}}}\n")
    yield ledger
    cluster.site.write_text(before)


@pytest.fixture
def launch(cluster: Cluster) -> Iterator[Callable[..., SlurmRun]]:
    """Submits runs, of the counting trainer or another `kind`; afterwards none of their processes is left."""
    runs: list[SlurmRun] = []
    names = (f"slurm{number}" for number in itertools.count(1))

    def submit(**options: Any) -> SlurmRun:
        name = options.pop("name", None) or next(n for n in names if not (cluster.runs / f"{n}.asked").exists())
        run = options.pop("kind", SlurmRun)(cluster, name, **options)
        runs.append(run)
        return run

    yield submit
    for run in runs:
        run.clean_up()
    cluster.restore()
