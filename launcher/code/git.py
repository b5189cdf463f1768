"""What git knows of the code that a run is started from. Reads only; takes no lock that a person might wait for."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

TIMEOUT_S = 60.0
CACHES = "__pycache__"  # what Python keeps beside the code: neither code nor data


class NoGit(Exception):
    """Git does not know this folder, and why."""


@dataclass(frozen=True)
class WorkTree:
    """A work tree as it is now. All paths are relative to `root`.

    `files`: what git tracks or might, as far as it is there, that of nested work trees included; `untracked` is a part
    of it. `ignored`: what git ignores, whole folders where it can be said so. `changed`: tracked files that are not as
    in `commit`, which is "" where nothing was committed yet. `nested`: submodules and other work trees inside this
    one, and their commits.
    """

    root: Path
    commit: str = ""
    branch: str = ""
    files: tuple[str, ...] = ()
    untracked: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    nested: dict[str, str] = field(default_factory=dict)

    @property
    def dirty(self) -> bool:
        """Whether the commit does not tell what the code is."""
        return bool(self.changed or self.untracked or not self.commit)


def git(folder: Path, *arguments: str, index: Path | None = None) -> bytes:
    """What git says, perhaps of another index than the repository's. Raises NoGit."""
    # A hook or a script of the user's may have set which repository counts: here it is that of the folder.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    environment |= {"GIT_OPTIONAL_LOCKS": "0", "LC_ALL": "C", **({"GIT_INDEX_FILE": str(index)} if index else {})}
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=folder, env=environment, stdin=subprocess.DEVNULL, capture_output=True,
            timeout=TIMEOUT_S, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise NoGit(f"git {arguments[0]} took longer than {TIMEOUT_S:.0f}s in {folder}") from None
    except OSError as error:
        named = error.filename or "git"
        raise NoGit(f"{named}: {error.strerror}" if named != "git" else "git is not installed") from None
    if done.returncode:
        said = done.stderr.decode("utf-8", "replace").strip().splitlines()
        raise NoGit(said[0].removeprefix("fatal: ") if said else f"git {arguments[0]} failed in {folder}")
    return done.stdout


def root_of(folder: Path) -> Path:
    """The top of the work tree that a folder is in. Raises NoGit."""
    try:
        top = os.fsdecode(git(folder, "rev-parse", "--show-toplevel").rstrip(b"\n"))
    except NoGit as error:
        if str(error).startswith("not a git repository"):
            raise NoGit("not a git work tree") from None
        raise
    if not top:
        raise NoGit("not a git work tree")
    return Path(top)


def commit_of(root: Path) -> tuple[str, str]:
    """(commit, branch); "" for a commit that there is not yet, and for a branch where HEAD is detached."""
    try:
        commit = git(root, "rev-parse", "--verify", "-q", "HEAD").decode().strip()
    except NoGit:
        commit = ""
    try:
        branch = os.fsdecode(git(root, "symbolic-ref", "-q", "--short", "HEAD")).strip()
    except NoGit:
        branch = ""
    return commit, branch


def changed_in(root: Path, commit: str) -> tuple[str, ...]:
    """The tracked files that are not as in the commit. Raises NoGit."""
    if not commit:
        return ()
    said = git(root, "status", "--porcelain", "-z", "--untracked-files=no", "--no-renames")
    return tuple(line[3:] for line in _names(said))


def untracked_in(root: Path) -> tuple[str, ...]:
    """What git does not track and would not ignore; nested work trees end with a slash. Raises NoGit."""
    return _names(git(root, "ls-files", "-z", "--others", "--exclude-standard"))


def diff(root: Path, commit: str) -> bytes:
    """The changes of tracked files since the commit, as `git apply` takes them. Raises NoGit."""
    if not changed_in(root, commit):
        return b""
    # It would write what it has learnt about files into the index. The time of the index tells it whom to trust.
    with tempfile.TemporaryDirectory() as folder:
        index = Path(folder, "index")
        shutil.copy2(root / os.fsdecode(git(root, "rev-parse", "--git-path", "index").rstrip(b"\n")), index)
        return git(root, "diff", "--binary", "--no-ext-diff", "--no-color", commit, index=index)


def read_work_tree(folder: Path, but: Path | None = None) -> WorkTree:
    """The work tree that a folder is in; other work trees in the folder `but` are none of it. Raises NoGit."""
    root = root_of(folder)
    aside = os.path.realpath(but) if but else ""
    return _read(root, "" if str(root).startswith(aside) else aside)


def _read(root: Path, aside: str) -> WorkTree:
    commit, branch = commit_of(root)
    untracked = untracked_in(root)
    tracked = dict.fromkeys(_names(git(root, "ls-files", "-z", "--cached")))  # twice where a merge is under way
    listed = [*tracked, *untracked]
    folders = [path for path in listed if os.path.isdir(root / path) and not os.path.islink(root / path)]
    tree = WorkTree(
        root, commit, branch,
        files=tuple(path for path in listed if path not in {*folders} and os.path.lexists(root / path)),
        untracked=tuple(path for path in untracked if path not in {*folders}),
        ignored=tuple(_ignored(root)),
        changed=changed_in(root, commit),
    )  # fmt: skip
    for path in folders:
        if not (aside and f"{root}/{path}".startswith(f"{aside}/")):
            tree = _with(tree, path.rstrip("/"), aside)
    return tree


def _ignored(root: Path) -> Iterator[str]:
    said = git(root, "ls-files", "-z", "--others", "--ignored", "--exclude-standard", "--directory")
    for path in _names(said):
        parts = Path(path).parts
        if CACHES not in parts and not path.endswith(".pyc"):
            yield path.rstrip("/")


def _with(tree: WorkTree, path: str, aside: str) -> WorkTree:
    """With what is in a nested work tree: a submodule, or one that git would not add."""
    if not (tree.root / path / ".git").exists():
        return tree  # a submodule that was never fetched
    inner = _read(tree.root / path, aside)

    def placed(names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(f"{path}/{name}" for name in names)

    return replace(
        tree,
        files=tree.files + placed(inner.files),
        untracked=tree.untracked + placed(inner.untracked),
        ignored=tree.ignored + placed(inner.ignored),
        changed=tree.changed + placed(inner.changed),
        nested={**tree.nested, path: inner.commit, **{f"{path}/{name}": one for name, one in inner.nested.items()}},
    )


def _names(said: bytes) -> tuple[str, ...]:
    return tuple(os.fsdecode(name) for name in said.split(b"\0") if name)
