"""The command `sweep` as scripts see it, and how `status` shows sweeps. Real runs: tests/chaos, tests/slurm."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from test_cli import AT, call, ended, make_run

from launcher.events import RunHeld
from launcher.paths import RunPaths
from launcher.sweep.record import Record, folder_of, write_record

SWEEP = """\
name: lrs
run:
  trainer: {size: tiny, steps: 20}
grid:
  trainer.lr: [2.0e-4, 6.0e-4]
  trainer.seed: [1, 2]
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "SWEEP.yaml").write_text(SWEEP)
    return tmp_path / "runs"


def make_sweep(root: Path, name: str, runs: dict[str, dict[str, object]], max_parallel: int | None = None) -> None:
    folder = folder_of(root, name)
    folder.mkdir(parents=True)
    write_record(folder, Record(name, {"trainer.lr": "lr", "trainer.seed": "s"}, runs, max_parallel))


def test_a_swept_key_that_does_not_exist_is_told_with_its_place_and_nothing_is_made(tmp_path: Path, root: Path) -> None:
    (tmp_path / "SWEEP.yaml").write_text(SWEEP.replace("trainer.seed", "trainer.sede"))
    outcome = call("sweep", "SWEEP.yaml", cwd=tmp_path)
    assert (outcome.code, outcome.out) == (3, "")
    assert outcome.err == (
        "error: SWEEP.yaml:6:3: unknown key 'sede' (did you mean 'seed'?)\n"
        "    6 |   trainer.sede: [1, 2]\n"
        "      |   ^^^^^^^^^^^^\n"
    )
    assert not root.exists()


@pytest.mark.parametrize("taken", ["lrs", "lrs.lr6e-4.s2.ngpu1", "lrs.sweep"])
def test_a_name_that_is_taken_is_refused_before_anything_is_made(tmp_path: Path, root: Path, taken: str) -> None:
    (root / taken).mkdir(parents=True)
    outcome = call("sweep", "SWEEP.yaml", cwd=tmp_path)
    assert (outcome.code, outcome.out) == (3, "")
    assert f"'{taken.removesuffix('.sweep')}' exists" in outcome.err
    assert "--name" in outcome.err
    assert [path.name for path in root.iterdir()] == [taken]


def test_without_slurm_nothing_of_an_array_is_left(tmp_path: Path, root: Path) -> None:
    outcome = call("sweep", "SWEEP.yaml", "--backend", "slurm", cwd=tmp_path, PATH="/nowhere")
    assert (outcome.code, outcome.out) == (1, "")
    assert "no Slurm" in outcome.err
    assert [*root.iterdir()] == []


def test_a_dry_run_names_the_runs_and_makes_nothing(tmp_path: Path, root: Path) -> None:
    outcome = call("sweep", "SWEEP.yaml", "--max-parallel", 3, "--dry-run", cwd=tmp_path)
    assert outcome.code == 0
    assert f"# sweep    lrs in {root}: 4 runs, at most 3 at once\n" in outcome.out
    assert "\n#          lrs.lr6e-4.s2.ngpu1\n" in outcome.out
    assert not root.exists()


def test_runs_that_exist_keep_their_settings(tmp_path: Path, root: Path) -> None:
    make_sweep(root, "lrs", {})
    outcome = call("sweep", "SWEEP.yaml", "--resume-failed", "--spares", 0, cwd=tmp_path)
    assert (outcome.code, outcome.out) == (2, "")
    assert "keep their settings" in outcome.err


def test_only_a_sweep_that_was_submitted_can_be_resumed(tmp_path: Path, root: Path) -> None:
    make_sweep(root, "another", {})
    outcome = call("sweep", "SWEEP.yaml", "--resume-failed", cwd=tmp_path)
    assert (outcome.code, outcome.out) == (4, "")
    assert "there is no sweep 'lrs'" in outcome.err
    assert "try:   one of: another" in outcome.err


def test_what_has_succeeded_is_left_alone(tmp_path: Path, root: Path) -> None:
    make_run(root, "lrs.a", ended("SUCCEEDED"))
    make_sweep(root, "lrs", {"lrs.a": {}})
    outcome = call("sweep", "SWEEP.yaml", "--resume-failed", cwd=tmp_path)
    assert (outcome.code, outcome.out, outcome.err) == (0, "", "sweep lrs: nothing to resume\n")


# ---------------------------------------------------------------- status


@pytest.fixture
def three_runs(root: Path) -> Path:
    make_run(root, "lrs.a", ended("SUCCEEDED"))
    make_run(root, "lrs.b", ended("FAILED"))
    make_run(root, "alone", ended("STOPPED"))
    make_run(root, "lrs.c")
    swept = {f"lrs.{name}": {"trainer.lr": lr, "trainer.seed": 1} for name, lr in (("a", 2e-4), ("b", 6e-4))}
    make_sweep(root, "lrs", {**swept, "lrs.c": {"trainer.lr": 1e-3}, "lrs.deleted": {}}, max_parallel=2)
    return root


def test_the_status_of_a_sweep_is_one_table(tmp_path: Path, three_runs: Path) -> None:
    lines = [line.split() for line in call("status", "lrs", cwd=tmp_path).out.splitlines()]
    assert lines[0] == ["RUN", "LR", "S", "STATE", "STEP", "LOSS", "RESTARTS", "ETTR"]
    assert lines[1][:9] == ["lrs.a", "2e-4", "1", "SUCCEEDED", "1", "/", "3", "5", "0"]
    assert [line[:4] for line in lines[2:4]] == [["lrs.b", "6e-4", "1", "FAILED"], ["lrs.c", "1e-3", "-", "GONE"]]
    assert " ".join(lines[4]) == "sweep lrs: 3 runs: 1 FAILED, 1 GONE, 1 SUCCEEDED; 2 for --resume-failed"


def test_the_status_of_a_sweep_as_json(tmp_path: Path, three_runs: Path) -> None:
    told = json.loads(call("status", "lrs", "--json", cwd=tmp_path).out)
    assert (told["sweep"], told["max_parallel"]) == ("lrs", 2)
    assert told["states"] == {"SUCCEEDED": 1, "FAILED": 1, "GONE": 1}
    assert [(one["run"], one["state"], one["alive"]) for one in told["runs"]] == [
        ("lrs.a", "SUCCEEDED", False), ("lrs.b", "FAILED", False), ("lrs.c", "RUNNING", False),
    ]  # fmt: skip
    assert told["runs"][0]["swept"] == {"trainer.lr": 2e-4, "trainer.seed": 1}


def test_a_sweep_is_watched_until_no_run_goes_on(tmp_path: Path, three_runs: Path) -> None:
    outcome = call("status", "lrs", "--watch", "1s", cwd=tmp_path)
    assert outcome.code == 0
    assert outcome.out.splitlines() == call("status", "lrs", cwd=tmp_path).out.splitlines()


def test_a_run_of_a_sweep_has_its_own_status(tmp_path: Path, three_runs: Path) -> None:
    assert call("status", "lrs.a", cwd=tmp_path).out.startswith("run lrs.a  SUCCEEDED")


def test_the_runs_of_a_sweep_stand_together_in_the_list_of_all(tmp_path: Path, three_runs: Path) -> None:
    lines = call("status", cwd=tmp_path).out.splitlines()
    assert [line[:8].rstrip() for line in lines] == ["alone", "sweep lr", "  lrs.a", "  lrs.b", "  lrs.c"]
    told = json.loads(call("status", "--json", cwd=tmp_path).out)
    assert {one["run"]: one["sweep"] for one in told} == {"alone": None} | {f"lrs.{name}": "lrs" for name in "abc"}


def test_who_waits_for_a_sweep_waits_for_all_its_runs_and_is_told_of_the_worst(tmp_path: Path, root: Path) -> None:
    make_sweep(root, "lrs", {"lrs.a": {}, "lrs.b": {}, "lrs.c": {}})
    make_run(root, "lrs.a", ended("FAILED"))
    make_run(root, "lrs.b", ended("SUCCEEDED"))
    assert call("wait", "lrs", cwd=tmp_path).code == 1

    make_run(root, "lrs.c", RunHeld(at=AT + 4, reason="two nodes are needed"))
    outcome = call("wait", "lrs", cwd=tmp_path)
    assert (outcome.code, outcome.out) == (6, "")
    assert [line for line in outcome.err.splitlines() if line.startswith("lrs.")] == [
        "lrs.a: FAILED at step 1: so it goes",
        "lrs.b: SUCCEEDED at step 1: so it goes",
        "lrs.c: HELD at step 1: two nodes are needed",
    ]
    assert call("wait", "lrs", "--through-hold", "--timeout", "1s", cwd=tmp_path).code == 124


@pytest.mark.parametrize("verb", ["logs", "report", "resume", "incidents"])
def test_who_means_one_run_and_names_a_sweep_is_told_its_runs(tmp_path: Path, three_runs: Path, verb: str) -> None:
    outcome = call(verb, "lrs", cwd=tmp_path)
    assert (outcome.code, outcome.out) == (4, "")
    assert outcome.err.startswith("error: lrs is a sweep: take one of its runs\n")
    assert outcome.err.endswith("  try:   one of: lrs.a, lrs.b, lrs.c\n")


def test_a_sweep_is_stopped_only_with_a_persons_yes_who_is_told_how_many_runs_it_is(tmp_path: Path, root: Path) -> None:
    make_sweep(root, "lrs", {"lrs.a": {}, "lrs.b": {}, "lrs.c": {}})
    make_run(root, "lrs.a")
    make_run(root, "lrs.b", ended("SUCCEEDED"))
    make_run(root, "lrs.c")

    refused = call("stop", "lrs", cwd=tmp_path)
    assert (refused.code, refused.err.splitlines()[1]) == (2, "  while: stop lrs")
    assert not [*RunPaths(root / "lrs.a").control.iterdir()]
    stopped = call("stop", "lrs", "--yes", cwd=tmp_path)

    assert (stopped.code, stopped.out) == (0, ""), stopped.err
    ends = [f"{name}: ended: none of its processes was alive" for name in ("lrs.a", "lrs.c")]
    assert stopped.err.splitlines() == ends
    assert call("stop", "lrs", "--yes", cwd=tmp_path).err == "sweep lrs: nothing to stop\n"


def test_what_a_run_of_a_sweep_would_not_do_is_told_after_all_others(tmp_path: Path, root: Path) -> None:
    make_sweep(root, "lrs", {"lrs.a": {}, "lrs.b": {}})
    make_run(root, "lrs.a")
    make_run(root, "lrs.b")

    outcome = call("save", "lrs", cwd=tmp_path)

    assert outcome.code == 1
    assert [line.split(":")[0] for line in outcome.err.splitlines()[:2]] == ["lrs.a", "lrs.b"]
    assert "error: 'save' came to nothing for 2 of 2 runs\n" in outcome.err
