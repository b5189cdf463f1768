"""The code of a run is taken down: copied where a plan says so, and described in any case.

A copy gets its name when it is whole, and counts once its record is written.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import datetime
from importlib import metadata
from pathlib import Path

import xxhash

from launcher.code.git import CACHES, NoGit, WorkTree, changed_in, commit_of, diff, git, root_of
from launcher.code.plan import Plan
from launcher.code.present import ours
from launcher.code.record import Code, copied_files, newest, read_record, write_record
from launcher.paths import RunPaths

MOST_DIFF_BYTES = 20 * 1000**2
_COPIERS = 8  # a shared disk answers slowly, and several at once
_READ_BYTES = 1 << 20


def take(paths: RunPaths, asked: Plan, former: Code | None = None) -> Code:
    """Take the code down as planned. What ranks have made in the copy of a `former` time stays in sight.

    Raises OSError.
    """
    number = newest(paths) + 1
    code = Code(number, asked.mode, str(asked.folder), asked.why, is_callers=asked.is_callers, taken_at=_now())
    if asked.tree is not None:
        code = _snapshot(paths, code, asked, asked.tree)
        if former is not None and former.mode == "snapshot":
            _carry_over(paths, former, code)
    else:
        code = _described(paths, code)
    write_record(paths, code)
    return code


def share(paths: RunPaths, other: RunPaths) -> None:
    """Take the code of another run, as hard links where there can be: a run of the same sweep. Raises OSError."""
    number = newest(other)
    code = read_record(other, number)
    if code.mode == "snapshot":
        shutil.copytree(other.code(number), paths.code(number), symlinks=True, copy_function=_link)
    for of in (RunPaths.code_diff, RunPaths.code_files):
        with contextlib.suppress(FileNotFoundError):
            _link(str(of(other, number)), str(of(paths, number)))
    write_record(paths, code)


def forget(paths: RunPaths, number: int) -> None:
    """What was taken last does not count. Raises OSError."""
    paths.code_record(number).unlink()
    shutil.rmtree(paths.code(number), ignore_errors=True)
    for leftover in (paths.code_diff(number), paths.code_files(number)):
        leftover.unlink(missing_ok=True)


def _now() -> str:
    return datetime.now().astimezone().isoformat(timespec="seconds")


# ---------------------------------------------------------------- what is not copied


def _described(paths: RunPaths, code: Code) -> Code:
    """With what git knows of the user's code, or of ours where our trainer runs; as far as it does."""
    version = metadata.version("opt-launch") if code.mode == "installed" else ""
    folder = ours() if code.mode == "installed" else Path(code.folder)
    try:
        if folder is None:
            return replace(code, version=version)
        root = root_of(folder)
        commit, branch = commit_of(root)
        code = replace(code, version=version, root=str(root), commit=commit, branch=branch)
        if code.is_callers:
            return code  # somebody waits before the screen; what was changed is recorded with each attempt
        _write_diff(paths, code.number, root, commit)
        return replace(code, changed=changed_in(root, commit))
    except NoGit as error:
        return replace(code, version=version, why=code.why or str(error))


def _write_diff(paths: RunPaths, number: int, root: Path, commit: str) -> None:
    """The changes since the commit, if there are any and they are not too large to be of use."""
    with contextlib.suppress(NoGit):
        text = diff(root, commit)
        if 0 < len(text) <= MOST_DIFF_BYTES:
            paths.code_diff(number).write_bytes(text)


# ---------------------------------------------------------------- a copy


def _snapshot(paths: RunPaths, code: Code, asked: Plan, tree: WorkTree) -> Code:
    building = paths.code_folder / f".{code.number:04d}"
    shutil.rmtree(building, ignore_errors=True)
    into = building / (tree.root.name or "root")
    into.mkdir(parents=True)
    for path in asked.made:
        (tree.root / path).mkdir(parents=True, exist_ok=True)
    digest = _copy_all(tree, asked.copied, into)
    for path in asked.linked:
        _lead(into / path, tree.root / path)
    _lead_beside(tree.root, building)
    _pretend_git(tree, asked.linked, into)
    paths.code_files(code.number).write_text("".join(f"{path}\0" for path in asked.copied), errors="surrogateescape")
    _write_diff(paths, code.number, tree.root, tree.commit)
    building.rename(paths.code(code.number))
    return replace(
        code, root=str(tree.root), tree=str(paths.code(code.number).relative_to(paths.root) / into.name),
        commit=tree.commit, branch=tree.branch, changed=tree.changed, untracked=tree.untracked, nested=tree.nested,
        linked=asked.linked, files=len(asked.copied), bytes=asked.bytes, digest=digest,
    )  # fmt: skip


def _copy_all(tree: WorkTree, files: tuple[str, ...], into: Path) -> str:
    """Copy the files; the digest of their names and contents. Raises OSError."""
    for folder in sorted({os.path.dirname(path) for path in files}):
        (into / folder).mkdir(parents=True, exist_ok=True)
    untracked = {*tree.untracked}
    whole = xxhash.xxh3_128()
    with ThreadPoolExecutor(_COPIERS) as pool:
        digests = pool.map(lambda path: _copy(tree.root, path, into, private=path in untracked), files)
        for path, digest in zip(files, digests, strict=True):
            whole.update(f"{path}\0{digest}\n".encode(errors="surrogateescape"))
    return whole.hexdigest()


def _copy(root: Path, path: str, into: Path, *, private: bool) -> str:
    """Copy a file, with its time and whether it can be executed; the digest of its content. Raises OSError.

    What only its owner may read and git does not track stays so: it may be a secret.
    """
    source, target = root / path, into / path
    about = source.lstat()
    if source.is_symlink():
        to = _link_target(root, source)
        target.symlink_to(to)
        return f"to {to}"
    if not source.is_file():
        return ""
    mode = 0o777 if about.st_mode & 0o100 else 0o666
    if private and not about.st_mode & 0o077:
        mode &= 0o700
    digest = xxhash.xxh3_128()
    with source.open("rb") as reading, open(os.open(target, os.O_WRONLY | os.O_CREAT, mode), "wb") as writing:
        while data := reading.read(_READ_BYTES):
            digest.update(data)
            writing.write(data)
    os.utime(target, ns=(about.st_atime_ns, about.st_mtime_ns))
    return f"{mode & 0o100:o} {digest.hexdigest()}"


def _link_target(root: Path, link: Path) -> str:
    """Where a copied link leads: as it is if that is found from the copy too, else to the original."""
    to = os.readlink(link)
    whole = os.path.normpath(link.parent / to)
    return to if whole.startswith(f"{root.parent}/") and not os.path.isabs(to) else whole


def _lead(link: Path, to: Path) -> None:
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(to)


def _lead_beside(root: Path, building: Path) -> None:
    """What lies beside the work tree is found from the copy as from the original: ../data."""
    with contextlib.suppress(OSError):
        for name in os.listdir(root.parent):
            if name != root.name:
                (building / name).symlink_to(root.parent / name)


def _pretend_git(tree: WorkTree, linked: tuple[str, ...], into: Path) -> None:
    """A trainer that asks git for its commit is told the right one: it is that of the copy, not of what came later.

    Nothing it may do there reaches the user's repository: only its objects are shared, for reading.
    """
    if not tree.commit:
        return
    with contextlib.suppress(NoGit, OSError):
        common = os.fsdecode(git(tree.root, "rev-parse", "--git-common-dir").rstrip(b"\n"))
        git(into, "init", "-q", "--template=")
        inside = into / ".git"
        (inside / "info").mkdir(exist_ok=True)
        excluded = "".join(f"/{path}\n" for path in linked)
        (inside / "info" / "exclude").write_text(excluded, errors="surrogateescape")
        (inside / "objects" / "info" / "alternates").write_text(f"{(tree.root / common).resolve() / 'objects'}\n")
        git(into, "update-ref", "--no-deref", "HEAD", tree.commit)
        if tree.branch:
            (inside / "HEAD").write_text(f"ref: refs/heads/{tree.branch}\n")
            git(into, "update-ref", f"refs/heads/{tree.branch}", tree.commit)
        git(into, "read-tree", "HEAD")


# ---------------------------------------------------------------- from one copy to the next


def _carry_over(paths: RunPaths, former: Code, code: Code) -> None:
    """Link what ranks have made in the former copy from the new one, where code has not taken its name."""
    old, new = former.tree_in(paths), code.tree_in(paths)
    known = {*copied_files(paths, former.number), *former.linked}
    for path in [*_made(old, "", known)]:
        if not os.path.lexists(new / path):
            _lead(new / path, Path(os.path.relpath(old / path, (new / path).parent)))


def _made(tree: Path, folder: str, known: set[str]) -> Iterator[str]:
    """What is in a copy and was not put there by us: whole folders where they have nothing of ours in them."""
    for entry in os.scandir(tree / folder):
        path = os.path.join(folder, entry.name)
        if path in known or path == ".git" or entry.name == CACHES or path.endswith(".pyc"):
            continue
        if entry.is_dir(follow_symlinks=False) and any(one.startswith(path + "/") for one in known):
            yield from _made(tree, path, known)
        else:
            yield path


def _link(source: str, target: str) -> str:
    """As a hard link, or a copy where there can be none."""
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:
        shutil.copy2(source, target, follow_symlinks=False)
    return target
