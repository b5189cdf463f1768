"""The defaults of a site: below RUN.yaml and above what is built in, and out of the way where they mean nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from launcher.errors import ConfigError
from launcher.spec import ResolvedSpec, dump_resolved, load_spec

RUN = "name: demo\ncommand: [python, x.py]\n"
ON_SLURM = RUN + "cluster: {backend: slurm}\n"
SITE = """\
cluster:
  slurm: {partition: train, account: lab}
launch:
  setup: ["module load cuda"]
  env: {NCCL_DEBUG: WARN, HF_HOME: /data}
"""


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Writes the file that OPT_LAUNCH_SITE names."""
    path = tmp_path / "etc" / "site.yaml"
    path.parent.mkdir()
    monkeypatch.setenv("OPT_LAUNCH_SITE", str(path))

    def write(text: str) -> Path:
        path.write_text(text)
        return path

    return write


def load(folder: Path, text: str, *overrides: str, **flags: object) -> ResolvedSpec:
    (folder / "RUN.yaml").write_text(text)
    return load_spec(folder / "RUN.yaml", overrides, flags)


def mistakes(folder: Path, text: str, *overrides: str) -> list[str]:
    """Every mistake as `file:line:column: message`, the file without its folder."""
    with pytest.raises(ConfigError) as caught:
        load(folder, text, *overrides)
    return [str(one).splitlines()[0].replace(f"{folder}/", "").replace("etc/", "") for one in caught.value.mistakes]


def test_a_run_on_slurm_gets_what_the_site_has_set(tmp_path: Path, site: Callable[[str], Path]) -> None:
    path = site(SITE)

    run = load(tmp_path, ON_SLURM)

    assert (run.spec.cluster.slurm.partition, run.spec.launch.setup) == ("train", ("module load cuda",))
    assert run.origins["cluster.slurm.account"] == f"{path}:2"
    assert run.origins["launch.env.HF_HOME"] == f"{path}:5"
    assert run.origins["cluster.slurm.lead"] == "built in"
    assert f'partition: "train"  # {path}:2' in dump_resolved(run)


def test_run_yaml_wins_over_the_site_set_over_run_yaml_and_flags_over_all(
    tmp_path: Path, site: Callable[[str], Path]
) -> None:
    path = site("cluster: {nodes: 2, spares: 2, ranks_per_node: 2, wait_for_node: 2s}\n")

    run = load(
        tmp_path, RUN + "cluster: {nodes: 3, spares: 3, ranks_per_node: 3}\n", "cluster.nodes=4", "cluster.spares=4",
        nodes=5,
    )  # fmt: skip

    assert {key: run.origins[f"cluster.{key}"] for key in ("nodes", "spares", "ranks_per_node", "wait_for_node")} == {
        "nodes": "--nodes 5",
        "spares": "--set cluster.spares=4",
        "ranks_per_node": f"{tmp_path / 'RUN.yaml'}:3",
        "wait_for_node": f"{path}:1",
    }
    cluster = run.spec.cluster
    assert (cluster.nodes, cluster.spares, cluster.ranks_per_node, cluster.wait_for_node) == (5, 4, 3, 2)


def test_sections_are_merged_key_by_key_and_lists_are_replaced(tmp_path: Path, site: Callable[[str], Path]) -> None:
    site(SITE + "policy: [cautious]\nnotify: {oncall: 'mailto:a'}\n")

    spec = load(tmp_path, ON_SLURM + "launch: {setup: [x], env: {HF_HOME: /mine}}\npolicy: [infra]\n").spec

    assert spec.launch.env == {"HF_HOME": "/mine", "NCCL_DEBUG": "WARN"}
    assert (spec.launch.setup, spec.policy, [*spec.notify]) == (("x",), ("infra",), ["oncall"])


def test_a_run_can_do_without_a_default_of_the_site(tmp_path: Path, site: Callable[[str], Path]) -> None:
    site(SITE)
    slurm = load(tmp_path, RUN + "cluster: {backend: slurm, slurm: {account: null}}\n").spec.cluster.slurm
    assert (slurm.account, slurm.partition) == (None, "train")


def test_defaults_for_slurm_do_not_disturb_a_local_run(tmp_path: Path, site: Callable[[str], Path]) -> None:
    site(SITE + "access: {}\n")

    run = load(tmp_path, RUN)

    assert (run.spec.cluster.slurm.partition, run.spec.launch.setup) == (None, ())
    assert run.spec.launch.env["HF_HOME"] == "/data"
    assert "train" not in dump_resolved(run)


def test_the_site_may_choose_the_backend_and_a_flag_another(tmp_path: Path, site: Callable[[str], Path]) -> None:
    site(SITE.replace("cluster:", "cluster:\n  backend: slurm"))
    assert load(tmp_path, RUN).spec.cluster.slurm.partition == "train"
    assert load(tmp_path, RUN, backend="local").spec.launch.setup == ()


def test_a_policy_file_of_the_site_lies_beside_the_file_of_the_site(
    tmp_path: Path, site: Callable[[str], Path]
) -> None:
    folder = site("policy: [./ours.yaml]\n").parent
    rule = "version: 1\nname: ours\nrules:\n  - {name: x, when: {hang: {}}, do: [{hold: {}}]}\n"
    (folder / "ours.yaml").write_text(rule)
    assert load(tmp_path, RUN).policy.name == "ours"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("cluster: {slrum: {}}\n", "site.yaml:1:11: unknown key 'slrum' (did you mean 'slurm'?)"),
        ("cluster: {slurm: {time: 5}}\n", "site.yaml:1:25: 5 has no unit: write 5s, 5m or 5h"),
        ("launch: {}\ntrainer: {size: tiny}\n", "site.yaml:2:1: 'trainer' belongs to one run: write it in RUN.yaml"),
        ("name: x\n", "site.yaml:1:1: 'name' belongs to one run: write it in RUN.yaml"),
        ("command: 3\n", "site.yaml:1:1: 'command' belongs to one run: write it in RUN.yaml"),
        ("cluster: 3\n", "site.yaml:1:10: a mapping of keys to values is expected, not 3"),
        ("health: {before_start: deep}\n", "site.yaml:1:24: 'health.before_start: deep' is not built yet"),
        ("policy: [gone.yaml]\n", "site.yaml:1:10: gone.yaml: no such file"),
        ("launch: {env: {RANK: '0'}}\n", "site.yaml:1:22: RANK is set by the launcher for each rank"),
        ("- a\n", "site.yaml:1:1: the top level is a list: a mapping of keys to values is expected"),
    ],
)
def test_a_mistake_of_the_site_is_shown_at_its_place(
    tmp_path: Path, site: Callable[[str], Path], text: str, found: str
) -> None:
    site(text)
    assert mistakes(tmp_path, RUN) == [found]


def test_mistakes_of_the_site_and_of_the_run_are_told_at_once(tmp_path: Path, site: Callable[[str], Path]) -> None:
    site("cluster: {nodes: two}\n")
    assert mistakes(tmp_path, RUN + "polcy: [x]\n", "launch.threads=0") == [
        "RUN.yaml:3:1: unknown key 'polcy' (did you mean 'policy'?)",
        "site.yaml:1:18: a whole number is expected, not 'two'",
        "--set launch.threads=0: threads must be greater than 0, not 0",
    ]


def test_a_named_file_that_is_missing_is_a_mistake_and_an_empty_name_means_none(
    tmp_path: Path, site: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert mistakes(tmp_path, RUN) == ["site.yaml: no such file (OPT_LAUNCH_SITE names it)"]
    monkeypatch.setenv("OPT_LAUNCH_SITE", "")
    assert load(tmp_path, RUN).spec.name == "demo"


def test_the_file_in_the_home_counts_and_need_not_exist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPT_LAUNCH_SITE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load(tmp_path, RUN).spec.cluster.nodes == 1
    (tmp_path / ".config" / "opt-launch").mkdir(parents=True)
    (tmp_path / ".config" / "opt-launch" / "site.yaml").write_text("cluster: {nodes: 2}\n")
    assert load(tmp_path, RUN).spec.cluster.nodes == 2
