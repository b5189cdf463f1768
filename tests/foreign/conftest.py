"""Real runs of a trainer that is not ours."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "chaos"))

from foreign_run import ForeignRun


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Callable[..., ForeignRun]]:
    """Submits runs; when the test is over no process of theirs is."""
    runs: list[ForeignRun] = []
    names = (f"foreign{number}" for number in itertools.count())

    def submit(says: str, **options: Any) -> ForeignRun:
        run = ForeignRun(tmp_path / "runs", next(names), says=says, **options)
        runs.append(run)
        return run

    yield submit
    for run in runs:
        run.clean_up()


@pytest.fixture
def bare_python(tmp_path: Path) -> str:
    """A Python without us, without pydantic, without anything."""
    folder = tmp_path / "bare"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    python = str(folder / "bin" / "python")
    probe = "import importlib.util as u; print([m for m in ('launcher', 'pydantic', 'torch') if u.find_spec(m)])"
    said = subprocess.run([python, "-c", probe], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert said.stdout.strip() == "[]"
    return python
