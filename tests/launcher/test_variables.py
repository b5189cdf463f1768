"""What ranks get of the submitter's environment: taken once, kept for the run, and taken anew where it is set."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from launcher.amend import amend, respecified
from launcher.errors import ConfigError
from launcher.paths import RunPaths
from launcher.program import program_of
from launcher.run import Run
from launcher.spec import load_spec, read_resolved
from launcher.submit import make
from launcher.variables import keep_variables, read_variables

RUN = "name: a\ncommand: [sh]\npolicy: [infra]\nlaunch: {env: {MY_TOKEN: from-env, PLAIN: text}}\n"


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunPaths:
    """A run that has taken MY_TOKEN, which is not set any more."""
    (tmp_path / "RUN.yaml").write_text(RUN)
    monkeypatch.setenv("MY_TOKEN", "first")
    paths = make(load_spec(tmp_path / "RUN.yaml"), tmp_path / "runs")
    monkeypatch.delenv("MY_TOKEN")
    return paths


def ranks_find(run: RunPaths) -> tuple[str | None, str | None]:
    env = program_of(read_resolved(run.spec), run, "node0", run.root, "127.0.0.1").env
    return env.get("MY_TOKEN"), env.get("PLAIN")


def test_ranks_find_what_was_taken_and_only_its_owner_can_read_it(run: RunPaths) -> None:
    assert ranks_find(run) == ("first", "text")
    assert run.variables.stat().st_mode & 0o777 == 0o600


def test_who_resumes_need_not_have_it_but_may_bring_another(run: RunPaths) -> None:
    spec = read_resolved(run.spec)

    keep_variables(run, spec, {})
    assert ranks_find(run) == ("first", "text")
    keep_variables(run, spec, {"MY_TOKEN": "second", "OTHER": "x"})
    assert read_variables(run) == {"MY_TOKEN": "second"}
    assert run.variables.stat().st_mode & 0o777 == 0o600


def test_a_run_goes_on_with_changes_without_it_and_a_branch_has_to_have_its_own(run: RunPaths) -> None:
    assert "MY_TOKEN" not in os.environ
    assert amend(run, Run(), ["launch.threads=2"], {}, "ann").changes == {"launch.threads": [1, 2]}
    with pytest.raises(ConfigError, match="MY_TOKEN is to be taken from the environment"):
        respecified(run, [], {"name": "b"})


def test_a_run_that_takes_nothing_has_no_such_file(tmp_path: Path) -> None:
    (tmp_path / "RUN.yaml").write_text(RUN.replace("MY_TOKEN: from-env, ", ""))

    run = make(load_spec(tmp_path / "RUN.yaml"), tmp_path / "runs")

    assert not run.variables.exists()
    assert ranks_find(run) == (None, "text")
