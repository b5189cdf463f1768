"""What a submission would start, as text: the very spec and policy that would be stored."""

from __future__ import annotations

from pathlib import Path
from textwrap import indent

from launcher.backends.choice import backend_of
from launcher.branch import Source
from launcher.paths import RunPaths
from launcher.sections import RunSpec
from launcher.spec import ResolvedSpec, dump_resolved


def plan_text(resolved: ResolvedSpec, root: Path, source: Source | None = None) -> str:
    """The plan and the resolved spec; YAML, so that it can be read back."""
    lines = [*_plan(resolved, root, source), ""]
    plan = "\n".join(f"# {line}".rstrip() for line in lines) + "\n" + dump_resolved(resolved).rstrip()
    script = backend_of(resolved.spec).script(RunPaths(root.absolute() / resolved.spec.name), resolved.spec)
    return f"{plan}\n---\nscript: |\n{indent(script, '  ')}" if script else plan


def _ranks(spec: RunSpec) -> str:
    if spec.launch.mode == "per_node":
        return f"started by one process for {spec.cluster.ranks_per_node}"
    return f"{spec.world_size}, {spec.cluster.ranks_per_node}"


def _plan(resolved: ResolvedSpec, root: Path, source: Source | None) -> list[str]:
    spec, cluster = resolved.spec, resolved.spec.cluster
    what = f"our own trainer, {spec.trainer.steps} steps" if spec.trainer else " ".join(spec.command or ())
    rules = [f"{rule.name} ({rule.mode or 'act'})" for rule in resolved.policy.rules]
    begins = [f"begins   from step {source.branch.step} of run {source.branch.run}"] if source else []
    return [
        "Dry run: nothing was started or written.",
        f"run      {spec.name} in {root.absolute()}",
        f"backend  {cluster.backend}: {cluster.nodes + cluster.spares} nodes, {cluster.spares} of them in reserve",
        f"ranks    {_ranks(spec)} on each of {cluster.nodes} nodes",
        f"trains   {what}",
        *begins,
        f"policy   {resolved.policy.name}: {', '.join(rules)}",
    ]
