"""Who may import whom, and what each file may need: the whole of the architecture that a machine can check."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from launcher.snapshots import FOLDED_BY

ROOT = Path(__file__).parents[2]
COMMANDS = {"cli", "cli_examine", "cli_hosts", "cli_look", "cli_policy", "cli_shared", "cli_start", "cli_steer"}
OURS = COMMANDS | {"launcher", "model", "policies"}

PURE = [
    "launcher.settings", "launcher.verdicts", "policies.questions", "policies.why_not",
    "policies.surroundings", "policies.amended", "policies.patterns",
    "launcher.terms",
    "launcher.evolve", "launcher.events", "launcher.run", "launcher.incidents", "launcher.lineage", "launcher.advance",
    "launcher.nodes", "launcher.attempts",
    "launcher.accounting", "launcher.ledger", "launcher.codec", "launcher.fold",
    "launcher.crew", "launcher.drain", "launcher.examined", "launcher.replacement", "launcher.recovery",
    "launcher.moves", "launcher.starts", "launcher.endings",
    "launcher.backends.report", "launcher.backends.slurm_words", "launcher.backends.standing",
    "launcher.abilities", "launcher.telemetry", "launcher.binding",
    "launcher.doctor.checks", "launcher.doctor.cluster_checks", "launcher.doctor.show",
    "launcher.hosts.records", "launcher.hosts.fold", "launcher.hosts.standing", "launcher.hosts.guard",
    "launcher.hosts.of_run", "launcher.localize", "launcher.trials", "launcher.search",
    "launcher.health.finding", "launcher.health.peers",
    "launcher.health.lasting",
    "launcher.checkpoints", "policies.schema", "policies.when", "policies.units", "policies.detectors",
    "policies.engine", "policies.exits", "policies.silence", "policies.explain", "policies.finding",
    "policies.ladder", "policies.meaning", "policies.observe", "policies.state", "policies.baseline", "policies.spike",
    "policies.scale", "policies.trend", "policies.pace", "policies.watch", "policies.numerics",
    "policies.answer", "policies.built_in", "policies.examined", "policies.infrastructure", "policies.person",
    "policies.corruption", "policies.hearing", "policies.habit", "policies.relapse",
]  # fmt: skip
IMPURE = {
    "os", "time", "socket", "subprocess", "random", "threading", "multiprocessing", "asyncio", "signal", "io",
    "pathlib", "tempfile", "shutil", "torch", "rich", "typer", "psutil",
}  # fmt: skip

# From the bottom up: a module imports of ours only what stands in its own line or above it.
LAYERS = [
    ["launcher.terms"],
    ["launcher.evolve", "launcher.events", "launcher.errors", "launcher.reporter", "launcher.warm"],
    ["launcher.abilities", "launcher.telemetry"],
    [
        "launcher.document",
        "launcher.validation",
        "launcher.paths",
        "launcher.arrivals",
        "launcher.wire",
    ],
    ["launcher.log_parts"],
    ["launcher.code.git", "launcher.code.record", "launcher.code.present"],
    ["launcher.torchrun", "launcher.place", "launcher.foreground", "launcher.network", "launcher.sightings"],
    ["launcher.binding"],
    ["policies"],
    [
        "launcher.run",
        "launcher.settings",
        "launcher.drain",
        "launcher.localize",
        "launcher.trials",
        "launcher.search",
        "launcher.examined",
        "launcher.incidents",
        "launcher.lineage",
        "launcher.advance",
        "launcher.nodes",
        "launcher.attempts",
    ],
    ["launcher.grammar", "launcher.foreign", "launcher.sources", "launcher.sections"],
    ["launcher.sizes", "launcher.declared"],
    [
        "launcher.launch_checks",
        "launcher.variables",
        "launcher.site",
        "launcher.access",
        "launcher.preflight",
        "launcher.spec",
    ],
    [
        "launcher.checkpoints",
        "launcher.crew",
        "launcher.replacement",
        "launcher.accounting",
        "launcher.ledger",
        "launcher.codec",
        "launcher.fold",
        "launcher.reader",
        "launcher.journal",
        "launcher.snapshots",
        "launcher.verdicts",
    ],
    ["launcher.line_watch", "launcher.storage_probe"],
    ["launcher.hosts"],
    ["launcher.rank_log", "launcher.rank_socket", "launcher.program", "launcher.machine", "launcher.warm_process"],
    ["launcher.health"],
    ["launcher.doctor.checks"],
    ["launcher.moves"],
    ["launcher.starts"],
    ["launcher.endings"],
    [
        "launcher.examiner",
        "launcher.tryout",
        "launcher.xid_watch",
        "launcher.recovery",
        "launcher.saves",
        "launcher.found",
        "launcher.chores",
        "launcher.ranks",
        "launcher.rank_env",
        "launcher.other_agents",
        "launcher.takeover",
        "launcher.evidence",
        "launcher.environment",
    ],
    ["launcher.backends", "launcher.agent", "launcher.control"],
    ["launcher", "launcher.health.here"],
    ["cli_shared"],
    ["cli_hosts", "cli_look", "cli_policy", "cli_start", "cli_steer"],
    ["cli_examine"],
    ["cli"],
]
# Grammar and errors that the layers of policies and launcher share.
SHARED = {
    "launcher.validation",
    "launcher.document",
    "launcher.errors",
    "launcher.events",
    "launcher.evolve",
    "launcher.terms",
    "policies.units",
}
COMPUTES = "launcher.health.collective"  # needs torch, and runs as a child
STDLIB_ONLY = ["launcher.reporter", "launcher.warm"]


def files() -> Iterator[tuple[str, Path]]:
    """(module, file) of everything that is shipped."""
    for name in sorted(COMMANDS):
        yield name, ROOT / f"{name}.py"
    for package in sorted(OURS - COMMANDS):
        for path in sorted((ROOT / package).rglob("*.py")):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            yield name.removesuffix(".__init__"), path


MODULES = dict(files())


def imports(module: str) -> set[str]:
    """All that a module imports, anywhere in it, as dotted names; `from a import b` is a.b where that is a module."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: a relative import"
            assert node.module
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= (inner & MODULES.keys()) or {node.module}
    return found


def ours(module: str) -> set[str]:
    return {name for name in imports(module) if name.split(".")[0] in OURS}


def closure(module: str) -> set[str]:
    """Everything of ours that importing a module brings in."""
    seen, todo = set(), [module]
    while todo:
        if (name := todo.pop()) not in seen:
            seen.add(name)
            todo += [one for one in ours(name) if one in MODULES]
    return seen


def layer(module: str) -> int:
    """The deepest layer that names the module or a package around it."""
    best = max(
        (name for names in LAYERS for name in names if module == name or module.startswith(name + ".")),
        key=len,
    )
    return next(level for level, names in enumerate(LAYERS) if best in names)


@pytest.mark.parametrize("module", PURE)
def test_what_decides_is_pure(module: str) -> None:
    assert not {name.split(".")[0] for name in imports(module)} & IMPURE
    assert closure(module) <= {*PURE, "launcher.reporter", "launcher.run"}


def test_a_snapshot_is_void_when_any_module_of_the_fold_has_changed() -> None:
    folded = {name for name in closure("launcher.fold") | closure("launcher.codec") if name.startswith("launcher.")}

    assert folded == {f"launcher.{name}" for name in FOLDED_BY}


@pytest.mark.parametrize("module", sorted(name for name in MODULES if name.split(".")[0] != "model"))
def test_nothing_imports_upward(module: str) -> None:
    upward = {name for name in ours(module) - SHARED if layer(name) > layer(module)}

    assert not upward, f"{module} imports {', '.join(sorted(upward))}"


@pytest.mark.parametrize("module", sorted(MODULES))
def test_packages_keep_their_distance(module: str) -> None:
    package = module.split(".", maxsplit=1)[0]
    imported = imports(module)
    if package in COMMANDS | {"launcher", "policies"}:
        assert not {name for name in imported if name.split(".")[0] == "model"}
    if package == "policies":
        assert "launcher" not in {name.split(".")[0] for name in ours(module) - SHARED}
    if package in ("launcher", "policies") and module not in ("launcher.warm", COMPUTES):
        assert "torch" not in {name.split(".")[0] for name in imported}
    if package == "model":
        others = {name for name in ours(module) if name.split(".")[0] != "model"}
        assert others <= {"launcher.reporter"}


def test_what_needs_torch_is_imported_by_nobody() -> None:
    assert not [module for module in MODULES if COMPUTES in imports(module)]


@pytest.mark.parametrize("module", STDLIB_ONLY)
def test_what_runs_in_a_foreign_process_needs_the_standard_library_only(module: str) -> None:
    tree = ast.parse(MODULES[module].read_text(), feature_version=(3, 8))
    at_import = [node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))]
    names = {alias.name for node in at_import if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module or "" for node in at_import if isinstance(node, ast.ImportFrom)}

    assert {name.split(".")[0] for name in names} <= set(sys.stdlib_module_names)
    assert not ours(module)


def test_the_pure_modules_import_nothing_impure_even_through_others() -> None:
    program = f"import sys\nfor name in {PURE!r}: __import__(name)\nprint([m for m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    loaded = set(ast.literal_eval(done.stdout))

    assert not loaded & {"torch", "rich", "typer", "asyncio.events", "psutil", "yaml"}


def test_the_package_itself_is_empty() -> None:
    assert MODULES["launcher"].read_text() == ""
