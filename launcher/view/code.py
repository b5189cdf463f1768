"""Which code a run is started from, in a line or two."""

from __future__ import annotations

from collections.abc import Sequence

from launcher.code.plan import Plan, printable
from launcher.code.record import Code
from launcher.paths import RunPaths
from launcher.view.words import counted, size

_SHOWN = 8


def told(paths: RunPaths, code: Code) -> str:
    """What was taken down; "" where that is nothing a person need know."""
    if code.mode == "installed":
        return ""
    if code.mode == "in_place":
        return f"code: in place, in {code.folder} ({code.why}): later changes there reach the run"
    origin = _at(code.root, code.commit, code.branch, code.changed, code.untracked)
    what = f"{counted(code.files, 'file')}, {size(code.bytes)}"
    return f"code: a copy of {origin}: {what}, in {code.working_folder(paths)}"


def planned(asked: Plan) -> list[str]:
    """What would be taken down."""
    if asked.mode == "installed":
        return ["that of opt-launch"]
    if asked.tree is None:
        return [f"in place, in {asked.folder} ({asked.why})"]
    tree = asked.tree
    lines = [
        f"copied: {counted(len(asked.copied), 'file')}, {size(asked.bytes)} of "
        + _at(str(tree.root), tree.commit, tree.branch, tree.changed, tree.untracked)
    ]
    for head, paths in (("changed", tree.changed), ("untracked", tree.untracked), ("linked", asked.linked)):
        if paths:
            lines.append(f"{head}: {_some(paths)}")
    return lines


def _at(root: str, commit: str, branch: str, changed: Sequence[str], untracked: Sequence[str]) -> str:
    where = f"{root} at {commit[:9]}" if commit else f"{root}, where nothing is committed"
    parts = [f"{where} ({branch})" if branch else where]
    parts += [f"{len(paths)} {word}" for word, paths in (("changed", changed), ("untracked", untracked)) if paths]
    return ", ".join(parts)


def _some(paths: Sequence[str]) -> str:
    return ", ".join(map(printable, paths[:_SHOWN])) + (
        f" and {len(paths) - _SHOWN} more" if len(paths) > _SHOWN else ""
    )
