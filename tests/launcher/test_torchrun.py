"""The command line of `opt-launch run`: torchrun's flags, and where a task finds itself."""

from pathlib import Path
from typing import Any

import pytest

from launcher.errors import WrongUse
from launcher.place import Place, place_of, slurm_job
from launcher.torchrun import Asked, parse

PYTHON = "/venv/bin/python"


def asked(*arguments: str, **environment: str) -> Asked:
    return parse(arguments, environment, PYTHON)


@pytest.mark.parametrize(
    ("arguments", "command", "title"),
    [
        (["train.py"], (PYTHON, "-u", "train.py"), "train"),
        (["dir/train.py", "--lr", "1"], (PYTHON, "-u", "dir/train.py", "--lr", "1"), "train"),
        (["train.py", "--name", "x", "--", "-m"], (PYTHON, "-u", "train.py", "--name", "x", "--", "-m"), "train"),
        (["train.py", "--run", "--nnodes", "x"], (PYTHON, "-u", "train.py", "--run", "--nnodes", "x"), "train"),
        (["train.py", "--help"], (PYTHON, "-u", "train.py", "--help"), "train"),
        (["-m", "pkg.train", "-m", "x"], (PYTHON, "-u", "-m", "pkg.train", "-m", "x"), "train"),
        (["--module", "train"], (PYTHON, "-u", "-m", "train"), "train"),
        (["--no-python", "./go.sh", "a"], ("./go.sh", "a"), "go"),
        (["--no_python", "go"], ("go",), "go"),
    ],
)  # fmt: skip
def test_everything_from_the_script_on_is_the_scripts(
    arguments: list[str], command: tuple[str, ...], title: str
) -> None:
    found = asked("--nproc-per-node", "2", *arguments)
    assert (found.command, found.title, found.ranks) == (command, title, "2")


@pytest.mark.parametrize(
    ("flags", "fields"),
    [
        (["--nnodes=4"], {"nodes": (4, 4)}),
        (["--nnodes", "2:8"], {"nodes": (2, 8)}),
        (["--standalone"], {"nodes": (1, 1), "unused": ()}),
        (["--nproc_per_node=auto"], {"ranks": "auto"}),
        (["--node_rank=0", "--master_addr", "a.b", "--master-port=1"], {"node_rank": 0, "first_host": "a.b"}),
        (["--rdzv-endpoint=host:29500"], {"first_host": "host"}),
        (["--rdzv_endpoint", "[::1]:29500"], {"first_host": "::1"}),
        (["--rdzv-id", "7", "--rdzv-backend=c10d"], {"meeting_id": "7", "meeting": ("--rdzv-id", "--rdzv-backend")}),
        (["--node-rank", "0", "--master-port", "1"], {"meeting": ("--node-rank", "--master-port")}),
        (["--max_restarts=3"], {"max_restarts": 3, "unused": ()}),
        (["--max-restarts", "0"], {"max_restarts": 0, "unused": ("--max-restarts 0",)}),
        (["--monitor-interval", "5", "--log_dir=x"], {"unused": ("--monitor-interval", "--log-dir")}),
        (["--local-addr", "10.0.0.1", "--role", "actor"], {"local_address": "10.0.0.1", "role": "actor"}),
        (["--name", "a", "--spares", "2", "--root", "/r"], {"name": "a", "spares": 2, "root": Path("/r")}),
        (["--policy", "a", "--policy", "b.yaml"], {"policy": ("a", "b.yaml")}),
        (["--set", "a=1", "--set", "b.c=-2"], {"changes": ("a=1", "b.c=-2"), "config": None}),
        (["--config", "R.yaml"], {"config": Path("R.yaml")}),
        ([], {"ranks": "1", "nodes": None, "node_rank": None, "meeting": (), "unused": (), "root": Path("runs")}),
    ],
)  # fmt: skip
def test_flags(flags: list[str], fields: dict[str, Any]) -> None:
    found = asked(*flags, "train.py", "--rdzv-conf", "theirs")
    assert {key: getattr(found, key) for key in fields} == fields


def test_what_a_variable_says_counts_where_the_flag_is_not_given() -> None:
    found = asked("--nnodes", "3", "train.py", PET_NNODES="4", PET_NPROC_PER_NODE="8", PET_RDZV_ID="x", PET_MODULE="1")

    assert (found.nodes, found.ranks, found.meeting_id) == ((3, 3), "8", "x")
    assert found.command == (PYTHON, "-u", "-m", "train.py")
    assert found.meeting == ()  # nobody wrote it here, so nobody is told that it is not used
    assert asked("train.py", PET_STANDALONE="0").nodes is None
    assert asked("x", PYTHON_EXEC="/other/python", OPT_LAUNCH_ROOT="/r").command == ("/other/python", "-u", "x")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "required"),
        (["--bogus", "train.py"], "--bogus"),
        (["--nnodes", "4:2", "train.py"], "'4:2' is neither"),
        (["--nnodes", "0", "train.py"], "'0' is neither"),
        (["--nproc-per-node", "many", "train.py"], "'many' is neither"),
        (["--nproc-per-node", "0", "train.py"], "'0' is neither"),
        (["--max-restarts", "-1", "train.py"], "max-restarts"),
        (["--redirects", "4", "train.py"], "'4' is neither"),
        (["--tee", "1,2", "train.py"], "'1,2' is neither"),
        (["--run-path", "/x.py"], "--run-path is not built"),
        (["--virtual-local-rank", "x.py"], "--virtual-local-rank is not built"),
        (["-m", "--no-python", "x"], "exclude each other"),
    ],
)
def test_what_cannot_be_meant_is_refused(arguments: list[str], message: str) -> None:
    with pytest.raises(WrongUse, match=message) as error:
        asked(*arguments)
    assert error.value.where == "opt-launch run"


@pytest.mark.parametrize(
    ("flags", "out", "err"),
    [
        ([], [0, 1, 2], [0, 1, 2]),
        (["-r", "3"], [], []),
        (["--redirects=1"], [], [0, 1, 2]),
        (["-r", "0:3,2:2"], [1, 2], [1]),
        (["-r", "3", "-t", "1"], [0, 1, 2], []),
        (["-t", "3"], [0, 1, 2], [0, 1, 2]),
        (["--local-ranks-filter", "0,2"], [0, 2], [0, 2]),
        (["--local-ranks-filter", "0", "-r", "2"], [0], []),
    ],
)
def test_what_torchrun_would_not_show_on_the_console_is_not_shown(
    flags: list[str], out: list[int], err: list[int]
) -> None:
    assert asked(*flags, "train.py").shown(3) == {"out": out, "err": err}


# ---------------------------------------------------------------- places

STEP = {
    "SLURM_JOB_ID": "12", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_NODES": "3", "SLURM_STEP_NUM_TASKS": "3",
    "SLURM_NODEID": "1", "SLURMD_NODENAME": "n07",
}  # fmt: skip


def place(*flags: str, **environment: str) -> Place:
    return place_of(asked(*flags, "train.py"), environment, "here")


def test_alone_on_a_machine() -> None:
    assert place() == Place("here")
    assert place().job_id == "own+"


@pytest.mark.parametrize(
    "flags",
    [
        [],
        ["--nnodes", "3"],
        ["--nnodes", "2", "--spares", "1"],
        ["--node-rank", "9"],
        ["--nnodes", "1:4"],
        ["--nnodes", "1:2"],
        ["--nnodes", "2:4", "--spares", "1"],
    ],
)
def test_a_task_of_a_step_is_where_slurm_says(flags: list[str]) -> None:
    assert place(*flags, **STEP) == Place("n07", 1, 3, "12", "12", "0")


@pytest.mark.parametrize(
    ("environment", "job_id"),
    [({}, "12"), ({"SLURM_RESTART_COUNT": "2"}, "12.2"), ({"SLURM_STEP_ID": "4"}, "12+4"),
     ({"SLURM_STEP_ID": "4", "SLURM_RESTART_COUNT": "1"}, "12.1+4")],
)  # fmt: skip
def test_each_start_has_an_id_of_its_own(environment: dict[str, str], job_id: str) -> None:
    assert place(**{**STEP, **environment}).job_id == job_id


def test_an_element_of_an_array_is_no_other_element_and_not_all_of_them() -> None:
    last = {**STEP, "SLURM_ARRAY_JOB_ID": "12", "SLURM_ARRAY_TASK_ID": "7", "SLURM_RESTART_COUNT": "1"}
    assert place(**last) == Place("n07", 1, 3, "12_7", "12_7.1", "0")
    assert [slurm_job(job_id) for job_id in ("12_7.1+4", "12_7", "12.2", "12+1", "own+1f3a")] == [
        "12_7", "12_7", "12", "12", "",
    ]  # fmt: skip


def test_the_batch_script_of_a_job_of_one_node_needs_no_srun() -> None:
    found = place(SLURM_JOB_ID="12", SLURM_JOB_NUM_NODES="1", SLURMD_NODENAME="n07", SLURM_NODEID="0")
    assert found == Place("n07", 0, 1, "12", "12", "")


def test_hosts_without_slurm_go_by_the_flags() -> None:
    flags = ("--nnodes", "2", "--node-rank", "1", "--master-addr", "first", "--name", "a")
    assert place(*flags) == Place("here-1", 1, 2)
    assert place(*flags, SLURM_JOB_ID="12", SLURM_JOB_NUM_NODES="2") == Place("here-1", 1, 2)  # as by pdsh in a job


@pytest.mark.parametrize(
    ("flags", "environment", "message"),
    [
        ([], {**STEP, "SLURM_STEP_NUM_TASKS": "24"}, "24 tasks on 3 nodes: one a node is needed"),
        ([], {"SLURM_JOB_ID": "12", "SLURM_JOB_NUM_NODES": "4"}, "one task in a job of 4 nodes: one a node is needed"),
        (["--nnodes", "4"], STEP, "--nnodes is 4, and this is one of 3 tasks"),
        (["--nnodes", "4:8"], STEP, "--nnodes is 4:8, and this is one of 3 tasks"),
        (["--nnodes", "3:8", "--spares", "1"], STEP, "--nnodes is 3:8, and this is one of 3 tasks"),
        (["--standalone"], STEP, "--nnodes is 1, and this is one of 3 tasks"),
        (["--spares", "3"], STEP, "3 of 3 nodes cannot be spares"),
        (["--spares", "1"], {}, "1 of 1 nodes cannot be spares"),
        (["--nnodes", "2"], {}, "2 nodes: which of them this is"),
        (["--nnodes", "2", "--node-rank", "0", "--name", "a"], {}, "2 nodes: which of them this is"),
        (["--nnodes", "2", "--node-rank", "0", "--master-addr", "x"], {}, "agree on a name"),
        (["--nnodes", "2", "--node-rank", "2"], {}, "--node-rank 2 of 2 nodes"),
    ],
)
def test_a_place_that_makes_no_sense_is_refused(flags: list[str], environment: dict[str, str], message: str) -> None:
    with pytest.raises(WrongUse, match=message):
        place(*flags, **environment)
