"""A run asked for otherwise: what may change, what may not, and where each value comes from afterwards."""

# ruff: noqa: E501  messages are compared whole
from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from launcher.amend import Amended, amend, respecified
from launcher.errors import ConfigError
from launcher.paths import RunPaths
from launcher.run import Run
from launcher.spec import load_spec, read_resolved
from launcher.submit import write_spec
from policies.load import read_policy

RUN = """\
name: demo
trainer: {size: tiny, steps: 300, batch_tokens: 8192, seq_len: 128, parallel: {fsdp: 2, tensor: 2}}
cluster: {nodes: 2, ranks_per_node: 2, spares: 1}
notify: {oncall: "env:PAGER"}
launch: {first_step: 90s}
policy: [./mine.yaml]
"""
MINE = """\
version: 1
name: mine
include: [infra]
rules:
  - {name: too-high, when: {threshold: {metric: loss, above: 8}}, do: [{notify: oncall, save: now}]}
"""


@pytest.fixture
def paths(tmp_path: Path) -> RunPaths:
    """The folder of a run that was submitted."""
    (tmp_path / "mine.yaml").write_text(MINE)
    (tmp_path / "RUN.yaml").write_text(RUN)
    paths = RunPaths(tmp_path / "runs" / "demo")
    paths.make_folders()
    write_spec(paths, load_spec(tmp_path / "RUN.yaml"))
    (tmp_path / "mine.yaml").unlink()  # what was asked for is stored with the run
    return paths


def amended(paths: RunPaths, *overrides: str, step: int = 100, **flags: Any) -> Amended:
    return amend(paths, Run(step=step), overrides, flags, "ann")


def mistakes(paths: RunPaths, *overrides: str, step: int = 100, **flags: Any) -> list[str]:
    with pytest.raises(ConfigError) as raised:
        amended(paths, *overrides, step=step, **flags)
    return [f"{one.where}: {one.message}" for one in raised.value.mistakes]


def test_what_is_changed_knows_who_changed_it_and_the_rest_where_it_came_from(paths: RunPaths) -> None:
    before = read_resolved(paths.spec)
    new = amended(paths, "trainer.lr=1e-4", spares=0)

    assert new.changes == {"trainer.lr": [0.0006, 0.0001], "cluster.spares": [1, 0]}
    origins = new.resolved.origins
    assert origins["trainer.lr"].startswith("--set trainer.lr=1e-4; resume by ann, 20")
    assert origins["cluster.spares"].startswith("--spares 0; resume by ann, 20")
    assert origins["trainer.size"].endswith("RUN.yaml:2")
    assert origins["trainer.seed"] == "built in"
    write_spec(paths, new.resolved)
    again = amended(paths, "trainer.lr=1e-4")
    assert (again.changes, again.resolved.origins["cluster.spares"]) == ({}, origins["cluster.spares"])
    assert before.trainer
    assert read_resolved(paths.spec).model_dump() == before.model_dump() | {
        "trainer": before.trainer.model_dump() | {"lr": 0.0001},
        "cluster": before.cluster.model_dump() | {"spares": 0},
    }


def test_a_branch_without_a_spec_of_its_own_is_asked_for_as_its_parent_was(paths: RunPaths) -> None:
    new = respecified(paths, ["trainer.steps=400"], {"name": "other"})
    assert (new.spec.name, new.origins["name"]) == ("other", "--name other")
    assert new.origins["trainer.steps"] == "--set trainer.steps=400"
    assert new.origins["trainer.size"].endswith("RUN.yaml:2")
    assert new.policy == read_policy(paths.policy)


def test_the_policy_stays_unless_one_is_named(paths: RunPaths) -> None:
    assert amended(paths, "trainer.lr=1e-4").resolved.policy == read_policy(paths.policy)
    assert next(rule.name for rule in amended(paths, policy=["numerics"]).resolved.policy.rules) == "corrupt-weights"


def test_a_limit_that_the_run_has_set_in_its_policy_follows_it(paths: RunPaths) -> None:
    (hang,) = [one for one in amended(paths, "launch.first_step=5m").resolved.policy.rules if one.name == "hang"]
    assert hang.when.hang
    assert hang.when.hang.first_step == 300.0


@pytest.mark.parametrize(
    ("flags", "overrides", "degrees"),
    [
        ({"nodes": 3}, (), (3, 2)),
        ({}, ("cluster.nodes=3",), (3, 2)),
        ({}, ("cluster.ranks_per_node=4",), (4, 2)),
        ({"nodes": 4}, ("trainer.parallel.tensor=1", "trainer.parallel.fsdp=8"), (8, 1)),
        ({"spares": 3}, (), (2, 2)),
    ],
)
def test_fsdp_takes_what_tensor_leaves_of_another_number_of_ranks(
    paths: RunPaths, flags: dict[str, Any], overrides: tuple[str, ...], degrees: tuple[int, int]
) -> None:
    overrides = (*overrides, "trainer.batch_tokens=12288")
    trainer = amended(paths, *overrides, **flags).resolved.spec.trainer
    assert trainer
    assert (trainer.parallel.fsdp, trainer.parallel.tensor) == degrees


@pytest.mark.parametrize(
    ("overrides", "flags", "told"),
    [
        (("trainer.size=8m",), {}, "--set trainer.size=8m: size is tiny in the run's checkpoints and cannot become 8m: submit another run"),
        (("trainer.seed=2",), {}, "--set trainer.seed=2: seed is 1 in the run's checkpoints and cannot become 2: submit another run"),
        (("trainer.held_out=0.1",), {}, "--set trainer.held_out=0.1: held_out is 0.05 in the run's checkpoints and cannot become 0.1: submit another run"),
        (("trainer.steps=100",), {}, "--set trainer.steps=100: 100 steps are done, so 100 leave nothing to do: opt-launch submit --from demo@STEP begins a branch at an earlier step"),
        (("name=other",), {}, "--set name=other: a run keeps its name: opt-launch submit --from demo@latest --name other begins a branch"),
        (("trainer.stpes=7",), {}, "--set trainer.stpes=7: unknown key 'stpes' (did you mean 'steps'?)"),
        (("notify={}",), {}, "POLICY: channel 'oncall' is not in 'notify' of RUN.yaml"),
        ((), {"partition": "urgent"}, "--partition urgent: the run is on backend local, which has none"),
        ((), {"policy": ["nope"]}, "--policy nope: no shipped policy is called 'nope' (shipped: cautious, default, infra, numerics, opt175b; a path ends in .yaml)"),
    ],
)  # fmt: skip
def test_what_cannot_change_is_told_with_what_to_do(
    paths: RunPaths, overrides: tuple[str, ...], flags: dict[str, Any], told: str
) -> None:
    (found,) = mistakes(paths, *overrides, **flags)
    assert found == told.replace("POLICY", str(paths.policy))


def test_the_site_says_nothing_of_a_run_that_is_there(
    paths: RunPaths, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "site.yaml").write_text("launch: {env: {ADDED: later}}\n")
    monkeypatch.setenv("OPT_LAUNCH_SITE", str(tmp_path / "site.yaml"))
    assert amended(paths, "trainer.lr=1e-4").changes.keys() == {"trainer.lr"}


def test_what_exit_codes_mean_is_said_once_however_often_it_is_changed(tmp_path: Path) -> None:
    text = "name: own\ncommand: ['true']\ncapabilities: {exit_codes: {16: rerun_same, 17: stop}}\npolicy: [infra]\n"
    (tmp_path / "RUN.yaml").write_text(text)
    paths = RunPaths(tmp_path / "own")
    paths.make_folders()
    write_spec(paths, load_spec(tmp_path / "RUN.yaml"))
    for codes in ("{16: rerun_same, 17: stop}", "{17: stop}", "{17: stop, 18: stop}"):
        write_spec(paths, amended(paths, f"capabilities.exit_codes={codes}").resolved)

    rules = [rule.name for rule in read_policy(paths.policy).rules]

    assert rules[:3] == ["exit-code-17", "exit-code-18", "user-error"]
    assert len(rules) == len(set(rules))


def test_secrets_do_not_get_into_the_journal(paths: RunPaths) -> None:
    assert amended(paths, "launch.env.MY_API_KEY=hush").changes == {"launch.env.MY_API_KEY": ["***", "***"]}


@pytest.mark.parametrize(("asked", "expected"), [(100, 100), (30, 30), (0, 100)])
def test_the_shipped_rule_about_wrong_bits_follows_how_often_the_trainer_compares(
    tmp_path: Path, asked: int, expected: int
) -> None:
    """With nothing to compare it stays and says nothing, for the run may compare again."""
    (tmp_path / "RUN.yaml").write_text(RUN.replace("[./mine.yaml]", "[default]"))
    paths = RunPaths(tmp_path / "runs" / "demo")
    paths.make_folders()
    write_spec(paths, load_spec(tmp_path / "RUN.yaml"))
    rules = amended(paths, f"trainer.checksum_every={asked}").resolved.policy.rules
    assert [rule.when.sdc.every for rule in rules if rule.when.sdc] == [expected]
