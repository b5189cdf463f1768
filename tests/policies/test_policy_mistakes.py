"""Malformed policies: each mistake has its line and column, and words that say what to write instead."""

# ruff: noqa: E501  messages are compared whole
from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launcher.errors import ConfigError
from policies.load import FOLDER, RunFacts, load_policy
from policies.schema import Policy

HEAD = "version: 1\nname: mine\nrules:\n"
NAN = "non_finite: {}"
BACK = "restart: {from: last_good}"


def rule(when: str = "exit: {}", do: str = "{restart: {from: latest}}", more: str = "") -> str:
    """A policy with one rule, `when` in line 5, `do` in line 7, more in line 8."""
    return f"{HEAD}  - name: r\n    when: {{{when}}}\n    do:\n      - {do}\n{more}"


def above(text: str) -> str:
    return rule(f"threshold: {{metric: loss, above: {text}}}")


def named(name: str) -> str:
    return f"{HEAD}  - name: {name}\n    when: {{exit: {{}}}}\n    do: [{{stop: x}}]\n"


def top(line: str) -> str:
    return f"version: 1\nname: m\n{line}\nrules: []\n"


def mistakes(folder: Path, text: str) -> list[str]:
    path = folder / "mine.yaml"
    path.write_text(text, newline="")
    with pytest.raises(ConfigError) as caught:
        load_policy([str(path)], RunFacts())
    return [f"{one.line}:{one.column}: {one.message}" for one in caught.value.mistakes]


MALFORMED = [
    # the notation
    ("", "1:1: is empty: a mapping of keys to values is expected"),
    ("[]", "1:1: the top level is a list: a mapping of keys to values is expected"),
    ("just text", "1:1: the top level is a single value: a mapping of keys to values is expected"),
    (HEAD + "\t- name: r\n", "4:1: a tab: indent with spaces"),
    (rule() + "---\na: 1\n", "8:1: a second document begins here: one is expected"),
    (rule("exit: *a"), "5:18: aliases (*name) are not used here: write the value out"),
    (rule("exit: !!python/object:os.system {}"), "5:18: tags (tag:yaml.org,2002:python/object:os.system) are not used here"),
    (rule("exit: {codes: [1, 2}"), "5:31: not YAML: expected ',' or ']', but got '}' (while parsing a flow sequence)"),
    ("a: b: c\n", "1:5: a ':' that starts no value: quote the text, or check the indentation"),
    ("{" * 200, "1:25: nested more than 24 levels deep"),
    ("version: 1\nname: a\x07\n", "2:8: the character U+0007 has no place in text"),
    ("? [a]\n: 5\n", "1:3: a key must be a single word"),
    ("\ufeff" + rule("exti: {}"), "5:12: unknown key 'exti' (did you mean 'exit'?)"),
    (rule("exti: {}").replace("\n", "\r\n"), "5:12: unknown key 'exti' (did you mean 'exit'?)"),
    # words that YAML 1.1 reads otherwise
    (rule(more="    on: {exit: {}}\n"), "8:5: unknown key 'on' (known here: name, when, for, do, cooldown, counts, mode)"),
    (rule(more="    counts: yes\n"), "8:13: true or false is expected, not 'yes': write true"),
    (rule(more="    mode: off\n"), "8:11: 'off' is not one of act, advise"),
    (rule(NAN, more="    for: 5:30\n"), "8:10: '5:30' is not a duration: write for example 10s, 2m, 6h or 3-00:00:00"),
    (named("5"), "4:11: a text is expected, not 5: put it in quotes"),
    (top("rules: ~"), "4:1: key 'rules' is written twice (first in line 3)"),
    # numbers
    (above("'1e-5'"), "5:45: a number is expected, not '1e-5': write 1e-05"),
    (above("1e400"), "5:45: above must be a finite number, not inf"),
    (above(".nan"), "5:45: above must be a finite number, not nan"),
    (above("9" * 2000), "5:45: above must be a finite number, not inf"),
    (rule(do="{restart: {from: latest}, times: 1.5}"), "7:42: a whole number is expected, not 1.5"),
    (rule(do="{restart: {from: latest}, times: true}"), "7:42: a whole number is expected, not true"),
    (rule("exit: {codes: ['1']}"), "5:27: a whole number is expected, not '1': write 1"),
    ("version: '1'\nname: m\nrules: []\n", "1:10: '1' is not one of 1: write it without quotes"),
    # spans of time and steps
    (rule(NAN, more="    for: 5\n"), "8:10: 5 is neither steps nor time: write for example 3 steps or 10s"),
    (rule(NAN, more="    for: 0 steps\n"), "8:10: 'for' is nothing: leave it out"),
    (rule(NAN, more="    for: -3 steps\n"), "8:10: '-3 steps' is not a duration: write for example 10s, 2m, 6h or 3-00:00:00"),
    (rule(NAN, more="    for: 99999999999d\n"), "8:10: '99999999999d' is longer than ten years"),
    (rule("hang: {no_step: 0 x p99}"), "5:28: '0 x p99' is not a multiple of the usual step: write for example 5 x p99 or 8 x median"),
    (top("reset_after: 24h"), "3:14: '24h' is not a number of steps: write for example 25 steps"),
    (top("budget: {restarts: 10}"), "3:20: 10 is not a rate: write for example 10 per run or 2 per 24h"),
    (top("budget: {lost_time: 20%}"), "3:21: '20%' is no share of a time: write for example 20 % per 24h"),
    (top("budget: {lost_time: 200 % per 24h}"), "3:21: '200 % per 24h' is no share of a time: write for example 20 % per 24h"),
    # actions
    (rule(do="{stop: no, really}"), "7:20: unknown key 'really': quote the text if a comma belongs to it"),
    (rule(do="{hold: {reason: a, b}}"), "7:28: unknown key 'b': quote the text if a comma belongs to it"),
    (rule(do="{restart: latest}"), "7:19: a mapping of keys to values is expected, not 'latest': write {from: ...}"),
    (rule(do="{restart: {from: last good}}"), "7:26: 'last good' is not one of latest, last_good, before_incident, step N (did you mean 'last_good'?)"),
    (rule(do="restart"), "7:9: a mapping of keys to values is expected, not 'restart': write {restart: ...}"),
    (rule(NAN, f"{{set: {{lr: 0.9x}}, {BACK}}}"), "7:20: '0.9x' is no change of a setting: write a factor such as x0.9, or a value above 0"),
    (rule(NAN, f"{{set: {{lr: x0}}, {BACK}}}"), "7:20: 'x0': a factor lies between 0 and 1e+06"),
    (rule(NAN, f"{{set: {{}}, {BACK}}}"), "7:15: 'set' changes nothing: lr, clip or loss_scale"),
    (rule(NAN, f"{{set: {{momentum: 0.9}}, {BACK}}}"), "7:16: unknown key 'momentum' (known here: lr, clip, loss_scale, optimizer)"),
    (rule(NAN, f"{{skip: 64, {BACK}}}"), "7:16: 64 is not a number of batches: write for example 64 batches"),
    (rule(NAN, f"{{skip: 64 steps, {BACK}}}"), "7:16: '64 steps' is not a number of batches: write for example 64 batches"),
    (rule(NAN, "{skip: 64 batches}"), "7:16: 'skip' leaves out of a restart what it would go over again: it needs 'restart'"),
    (rule(NAN, f"{{run: check.sh, {BACK}}}"), "7:15: a list is expected, not 'check.sh': write [check.sh]"),
    (rule(NAN, f"{{run: [], {BACK}}}"), "7:15: run must not be empty"),
    (rule(do="{hold: {retry: 10m}}"), "7:24: '10m' does not say how often: write for example every 10m"),
    (rule(do="{hold: {at_most: 6h}}"), "7:26: 'at_most' says how long to retry: it needs 'retry'"),
    (rule(do="{hold: {retry: every 6h, at_most: 1h}}"), "7:43: 'at_most' is less than one 'retry': it would never be tried"),
    # modes
    (rule(more="    mode: ask\n"), "8:11: how long, and what if nobody answers? Write {ask: 30m, else: act}, or else: nothing"),
    (rule(more="    mode: {ask: 30m}\n"), "8:5: 'else' is missing"),
    (rule(more="    mode: {ask: 30, else: act}\n"), "8:17: 30 has no unit: write 30s, 30m or 30h"),
    (rule(more="    mode: {ask: 30m, else: stop}\n"), "8:28: 'stop' is not one of act, nothing"),
    # names and detectors
    (named("bad name"), "4:11: 'bad name' is no name of a rule: write letters, digits, '.', '_' and '-', at most 64 of them, a letter or digit first"),
    (named("ünï"), "4:11: 'ünï' is no name of a rule: write letters, digits, '.', '_' and '-', at most 64 of them, a letter or digit first"),
    (rule("threshold: {metric: lóss, above: 1}"), "5:32: our trainer reports no metric 'lóss' (did you mean 'loss'?)"),
    (rule("threshold: {metric: '', above: 1}"), "5:32: metric must not be empty"),
    (rule("rank_exit: {}"), "5:12: unknown key 'rank_exit' (did you mean 'exit'?)"),
    (rule("node_lost: {heartbeat: 30s}"), "5:24: unknown key 'heartbeat' (known here: unproven)"),
    (rule("exit: {exception: ImportError}"), "5:30: a list is expected, not 'ImportError': write [ImportError]"),
    (f"{HEAD}  - name: r\n    when: exit\n    do: [{{stop: x}}]\n", "5:11: a mapping of keys to values is expected, not 'exit': write {exit: ...}"),
    (f"{HEAD}  - name: r\n    when: {{exit: {{}}}}\n    do: {{stop: x}}\n", "6:9: a list is expected, not a mapping"),
    # what is around
    (rule("disk: {below: 5}"), "5:26: 5 is no room on a disk: write for example 5 % or 50 GB"),
    (rule("disk: {below: 200 %}"), "5:26: '200 %' is no room on a disk: write for example 5 % or 50 GB"),
    (rule("disk: {}"), "5:12: 'below' is missing"),
    (rule("time_left: {below: 10}"), "5:31: 10 has no unit: write 10s, 10m or 10h"),
    (rule("scheduler: {states: [PREEMTED]}"), "5:33: 'PREEMTED' is no state of a Slurm job: write it as squeue does, PREEMPTED, REQUEUED, SUSPENDED, NODE_FAIL, ..."),
    (rule("log: {match: '(a'}"), "5:25: not a regular expression of RE2: missing ): (a"),
    (rule("log: {match: '(?<=a)b'}"), "5:25: not a regular expression of RE2: invalid perl operator: (?<="),
    (rule("log: {match: x, from: rank0}"), "5:34: 'rank0' is not one of first_rank, last_rank"),
    (rule("storage_stall: {at_least: 0s}"), "5:38: at_least must be greater than 0, not '0s'"),
    (rule("storage_stall: {}", "{hold: {retry: every 10m}}"), "7:24: a stall of the storage is waited for, and its ranks stay: 'retry' would begin them anew"),
    # several files
    (top("include: infra"), "3:10: a list is expected, not 'infra': write [infra]"),
    (top("include: [mine.yaml]"), "3:11: 'mine.yaml' is taken in already: leave it out here"),
    (top("include: [infra, infra]"), "3:18: 'infra' is taken in already: leave it out here"),
    (top("include: [infra]\noverride: {hang: {mode: act}, hang: {mode: act}}"), "4:31: key 'hang' is written twice (first in line 4)"),
    (top("include: [infra]\noverride: [hang]"), "4:11: a mapping of keys to values is expected, not a list"),
    (top("include: [infra]\noverride: {hang: {when: }}"), "4:24: nothing is written here: leave the key out to keep what the rule has"),
    (top("include: [infra]\noverride: {hang: {do: null}}"), "4:23: nothing is written here: leave the key out to keep what the rule has"),
    (top("include: [infra]\noverride: {hang: {name: x}}"), "4:19: unknown key 'name' (known here: when, for, do, cooldown, counts, mode)"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "expected"), MALFORMED)
def test_a_mistake_has_its_place_and_a_way_out(tmp_path: Path, text: str, expected: str) -> None:
    assert mistakes(tmp_path, text) == [expected]


def test_a_file_that_takes_itself_in_through_another_is_told_so(tmp_path: Path) -> None:
    (tmp_path / "other.yaml").write_text("version: 1\nname: other\ninclude: [mine.yaml]\nrules: []\n")
    assert mistakes(tmp_path, top("include: [other.yaml]")) == [
        "3:10: an included policy cannot include others: name them in the outer one"
    ]


@pytest.mark.parametrize("text", [above("1e-5"), above("1E5"), above("+3"), named("yes"), named("012")])
def test_what_yaml_reads_in_surprising_ways_is_read_as_it_looks(tmp_path: Path, text: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    assert isinstance(load_policy([str(path)]), Policy)


# ---------------------------------------------------------------- whatever is written

SHIPPED = [path.read_text() for path in sorted(FOLDER.glob("*.yaml"))]
WORDS = sorted({word for text in (*SHIPPED, *(text for text, _ in MALFORMED)) for word in text.split()})
pieces = st.lists(st.sampled_from(WORDS) | st.sampled_from([":", " ", "\n", "\n  ", "- ", "{", "}", "[", "]", ", "]))


@st.composite
def damaged(draw: st.DrawFn) -> str:
    """A policy that works, with a piece of it replaced by anything."""
    text = draw(st.sampled_from([*SHIPPED, rule(), above("1")]))
    first = draw(st.integers(0, len(text)))
    last = draw(st.integers(first, min(len(text), first + 20)))
    return text[:first] + draw(st.text(max_size=8) | st.sampled_from(WORDS)) + text[last:]


texts = st.text() | pieces.map(" ".join) | damaged()


@settings(max_examples=400, deadline=None)
@given(content=texts.map(lambda text: text.encode("utf-8", "surrogatepass")) | st.binary(max_size=60))
def test_no_text_makes_the_loader_raise_anything_but_its_own_error(
    content: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_bytes(content)
    told: list[str] = []
    try:
        told = [rule.name for rule in load_policy([str(path)], RunFacts()).rules]
    except ConfigError as error:
        told = [one.message for one in error.mistakes]
    assert all(told)
    assert told
