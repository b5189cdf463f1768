"""Which code a run is to be started from: the user's as it is now, or a copy of it. Decides, and makes nothing."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from launcher.code.git import NoGit, WorkTree, read_work_tree
from launcher.code.record import Mode
from launcher.errors import LaunchError
from launcher.found import STEP
from launcher.sections import RunSpec

MOST_BYTES = 200 * 1000**2
MOST_FILES = 20_000
IN_PLACE = "launch.code: in_place"
_SHOWN = 3
_MOST_OF_IT = 0.8
_SWEEP = ".sweep"


class _Unfit(Exception):
    """Why a copy of the work tree would not do."""


@dataclass(frozen=True)
class Plan:
    """What is to be taken down. Paths are relative to the root of `tree`, the work tree that `folder` is in.

    `copied` is code, of so many `bytes`; `linked` leads to the original; `made`: of the linked ones those that the
    trainer will write its checkpoints to, and that are made where they are missing.
    """

    mode: Mode
    folder: Path
    why: str = ""
    tree: WorkTree | None = None
    copied: tuple[str, ...] = ()
    linked: tuple[str, ...] = ()
    made: tuple[str, ...] = ()
    bytes: int = 0
    is_callers: bool = False


def plan(spec: RunSpec, folder: Path, runs: Path) -> Plan:
    """What is to be taken down for a run that is submitted from `folder`; `runs` is the folder of the runs.

    Raises LaunchError where the code is too large to be copied, or where it must be copied and cannot.
    """
    if spec.trainer is not None:
        return Plan("installed", folder)
    if spec.cluster.backend == "own":
        return Plan("in_place", folder, why="opt-launch run starts what is there", is_callers=True)
    if spec.launch.code == "in_place":
        return Plan("in_place", folder, why=IN_PLACE)
    try:
        return _snapshot(spec, folder, runs)
    except (_Unfit, NoGit) as error:
        if spec.launch.code == "snapshot":
            raise _refused(f"launch.code: snapshot: {error}", folder, IN_PLACE) from None
        return Plan("in_place", folder, why=str(error))


def _refused(message: str, where: Path, hint: str) -> LaunchError:
    error = LaunchError(message, str(where), hint)
    error.exit_code = 3
    return error


def _snapshot(spec: RunSpec, folder: Path, runs: Path) -> Plan:
    tree = read_work_tree(folder, but=runs)
    held = {*tree.untracked}
    within = os.path.relpath(folder, tree.root)
    _check_command(spec.command or (), within, tree.root)
    outputs = [*dict.fromkeys(_outputs(spec, within))]
    of_runs = [*_of_runs(tree, runs)]
    data = [*outputs, *of_runs]
    for path in outputs:
        if beside := next((one for one in tree.files if _is_in(one, path) and one not in held), None):
            raise _Unfit(f"checkpoints lie beside code: {path}/ has {beside}, which git tracks")
    copied = tuple(sorted(path for path in tree.files if not _is_data(path, data)))
    linked = tuple(_outermost([*tree.ignored, *data]))
    if any(_is_in(within, path) for path in linked):
        raise _Unfit("git ignores this folder")
    _check_number(tree.root, copied, linked)
    sizes = {path: os.lstat(tree.root / path).st_size for path in copied}
    _check_size(tree.root, sizes)
    tree = replace(
        tree,
        untracked=tuple(path for path in copied if path in held),
        changed=tuple(path for path in tree.changed if not _is_data(path, data)),
        nested={path: commit for path, commit in tree.nested.items() if not _is_data(path, data)},
    )
    return Plan("snapshot", folder, "", tree, copied, linked, tuple(outputs), sum(sizes.values()))


def printable(path: str) -> str:
    """A file's name for a person; git takes any."""
    return "".join(sign if sign.isprintable() else "?" for sign in path)


def _is_in(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder + "/")


def _is_data(path: str, data: Sequence[str]) -> bool:
    return any(_is_in(path, one) for one in data)


def _outermost(paths: Sequence[str]) -> Iterator[str]:
    last = ""
    for path in sorted({*paths}, key=lambda one: one.split("/")):
        if not last or not _is_in(path, last):
            last = path
            yield path


# ---------------------------------------------------------------- what a copy would break


def _check_command(command: Sequence[str], within: str, root: Path) -> None:
    """Relative paths lead out of the copy as out of the original only to what lies right beside it."""
    for word in command:
        path = word.rpartition("=")[2]
        if ".." not in Path(path).parts or os.path.isabs(path):
            continue
        target = os.path.normpath(os.path.join(within, path))
        beside = target.startswith("../") and not target.startswith("../../") and os.path.exists(root / target)
        if target == ".." or (target.startswith("../") and not beside):
            raise _Unfit(f"the command names {path}, outside of the work tree")


def _outputs(spec: RunSpec, within: str) -> Iterator[str]:
    """The folders in the work tree that the trainer's checkpoints are written to."""
    files = spec.checkpoints
    patterns = [files.glob] if files else []
    if files and files.complete.marker and STEP in files.complete.marker:
        patterns.append(files.complete.marker)
    for pattern in patterns:
        if os.path.isabs(pattern):
            continue
        path = os.path.normpath(os.path.join(within, _fixed_folder(pattern)))
        if path == ".." or path.startswith("../"):
            raise _Unfit(f"checkpoints lie outside of the work tree: {pattern}")
        if path in (".", within):
            raise _Unfit(f"checkpoints lie beside code: {pattern} names no folder of their own")
        yield path


def _fixed_folder(pattern: str) -> str:
    """The folder that all that a pattern names is in."""
    parts: list[str] = []
    for part in Path(pattern).parts[:-1]:
        if any(sign in part for sign in "{*?"):
            break
        parts.append(part)
    return os.path.join(*parts) if parts else ""


def _of_runs(tree: WorkTree, runs: Path) -> Iterator[str]:
    """Where runs are, this one among them: not code, whatever git thinks of it."""
    within = os.path.relpath(os.path.realpath(runs), tree.root)
    if within.startswith(".."):
        return
    if within != ".":
        yield within
        return
    for name in sorted({path.split("/", maxsplit=1)[0] for path in tree.untracked}):
        if name.endswith(_SWEEP) or (tree.root / name / "journal").is_dir():
            yield name


# ---------------------------------------------------------------- what is too much


def _check_number(root: Path, copied: Sequence[str], linked: Sequence[str]) -> None:
    if len(copied) + len(linked) > MOST_FILES:
        weights = dict.fromkeys((*copied, *linked), 1)
        told = ", ".join(f"{printable(name)} {count:,}" for name, count in heaviest(weights))
        raise _too_much(f"{len(weights):,} files, more than {MOST_FILES:,}: {told}", root)


def _check_size(root: Path, sizes: dict[str, int]) -> None:
    if (total := sum(sizes.values())) > MOST_BYTES:
        told = ", ".join(f"{printable(name)} {size / 1e6:,.1f} MB" for name, size in heaviest(sizes))
        raise _too_much(f"{total / 1e6:,.1f} MB, more than {MOST_BYTES / 1e6:.0f} MB: {told}", root)


def _too_much(message: str, root: Path) -> LaunchError:
    hint = f"have git ignore what is no code (.gitignore; it is linked, not copied), or {IN_PLACE}"
    return _refused(f"the code is too large to be copied for the run: {message}", root, hint)


def heaviest(weights: dict[str, int]) -> list[tuple[str, int]]:
    """The folders, or files, with the most in them; of nested ones the innermost that still has most of it."""
    return [_innermost(weights, path) for path, _ in _parts(weights, "").most_common(_SHOWN)]


def _parts(weights: dict[str, int], folder: str) -> Counter[str]:
    """What each entry of a folder weighs."""
    parts: Counter[str] = Counter()
    for path, weight in weights.items():
        if path.startswith(folder):
            parts[folder + path[len(folder) :].split("/", maxsplit=1)[0]] += weight
    return parts


def _innermost(weights: dict[str, int], path: str) -> tuple[str, int]:
    inside = _parts(weights, path + "/")
    whole = weights.get(path, 0) or sum(inside.values())
    if inside:
        heavy, weight = inside.most_common(1)[0]
        if weight > _MOST_OF_IT * whole:
            return _innermost(weights, heavy)
    return path, whole
