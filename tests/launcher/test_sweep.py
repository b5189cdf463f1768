"""SWEEP.yaml: which runs it comes to, what they are called, how many go at once, and what is refused."""

# ruff: noqa: E501  messages are compared whole
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from launcher.backends import slurm_array
from launcher.backends.queue import is_in_line, take_place
from launcher.errors import ConfigError, WrongUse
from launcher.paths import RunPaths
from launcher.spec import dump_resolved, read_resolved
from launcher.sweep.plan import compact, label_of, run_name, shares
from launcher.sweep.read import Sweep, read_sweep
from launcher.sweep.start import arrays_of

RUN = """\
trainer:
  size: tiny
  steps: 300
  parallel: {fsdp: 2, tensor: 2}
cluster: {nodes: 2, ranks_per_node: 2}
"""
SWEEP = """\
name: lrs
run: RUN.yaml
grid:
  trainer.lr: [2.0e-4, 6.0e-4]
  trainer.seed: [1, 2, 3]
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "RUN.yaml").write_text(f"name: base\n{RUN}")
    return tmp_path


def read(folder: Path, text: str, *overrides: str, max_parallel: int | None = None, **flags: Any) -> Sweep:
    (folder / "SWEEP.yaml").write_text(text)
    return read_sweep(folder / "SWEEP.yaml", overrides, flags, max_parallel)


def names(sweep: Sweep) -> list[str]:
    return [run.spec.name for run in sweep.runs]


def mistakes(folder: Path, text: str, *overrides: str, **options: Any) -> list[str]:
    """Every mistake as `file:line:column: message`, or with the flag it is about."""
    with pytest.raises(ConfigError) as refused:
        read(folder, text, *overrides, **options)
    assert refused.value.exit_code == 3
    return [
        f"{Path(m.where).name}:{m.line}:{m.column}: {m.message}" if m.line else f"{m.where}: {m.message}"
        for m in refused.value.mistakes
    ]


# ---------------------------------------------------------------- names


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (2.0e-4, "2e-4"), (1.5e-4, "1.5e-4"), (0.001, "1e-3"), (0.01, "0.01"), (0.1, "0.1"), (1.0, "1"), (0.0, "0"),
        (1.0e6, "1e6"), (1.25e7, "1.25e7"), (-3e-7, "-3e-7"), (250000.0, "250000"), (512, "512"), (524288, "524288"),
        (True, "true"), (None, "none"), ("125m", "125m"), ("25 steps", "25steps"), ("a/b*.txt", "a-b-.txt"),
        (["x", 1], "x-1"),
    ],
)  # fmt: skip
def test_a_value_is_as_short_as_it_stays_itself(value: Any, text: str) -> None:
    assert compact(value) == text


@pytest.mark.parametrize(
    ("key", "label"),
    [
        ("trainer.lr", "lr"), ("trainer.batch_tokens", "bs"), ("trainer.seed", "s"), ("cluster.nodes", "n"),
        ("trainer.clip", "clip"), ("launch.env.WARMUP", "WARMUP"), ("trainer.size", "model"),
    ],
)  # fmt: skip
def test_a_key_is_called_by_a_short_word(key: str, label: str) -> None:
    assert label_of(key, {"trainer.size": "model"}) == label


def test_a_run_is_named_by_what_is_swept_and_its_ranks() -> None:
    swept = {"trainer.lr": 2.0e-4, "trainer.batch_tokens": 512, "trainer.parallel": {"fsdp": 8, "tensor": 2}}
    assert run_name("prefix", swept, {}, 16) == "prefix.lr2e-4.bs512.fsdp8.tp2.ngpu16"


# ---------------------------------------------------------------- runs


def test_a_grid_is_every_combination_and_the_last_key_changes_fastest(folder: Path) -> None:
    sweep = read(folder, SWEEP)

    assert names(sweep) == [f"lrs.lr{lr}.s{seed}.ngpu4" for lr in ("2e-4", "6e-4") for seed in (1, 2, 3)]
    last = sweep.runs[-1]
    assert last.spec.trainer is not None
    assert (last.spec.trainer.lr, last.spec.trainer.seed, last.spec.trainer.steps) == (6.0e-4, 3, 300)
    assert last.swept == {"trainer.lr": 6.0e-4, "trainer.seed": 3}


def test_a_list_is_taken_as_it_is_and_its_entries_may_differ_in_their_keys(folder: Path) -> None:
    text = "name: a\nrun: RUN.yaml\nlist: [{trainer.lr: 1e-4, trainer.clip: 0.5}, {trainer.lr: 2e-4}, {}]\n"
    assert names(read(folder, text)) == ["a.lr1e-4.clip0.5.ngpu4", "a.lr2e-4.ngpu4", "a.ngpu4"]


def test_the_run_may_stand_in_the_sweep_itself(folder: Path) -> None:
    inline = "run:\n" + "".join(f"  {line}\n" for line in RUN.splitlines())
    sweep = read(folder, SWEEP.replace("run: RUN.yaml\n", inline))
    assert names(sweep) == names(read(folder, SWEEP))


def test_values_that_belong_together_are_swept_together(folder: Path) -> None:
    text = "name: a\nrun: RUN.yaml\ngrid:\n  trainer.parallel: [{fsdp: 4, tensor: 1}, {fsdp: 2, tensor: 2}]\n"
    sweep = read(folder, text)
    assert names(sweep) == ["a.fsdp4.tp1.ngpu4", "a.fsdp2.tp2.ngpu4"]
    assert [run.spec.trainer.parallel.fsdp for run in sweep.runs if run.spec.trainer] == [4, 2]


def test_flags_apply_to_every_run_and_each_value_knows_its_origin(folder: Path, tmp_path: Path) -> None:
    sweep = read(folder, SWEEP, "trainer.steps=7", name="other", spares=1)

    assert names(sweep)[0] == "other.lr2e-4.s1.ngpu4"
    assert {(run.spec.trainer.steps, run.spec.cluster.spares) for run in sweep.runs if run.spec.trainer} == {(7, 1)}
    origins = sweep.runs[0].resolved.origins
    assert origins["trainer.steps"] == "--set trainer.steps=7"
    assert origins["trainer.lr"] == f"{folder / 'SWEEP.yaml'}:4"
    assert origins["trainer.size"] == f"{folder / 'RUN.yaml'}:3"
    stored = tmp_path / "spec.yaml"
    stored.write_text(dump_resolved(sweep.runs[0].resolved))
    assert read_resolved(stored) == sweep.runs[0].spec


def test_paths_start_at_the_folder_of_the_file_they_are_written_in(folder: Path, tmp_path: Path) -> None:
    (folder / "runs").mkdir()
    (folder / "runs" / "RUN.yaml").write_text(f"name: base\n{RUN}")
    (folder / "corpus.txt").write_text("x" * 1000)
    text = "name: a\nrun: runs/RUN.yaml\ngrid: {trainer.data: [[corpus.txt]]}\n"
    (run,) = read(folder, text).runs
    assert run.spec.trainer is not None
    assert run.spec.trainer.data == (str(folder / "corpus.txt"),)
    assert run.spec.name == "a.datacorpus.txt.ngpu4"


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("trainer.seed:", "trainer.sede:", "SWEEP.yaml:5:3: unknown key 'sede' (did you mean 'seed'?)"),
        ("trainer.seed:", "trianer.seed:", "SWEEP.yaml:5:3: unknown key 'trianer' (did you mean 'trainer'?)"),
        ("trainer.seed:", "trainer.lr.x:", "SWEEP.yaml:5:3: is a part of 'trainer.lr', which is swept too"),
        ("trainer.seed:", "name:", "SWEEP.yaml:5:3: names are made from 'name' and the swept values"),
        ("[1, 2, 3]", "[1, two, 3]", "SWEEP.yaml:5:21: a whole number is expected, not 'two'"),
        ("[1, 2, 3]", "[1, 2, 1]", "SWEEP.yaml:5:24: two runs would be called 'lrs.lr2e-4.s1.ngpu4'"),
        ("[1, 2, 3]", "[]", "SWEEP.yaml:5:17: trainer.seed must not be empty"),
        ("[1, 2, 3]", "7", "SWEEP.yaml:5:17: a list is expected, not 7: write [7]"),
        ("run: RUN.yaml", "run: NONE.yaml", "SWEEP.yaml:2:6: FOLDER/NONE.yaml: no such file"),
        ("run: RUN.yaml", "run: 5", "SWEEP.yaml:2:6: the path of a RUN.yaml is expected, or a mapping with what would be in it"),
        ("run: RUN.yaml\n", "", "SWEEP.yaml:1:1: 'run' is missing"),
        ("grid:", "gird:", "SWEEP.yaml:3:1: unknown key 'gird' (did you mean 'grid'?)"),
        ("name: lrs", "name: a b", "SWEEP.yaml:1:7: 'a b' cannot be a name: at most 64 letters, digits, '.', '_' and '-', the first a letter or digit"),
        ("grid:", "list: [{}]\ngrid:", "SWEEP.yaml:3:1: 'grid' and 'list' exclude each other: write one"),
        ("grid:", "labels: {trainer.clip: c}\ngrid:", "SWEEP.yaml:3:10: 'trainer.clip' is not swept"),
        ("grid:", "labels: {trainer.lr: a b}\ngrid:", "SWEEP.yaml:3:22: 'a b' cannot be part of a name: letters, digits, '.', '_' and '-'"),
        ("grid:", "max_parallel: 0\ngrid:", "SWEEP.yaml:3:15: max_parallel must be greater than 0, not 0"),
        ("[1, 2, 3]", str(list(range(501))), "SWEEP.yaml:3:1: 1,002 runs, more than 1000"),
        ("trainer.seed: [1, 2, 3]", "cluster.backend: [local, slurm]", "SWEEP.yaml:1:1: all runs of a sweep go to one backend: 'cluster.backend' cannot be swept"),
        ("trainer.seed: [1, 2, 3]", "cluster.nodes: [2, 3]", "SWEEP.yaml:5:22: fsdp 2 x tensor 2 is 4, but nodes 3 x ranks_per_node 2 is 6"),
    ],
)  # fmt: skip
def test_a_mistake_is_told_with_its_place(folder: Path, old: str, new: str, expected: str) -> None:
    assert old in SWEEP
    found = mistakes(folder, SWEEP.replace(old, new))
    assert expected.replace("FOLDER", str(folder)) in found


def test_a_mistake_that_all_runs_share_is_told_once(folder: Path) -> None:
    (folder / "RUN.yaml").write_text(f"name: base\n{RUN}".replace("steps: 300", "steps: many"))
    found = mistakes(folder, SWEEP.replace("trainer.lr", "trainer.rl"))
    assert [text.split(": ")[0] for text in found] == ["SWEEP.yaml:4:3", "RUN.yaml:4:10"]


def test_a_mistake_in_a_run_that_stands_in_the_sweep_is_shown_there(folder: Path) -> None:
    inline = "run:\n" + "".join(f"  {line}\n" for line in RUN.replace("steps: 300", "stpes: 300").splitlines())
    found = mistakes(folder, SWEEP.replace("run: RUN.yaml\n", inline))
    assert found == ["SWEEP.yaml:5:5: unknown key 'stpes' (did you mean 'steps'?)"]


def test_names_that_are_too_long_are_refused_with_what_to_do(folder: Path) -> None:
    (text,) = mistakes(folder, SWEEP, name="x" * 50)
    assert text == (
        f"SWEEP.yaml:4:3: a run would be called '{'x' * 50}.lr2e-4.s1.ngpu4', 66 characters where 64 are allowed: "
        "choose a shorter 'name', or shorter words for the keys with 'labels'"
    )


@pytest.mark.parametrize(
    ("overrides", "flags", "expected"),
    [
        (["trainer.lr=1e-4"], {}, "--set trainer.lr=1e-4: 'trainer.lr' is swept: leave it to the sweep"),
        (["trainer.lrr=1e-4"], {}, "--set trainer.lrr=1e-4: unknown key 'lrr' (did you mean 'lr'?)"),
        ([], {"name": "a/b"}, "--name a/b: 'a/b' cannot be a name: at most 64 letters, digits, '.', '_' and '-', the first a letter or digit"),
    ],
)  # fmt: skip
def test_flags_are_checked_too(folder: Path, overrides: list[str], flags: dict[str, Any], expected: str) -> None:
    assert expected in mistakes(folder, SWEEP, *overrides, **flags)


def test_elements_of_an_array_cannot_be_chains(folder: Path) -> None:
    (text,) = mistakes(folder, SWEEP, "cluster.backend=slurm", "cluster.continue_by=chain")
    assert "cannot be chains of jobs" in text


# ---------------------------------------------------------------- arrays


@pytest.mark.parametrize(
    ("counts", "limit", "expected"),
    [
        ([6], 2, [2]), ([6], None, [6]), ([6], 9, [6]), ([6, 2], 4, [3, 1]), ([6, 2], 5, [4, 1]), ([1, 1, 1], 3, [1, 1, 1]),
        ([4, 4], 3, [2, 1]), ([10, 1], 4, [3, 1]), ([3, 2, 1], 100, [3, 2, 1]),
    ],
)  # fmt: skip
def test_places_are_divided_over_the_shapes(counts: list[int], limit: int | None, expected: list[int]) -> None:
    assert shares(counts, limit) == expected


def shaped(folder: Path, limit: int | None = None, in_file: str = "") -> Sweep:
    """Runs of two sizes: four of two nodes, two of three."""
    text = (
        f"name: a\nrun: RUN.yaml\n{in_file}list: [{{trainer.seed: 1}}, {{cluster.spares: 1}}, {{trainer.seed: 2}}, "
        "{trainer.seed: 3}, {cluster.spares: 1, trainer.seed: 2}, {cluster.ranks_per_node: 2, trainer.seed: 5}]\n"
    )
    return read(folder, text, "cluster.backend=slurm", max_parallel=limit)


def test_runs_that_ask_for_the_same_are_one_array(folder: Path) -> None:
    sweep = shaped(folder, limit=3)
    assert slurm_array.by_shape([run.spec for run in sweep.runs]) == [[0, 2, 3, 5], [1, 4]]
    runs = [(RunPaths(folder / run.spec.name), run.spec) for run in sweep.runs]
    assert [(len(array.runs), array.at_once) for array in arrays_of(runs, 3)] == [(4, 2), (2, 1)]
    assert [array.at_once for array in arrays_of(runs, 5, busy=2)] == [2, 1]
    assert [array.at_once for array in arrays_of(runs, 3, busy=9)] == [1, 1]
    with pytest.raises(WrongUse, match="1 at once are too few for 2 resource shapes"):
        arrays_of(runs, 1)


def test_fewer_places_than_shapes_are_an_error_that_says_so(folder: Path) -> None:
    told = "1 at once are too few for 2 resource shapes: at least one run of each"
    with pytest.raises(ConfigError) as refused:
        shaped(folder, limit=1)
    assert str(refused.value.mistakes[0]) == f"--max-parallel 1: {told}"
    with pytest.raises(ConfigError) as refused:
        shaped(folder, in_file="max_parallel: 1\n")
    assert (refused.value.mistakes[0].line, refused.value.mistakes[0].message) == (3, told)
    assert shaped(folder, limit=2, in_file="max_parallel: 1\n").max_parallel == 2


# ---------------------------------------------------------------- queues of this machine

IN_LINE = """
import sys, pathlib
from launcher.backends.queue import take_place
take_place(pathlib.Path(sys.argv[1]))
sys.stdin.read()
"""


def test_queues_stand_in_line_behind_those_that_live_each_at_a_place_of_its_own(tmp_path: Path) -> None:
    queues = [subprocess.Popen([sys.executable, "-c", IN_LINE, str(tmp_path)], stdin=subprocess.PIPE) for _ in range(4)]
    places = [tmp_path / f"queue.{number}" for number in range(4)]
    try:
        deadline = time.monotonic() + 30
        while not all(place.exists() for place in places):
            assert time.monotonic() < deadline, [*tmp_path.iterdir()]
            time.sleep(0.02)
        assert sorted(path.name for path in tmp_path.iterdir()) == [place.name for place in places]
        assert all(map(is_in_line, places))

        queues[0].kill()
        queues[0].wait(10)

        assert sum(map(is_in_line, places)) == 3
        assert take_place(tmp_path) == places
    finally:
        for queue in queues:
            queue.kill()
            queue.communicate(timeout=10)
