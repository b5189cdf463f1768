"""Which code an attempt finds: of a copy what it is of, of code that is run in place what it is now."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import xxhash

from launcher.code.git import NoGit, changed_in, commit_of, git, root_of, untracked_in
from launcher.code.record import Code

# Of what git does not know only this is code for certain; the rest may be what the trainer writes.
SOURCES = (".py", ".sh", ".c", ".cc", ".cpp", ".cu", ".cuh", ".h", ".hpp", ".pyx")
MOST_BYTES = 10 << 20  # of a file: a larger one is not code
MOST_FILES = 500


def present(code: Code, command: Sequence[str]) -> dict[str, Any]:
    """What tells one code from another: mode, commit, and digests of files that the commit does not tell.

    Of a command also those of the files that it names. Takes as long as git takes; unknown is left out.
    """
    if code.mode == "snapshot":
        return {"mode": code.mode, "snapshot": code.number, "commit": code.commit, "digest": code.digest}
    folder = ours() if code.mode == "installed" else Path(code.folder)
    about: dict[str, Any] = {"mode": code.mode, "commit": "", "files": {}}
    if folder is None:
        return about
    named = [os.path.join(folder, word) for word in command]
    with contextlib.suppress(NoGit):
        root = root_of(folder)
        about["commit"], _ = commit_of(root)
        named += [str(root / path) for path in changed_in(root, about["commit"])]
        named += [str(root / path) for path in untracked_in(root) if path.endswith(SOURCES)]
    about["files"] = dict(_digests(folder, sorted({*named})[:MOST_FILES]))
    return about


def ours() -> Path | None:
    """The folder that we are installed from, if git tracks it: a checkout, not site-packages in a user's own."""
    folder = Path(__file__).parents[2]
    with contextlib.suppress(NoGit):
        git(folder, "ls-files", "--error-unmatch", str(Path(__file__).relative_to(folder)))
        return folder
    return None


def _digests(folder: Path, files: Sequence[str]) -> Iterator[tuple[str, str]]:
    for path in files:
        with contextlib.suppress(OSError, ValueError):
            if os.path.isfile(path) and os.path.getsize(path) <= MOST_BYTES:
                yield os.path.relpath(path, folder), xxhash.xxh3_64_hexdigest(Path(path).read_bytes())
