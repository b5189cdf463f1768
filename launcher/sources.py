"""What people wrote about one run, and what of it wins: a flag, `--set`, RUN.yaml, the defaults of the site."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from launcher.document import Document, Path_, parse_value
from launcher.errors import ConfigError, Mistake
from launcher.validation import PUT_IN_QUOTES, Finding

BUILT_IN = "built in"
NOTHING = Document("", {})


@dataclass(frozen=True)
class Override:
    """A value that takes the place of what the files say: from the command line, or from a place in a document."""

    path: Path_
    value: Any
    origin: str
    written: tuple[Document, Path_] | None = None

    def mistake(self, path: Path_, message: str) -> Mistake:
        """What is wrong at `path`: that of this value, or one around it or within."""
        if self.written is None:
            return Mistake(self.origin, _for_a_shell(self, path, message))
        document, place = self.written
        return document.mistake((*place, *path[len(self.path) :]), message, at_key=message.startswith("unknown key"))


@dataclass(frozen=True)
class Sources:
    """All that says something about a run. Of the overrides the last one counts."""

    file: Document
    overrides: Sequence[Override] = ()
    site: Document = field(default=NOTHING)

    def values(self) -> tuple[Any, list[Mistake]]:
        """What all of it says together, and the overrides that find no place in it."""
        values: Any = merged(self.site.value, self.file.value)
        mistakes = []
        for override in self.overrides:
            values, problem = with_value(values, override.path, override.value)
            mistakes += [override.mistake(override.path, problem)] if problem else []
        return values, mistakes

    def override_of(self, path: Path_) -> Override | None:
        """The override that set this path or something above it."""
        return next((one for one in reversed(self.overrides) if one.path == path[: len(one.path)]), None)

    def origin(self, path: Path_) -> str:
        """Where the value at a path comes from: a flag, `file:line`, or built in."""
        if override := self.override_of(path):
            return override.origin
        document = self._document_of(path)
        return document.place(path) if document.has(path) else BUILT_IN

    def folder(self, path: Path_) -> Path:
        """The folder from which a relative path that is the value at `path` is meant."""
        override = self.override_of(path)
        if override is not None and override.written is None:
            return Path.cwd()
        document = override.written[0] if override and override.written else self._document_of(path)
        return Path(document.name).absolute().parent

    def mistake(self, finding: Finding) -> Mistake:
        """What is wrong at a path, with the place to put it right."""
        path, message = finding
        document = self._document_of(path)
        override = self.override_of(path)
        if override is None and not document.has(path):
            override = next((one for one in self.overrides if one.path[: len(path)] == path), None)
        if override:
            return override.mistake(path, message)
        return document.mistake(path, message, at_key=message.startswith("unknown key"))

    def _document_of(self, path: Path_) -> Document:
        return self.site if self.site.has(path) and not self.file.has(path) else self.file


def parsed_overrides(texts: Sequence[str]) -> tuple[list[Override], list[Mistake]]:
    """What `--set key.sub=value` asks for."""
    parsed: list[Override] = []
    mistakes: list[Mistake] = []
    for text in texts:
        origin = f"--set {text}"
        key, equals, value = text.partition("=")
        if not equals or not all(key.strip().split(".")):
            mistakes.append(Mistake(origin, "write --set key.sub=value"))
            continue
        try:
            parsed.append(Override(tuple(key.strip().split(".")), parse_value(value, origin), origin))
        except ConfigError as error:
            mistakes += error.mistakes
    return parsed, mistakes


def merged(below: Any, above: Any) -> Any:
    """Nested mappings as one: where both say something, `above` counts."""
    if not isinstance(below, dict) or not isinstance(above, dict):
        return above
    return {key: merged(below.get(key), above[key]) if key in above else below[key] for key in {**above, **below}}


def value_of(values: Any, path: Path_) -> Any:
    """The value at a path of nested mappings; None where there is none."""
    for part in path:
        values = values.get(part) if isinstance(values, dict) else None
    return values


def with_value(values: Any, path: Path_, value: Any) -> tuple[Any, str]:
    """A copy of nested mappings with one value replaced, and what keeps it from being placed."""
    if not path:
        return value, ""
    if values is not None and not isinstance(values, dict):
        return values, f"what comes before {path[0]!r} is not a section"
    values = values or {}
    inner, problem = with_value(values.get(path[0]), path[1:], value)
    return {**values, path[0]: inner}, problem


def _for_a_shell(override: Override, path: Path_, message: str) -> str:
    """What is said about a file, said about --set: quotes for the value must get through the shell."""
    flag, _, setting = override.origin.partition(" ")
    key, _, value = setting.partition("=")
    if flag != "--set" or override.path != path or not message.endswith(PUT_IN_QUOTES):
        return message
    quoted = shlex.quote(f'{key}="{value}"')
    return f"{message.removesuffix(PUT_IN_QUOTES)}: write --set {quoted}"
