"""`opt-launch run`: which spec a command line and a place make."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from launcher.door import resolved_spec
from launcher.errors import ConfigError, LaunchError
from launcher.place import Place
from launcher.sizes import smaller
from launcher.spec import ResolvedSpec
from launcher.torchrun import parse

NODE = Place("n1", 1, 4, "12", "12", "0")


@pytest.fixture(autouse=True)
def _no_site(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPT_LAUNCH_SITE", "")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)


def resolved(*arguments: str, place: Place = NODE) -> ResolvedSpec:
    return resolved_spec(parse([*arguments, "dir/my train.py", "--lr", "1"], {}, "/bin/python"), place)


def test_a_step_of_four_nodes_of_which_one_is_a_spare() -> None:
    spec = resolved("--spares", "1", "--nproc-per-node", "8").spec

    assert (spec.name, spec.command) == ("my-train-12", ("/bin/python", "-u", "dir/my train.py", "--lr", "1"))
    cluster = spec.cluster
    assert (cluster.backend, cluster.nodes, cluster.spares, cluster.ranks_per_node) == ("own", 3, 1, 8)
    assert (cluster.continue_by, cluster.silence) == ("none", 10)


def test_every_task_of_a_job_finds_the_same_spec() -> None:
    assert resolved() == resolved(place=Place("n3", 3, 4, "12", "12", "0"))


def test_names() -> None:
    assert resolved("--name", "a").spec.name == "a"
    assert resolved("--rdzv-id", "77", place=Place("h")).spec.name == "my-train-77"
    by_time = resolved(place=Place("h")).spec.name
    assert (by_time.startswith("my-train-20"), by_time.endswith(f"-{os.getpid()}")) == (True, True)


def test_threads_are_those_of_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolved("--nproc-per-node", "2").spec.launch.threads == 1
    assert resolved().spec.launch.threads == len(os.sched_getaffinity(0))
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert resolved("--nproc-per-node", "2").spec.launch.threads == 5
    assert resolved("--set", "launch.threads=7").spec.launch.threads == 7


def test_a_file_says_what_the_command_line_does_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, site = tmp_path / "RUN.yaml", tmp_path / "site.yaml"
    file.write_text("name: b\ncluster: {backend: slurm, nodes: 9, wait_for_node: 5m}\nlaunch: {first_step: 1h}\n")
    site.write_text("launch: {first_step: 2h, threads: 3}\npolicy: [cautious]\n")
    monkeypatch.setenv("OPT_LAUNCH_SITE", str(site))
    spec = resolved("--config", str(file)).spec

    assert (spec.name, spec.cluster.backend, spec.cluster.nodes) == ("b", "own", 4)
    assert (spec.cluster.wait_for_node, spec.launch.first_step, spec.launch.threads) == (300, 3600, 3)
    assert (spec.policy, spec.launch.env["ROLE_NAME"]) == (("cautious",), "default")
    assert resolved("--config", str(file), "--policy", "infra", "--name", "c").spec.policy == ("infra",)


def test_only_what_tells_steps_has_a_limit_for_the_first_one() -> None:
    assert resolved().spec.launch.first_step > 3e8
    assert resolved("--set", "telemetry.preset=nanogpt").spec.launch.first_step == 1800


@pytest.mark.parametrize(
    ("flags", "nodes", "spares", "least"),
    [
        (["--nnodes", "2:4"], 4, 0, 2),
        (["--nnodes", "1:3"], 3, 1, 1),  # as with torchrun, what is beyond MAX waits
        (["--nnodes", "2:8", "--spares", "1"], 3, 1, 2),
        (["--nnodes", "4:8"], 4, 0, 4),
        (["--nnodes", "4"], 4, 0, None),
        ([], 4, 0, None),
    ],
)
def test_a_range_of_nodes_says_that_the_script_is_fit_for_any_number_in_it(
    flags: list[str], nodes: int, spares: int, least: int | None
) -> None:
    spec = resolved(*flags).spec
    assert (spec.cluster.nodes, spec.cluster.spares, spec.cluster.min_nodes) == (nodes, spares, least)
    assert (spec.can.elastic, spec.cluster.wait_for_node) == ((True, 30) if least else (False, 120))
    assert smaller(spec) == tuple(range(nodes - 1, (least or nodes) - 1, -1))


def test_max_restarts_is_the_budget_of_the_policy() -> None:
    asked, usual = resolved("--max-restarts", "3").policy.budget, resolved("--max-restarts", "0").policy.budget
    assert (asked.restarts.times, asked.first_step) == (3, 3)
    assert usual == resolved().policy.budget


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--set", "cluster.nodes=2"], "--set cluster.nodes=2: follows from flags and job: leave it out"),
        (["--set", "cluster.continue_by=chain"], "this one is your own: write requeue or none"),
        (["--set", "trainer.size=tiny", "--set", "trainer.steps=3"], "'trainer' and 'command' exclude each other"),
        (["--policy", "nope"], "no shipped policy is called 'nope'"),
        (["--name", "../x"], "--name: '../x' cannot be a name"),
        (["--config", "/gone.yaml"], "/gone.yaml: no such file"),
    ],
)
def test_mistakes_are_shown_at_their_flag(arguments: list[str], told: str) -> None:
    with pytest.raises(ConfigError) as error:
        resolved(*arguments)
    assert told in str(error.value)


def test_devices_are_counted_by_torch() -> None:
    pytest.importorskip("torch")
    import torch

    processors = len(os.sched_getaffinity(0))
    assert resolved("--nproc-per-node", "cpu").spec.cluster.ranks_per_node == processors
    devices = torch.accelerator.device_count()
    assert resolved("--nproc-per-node", "auto").spec.cluster.ranks_per_node == (devices or processors)
    if not torch.cuda.is_available():
        with pytest.raises(LaunchError, match="torch finds no device"):
            resolved("--nproc-per-node", "gpu")
