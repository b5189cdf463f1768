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

from cluster import Cluster, missing
from slurm_run import SlurmRun


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """Eight nodes, up and idle; nothing of them is left afterwards."""
    if lacks := missing():
        why = f"SLURM NOT TESTED: missing {', '.join(lacks)} (make dev installs it where root and apt allow)"
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(why)
    cluster = Cluster(Path(tempfile.mkdtemp(prefix="opt-slurm-")))
    try:
        cluster.up()
        yield cluster
    finally:
        cluster.down()


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
