"""What a submission would start, as text: the very spec and policy that would be stored."""

from __future__ import annotations

from pathlib import Path
from textwrap import indent, wrap

from launcher import sizes
from launcher.backends import slurm_array
from launcher.backends.choice import backend_of
from launcher.branch import Source
from launcher.code.plan import plan
from launcher.paths import RunPaths
from launcher.sections import RunSpec
from launcher.spec import ResolvedSpec, dump_resolved
from launcher.sweep.read import Sweep
from launcher.sweep.record import folder_of
from launcher.sweep.start import arrays_of
from launcher.view.code import planned
from launcher.view.words import counted
from policies.schema import Policy

RULES_WIDTH = 69  # with what is before them, 80


def plan_text(resolved: ResolvedSpec, root: Path, source: Source | None = None) -> str:
    """The plan and the resolved spec; YAML, so that it can be read back."""
    lines = [*_plan(resolved, root, source), ""]
    plan = "\n".join(f"# {line}".rstrip() for line in lines) + "\n" + dump_resolved(resolved).rstrip()
    script = backend_of(resolved.spec).script(RunPaths(root.absolute() / resolved.spec.name), resolved.spec)
    return f"{plan}\n---\nscript: |\n{indent(script, '  ')}" if script else plan


def _ranks(spec: RunSpec) -> str:
    nodes, each = spec.cluster.nodes, spec.cluster.ranks_per_node
    where = f"{each} on each of {nodes} nodes" if nodes > 1 else f"{each} on 1 node"
    if spec.launch.mode == "per_node":
        return f"started by one process for {where}"
    return f"{spec.world_size}: {where}" if nodes > 1 else where


def _rules(policy: Policy) -> list[str]:
    """The names of the rules, in lines that fit a terminal; a name and its mode stay together."""
    names = [f"{rule.name}\N{NO-BREAK SPACE}({rule.mode or 'act'})" for rule in policy.rules]
    first, *more = wrap(f"{policy.name}: {', '.join(names)}", RULES_WIDTH, break_on_hyphens=False)
    lines = [f"policy   {first}", *(f"         {line}" for line in more)]
    return [line.replace("\N{NO-BREAK SPACE}", " ") for line in lines]


def _plan(resolved: ResolvedSpec, root: Path, source: Source | None) -> list[str]:
    spec, cluster = resolved.spec, resolved.spec.cluster
    what = f"our own trainer, {spec.trainer.steps} steps" if spec.trainer else " ".join(spec.command or ())
    reserve = f", {cluster.spares} of them in reserve" if cluster.spares else ""
    begins = [f"begins   from step {source.branch.step} of run {source.branch.run}"] if source else []
    return [
        "Dry run: nothing was started or written.",
        f"run      {spec.name} in {root.absolute()}",
        f"backend  {cluster.backend}: {counted(cluster.nodes + cluster.spares, 'node')}{reserve}",
        f"ranks    {_ranks(spec)}",
        *_fewer(spec),
        f"trains   {what}",
        *_code(spec, root),
        *begins,
        *_rules(resolved.policy),
    ]


def _code(spec: RunSpec, root: Path) -> list[str]:
    """Raises LaunchError as `submit` would."""
    first, *more = planned(plan(spec, Path.cwd(), root))
    return [f"code     {first}", *(f"         {line}" for line in more)]


def sweep_text(sweep: Sweep, root: Path) -> str:
    """What would be started: the runs, the arrays, their scripts, and the spec of the first run."""
    runs = [(RunPaths(root.absolute() / run.spec.name), run.spec) for run in sweep.runs]
    at_once = f", at most {sweep.max_parallel} at once" if sweep.max_parallel else ""
    lines = [
        "Dry run: nothing was started or written.",
        f"sweep    {sweep.name} in {root.absolute()}: {counted(len(runs), 'run')}{at_once}",
    ]
    lines += _code(sweep.runs[0].spec, root)
    scripts: list[str] = []
    folder = folder_of(root, sweep.name)
    for array in arrays_of(runs, sweep.max_parallel):
        cluster = array.runs[0][1].cluster
        what = f"{counted(len(array.runs), 'run')} of {counted(cluster.nodes + cluster.spares, 'node')}"
        lines += [f"{cluster.backend:<8} {what}, at most {array.at_once} at once"]
        lines += [f"         {spec.name}" for _, spec in array.runs]
        if cluster.backend == "slurm":
            scripts.append(slurm_array.script(folder / "submitit", sweep.name, array.runs, array.at_once))
    head = "\n".join(f"# {line}" for line in lines)
    first = dump_resolved(sweep.runs[0].resolved).rstrip()
    return "\n---\n".join([f"{head}\n\n{first}", *(f"script: |\n{indent(script, '  ')}" for script in scripts)])


def _fewer(spec: RunSpec) -> list[str]:
    fits = ", ".join(map(str, sizes.smaller(spec)))
    skipped = sizes.skipped(spec)
    return [f"shrinks  to {fits} of {spec.cluster.nodes} nodes" + (f"; {skipped}" if skipped else "")] if fits else []
