"""Reading policies: what is refused, where, and in which words."""

# ruff: noqa: E501  messages are compared whole
import ast
import json
from dataclasses import replace
from pathlib import Path

import pytest

from launcher.errors import ConfigError
from policies.load import FOLDER, RunFacts, dump_policy, json_schema, load_policy, read_policy, shipped
from policies.meaning import TRAINER_METRICS
from policies.schema import Policy
from policies.when import When

HEAD = "version: 1\nname: mine\nrules:\n"
GOOD = "  - name: r\n    when: {exit: {}}\n    do:\n      - {restart: {from: latest}}\n"


def mistakes(folder: Path, text: str, facts: RunFacts | None = None) -> list[str]:
    """`line:column: message` of every mistake in a policy file."""
    path = folder / "mine.yaml"
    path.write_text(text)
    try:
        load_policy([str(path)], facts)
    except ConfigError as error:
        return [f"{one.line}:{one.column}: {one.message}" for one in error.mistakes]
    return []


def rule(when: str = "exit: {}", do: str = "{restart: {from: latest}}", more: str = "") -> str:
    """A policy with one rule, `when` in line 5, `do` in line 7, more in line 8."""
    return f"{HEAD}  - name: r\n    when: {{{when}}}\n    do:\n      - {do}\n{more}"


@pytest.mark.parametrize("name", shipped())
def test_every_shipped_policy_loads_and_reads_back_from_a_run_folder(name: str, tmp_path: Path) -> None:
    policy = load_policy([name], RunFacts())
    path = tmp_path / "policy.yaml"
    path.write_text(dump_policy(policy))
    assert read_policy(path) == policy
    assert policy.name == name
    assert all(one.place.startswith(("infra.yaml:", "numerics.yaml:")) for one in policy.rules)


def test_default_is_infra_and_numerics() -> None:
    names = [one.name for name in ("infra", "numerics") for one in load_policy([name]).rules]
    assert [one.name for one in load_policy(["default"]).rules] == names
    assert load_policy(["infra", "numerics"]).rules == load_policy(["default"]).rules


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (rule(do="{restrat: {from: latest}}"), "7:10: unknown key 'restrat' (did you mean 'restart'?)"),
        (rule(do="{restart: {form: latest}}"), "7:20: unknown key 'form' (did you mean 'from'?)"),
        (rule(do="{restart: {}}"), "7:10: 'from' is missing"),
        (rule("exti: {}"), "5:12: unknown key 'exti' (did you mean 'exit'?)"),
        (rule("hang: {no_step: 5 x}"), "5:28: '5 x' is not a multiple of the usual step: write for example 5 x p99 or 8 x median"),
        (rule("hang: {at_least: 60}"), "5:29: 60 has no unit: write 60s, 60m or 60h"),
        (rule("hang: {phases: {sav: 5m}}"), "5:28: unknown key 'sav' (did you mean 'save'?)"),
        (rule("exit: {}, node_lost: {}"), "5:11: 'when' needs exactly one detector, found exit, node_lost"),
        (rule(""), "5:11: 'when' needs exactly one detector, found none"),
        (rule("threshold: {metric: loss}"), "5:23: a threshold needs exactly one of 'above' and 'below'"),
        (rule("threshold: {metric: loss, above: 1, below: 0}"), "5:23: a threshold needs exactly one of 'above' and 'below'"),
        (rule("non_finite: {metrics: []}"), "5:34: metrics must not be empty"),
        (rule("exit: {codes: [one]}"), "5:27: a whole number is expected, not 'one'"),
        (rule(do="{restart: {from: latest}, times: 0}"), "7:42: times must be greater than 0, not 0"),
        (rule(do="{restart: {from: latest}, times: -2}"), "7:42: times must be greater than 0, not -2"),
        (rule(do="{stop: one, two}"), "7:21: unknown key 'two': quote the text if a comma belongs to it"),
        (rule(more="    counts: no\n"), "8:13: true or false is expected, not 'no': write false"),
        (rule(more="    mode: advice\n"), "8:11: 'advice' is not one of act, advise (did you mean 'advise'?)"),
        (rule(more="    for: soon\n"), "8:10: 'soon' is not a duration: write for example 10s, 2m, 6h or 3-00:00:00"),
        ("version: 2\nname: x\nrules:\n" + GOOD, "1:10: 2 is not one of 1"),
        ("version: 1\nname: x\nrules: []\n", "0:0: the policy holds no rule"),
        ("version: 1\nname: x\nbudget: {restarts: ten}\nrules:\n" + GOOD, "3:20: 'ten' is not a rate: write for example 10 per run or 2 per 24h"),
        ("version: 1\nrules:\n" + GOOD, "1:1: 'name' is missing"),
    ],
)  # fmt: skip
def test_a_wrong_word_is_shown_at_its_place(tmp_path: Path, text: str, expected: str) -> None:
    assert mistakes(tmp_path, text) == [expected]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (rule("hang: {}", more="    for: 3 steps\n"), "8:10: 'for' counts steps, but in a hang none are done: the rule can never fire"),
        (rule(more="    for: 3s\n"), "8:10: 'for' has no meaning with 'exit': remove it"),
        (rule("exit: {codes: [0]}"), "5:26: 0 is no failure, and 79 is handled always: the rule can never fire"),
        (rule("exit: {codes: [300]}"), "5:26: exit codes go up to 255, and a signal is its number with a minus"),
        (rule(do="{restart: {from: latest}, stop: x}"), "7:41: 'restart' and 'stop' in one rung contradict each other"),
        (rule(do="{collect: [stacks]}"), "7:9: after 'exit' the run must be restarted, held or stopped: this rung does none of it"),
        (rule(do="{}"), "7:9: a rung without an action"),
        (rule(do="{save: now, restart: {from: latest}}"), "7:16: after 'exit' there is nothing left that could save"),
        (rule(do="{restart: {from: latest}, per: 24h}"), "7:40: 'per' needs 'times': how often in that window?"),
        (rule("node_lost: {}", "{restart: {from: latest}}\n      - {hold: {}}"), "8:9: rung 2 can never be reached: rung 1 has no 'times'"),
        (rule("non_finite: {}", "{exclude: blamed, restart: {from: latest}}"), "7:19: 'non_finite' blames no node: nothing would be excluded"),
        (rule(do="{exclude: failed, restart: {from: latest}}"), "7:19: 'exclude: failed' needs a 'check' in the same rung"),
        (rule("draining: {}", "{exclude: blamed, restart: {from: latest}}"), "7:19: a draining node works: use 'replace'"),
        (rule(do="{replace: blamed, collect: [stacks]}", more="    mode: advise\n"), "7:19: after 'exit' there is nothing left that could save: use 'exclude'"),
        (rule("draining: {}", "{replace: blamed, restart: {from: latest}}"), "7:19: 'replace' and 'restart' in one rung contradict each other"),
        (rule("non_finite: {}", "{replace: blamed}"), "7:19: 'non_finite' blames no node: nothing would be replaced"),
        (rule(do="{restart: {from: lates}}"), "7:26: 'lates' is not one of latest, last_good, before_incident, step N (did you mean 'latest'?)"),
        (rule("draining: {}", "{check: deep, save: now}"), "7:17: 'check: deep' needs the nodes for itself: it goes with 'restart', 'hold' or 'stop'"),
        (rule(do="{shrink: true, hold: {}}"), "7:18: 'shrink' says how a restart goes on without enough nodes: it needs 'restart'"),
        (rule(do="{requeue: true, stop: x}"), "7:19: 'requeue' says how a restart goes on without enough nodes: it needs 'restart'"),
        (rule("draining: {}", "{save: now}", "    for: 3s\n"), "8:10: 'for' has no meaning with 'draining': remove it"),
        (rule() + GOOD.replace("name: r", "name: s"), "9:11: the rule can never fire: rule 'r' before it takes every exit"),
        (rule() + GOOD, "8:11: rule 'r' exists already (FILE:4): use 'override'"),
    ],
)  # fmt: skip
def test_a_rule_that_cannot_do_its_work_is_a_mistake(tmp_path: Path, text: str, expected: str) -> None:
    assert mistakes(tmp_path, text) == [expected.replace("FILE", str(tmp_path / "mine.yaml"))]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (rule(do="{restart: {from: latest}, set: {optimizer: adam}}"), "7:52: to set the optimizer (rule 'r') is not built yet"),
    ],
)  # fmt: skip
def test_grammar_that_does_not_exist_yet_is_refused_by_name(tmp_path: Path, text: str, expected: str) -> None:
    assert mistakes(tmp_path, text) == [expected]


def test_all_mistakes_are_told_at_once(tmp_path: Path) -> None:
    text = (
        rule("hagn: {}", "{stpo: x}") + GOOD + "    cooldwn: 3s\n" + "  - name: t\n    when: {drift: {}}\n    do: []\n"
    )
    found = mistakes(tmp_path, text)
    assert [one.partition(":")[0] for one in found] == ["5", "7", "12", "15"]


def test_the_message_shows_the_line_and_marks_the_word(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(rule(do="{restart: {from: latest}, tims: 3}"))
    with pytest.raises(ConfigError) as caught:
        load_policy([str(path)])
    assert str(caught.value) == (
        f"{path}:7:35: unknown key 'tims' (did you mean 'times'?)\n"
        "    7 |       - {restart: {from: latest}, tims: 3}\n"
        "      |                                   ^^^^"
    )


# ---------------------------------------------------------------- include, override, several


def including(folder: Path, text: str) -> Path:
    path = folder / "outer.yaml"
    path.write_text("version: 1\nname: outer\n" + text)
    return path


def test_an_override_changes_only_what_it_names(tmp_path: Path) -> None:
    path = including(tmp_path, "include: [infra]\noverride:\n  hang: {mode: advise, cooldown: 1h}\n")
    before = {one.name: one for one in load_policy(["infra"]).rules}
    after = {one.name: one for one in load_policy([str(path)]).rules}
    assert after["hang"].mode == "advise"
    assert after["hang"].do == before["hang"].do
    assert {**after, "hang": None} == {**before, "hang": None}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("include: [infra]\noverride:\n  hnag: {mode: act}\n", "5:3: there is no rule 'hnag' to override (did you mean 'hang'?)"),
        ("include: [infra]\noverride:\n  hang: {for: 2 steps}\n", "5:15: 'for' counts steps, but in a hang none are done: the rule can never fire"),
        ("include: [infra]\noverride:\n  hang: {modus: act}\n", "5:10: unknown key 'modus' (did you mean 'mode'?)"),
        ("include: [infar]\n", "3:11: no shipped policy is called 'infar' (did you mean 'infra'?)"),
        ("include: [gone.yaml]\n", "3:11: FOLDER/gone.yaml: no such file"),
        ("include: [default]\n", "8:10: an included policy cannot include others: name them in the outer one"),
    ],
)  # fmt: skip
def test_mistakes_of_include_and_override_have_their_place(tmp_path: Path, text: str, expected: str) -> None:
    path = including(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        load_policy([str(path)])
    first = caught.value.mistakes[0]
    assert f"{first.line}:{first.column}: {first.message}" == expected.replace("FOLDER", str(tmp_path))


def test_files_are_concatenated_and_later_settings_win(tmp_path: Path) -> None:
    path = including(tmp_path, "budget: {no_progress: 7}\nrules:\n" + GOOD.replace("exit: {}", "non_finite: {}"))
    policy = load_policy(["infra", str(path)])
    assert [one.name for one in policy.rules][-1] == "r"
    assert (policy.budget.no_progress, policy.budget.restarts.times, policy.name) == (7, 20, "infra+outer")


def test_a_later_file_may_override_an_earlier_one(tmp_path: Path) -> None:
    path = including(tmp_path, "override:\n  hang: {mode: advise}\n")
    assert {one.name: one.mode for one in load_policy(["infra", str(path)]).rules}["hang"] == "advise"


def test_the_mode_of_a_file_is_the_default_of_its_rules(tmp_path: Path) -> None:
    path = including(tmp_path, "mode: advise\ninclude: [infra]\noverride:\n  hang: {mode: act}\n")
    modes = {one.name: one.mode for one in load_policy([str(path)]).rules}
    assert modes["hang"] == "act"
    assert {mode for name, mode in modes.items() if name != "hang"} == {"advise"}


@pytest.mark.parametrize("name", ["infar", "no/such.yaml", ""])
def test_a_policy_that_cannot_be_found_is_a_mistake(name: str) -> None:
    with pytest.raises(ConfigError):
        load_policy([name])


# ---------------------------------------------------------------- the run it is for


def test_a_channel_must_be_known_to_the_run(tmp_path: Path) -> None:
    text = rule(do="{hold: {}, notify: oncal}")
    assert mistakes(tmp_path, text, RunFacts(channels=frozenset({"oncall"}))) == [
        "7:28: channel 'oncal' is not in 'notify' of RUN.yaml (known: oncall)"
    ]
    assert mistakes(tmp_path, text) == []


def test_a_job_can_only_be_given_back_to_a_scheduler(tmp_path: Path) -> None:
    text = rule(do="{requeue: true, restart: {from: latest}}")
    assert mistakes(tmp_path, text, RunFacts(requeues=False)) == [
        "7:19: 'requeue' of rule 'r' needs backend slurm, and a 'continue_by' other than none"
    ]
    assert mistakes(tmp_path, text, RunFacts()) == []


@pytest.mark.parametrize("shrinks", [True, False])
def test_a_run_that_cannot_go_on_smaller_never_says_so(shrinks: bool) -> None:
    rungs = [rung for one in load_policy(["infra"], RunFacts(shrinks=shrinks)).rules for rung in one.do if rung.restart]
    assert {"shrink" in rung.actions for rung in rungs} == {shrinks}


def test_what_is_written_as_not_to_be_done_is_not(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(rule(do="{shrink: false, requeue: false, restart: {from: latest}}"))
    assert list(load_policy([str(path)]).rules[0].do[0].actions) == ["restart"]


def test_shipped_numerics_and_saves_only_advise_for_a_command() -> None:
    modes = {one.name: one.mode for one in load_policy(["default"], RunFacts(own_trainer=False)).rules}
    assert modes["non-finite"] == modes["draining"] == "advise"
    assert modes["rank-exit"] == "act"


GOES_BACK = "'checkpoints' and 'capabilities.resume' of the command"
SAVES = "a command that goes on after 'capabilities.save_now', or 'telemetry: {preset: reporter}'"


@pytest.mark.parametrize(
    ("do", "lacking", "enough"),
    [
        ("restart: {from: last_good}", f"'restart from last_good' of rule 'r' needs {GOES_BACK}", {"goes_back": True}),
        ("restart: {from: before_incident}", f"'restart from before_incident' of rule 'r' needs {GOES_BACK}", {"goes_back": True}),
        ("restart: {from: latest, save_first: true}", f"'restart' with 'save_first' of rule 'r' needs {SAVES}", {"saves": True}),
        ("save: now, restart: {from: latest}", f"'save' of rule 'r' needs {SAVES}", {"saves": True}),
        ("restart: {from: latest}", "", {}),
    ],
)  # fmt: skip
def test_a_rule_that_needs_what_the_command_lacks_is_a_mistake(
    tmp_path: Path, do: str, lacking: str, enough: dict[str, bool]
) -> None:
    text = rule("non_finite: {}", f"{{{do}}}")
    assert mistakes(tmp_path, text, RunFacts(own_trainer=False)) == ([f"7:9: {lacking}"] if lacking else [])
    assert mistakes(tmp_path, text, RunFacts(own_trainer=False, **enough)) == []


COMMAND = RunFacts(own_trainer=False, goes_back=True, metrics=frozenset({"loss", "mfu"}))


def test_a_metric_that_the_telemetry_cannot_give_is_a_mistake(tmp_path: Path) -> None:
    text = rule("threshold: {metric: mfx, below: 3}", "{hold: {}}")
    assert mistakes(tmp_path, text, COMMAND) == [
        "5:32: the telemetry of this run gives no metric 'mfx' (did you mean 'mfu'?)"
    ]
    assert mistakes(tmp_path, text.replace("mfx", "mfu"), COMMAND) == []


def test_numerics_asked_for_by_name_act_on_what_the_telemetry_gives() -> None:
    one, *others = load_policy(["numerics"], COMMAND).rules
    assert [rule.name for rule in others] == ["loss-spike"]
    assert one.when.non_finite is not None
    assert (one.mode, one.when.non_finite.metrics) == ("act", ("loss",))


def test_numerics_asked_for_by_name_that_cannot_be_fed_are_a_mistake() -> None:
    with pytest.raises(ConfigError, match="gives no metric 'loss'"):
        load_policy(["numerics"], RunFacts(own_trainer=False, goes_back=True, metrics=frozenset()))


def test_a_command_that_cannot_be_told_of_samples_and_rates_is_only_gone_back_with() -> None:
    deaf = RunFacts(own_trainer=False, goes_back=True, skips=False, settings=frozenset())
    for facts, of_spikes in [
        (deaf, [["restart"], ["hold"]]),
        (replace(deaf, settings=frozenset({"lr"})), [["restart"], ["set", "restart"], ["set", "restart"], ["hold"]]),
        (replace(deaf, skips=True), [["skip", "restart"], ["hold"]]),
    ]:
        rules = {rule.name: rule for rule in load_policy(["numerics"], facts).rules}
        assert [list(rung.actions) for rung in rules["loss-spike"].do] == of_spikes
        assert rules["loss-spike"].do[0].times == 1
        assert [rung.restart.from_ for rung in rules["non-finite"].do[:2] if rung.restart] == [
            "last_good", "before_incident",
        ]  # fmt: skip


def test_a_ladder_of_ones_own_is_left_as_it_is_and_refused_where_it_cannot_be_done(tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    skipping = "{skip: 8 batches, restart: {from: latest}, times: 1}"
    mine.write_text(f"version: 1\nname: mine\ninclude: [numerics]\noverride: {{loss-spike: {{do: [{skipping}]}}}}\n")
    with pytest.raises(ConfigError, match="'skip' of rule 'loss-spike' needs a command that hears of it"):
        load_policy([str(mine)], RunFacts(own_trainer=False, goes_back=True, skips=False, settings=frozenset()))


@pytest.mark.parametrize("name", ["default", "cautious"])
def test_numerics_that_cannot_be_fed_are_left_out_of_the_default(name: str) -> None:
    rules = load_policy([name], RunFacts(own_trainer=False, metrics=frozenset({"mfu"}))).rules
    assert [one.name for one in rules] == [
        "user-error",
        "rank-exit",
        "node-failure",
        "storage-stall",
        "hang",
        "gpu-fault",
        "node-fault",
        "draining",
    ]
    fed = {one.name: one.mode for one in load_policy([name], COMMAND).rules}
    assert fed["non-finite"] == "advise"


def test_a_trainer_that_only_prints_may_be_silent_for_long_unless_the_policy_says_how_long(tmp_path: Path) -> None:
    quiet = RunFacts(own_trainer=False, least_hang_s=1800.0)
    for text, least in ("hang: {}", 1800.0), ("hang: {at_least: 5s}", 5.0):
        path = tmp_path / "mine.yaml"
        path.write_text(rule(text, "{hold: {}}"))
        (one,) = load_policy([str(path)], quiet).rules
        assert one.when.hang is not None
        assert one.when.hang.at_least == least
    (hang,) = (one.when.hang for one in load_policy(["infra"], quiet).rules if one.when.hang)
    assert hang is not None
    assert hang.at_least == 1800.0


@pytest.mark.parametrize(
    ("when", "expected"),
    [
        ("threshold: {metric: lsos, above: 3}", "5:32: our trainer reports no metric 'lsos' (did you mean 'loss'?)"),
        ("threshold: {metric: mfu, above: 3}", f"5:32: our trainer reports no metric 'mfu' (it reports: {', '.join(TRAINER_METRICS)})"),
        ("non_finite: {metrics: [loss, gradnorm]}", "5:41: our trainer reports no metric 'gradnorm' (did you mean 'grad_norm'?)"),
        ("threshold: {metric: loss, below: -5}", "5:45: loss is never negative: the rule can never fire"),
        ("threshold: {metric: loss, below: 0}", "5:45: loss is never negative: the rule can never fire"),
    ],
)  # fmt: skip
def test_a_metric_that_our_trainer_never_reports_like_that_is_a_mistake(
    tmp_path: Path, when: str, expected: str
) -> None:
    assert mistakes(tmp_path, rule(when, "{hold: {}}"), RunFacts()) == [expected]
    assert mistakes(tmp_path, rule(when, "{hold: {}}"), RunFacts(own_trainer=False)) == []
    assert mistakes(tmp_path, rule(when, "{hold: {}}")) == []


def test_the_norm_of_a_layer_can_be_watched(tmp_path: Path) -> None:
    when = "threshold: {metric: grad_norm.layers.3, above: 3}"
    assert mistakes(tmp_path, rule(when, "{hold: {}}"), RunFacts()) == []


@pytest.mark.parametrize(
    ("when", "do", "facts", "expected"),
    [
        ("sdc: {}", "{exclude: blamed, restart: {from: before_incident}}", RunFacts(checksum_every=50), []),
        ("sdc: {every: 70}", "{hold: {}}", RunFacts(checksum_every=50), ["5:25: every 70 is no multiple of trainer.checksum_every = 50"]),
        ("sdc: {}", "{hold: {}}", RunFacts(checksum_every=0), ["5:17: trainer.checksum_every is 0, so nothing is compared: the rule can never fire"]),
        ("sdc: {}", "{hold: {}}", RunFacts(own_trainer=False), []),
        ("sdc: {}", "{hold: {}}", COMMAND, ["5:17: the telemetry of this run tells no checksums: 'r' can never fire"]),
        ("sdc: {}", "{save: now, hold: {}}", RunFacts(), ["7:16: after 'sdc' the weights are damaged: save nothing"]),
        ("sdc: {}", "{replace: blamed}", RunFacts(), ["7:19: 'replace' saves first, and after 'sdc' the weights are damaged: use 'exclude'"]),
    ],
)  # fmt: skip
def test_a_rule_about_corruption_must_be_able_to_fire_and_save_nothing(
    tmp_path: Path, when: str, do: str, facts: RunFacts, expected: list[str]
) -> None:
    assert mistakes(tmp_path, rule(when, do), facts) == expected


@pytest.mark.parametrize("facts", [None, RunFacts(), RunFacts(own_trainer=False)])
def test_a_norm_is_never_negative_whoever_trains(tmp_path: Path, facts: RunFacts | None) -> None:
    assert mistakes(tmp_path, rule("threshold: {metric: grad_norm, below: -1}", "{hold: {}}"), facts) == [
        "5:50: grad_norm is never negative: the rule can never fire"
    ]
    assert mistakes(tmp_path, rule("threshold: {metric: grad_norm, below: 0.1}", "{hold: {}}"), facts) == []


def test_the_known_metrics_are_those_that_our_trainer_reports() -> None:
    tree = ast.parse((FOLDER.parent / "model" / "trainer.py").read_text())
    reporting = ("train_step", "_update")
    steps = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name in reporting]
    named: set[str] = set()
    for node in (inner for step in steps for inner in ast.walk(step)):
        if isinstance(node, (ast.Assign, ast.AugAssign)):
            place = node.targets[0] if isinstance(node, ast.Assign) else node.target
            if ast.unparse(place).startswith("metrics"):
                keys = node.value.keys if isinstance(node.value, ast.Dict) else [getattr(place, "slice", None)]
                named |= {key.value for key in keys if isinstance(key, ast.Constant)}
    assert named == set(TRAINER_METRICS)


def test_the_first_step_limit_comes_from_the_run_unless_the_rule_has_one() -> None:
    rules = {one.name: one for one in load_policy(["infra"], RunFacts(first_step_s=77.0)).rules}
    hang = rules["hang"].when.hang
    assert hang is not None
    assert hang.first_step == 77.0


# ---------------------------------------------------------------- schema


def test_the_schema_beside_the_policies_is_the_generated_one() -> None:
    assert json.loads((FOLDER / "policy.schema.json").read_text()) == json_schema()


def test_the_json_schema_is_draft_7_and_knows_every_word() -> None:
    schema = json_schema()
    text = json.dumps(schema)
    assert schema["$schema"] == "http://json-schema.org/draft-07/schema#"
    assert "$defs" not in text
    assert "prefixItems" not in text
    assert set(schema["properties"]) == set(Policy.model_fields)
    assert set(schema["definitions"]["When"]["properties"]) == set(When.model_fields)
    assert {"for", "do", "when"} <= set(schema["definitions"]["Rule"]["properties"])
    assert "place" not in schema["definitions"]["Rule"]["properties"]
