"""Real runs for the tests of this folder."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))

from live_run import LiveRun


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Callable[..., LiveRun]]:
    """Submits runs; when the test is over no process of theirs is."""
    runs: list[LiveRun] = []
    names = (f"chaos{number}" for number in itertools.count())

    def submit(**options: Any) -> LiveRun:
        root = options.pop("root", tmp_path / "runs")
        run = LiveRun(root, options.pop("name", next(names)), **options)
        runs.append(run)
        return run

    yield submit
    for run in runs:
        run.clean_up()


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Real text, little of it: the tokens of a few modules of Python."""
    folder = tmp_path_factory.mktemp("corpus")
    for module in ("argparse.py", "ast.py", "typing.py", "dataclasses.py"):
        (folder / module).write_text(Path(os.__file__).with_name(module).read_text())
    return folder / "*.py"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 megabytes for the folder of the runs."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("FULL DISK NOT TESTED ON A RUN: only root can mount a small file system for its processes")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)
