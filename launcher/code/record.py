"""The code of a run: what was taken down of it when it was submitted, and where its ranks work."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from launcher.paths import RunPaths, write_atomically

Mode = Literal["snapshot", "in_place", "installed"]
_RECORD = re.compile(r"(\d{4,})\.json")


@dataclass(frozen=True)
class Code:
    """The code a run is started from, as it was when somebody said so.

    `mode`: snapshot: ranks work in `tree`, a copy of the work tree `root`; in_place: in `folder` itself, and `why`;
    installed: our own trainer runs, and no code of the user's. `folder`: where the run was submitted. `tree` is
    relative to the run folder. `linked`: what is not code, and leads to the original; relative to `root`, as `changed`
    and `untracked` are. `digest` is of the copied files. `version`: of opt-launch. `is_callers`: each process
    of `opt-launch run` works where it was called, as torchrun's do.
    """

    number: int
    mode: Mode
    folder: str
    why: str = ""
    root: str = ""
    tree: str = ""
    commit: str = ""
    branch: str = ""
    changed: tuple[str, ...] = ()
    untracked: tuple[str, ...] = ()
    nested: Mapping[str, str] = field(default_factory=dict)
    linked: tuple[str, ...] = ()
    files: int = 0
    bytes: int = 0
    digest: str = ""
    version: str = ""
    is_callers: bool = False
    taken_at: str = ""

    @property
    def label(self) -> str:
        """In a few words, which code it is."""
        at = f"{self.commit[:9]}{' with changes' if self.changed or self.untracked else ''}" if self.commit else ""
        return ", ".join(filter(None, [f"snapshot {self.number}" if self.tree else self.mode.replace("_", " "), at]))

    def tree_in(self, paths: RunPaths) -> Path:
        """The copy of the work tree."""
        return paths.root.absolute() / self.tree

    def working_folder(self, paths: RunPaths) -> Path:
        """Where ranks begin."""
        if self.mode != "snapshot":
            return Path(self.folder)
        return self.tree_in(paths) / os.path.relpath(self.folder, self.root)

    def mapped(self, paths: RunPaths, word: str) -> str:
        """A word of a command in which the absolute path of code in the original names its copy."""
        if self.mode != "snapshot":
            return word
        flag, equals, path = word.rpartition("=")
        copy = self._copy_of(paths, path)
        return f"{flag}{equals}{copy}" if copy else word

    def mapped_folders(self, paths: RunPaths, search_path: str) -> str:
        """As `mapped`, of a list of folders such as PYTHONPATH."""
        return os.pathsep.join(self.mapped(paths, folder) for folder in search_path.split(os.pathsep))

    def _copy_of(self, paths: RunPaths, path: str) -> str:
        """The copy of what lies at an absolute path of the original; "" if it was not copied."""
        if not os.path.isabs(path):
            return ""
        within = os.path.relpath(os.path.realpath(path), self.root)
        tree = os.path.realpath(self.tree_in(paths))
        copy = os.path.normpath(os.path.join(tree, within))
        return copy if os.path.exists(copy) and is_within(os.path.realpath(copy), tree) else ""


def is_within(path: str, folder: str) -> bool:
    """Whether an absolute path is that of a folder, or of something in it."""
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def newest(paths: RunPaths) -> int:
    """The number of the record that counts; 0 if there is none."""
    try:
        found = [_RECORD.fullmatch(name) for name in os.listdir(paths.code_folder)]
    except FileNotFoundError:
        return 0
    return max((int(match[1]) for match in found if match), default=0)


def read_code(paths: RunPaths) -> Code | None:
    """The code that counts; None for a run of which nothing was taken down. Raises OSError."""
    number = newest(paths)
    return read_record(paths, number) if number else None


def read_record(paths: RunPaths, number: int) -> Code:
    """Raises OSError."""
    body = json.loads(paths.code_record(number).read_text())
    known = {one.name: body[one.name] for one in fields(Code) if one.name in body}
    values: dict[str, Any] = {name: tuple(one) if isinstance(one, list) else one for name, one in known.items()}
    return Code(**values)


def write_record(paths: RunPaths, code: Code) -> None:
    """From now on this code counts. Raises OSError."""
    write_atomically(paths.code_record(code.number), json.dumps(asdict(code), indent=1) + "\n")


def copied_files(paths: RunPaths, number: int) -> set[str]:
    """What a snapshot was made of, relative to its tree. Raises OSError."""
    return {*filter(None, paths.code_files(number).read_text(errors="surrogateescape").split("\0"))}


def code_of_ranks(paths: RunPaths) -> Code | None:
    """The code that says where ranks begin; None where they begin where their agent was started. Raises OSError."""
    code = read_code(paths)
    return None if code is None or code.mode == "installed" or code.is_callers else code


def original_folder(paths: RunPaths) -> Path:
    """The folder of the user's that ranks work in, or in a copy of: checkpoints are relative to it. Raises OSError."""
    code = code_of_ranks(paths)
    return Path(code.folder) if code else Path.cwd()
