"""RUN.yaml: what is refused, what wins, and where each value came from."""

# ruff: noqa: E501  messages are compared whole
import json
import os
from pathlib import Path
from typing import Any

import pytest

from launcher.errors import ConfigError
from launcher.network import addresses
from launcher.preflight import NOT_BUILT
from launcher.sections import OPT_VOCABULARY, SIZES
from launcher.spec import ResolvedSpec, dump_resolved, load_spec, read_resolved
from model.config import OPT_VOCABULARY as TRAINERS_VOCABULARY
from model.config import SIZES as MODEL_SIZES
from model.config import TrainerConfig
from policies.units import (
    format_bytes,
    format_duration,
    parse_bytes,
    parse_duration,
    parse_rate,
    parse_span,
    parse_steps,
)

EXAMPLES = Path(__file__).parents[2] / "examples"
RUN = """\
name: demo
trainer:
  size: tiny
  steps: 300
  batch_tokens: 8192
  seq_len: 128
  lr: 6.0e-4
  parallel: {fsdp: 2, tensor: 2}
  checkpoint: {every: 25 steps, keep: 5, probation: 20 steps}
cluster: {nodes: 2, ranks_per_node: 2, spares: 1}
"""


def resolved(folder: Path, text: str = RUN, *overrides: str, **flags: Any) -> ResolvedSpec:
    path = folder / "RUN.yaml"
    path.write_text(text)
    return load_spec(path, overrides, flags)


def mistakes(folder: Path, text: str = RUN, *overrides: str, **flags: Any) -> list[str]:
    """Every mistake as `line:column: message`, or with the flag it is about."""
    try:
        resolved(folder, text, *overrides, **flags)
    except ConfigError as error:
        return [f"{f'{m.line}:{m.column}' if m.line else m.where}: {m.message}" for m in error.mistakes]
    return []


def test_the_example_is_a_run_of_four_ranks() -> None:
    spec = load_spec(EXAMPLES / "demo.yaml").spec
    assert spec.trainer is not None
    assert (spec.name, spec.world_size, spec.trainer.data, spec.policy) == ("demo", 4, ("python",), ("default",))
    assert (spec.trainer.checkpoint.every, spec.trainer.checkpoint.keep, spec.trainer.checkpoint.probation) == (
        25,
        5,
        20,
    )


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.yaml")), ids=lambda path: path.name)
def test_every_example_is_without_mistakes(path: Path) -> None:
    assert load_spec(path).spec.name


def test_what_comes_first_wins_and_every_value_knows_its_origin(tmp_path: Path) -> None:
    run = resolved(tmp_path, RUN, "trainer.lr=1e-5", "cluster.spares=2", spares=3, nodes=2)
    origins = run.origins
    assert run.spec.trainer is not None
    assert (run.spec.trainer.lr, run.spec.cluster.spares) == (1e-5, 3)
    assert origins["trainer.lr"] == "--set trainer.lr=1e-5"
    assert origins["cluster.spares"] == "--spares 3"
    assert origins["trainer.steps"] == f"{tmp_path / 'RUN.yaml'}:4"
    assert origins["trainer.seed"] == "built in"


def test_flags_not_given_change_nothing(tmp_path: Path) -> None:
    assert resolved(tmp_path, RUN, nodes=None, policy=[], name=None) == resolved(tmp_path, RUN)


def test_a_resolved_spec_reads_back_as_it_was(tmp_path: Path) -> None:
    text = (
        RUN
        + "notify: {on-call: 'env:X', owner: \"a # b: c\"}\nlaunch: {env: {A: '1e5', B: 'é\\t\"x\"'}, first_step: 90s}\n"
    )
    run = resolved(tmp_path, text, "trainer.clip=0.25")
    path = tmp_path / "spec.yaml"
    path.write_text(dump_resolved(run))
    assert read_resolved(path) == run.spec
    assert "clip: 0.25  # --set trainer.clip=0.25" in path.read_text()


def test_a_size_brings_its_batch_and_learning_rate(tmp_path: Path) -> None:
    spec = resolved(tmp_path, "name: a\ntrainer: {size: 125m, steps: 10}\n").spec
    assert spec.trainer is not None
    assert (spec.trainer.batch_tokens, spec.trainer.lr, spec.trainer.seq_len) == (2**19, 6e-4, 2048)


def test_paths_of_the_file_start_at_its_folder_and_those_of_flags_at_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "mine.txt").write_text("x")
    (tmp_path / "mine.txt").write_text("x")
    monkeypatch.chdir(tmp_path / "here")
    text = RUN.replace("steps: 300", "steps: 300\n  data: [mine.txt, python]")
    for overrides, folder in ([], tmp_path), (["trainer.data=[mine.txt, python]"], tmp_path / "here"):
        spec = resolved(tmp_path, text, *overrides).spec
        assert spec.trainer is not None
        assert spec.trainer.data == (str(folder / "mine.txt"), "python")


def changed(old: str, new: str) -> str:
    assert old in RUN
    return RUN.replace(old, new)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (changed("name: demo", "name: ../up"), "1:7: '../up' cannot be a name: at most 64 letters, digits, '.', '_' and '-', the first a letter or digit"),
        (changed("name: demo", f"name: {'x' * 65}"), f"1:7: '{'x' * 65}' cannot be a name: at most 64 letters, digits, '.', '_' and '-', the first a letter or digit"),
        (changed("name: demo\n", ""), "1:1: 'name' is missing"),
        (changed("steps: 300", "stpes: 300"), "4:3: unknown key 'stpes' (did you mean 'steps'?)"),
        (changed("size: tiny", "size: 126m"), "3:9: '126m' is not one of tiny, 8m, 125m, 350m, 760m, 1.3b, 2.7b, 6.7b, 13b, 30b, 66b, 175b (did you mean '125m'?)"),
        (changed("steps: 300", "steps: 0"), "4:10: steps must be greater than 0, not 0"),
        (changed("steps: 300", "steps: -5 steps"), "4:10: '-5 steps' is not a number of steps: write for example 25 steps"),
        (changed("lr: 6.0e-4", "lr: -1e-4"), "7:7: lr must be greater than 0, not -0.0001"),
        (changed("lr: 6.0e-4", "lr: .nan"), "7:7: lr must be a finite number, not nan"),
        (changed("lr: 6.0e-4", "lr: fast"), "7:7: a number is expected, not 'fast'"),
        (changed("lr: 6.0e-4", "dropout: 1"), "7:12: dropout must be less than 1, not 1"),
        (changed("spares: 1", "spares: -1"), "10:48: spares must be at least 0, not -1"),
        (changed("spares: 1", "silence: 2"), "10:49: 2 has no unit: write 2s, 2m or 2h"),
        (changed("spares: 1", "silence: 0s"), "10:49: silence must be greater than 0, not '0s'"),
        (changed("keep: 5", "keep: 0"), "9:39: keep must be greater than 0, not 0"),
        (changed("keep: 5", "keep: five"), "9:39: a whole number is expected, not 'five'"),
        (RUN + "notify: {a b: c}\n", "11:15: 'a b' cannot be a name: at most 64 letters, digits, '.', '_' and '-', the first a letter or digit"),
        (RUN + "launch: {env: {A: 1}}\n", "11:19: a text is expected, not 1: put it in quotes"),
        (RUN + "launch: {env: {1A: x}}\n", "11:20: '1A' cannot be the name of an environment variable"),
        (RUN + "policy: []\n", "11:9: policy must not be empty"),
        (RUN + "policy: default\n", "11:9: a list is expected, not 'default': write [default]"),
    ],
)  # fmt: skip
def test_a_wrong_value_is_shown_at_its_place(tmp_path: Path, text: str, expected: str) -> None:
    assert mistakes(tmp_path, text) == [expected]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (RUN + "command: [python, x.py]\n", "11:10: 'trainer' and 'command' exclude each other: write one of them"),
        ("name: a\n", "1:1: nothing to train: 'trainer' or 'command' is missing"),
        (changed("fsdp: 2", "fsdp: 4"), "8:13: fsdp 4 x tensor 2 is 8, but nodes 2 x ranks_per_node 2 is 4"),
        (changed("batch_tokens: 8192", "batch_tokens: 8200"), "5:17: batch_tokens 8200 is not a multiple of 256, one sequence of 128 tokens for each of 2 fsdp ranks"),
        (changed("lr: 6.0e-4", "micro_batch: 3"), "7:16: micro_batch 3 does not divide the 32 sequences a rank has in each step"),
        (changed("fsdp: 2, tensor: 2", "fsdp: 1, tensor: 4"), "8:31: the 2 heads of tiny cannot be divided among 4 tensor-parallel ranks"),
        (changed("spares: 1", "min_nodes: 3"), "10:51: min_nodes is 3, more than the 2 nodes of the run"),
        (changed("spares: 1", "backend: slurm, slurm: {time: 10m, lead: 10m}"), "10:70: the job ends after 600 s and is to be saved 600 s before: nothing would be trained"),
        (changed("ranks_per_node: 2, spares: 1", "ranks_per_node: 1, min_nodes: 1").replace("fsdp: 2", "fsdp: 1"), "10:51: no number of nodes below 2 fits: 1: its ranks (1) are no multiple of tensor 2"),
        ("name: a\ncommand: [sh]\ncluster: {nodes: 2, min_nodes: 1}\n", "3:32: whether the command can go on with fewer nodes than 2 is not known: if it and its checkpoints fit any WORLD_SIZE, say capabilities: {elastic: true}; else leave this out"),
        (changed("keep: 5", "keep_every: 60"), "9:45: keep_every 60 is not a multiple of every 25"),
        (changed("probation: 20", "probation: 125"), "9:53: the 5 newest checkpoints reach back 125 steps: all are removed before their probation of 125 steps ends, and none is ever good"),
        (changed("lr: 6.0e-4", "data: [gone.txt]"), "7:10: FOLDER/gone.txt: no such file"),
        (changed("lr: 6.0e-4", "data: ['*.txt', 'gone/*']"), "7:19: FOLDER/gone/*: matches no file"),
        (changed("lr: 6.0e-4", "data: [empty.txt]"), "7:10: FOLDER/empty.txt: the file is empty"),
        (changed("lr: 6.0e-4", "data: [python, nothing]"), "7:18: FOLDER/nothing: is a folder: write FOLDER/** for the files in it"),
        (RUN + "access: {group: no-such}\n", "11:17: there is no group 'no-such' on this machine"),
        (RUN + "access: {control: true}\n", "11:19: 'access.control' lets a group steer, and 'access.group' names none"),
        (RUN + "launch: {env: {RANK: '0'}}\n", "11:22: RANK is set by the launcher for each rank"),
        (RUN + "launch: {env: {NOT_SET_X: from-env}}\n", "11:27: NOT_SET_X is to be taken from the environment, where it is not set"),
        (RUN + "policy: [defualt]\n", "11:10: no shipped policy is called 'defualt' (did you mean 'default'?)"),
        (RUN + "policy: [gone.yaml]\n", "11:10: FOLDER/gone.yaml: no such file"),
        (RUN + "policy: [calls.yaml]\n", "8:17: channel 'oncall' is not in 'notify' of RUN.yaml"),
        ("name: a\ncommand: [sh]\npolicy: [goes_back.yaml]\n", "7:9: 'restart from last_good' of rule 'r' needs 'checkpoints' and 'capabilities.resume' of the command"),
    ],
)  # fmt: skip
def test_values_that_do_not_fit_together_are_a_mistake(tmp_path: Path, text: str, expected: str) -> None:
    (tmp_path / "empty.txt").touch()
    (tmp_path / "some.txt").write_text("x")
    (tmp_path / "nothing").mkdir()
    rule = "version: 1\nname: p\nrules:\n  - name: r\n    when: {non_finite: {}}\n    do:\n      - "
    (tmp_path / "calls.yaml").write_text(rule.replace("{non", "\n      {non") + "notify: oncall\n")
    (tmp_path / "goes_back.yaml").write_text(rule + "restart: {from: last_good}\n")
    if "{fsdp: 1" in text:
        text = text.replace("seq_len: 128", "seq_len: 256")
    assert mistakes(tmp_path, text) == [expected.replace("FOLDER", str(tmp_path), 1)]


def test_a_tokenizer_that_is_none_or_has_too_many_tokens_is_a_mistake(tmp_path: Path) -> None:
    (tmp_path / "none.json").write_text("{}")
    vocabulary = {chr(65 + number): number for number in range(300)}
    model = {"type": "WordLevel", "vocab": vocabulary, "unk_token": "A"}
    (tmp_path / "good.json").write_text(json.dumps({"version": "1.0", "added_tokens": [], "model": model}))

    def found(*overrides: str) -> list[str]:
        return mistakes(tmp_path, RUN, *overrides)

    assert "is neither 'bytes' nor the path of a tokenizer.json" in found("trainer.tokenizer=gpt2")[0]
    assert "gone.json is no tokenizer.json that can be read" in found(f"trainer.tokenizer={tmp_path}/gone.json")[0]
    assert "none.json is no tokenizer.json that can be read" in found(f"trainer.tokenizer={tmp_path}/none.json")[0]
    good = f"trainer.tokenizer={tmp_path}/good.json"
    assert found(good) == []
    (small,) = found(good, "trainer.vocabulary=296")
    assert "its 300 token ids are more than the 296 of the model: set vocabulary to 304" in small
    assert "8" in found("trainer.vocabulary=270")[0]


ASKED = {
    "trainer.checkpoint.memory": "{every: 5}",
    "health.before_start": "standard", "health.every": "60s",
    "on_good_checkpoint": "{run: [x]}",
}  # fmt: skip


@pytest.mark.parametrize("key", NOT_BUILT)
def test_what_does_not_exist_yet_is_refused_by_name(tmp_path: Path, key: str) -> None:
    (found,) = mistakes(tmp_path, RUN, f"{key}={ASKED[key]}")
    assert found.startswith(f"--set {key}={ASKED[key]}: '{key}")
    assert found.endswith("is not built yet")


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("launch.env.CODE=3", "a text is expected, not 3: write --set 'launch.env.CODE=\"3\"'"),
        ("launch.env={CODE: 3}", "a text is expected, not 3: put it in quotes"),
        ("trainer.steps=99999999999999999999999", "steps must be less than 9.22337e+18, not 99999999999999999999999"),
        ("trainer.lr=fast", "a number is expected, not 'fast'"),
        ("trainer.stpes=3", "unknown key 'stpes' (did you mean 'steps'?)"),
        ("trainr.steps=3", "unknown key 'trainr' (did you mean 'trainer'?)"),
        ("trainer.steps.x=3", "what comes before 'x' is not a section"),
        ("trainer.lr", "write --set key.sub=value"),
        ("=3", "write --set key.sub=value"),
        ("trainer..lr=3", "write --set key.sub=value"),
        ("trainer.data=[a", "not YAML: expected ',' or ']', but got '<stream end>' (while parsing a flow sequence)"),
        ("cluster.nodes=3", "fsdp 2 x tensor 2 is 4, but nodes 3 x ranks_per_node 2 is 6"),
    ],
)
def test_a_mistake_of_set_is_shown_at_the_flag(tmp_path: Path, override: str, expected: str) -> None:
    (found,) = mistakes(tmp_path, RUN, override)
    assert found.endswith(expected)
    if "nodes" not in override:  # there the file's own section is as much to blame
        assert found == f"--set {override}: {expected}"


def test_a_mistake_of_a_flag_is_shown_at_the_flag(tmp_path: Path) -> None:
    assert mistakes(tmp_path, RUN, spares=-1) == ["--spares -1: spares must be at least 0, not -1"]
    assert mistakes(tmp_path, RUN, policy=["defualt"]) == [
        "--policy defualt: no shipped policy is called 'defualt' (did you mean 'default'?)"
    ]
    assert mistakes(tmp_path, RUN, backend="k8s") == ["--backend k8s: 'k8s' is not one of local, slurm, own"]


def test_mistakes_of_shape_meaning_flags_and_policies_are_told_at_once(tmp_path: Path) -> None:
    text = changed("seq_len: 128", "seq_len: 128\n  sede: 3") + "policy: [defualt]\nlaunch: {env: {RANK: '1'}}\n"
    found = mistakes(tmp_path, text, "trainer.lr=x", spares=-2)
    assert [one.split(": ")[0] for one in found] == ["7:3", "12:10", "13:22", "--set trainer.lr=x", "--spares -2"]


def test_a_wrong_name_hides_no_other_mistake(tmp_path: Path) -> None:
    found = mistakes(tmp_path, RUN, "name=a b", "policy=[defalt]", "health.every=60s", "cluster.spaers=1")
    about = ("--set name", "--set policy", "--set health.every", "--set cluster.spaers")
    assert sorted(one.partition("=")[0] for one in found) == sorted(about)


def test_commands_that_only_a_job_script_can_run_are_refused_elsewhere(tmp_path: Path) -> None:
    setup = "launch.setup=[module load cuda]"
    (found,) = mistakes(tmp_path, RUN, setup)
    assert "'launch.setup' runs in the script of a Slurm job" in found
    assert mistakes(tmp_path, RUN, setup, backend="slurm") == []


def test_an_allocation_of_ones_own_cannot_be_submitted(tmp_path: Path) -> None:
    told = "'cluster.backend: own' is for runs that 'opt-launch run' starts: give it the script"
    written = RUN.replace("cluster: {", "cluster: {backend: own, ")
    assert mistakes(tmp_path, written) == [f"10:20: {told}"]
    assert mistakes(tmp_path, RUN, "cluster.backend=own") == [f"--set cluster.backend=own: {told}"]


COMMAND = "name: a\ncommand: [sh]\npolicy: [infra]\n"


@pytest.mark.parametrize(
    ("launch", "expected"),
    [
        ("prefix: [apptainer-of-nobody, exec]", "4:19: apptainer-of-nobody: no such program"),
        ("prefix: [sh, '{scrach}']", "4:23: {scrach} stands for nothing: {run}, {scratch}, {launcher}, {cwd}, {node} do"),
        ("python: /no/such/python", "4:18: /no/such/python: no such program"),
        ("network: {interface: nope0}", f"4:31: no interface 'nope0' with an IPv4 address here, only {', '.join(addresses())}"),
        ("bind: numa", "4:16: 'numa' is not one of auto, none, cores"),
        ("env: {NNODES: '2'}", "4:24: NNODES is set by the launcher for each rank"),
        ("env: {OPT_LAUNCH_NODE: x}", "4:33: OPT_LAUNCH_NODE is set by the launcher for each rank"),
    ],
)  # fmt: skip
def test_how_ranks_are_started_is_checked_at_submit(tmp_path: Path, launch: str, expected: str) -> None:
    assert mistakes(tmp_path, f"{COMMAND}launch: {{{launch}}}\n") == [expected]


def test_what_only_a_node_can_know_is_not_asked_of_the_login_node(tmp_path: Path) -> None:
    launch = "{prefix: [apptainer-of-nobody], python: /no/such/python, network: {interface: nope0}}"

    assert mistakes(tmp_path, f"{COMMAND}launch: {launch}\n", backend="slurm") == []
    assert mistakes(tmp_path, "name: a\ncommand: [pythn, train.py]\n", backend="slurm") == []


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("[pythn, train.py]", ["2:11: pythn: no such program in PATH: correct it, or write its whole path"]),
        ("[/no/such/python, x]", ["2:11: /no/such/python: no such program that can be run: correct its path"]),
        ("[sh, x]\nlaunch: {env: {PATH: /no/such}}", ["2:11: sh: no such program in PATH: correct it, or write its whole path"]),
        ("[./train.sh]", []),  # of the folder that ranks work in
        ("[pythn, x]\nlaunch: {prefix: [sh]}", []),  # what is there beyond it, nobody here can know
        ("sh train.sh", ["2:10: a list is expected, not 'sh train.sh': write [sh, train.sh]"]),
    ],
)  # fmt: skip
def test_a_program_that_is_not_there_is_refused_at_submit(tmp_path: Path, command: str, expected: list[str]) -> None:
    assert mistakes(tmp_path, f"name: a\ncommand: {command}\npolicy: [infra]\n") == expected


@pytest.mark.parametrize("item", ["${HOME}", "{run}/x:{scratch}", "{}", "{ a }", "{A}"])
def test_other_braces_in_a_prefix_are_what_they_are(tmp_path: Path, item: str) -> None:
    assert mistakes(tmp_path, f"{COMMAND}launch: {{prefix: [sh, '{item}']}}\n") == []


def test_our_trainer_is_not_started_by_another_process(tmp_path: Path) -> None:
    (found,) = mistakes(tmp_path, RUN, "launch.mode=per_node")
    assert "'launch.mode: per_node' is for a command that starts the ranks of a node itself" in found


def test_nothing_is_said_about_what_a_wrong_value_might_have_meant(tmp_path: Path) -> None:
    assert len(mistakes(tmp_path, changed("nodes: 2", "nodes: two"))) == 1
    assert len(mistakes(tmp_path, changed("batch_tokens: 8192", "batch_tokens: many"))) == 1


def test_a_command_needs_no_trainer(tmp_path: Path) -> None:
    run = resolved(tmp_path, "name: a\ncommand: [python, x.py, --lr, '1']\n")
    assert run.spec.command == ("python", "x.py", "--lr", "1")
    assert {rule.name: rule.mode for rule in run.policy.rules}["non-finite"] == "advise"


def test_a_secret_from_the_environment_is_not_written_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_API_KEY", "s3cret")
    run = resolved(tmp_path, RUN + "launch: {env: {MY_API_KEY: from-env}}\n")
    assert "s3cret" not in dump_resolved(run)


@pytest.mark.parametrize(
    ("sizes", "held_out", "enough"),
    [
        ([127], 0, False), ([128], 0, True), ([134], 0.05, False), ([135], 0.05, True), ([0, 128], 0.05, False),
        ([60, 60], 0, False), ([63, 64], 0, True), ([500, 100], 0.5, True), ([100, 500], 0.5, False),
        ([500, 500], 0.9, False), ([1], 0.9, False),
    ],
)  # fmt: skip
def test_a_corpus_needs_one_sequence_by_the_rule_of_the_trainer(
    tmp_path: Path, sizes: list[int], held_out: float, enough: bool
) -> None:
    from model.data import Corpus, find_documents, split

    for index, size in enumerate(sizes):
        (tmp_path / f"{index}.txt").write_bytes(b"x" * size)
    text = changed("lr: 6.0e-4", f"data: ['*.txt']\n  held_out: {held_out}")
    left, _ = split(find_documents([str(tmp_path / "*.txt")]), held_out)
    assert bool(Corpus(left, 128, may_be_empty=True).sequences) is enough
    found = mistakes(tmp_path, text)
    assert (
        not found if enough else found[0].startswith("7:9: ") and "too few for one sequence of 128 tokens" in found[0]
    )


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_corpus_that_may_not_be_read(tmp_path: Path) -> None:
    (tmp_path / "c.txt").write_text("x")
    os.chmod(tmp_path / "c.txt", 0)
    assert "permission denied" in mistakes(tmp_path, RUN, f"trainer.data=[{tmp_path}/c.txt]")[0]


def test_the_trainer_takes_what_the_spec_resolves_to(tmp_path: Path) -> None:
    trainer = resolved(tmp_path).spec.trainer
    assert trainer is not None
    config = TrainerConfig.from_mapping(trainer.model_dump(exclude_none=True))
    assert (config.steps, config.save_every, config.fsdp, config.tensor, config.lr) == (300, 25, 2, 2, 6e-4)
    asked = ("trainer.dtype=fp16", "trainer.loss_scale={init: 16, min: 0.25}", "trainer.layer_norms=50 steps")
    trainer = resolved(tmp_path, RUN, *asked, "trainer.checksum_every=0").spec.trainer
    assert trainer is not None
    config = TrainerConfig.from_mapping(trainer.model_dump(exclude_none=True))
    assert (config.loss_scale_init, config.loss_scale_window, config.loss_scale_min) == (16, 256, 0.25)
    assert (config.dtype, config.layer_norms, config.checksum_every) == ("fp16", 50, 0)


def test_the_spec_and_the_trainer_agree_on_heads_and_the_size_of_the_vocabulary() -> None:
    assert OPT_VOCABULARY == TRAINERS_VOCABULARY
    assert {size: SIZES[size].heads for size in MODEL_SIZES} == {size: one.heads for size, one in MODEL_SIZES.items()}


def test_every_size_has_heads_for_its_usual_tensor_parallel_degree() -> None:
    assert all(size.heads % 2 == 0 and size.batch_tokens % size.seq_len == 0 for size in SIZES.values())


# ---------------------------------------------------------------- small texts


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("10s", 10), ("1.5m", 90), ("6h", 21600), ("250ms", 0.25), ("1h30m", 5400), ("2d", 172800), ("3-00:00:00", 259200),
     ("01:30:00", 5400), ("0s", 0)],
)  # fmt: skip
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds
    assert parse_duration(format_duration(seconds)) == seconds


@pytest.mark.parametrize(
    "text", ["", "10", "s", "10 parsecs", "-5s", "1:30", "5s5", 10, 1.5, None, True, [], "9" * 400 + "d"]
)
def test_what_is_no_duration(text: object) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_duration(text)


def test_steps_spans_and_rates() -> None:
    assert (parse_steps("25 steps"), parse_steps("1 step"), parse_steps(7)) == (25, 1, 7)
    assert (str(parse_span("3 steps")), str(parse_span("90s"))) == ("3 steps", "90s")
    assert (str(parse_rate("10 per run")), str(parse_rate("2 per 24h"))) == ("10 per run", "2 per 1d")
    for parse, text in ((parse_steps, "25"), (parse_steps, True), (parse_span, 3), (parse_rate, "ten per run")):
        with pytest.raises(ValueError, match="write"):
            parse(text)


@pytest.mark.parametrize(
    ("text", "count"), [("512MB", 512 * 10**6), ("1.5 GB", 15 * 10**8), ("2TB", 2 * 10**12), ("7kB", 7000)]
)
def test_sizes_are_read_and_written(text: str, count: int) -> None:
    assert parse_bytes(text) == count
    assert parse_bytes(format_bytes(count)) == count


@pytest.mark.parametrize("wrong", ["512", 512, "1 MiB", "-1MB", "many", True])
def test_what_is_no_size_is_refused_with_an_example(wrong: object) -> None:
    with pytest.raises(ValueError, match="is not a size: write for example 512MB or 2GB"):
        parse_bytes(wrong)


@pytest.mark.parametrize("section", ["trainer: {size: tiny, steps: 1}", "command: [sh]\ncluster: {backend: own}"])
def test_a_copy_is_refused_where_there_is_nothing_of_the_user_to_copy(tmp_path: Path, section: str) -> None:
    text = f"name: a\n{section}\npolicy: [infra]\nlaunch: {{code: snapshot}}\n"

    assert any("'launch.code: snapshot' is for a command that is submitted" in one for one in mistakes(tmp_path, text))
