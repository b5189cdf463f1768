"""What RUN.yaml says of a trainer that is not ours."""

# ruff: noqa: E501  messages are compared whole
from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from launcher.abilities import Abilities
from launcher.declared import UNDECLARED_S, facts_of
from launcher.errors import ConfigError
from launcher.foreign import NO_SAVE, SAVE_ENDS
from launcher.spec import ResolvedSpec, dump_resolved, load_spec, read_resolved

COMMAND = "name: a\ncommand: [python, train.py]\n"
NANOGPT = COMMAND + "telemetry: {preset: nanogpt}\n"
CHECKPOINTS = 'checkpoints: {glob: "out/ckpt-{step}", complete: {marker: DONE}}\n'
RESUME = 'capabilities: {resume: {args: ["--load", "{dir}", "--ckpt-step", "{step}"]}}\n'


def foreign(**can: Any) -> Abilities:
    """A trainer that is told nothing but what these words say."""
    return Abilities(**{"settings": frozenset(), "skips": False} | can)


def resolved(folder: Path, text: str) -> ResolvedSpec:
    path = folder / "RUN.yaml"
    path.write_text(text)
    return load_spec(path)


def mistakes(folder: Path, text: str) -> list[str]:
    try:
        resolved(folder, text)
    except ConfigError as error:
        return [f"{one.line}:{one.column}: {one.message}" for one in error.mistakes]
    return []


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("telemetry: {}", "3:12: write either 'preset' or 'pattern'"),
        ("telemetry: {preset: nanogpt, pattern: x}", "3:12: write either 'preset' or 'pattern'"),
        ("telemetry: {preset: nanogtp}", "3:21: 'nanogtp' is not one of nanogpt, megatron, hf_trainer, torchtitan, reporter (did you mean 'nanogpt'?)"),
        ("telemetry: {preset: reporter, from: last_rank}", "3:37: every rank that uses the reporter is heard: leave 'from' out"),
        ("telemetry: {preset: hf_trainer}", "3:21: its progress bar is told from others by the number of steps: say it in capabilities: {done: {step: N}}"),
        (r"telemetry: {pattern: 'it (?P<step>\d+'}", "3:22: not a regular expression: missing ), unterminated subpattern at character 4"),
        (r"telemetry: {pattern: ['it (?P<step>\d+)', 'loss (?P<1>x)']}", "3:43: not a regular expression: bad character in group name '1' at character 10"),
        (r"telemetry: {pattern: 'loss (?P<loss>\S+)'}", r"3:22: no group tells the step: write (?P<step>\d+) counted from 0, or (?P<steps_done>\d+) counted from 1"),
        ("telemetry: {pattern: step}", "3:22: names no group: write (?P<step>...) or (?P<loss>...) around what is to be read"),
        ("telemetry: {pattern: []}", "3:22: pattern must not be empty"),
        ("capabilities: {resume: always}", "3:24: 'always' is not one of newest, none"),
        ("capabilities: {resume: {arsg: [x]}}", "3:25: unknown key 'arsg' (did you mean 'args'?)"),
        ('capabilities: {resume: {args: ["{path}"]}}', "3:32: {path} is not known here: write {dir} for the checkpoint's path, {step} for its step"),
        ('capabilities: {resume: {args: ["{dir}"]}}', "3:24: what to resume from is not known: say where the checkpoints are in 'checkpoints'"),
        ("capabilities: {save_now: {signal: USR1}}", "3:35: 'USR1' is no signal that a process can handle: write for example SIGUSR1"),
        ("capabilities: {save_now: {signal: SIGKILL}}", "3:35: 'SIGKILL' is no signal that a process can handle: write for example SIGUSR1"),
        ("capabilities: {save_now: {signal: SIGUSR1, then: dies}}", "3:50: 'dies' is not one of goes_on, exits"),
        ("capabilities: {skip: batches}", "3:22: 'batches' is not one of none, reporter"),
        ("capabilities: {done: {step: 0}}", "3:29: step must be greater than 0, not 0"),
        ("capabilities: {done: {step: 5}}", "3:22: whether that step was reached is not known: say how in 'telemetry'"),
        ("capabilities: {exit_codes: {16: again}}", "3:33: 'again' is not one of rerun_same, done, stop"),
        ("capabilities: {exit_codes: {0: done}}", "3:32: 0 is no exit code of a failure: they go from 1 to 255"),
        ("capabilities: {exit_codes: {256: done}}", "3:34: 256 is no exit code of a failure: they go from 1 to 255"),
        ("capabilities: {exit_codes: {79: done}}", "3:33: 79 is what a rank that refuses its checkpoint exits with, always"),
        ("checkpoints: {glob: 'ckpt-{step}'}", "3:1: 'complete' is missing"),
        ("checkpoints: {glob: 'ckpt-{step}', complete: {}}", "3:46: write either 'marker' or 'settled'"),
        ("checkpoints: {glob: 'ckpt-{step}', complete: {marker: M, settled: 30s}}", "3:46: write either 'marker' or 'settled'"),
        ("checkpoints: {glob: 'ckpt-{step}', complete: {settled: 30s}}", "3:14: 'checkpoints' are of use only if the trainer can begin from one: say how in 'capabilities.resume'"),
        ("checkpoints: {glob: ckpt, complete: {settled: 30s}}\ncapabilities: {resume: newest}", "3:21: {step} is missing: the name of a checkpoint must tell its step, as in out/ckpt-{step}"),
        ("checkpoints: {glob: 'ckpt-{stpe}-{step}', complete: {settled: 30s}}\ncapabilities: {resume: newest}", "3:21: {stpe} is not known here: write {step} for the step, * for anything"),
        ("checkpoints: {glob: '**/{step}', complete: {settled: 30s}}\ncapabilities: {resume: newest}", "3:21: ** is not known here: * stands for a part of one name"),
    ],
)  # fmt: skip
def test_a_mistake_is_shown_at_its_place(tmp_path: Path, line: str, expected: str) -> None:
    assert mistakes(tmp_path, COMMAND + line + "\n") == [expected]


@pytest.mark.parametrize("section", ["telemetry: {preset: nanogpt}", "capabilities: {}", CHECKPOINTS.strip()])
def test_our_own_trainer_needs_no_such_words(tmp_path: Path, section: str) -> None:
    key = section.split(":", maxsplit=1)[0]
    (found,) = mistakes(tmp_path, f"name: a\ntrainer: {{size: tiny, steps: 5}}\n{section}\n")
    assert found.endswith(f"'{key}' is for a command: our own trainer needs none")


def test_what_is_declared_reads_back_as_it_was(tmp_path: Path) -> None:
    pattern = r"telemetry: {pattern: ['it (?P<step>\d+)', 'loss (?P<loss>\S+)'], from: last_rank}" + "\n"
    can = "capabilities: {resume: newest, save_now: {signal: SIGUSR1, within: 5m}, done: {step: 9}, exit_codes: {3: done}}\n"
    run = resolved(tmp_path, COMMAND + pattern + can + CHECKPOINTS)
    (tmp_path / "spec.yaml").write_text(dump_resolved(run))
    assert read_resolved(tmp_path / "spec.yaml") == run.spec
    assert run.origins["telemetry.from"].endswith("RUN.yaml:3")


@pytest.mark.parametrize(
    ("declared", "abilities"),
    [
        ("", foreign(resumes_itself=True, observed=False)),
        ("capabilities: {resume: none}", foreign(begins_anew=True, observed=False)),
        (
            "capabilities: {lr: reporter}",
            foreign(resumes_itself=True, settings=frozenset({"lr"})),
        ),
        ("capabilities: {skip: reporter}", foreign(resumes_itself=True, skips=True)),
        ("telemetry: {preset: reporter}", foreign(resumes_itself=True)),
        ("telemetry: {preset: nanogpt}", foreign(resumes_itself=True, saves="never", refusal=NO_SAVE)),
        (
            "capabilities: {save_now: none}",
            foreign(resumes_itself=True, saves="never", observed=False, refusal=NO_SAVE),
        ),
        (
            "capabilities: {save_now: {signal: SIGUSR1}}",
            foreign(resumes_itself=True, signal="SIGUSR1", observed=False),
        ),
        (
            "capabilities: {save_now: {signal: SIGTERM, then: exits, within: 5m}}",
            foreign(
                resumes_itself=True, signal="SIGTERM", saves="exits", save_s=300, observed=False, refusal=SAVE_ENDS
            ),
        ),
        (CHECKPOINTS + RESUME, foreign(observed=False, resume_args=("--load", "{dir}", "--ckpt-step", "{step}"))),
        (CHECKPOINTS + "capabilities: {resume: newest}", foreign(observed=False)),
    ],
)
def test_what_a_trainer_can_do_follows_from_what_is_declared(
    tmp_path: Path, declared: str, abilities: Abilities
) -> None:
    assert resolved(tmp_path, COMMAND + declared + "\n").spec.abilities == abilities


def test_the_arguments_of_a_restart_name_the_checkpoint() -> None:
    abilities = foreign(resume_args=("--load={dir}", "--ckpt-step", "{step}"))
    assert abilities.args_for("/w/out/ckpt-7", 7) == ["--load=/w/out/ckpt-7", "--ckpt-step", "7"]


def test_the_rank_that_is_read_is_the_one_that_prints(tmp_path: Path) -> None:
    for line, speaker in (
        ("{preset: nanogpt}", "first_rank"),
        ("{preset: megatron}", "last_rank"),
        ("{preset: megatron, from: first_rank}", "first_rank"),
        (r"{pattern: '(?P<step>\d+)'}", "first_rank"),
    ):
        telemetry = resolved(tmp_path, f"{COMMAND}telemetry: {line}\n").spec.telemetry
        assert telemetry is not None
        assert telemetry.speaker == speaker


def test_a_policy_may_count_on_what_is_declared_and_no_more(tmp_path: Path) -> None:
    facts = facts_of(resolved(tmp_path, NANOGPT).spec)
    assert (facts.goes_back, facts.saves, facts.least_hang_s) == (False, False, UNDECLARED_S)
    assert facts.metrics == {"loss", "val_loss", "time_ms", "mfu"}

    facts = facts_of(resolved(tmp_path, COMMAND + "telemetry: {preset: reporter}\n").spec)
    assert (facts.saves, facts.metrics, facts.least_hang_s) == (True, None, None)

    facts = facts_of(resolved(tmp_path, NANOGPT + CHECKPOINTS + RESUME).spec)
    assert facts.goes_back


def test_exit_codes_become_rules_before_those_of_the_policy(tmp_path: Path) -> None:
    codes = "capabilities: {exit_codes: {17: stop, 16: rerun_same, 3: done}}\n"
    first, second, third, *_ = resolved(tmp_path, COMMAND + codes).policy.rules
    assert (first.name, second.name, third.name) == ("exit-code-16", "exit-code-17", "user-error")
    assert list(first.do[0].actions) == ["restart"]
    assert (first.counts, list(second.do[0].actions)) == (False, ["stop"])


def test_the_default_policy_advises_on_numbers_and_a_policy_by_name_must_be_able_to_act(tmp_path: Path) -> None:
    modes = {rule.name: rule.mode for rule in resolved(tmp_path, NANOGPT).policy.rules}
    assert modes == {
        "user-error": "act", "rank-exit": "act", "node-failure": "act", "storage-stall": "act", "hang": "act",
        "gpu-fault": "act", "node-fault": "act", "draining": "advise",
        "non-finite": "advise", "loss-spike": "advise",
    }  # fmt: skip
    assert mistakes(tmp_path, NANOGPT + "policy: [infra, numerics]\n") == [
        "44:9: 'restart from last_good' of rule 'non-finite' needs 'checkpoints' and 'capabilities.resume' of the command",
        "45:9: 'restart from before_incident' of rule 'non-finite' needs 'checkpoints' and 'capabilities.resume' of the command",
        "59:9: 'restart from before_incident' of rule 'loss-spike' needs 'checkpoints' and 'capabilities.resume' of the command",
    ]
    able = resolved(tmp_path, NANOGPT + CHECKPOINTS + RESUME + "policy: [infra, numerics]\n").policy
    assert able.rules[-1].mode == "act"


def test_the_examples_of_the_guide_are_without_mistakes(tmp_path: Path) -> None:
    guide = (Path(__file__).parents[2] / "docs" / "your-trainer.md").read_text()
    examples = re.findall(r"```yaml\n(.*?)```", guide, re.DOTALL)
    assert len(examples) == 4
    for text in examples:
        if text.startswith("version"):
            (tmp_path / "policy.yaml").write_text(text)
            assert resolved(tmp_path, NANOGPT + "policy: [policy.yaml]\n").policy.rules
        else:
            assert mistakes(tmp_path, text) == []
