"""YAML with positions: what values become, and what is refused where."""

# ruff: noqa: E501  messages are compared whole
import contextlib
import math
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict

from launcher.document import Document, parse_document, parse_value, read_document
from launcher.errors import ConfigError, LaunchError, Mistake
from launcher.validation import validated


def document(text: str) -> Document:
    return parse_document(text.encode(), "f.yaml")


def refusal(content: bytes | str) -> str:
    with pytest.raises(ConfigError) as caught:
        parse_document(content.encode() if isinstance(content, str) else content, "f.yaml")
    (mistake,) = caught.value.mistakes
    return f"{mistake.line}:{mistake.column}: {mistake.message}"


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("1e-5", 1e-5), ("6.0e-4", 6e-4), ("1.", 1.0), (".5", 0.5), ("-3", -3), ("+4", 4), ("0", 0), ("1E3", 1000.0),
        ("012", "012"), ("0o14", "0o14"), ("0x1f", "0x1f"), ("5:30", "5:30"), ("3-00:00:00", "3-00:00:00"),
        ("1_000", "1_000"), ("on", "on"), ("yes", "yes"), ("no", "no"), ("off", "off"), ("y", "y"), ("n", "n"),
        ("true", True), ("False", False), ("TRUE", True), ("tRUE", "tRUE"), ("null", None), ("~", None), ("", None),
        ("2024-01-01", "2024-01-01"), ("'12'", "12"), ('"true"', "true"), (".inf", math.inf), ("1e999", math.inf),
        ("[1, a, 2.5]", [1, "a", 2.5]), ("{a: 1}", {"a": 1}), ("1.3b", "1.3b"), ("8m", "8m"), ("=", "="),
    ],
)  # fmt: skip
def test_words_become_what_people_mean(word: str, value: object) -> None:
    assert document(f"k: {word}\n").value == {"k": value}
    assert parse_value(word, "--set") == value


def test_keys_are_always_text() -> None:
    assert document("on: 1\nno: 2\n12: 3\n1e5: 4\nnull: 5\ntrue: 6\n").value == dict(
        zip(["on", "no", "12", "1e5", "null", "true"], range(1, 7), strict=True)
    )


def test_a_merge_key_is_a_key_like_any_other() -> None:
    assert document("<<: {a: 1}\n").value == {"<<": {"a": 1}}


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("", "1:1: is empty: a mapping of keys to values is expected"),
        ("# only a comment\n", "1:1: is empty: a mapping of keys to values is expected"),
        ("- a\n- b\n", "1:1: the top level is a list: a mapping of keys to values is expected"),
        ("just words\n", "1:1: the top level is a single value: a mapping of keys to values is expected"),
        ("a: 1\nb: 2\na: 3\n", "3:1: key 'a' is written twice (first in line 1)"),
        ("a:\n  b: {c: 1, c: 2}\n", "2:13: key 'c' is written twice (first in line 2)"),
        ("? [a, b]\n: 1\n", "1:3: a key must be a single word"),
        ("a:\n\tb: 1\n", "2:1: a tab: indent with spaces"),
        ("a: &x [1]\nb: *x\n", "2:4: aliases (*name) are not used here: write the value out"),
        ("a: &x [*x]\n", "1:8: aliases (*name) are not used here: write the value out"),
        ("a: !!python/object/apply:os.system [ls]\n", "1:4: tags (tag:yaml.org,2002:python/object/apply:os.system) are not used here"),
        ("a: !mine b\n", "1:4: tags (!mine) are not used here"),
        ("a: 1\n---\nb: 2\n", "2:1: a second document begins here: one is expected"),
        ("a: b: c\n", "1:5: a ':' that starts no value: quote the text, or check the indentation"),
        (b"a: \xff\xfe\n", "1:4: is not UTF-8 text"),
        ("a: é\nb: ".encode() + b"\xe9\n", "2:4: is not UTF-8 text"),
        ("a: 1\n".encode("utf-16"), "1:1: is not UTF-8 text"),
        (b"\x7fELF\x00\x00", "1:5: is a binary file, not text"),
        (b"a: \x07\n", "1:4: the character U+0007 has no place in text"),
        (b"a: 1\n" * 60000, "0:0: larger than 256 KiB: not a file people wrote"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_one_clear_mistake(content: bytes | str, expected: str) -> None:
    assert refusal(content) == expected


@pytest.mark.parametrize("opening", ["[", "{a: ", "- "])
def test_nesting_without_end_is_refused(opening: str) -> None:
    prefix = "a:\n  " if opening == "- " else "a: "
    assert "nested more than 24 levels deep" in refusal(prefix + opening * 20000)


@pytest.mark.parametrize(
    "text", ["a: [1, 2\n", "a: 'open\n", "a: {b\n", "%bad\n", "a: @x\n", "a: |\n b\n  c\n d: [\nx", "*a\n"]
)
def test_broken_notation_is_a_mistake_with_a_place(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        document(text)
    assert all(one.line > 0 for one in caught.value.mistakes)


def test_all_doubled_keys_are_told_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        document("a: 1\na: 2\nb: 1\nb: 2\n")
    assert [one.line for one in caught.value.mistakes] == [2, 4]


def test_a_byte_order_mark_and_windows_line_ends_are_fine() -> None:
    assert parse_document(b"\xef\xbb\xbfa: 1\r\nb: 2\r\n", "f").value == {"a": 1, "b": 2}


@settings(max_examples=200, deadline=None)
@given(st.one_of(st.binary(max_size=80), st.text("ab:-[]{}&*!|>'\"#%@ \n\t?,0", max_size=60).map(str.encode)))
def test_any_bytes_are_a_document_or_a_config_error(content: bytes) -> None:
    with contextlib.suppress(ConfigError):
        assert isinstance(parse_document(content, "f").value, dict)


def test_a_file_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "secret.yaml").write_text("a: 1\n")
    os.chmod(tmp_path / "secret.yaml", 0)
    cases = {"gone.yaml": "no such file", ".": "is a folder, a file is expected"}
    if os.geteuid():  # root may read everything
        cases["secret.yaml"] = "may not be read: permission denied"
    for name, expected in cases.items():
        with pytest.raises(ConfigError, match=expected):
            read_document(tmp_path / name)


# ---------------------------------------------------------------- mistakes against a model


class Inner(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    number: int = 0
    flag: bool = False


class Outer(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    name: str
    inner: Inner | None = None
    items: list[Inner] = []
    named: dict[str, Inner] = {}


def found(text: str) -> list[str]:
    source = document(text)
    _, findings = validated(Outer, source.value)
    mistakes = [source.mistake(*one, at_key=one[1].startswith("unknown key")) for one in findings]
    return [f"{one.line}:{one.column}: {one.message}" for one in mistakes]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("name: a\ninner: {nubmer: 1}\n", "2:9: unknown key 'nubmer' (did you mean 'number'?)"),
        ("name: a\nitems:\n  - {number: 1}\n  - {flga: true}\n", "4:6: unknown key 'flga' (did you mean 'flag'?)"),
        ("name: a\nnamed: {x: {numbr: 1}}\n", "2:13: unknown key 'numbr' (did you mean 'number'?)"),
        ("name: a\nzzz: 1\n", "2:1: unknown key 'zzz' (known here: name, inner, items, named)"),
        ("name: a\ninner: {number: 1.5}\n", "2:17: a whole number is expected, not 1.5"),
        ("name: a\ninner: {number: true}\n", "2:17: a whole number is expected, not true"),
        ("name: a\ninner: {number: 012}\n", "2:17: a whole number is expected, not '012': write 12"),
        ("name: a\ninner: {flag: on}\n", "2:15: true or false is expected, not 'on': write true"),
        ("name: 12\n", "1:7: a text is expected, not 12: put it in quotes"),
        ("name: a\nitems: 3\n", "2:8: a list is expected, not 3: write [3]"),
        ("name: a\ninner: 3\n", "2:8: a mapping of keys to values is expected, not 3"),
        ("inner: {}\n", "1:1: 'name' is missing"),
    ],
)  # fmt: skip
def test_a_mistake_of_the_model_is_told_in_words_of_the_file(text: str, expected: str) -> None:
    assert found(text) == [expected]


def test_all_mistakes_of_the_model_are_told_and_the_rest_is_kept() -> None:
    source = document("name: a\ninner: {number: x, flag: true}\nitmes: []\n")
    model, findings = validated(Outer, source.value)
    assert len(findings) == 2
    assert model == Outer(name="a", inner=Inner(flag=True))


@pytest.mark.parametrize(
    ("before", "after", "shown"),
    [
        (0, 200, "bad" + "b" * 97 + "..."),
        (300, 300, "..." + "a" * 40 + "bad" + "b" * 57 + "..."),
        (300, 0, "..." + "a" * 97 + "bad"),
        (20, 20, "a" * 20 + "bad" + "b" * 20),
    ],
)
def test_of_a_long_line_only_what_is_around_the_mistake_is_shown(before: int, after: int, shown: str) -> None:
    _, line, marks = str(Mistake("f", "wrong", 1, before + 1, "a" * before + "bad" + "b" * after, 3)).splitlines()
    assert line == f"    1 | {shown}"
    assert line[marks.index("^") : marks.rindex("^") + 1] == "bad"


def test_an_error_says_what_where_and_what_to_do() -> None:
    error = LaunchError(
        "node gpu-07 did not answer in 10s", where="hosts check", hint="opt-launch hosts exclude gpu-07"
    )
    assert str(error) == (
        "node gpu-07 did not answer in 10s\n  while: hosts check\n  try:   opt-launch hosts exclude gpu-07"
    )
    assert str(ConfigError([Mistake("--set a", "write --set key.sub=value")])) == ("--set a: write --set key.sub=value")
