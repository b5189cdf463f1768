"""The engine knows no clock, no files and no torch, and imports only policies and events."""

import ast
from pathlib import Path

import pytest

from policies.load import FOLDER

PURE = sorted(path for path in FOLDER.glob("*.py") if path.name not in ("load.py", "__init__.py"))
ALLOWED = {"__future__", "bisect", "collections.abc", "dataclasses", "functools", "math", "re", "re2", "typing"}


def imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module or "")
    return names


@pytest.mark.parametrize("path", PURE, ids=lambda path: path.name)
def test_a_module_of_the_engine_imports_nothing_impure(path: Path) -> None:
    ours = {
        name
        for name in imported(path)
        if name.startswith("policies.") or name in ("launcher.events", "launcher.evolve")
    }
    grammar = {name for name in imported(path) if name.split(".")[0] in ("pydantic", "pydantic_core")}
    assert imported(path) - ours - grammar <= ALLOWED
    assert "policies.load" not in ours
