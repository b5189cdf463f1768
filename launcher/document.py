"""A YAML document that knows where each of its keys and values was written.

PyYAML's loader turns `on` into True, `012` into 10, `5:30` into 330 and `1e-5` into a text, and keeps the
last of two equal keys without a word. So only its parser is used: the node tree becomes plain values by
the rules of YAML 1.2, keys are always text, and the marks of the nodes give every mistake its place.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from launcher.errors import ConfigError, Mistake

Path_ = tuple[str | int, ...]  # keys and list positions from the root

MAX_BYTES = 256 * 1024
MAX_DEPTH = 24
_INT = re.compile(r"[-+]?(?:0|[1-9][0-9]*)")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|(?:0|[1-9][0-9]*)(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
_NAMED: dict[str, Any] = {"": None, "~": None, "null": None, "true": True, "false": False}
_NAMED |= {".nan": float("nan"), ".inf": float("inf"), "+.inf": float("inf"), "-.inf": float("-inf")}
_TAB = re.compile(r"found character '\\t' that cannot start any token")


@dataclass(frozen=True)
class Mark:
    """Where a key or a value stands: line and column from 1, and how many characters it is wide."""

    line: int
    column: int
    width: int


@dataclass(frozen=True)
class Document:
    """The values of a document and the marks of its keys and values. `name` is how the person called it."""

    name: str
    value: dict[str, Any]
    lines: tuple[str, ...] = ()
    keys: Mapping[Path_, Mark] = field(default_factory=dict)
    values: Mapping[Path_, Mark] = field(default_factory=dict)

    def has(self, path: Path_) -> bool:
        """Whether something was written at this path."""
        return path in self.values

    def part(self, key: str) -> Document:
        """The mapping at a key as a document of its own; its places remain those of this one."""
        keys = {path[1:]: mark for path, mark in self.keys.items() if path[0] == key}
        values = {path[1:]: mark for path, mark in self.values.items() if path[:1] == (key,)}
        return Document(self.name, self.value[key], self.lines, keys, values)

    def mistake(self, path: Path_, message: str, *, at_key: bool = False) -> Mistake:
        """A mistake at a path; one that was not written is shown at the nearest key above it."""
        mark = self.keys.get(path) if at_key or path not in self.values else self.values[path]
        while mark is None and path:
            path = path[:-1]
            mark = self.keys.get(path) or self.values.get(path)
        mark = mark or Mark(1, 1, 1)
        return _mistake(self.name, self.lines, mark, message)

    def place(self, path: Path_) -> str:
        """`file:line` of a value."""
        mark = self.keys.get(path) or self.values.get(path)
        return f"{self.name}:{mark.line}" if mark else self.name

    def comment(self, path: Path_) -> str:
        """What is written behind a value in its line."""
        mark = self.values[path]
        return self.lines[mark.line - 1][mark.column - 1 + mark.width :].strip().removeprefix("# ")


def read_document(path: Path, name: str = "") -> Document:
    """The document of a file. Raises ConfigError with the one mistake that keeps it from being read."""
    name = name or str(path)
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError([Mistake(name, _why_unreadable(error))]) from None
    except ValueError:  # a zero byte in the name
        raise ConfigError([Mistake(name, "no file can have this name")]) from None
    return parse_document(content, name)


def parse_document(content: bytes, name: str) -> Document:
    """The document of these bytes. Raises ConfigError with every mistake of the notation."""
    if len(content) > MAX_BYTES:
        raise ConfigError([Mistake(name, f"larger than {MAX_BYTES // 1024} KiB: not a file people wrote")])
    text = _decoded(content, name)
    lines = tuple(text.splitlines())
    node = _composed(text, name, lines)
    if node is None:
        raise ConfigError([Mistake(name, "is empty: a mapping of keys to values is expected", 1, 1)])
    if not isinstance(node, yaml.MappingNode):
        found = "a list" if isinstance(node, yaml.SequenceNode) else "a single value"
        message = f"the top level is {found}: a mapping of keys to values is expected"
        raise ConfigError([_mistake(name, lines, _mark(node), message)])
    reading = _Reading(name, lines)
    value = reading.plain(node, ())
    if reading.mistakes:
        raise ConfigError(reading.mistakes)
    return Document(name, value, lines, reading.keys, reading.values)


def parse_value(text: str, name: str) -> Any:
    """The value of a short piece of YAML, such as the right side of `--set key=value`."""
    lines = tuple(text.splitlines())
    node = _composed(text, name, ())
    reading = _Reading(name, lines)
    value = None if node is None else reading.plain(node, ())
    if reading.mistakes:
        raise ConfigError([Mistake(name, mistake.message) for mistake in reading.mistakes])
    return value


def scalar(text: str) -> Any:
    """The value of an unquoted word by YAML 1.2: `1e-5` is a number, `012`, `5:30`, `on`, `no` are text."""
    if text.lower() in _NAMED and text in (text.lower(), text.upper(), text.capitalize()):
        return _NAMED[text.lower()]
    # Python refuses to read integers of thousands of digits.
    if _INT.fullmatch(text) and len(text) < 1000:
        return int(text)
    return float(text) if _FLOAT.fullmatch(text) else text


class _Reading:
    """One walk over a node tree: collects marks and mistakes while values are made."""

    def __init__(self, name: str, lines: tuple[str, ...]) -> None:
        self.name = name
        self.lines = lines
        self.keys: dict[Path_, Mark] = {}
        self.values: dict[Path_, Mark] = {}
        self.mistakes: list[Mistake] = []

    def plain(self, node: yaml.Node, path: Path_) -> Any:
        self.values[path] = _mark(node)
        if isinstance(node, yaml.MappingNode):
            return {key: self.plain(value, (*path, key)) for key, value in self._entries(node, path)}
        if isinstance(node, yaml.SequenceNode):
            return [self.plain(item, (*path, index)) for index, item in enumerate(node.value)]
        return scalar(node.value) if getattr(node, "style", None) is None else node.value

    def _entries(self, node: yaml.MappingNode, path: Path_) -> Iterator[tuple[str, yaml.Node]]:
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                self._wrong(key, "a key must be a single word")
            elif (*path, key.value) in self.keys:
                first = self.keys[(*path, key.value)].line
                self._wrong(key, f"key {key.value!r} is written twice (first in line {first})")
            else:
                self.keys[(*path, key.value)] = _mark(key)
                yield key.value, value

    def _wrong(self, node: yaml.Node, message: str) -> None:
        self.mistakes.append(_mistake(self.name, self.lines, _mark(node), message))


def _decoded(content: bytes, name: str) -> str:
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = content[: error.start].decode("utf-8", "replace")
        line = before.count("\n") + 1
        column = len(before) - before.rfind("\n")
        raise ConfigError([Mistake(name, "is not UTF-8 text", line, column)]) from None
    if "\0" in text:
        before = text[: text.index("\0")]
        line = before.count("\n") + 1
        raise ConfigError([Mistake(name, "is a binary file, not text", line, len(before) - before.rfind("\n"))])
    return text


def _composed(text: str, name: str, lines: tuple[str, ...]) -> yaml.Node | None:
    """The node tree, refused before it is built where it nests too deep or repeats itself by aliases."""
    try:
        depth = 0
        for event in yaml.parse(text, yaml.SafeLoader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if refusal := _refusal(event, depth):
                raise ConfigError([_at_mark(name, lines, event.start_mark, refusal)])
        return yaml.compose(text, yaml.SafeLoader)
    except yaml.reader.ReaderError as error:
        before = text[: error.position]
        place = Mark(before.count("\n") + 1, len(before) - before.rfind("\n"), 1)
        message = f"the character U+{ord(text[error.position]):04X} has no place in text"
        raise ConfigError([_mistake(name, lines, place, message)]) from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise ConfigError([_at_mark(name, lines, mark, _notation(error))]) from None


def _refusal(event: yaml.Event, depth: int) -> str:
    if depth > MAX_DEPTH:
        return f"nested more than {MAX_DEPTH} levels deep"
    if isinstance(event, yaml.AliasEvent):
        return "aliases (*name) are not used here: write the value out"
    tag = getattr(event, "tag", None)
    return f"tags ({tag}) are not used here" if tag else ""


def _notation(error: yaml.MarkedYAMLError) -> str:
    problem = error.problem or "this is not YAML"
    if _TAB.search(problem) or "\\t" in problem:
        return "a tab: indent with spaces"
    if "expected a single document" in (error.context or ""):
        return "a second document begins here: one is expected"
    if "mapping values are not allowed" in problem:
        return "a ':' that starts no value: quote the text, or check the indentation"
    return f"not YAML: {problem}" + (f" ({error.context})" if error.context else "")


def _why_unreadable(error: OSError) -> str:
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if isinstance(error, IsADirectoryError):
        return "is a folder, a file is expected"
    if isinstance(error, PermissionError):
        return "may not be read: permission denied"
    return f"cannot be read: {(error.strerror or str(error)).lower()}"


def _mark(node: yaml.Node) -> Mark:
    start, end = node.start_mark, node.end_mark
    width = end.column - start.column if end.line == start.line else 1
    return Mark(start.line + 1, start.column + 1, max(1, width))


def _at_mark(name: str, lines: tuple[str, ...], mark: yaml.Mark | None, message: str) -> Mistake:
    place = Mark(mark.line + 1, mark.column + 1, 1) if mark else Mark(1, 1, 1)
    return _mistake(name, lines, place, message)


def _mistake(name: str, lines: tuple[str, ...], mark: Mark, message: str) -> Mistake:
    if not lines:
        return Mistake(name, message)
    source = lines[mark.line - 1] if mark.line <= len(lines) else ""
    return Mistake(name, message, mark.line, mark.column, source, mark.width)
