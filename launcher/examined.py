"""What examinations of nodes make of the run: what is amiss on each, and which are still to be told of. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from launcher.events import CommandReceived, NodeExamined
from launcher.evolve import evolve
from launcher.run import Examining, Node, NodeState, Run
from launcher.terms import Tier
from policies.schema import BY_CHECKS

_SHOWN = 8


def node_examined(run: Run, event: NodeExamined) -> Run:
    node = run.nodes.get(event.node)
    if node is None or node.incarnation != event.incarnation:
        return run
    told = {one.key: one for one in event.findings}
    findings = {key: one for key, one in node.findings.items() if key not in told}
    findings |= {key: one for key, one in told.items() if one.verdict not in ("ok", "skipped")}
    node = evolve(node, findings=findings, examinations=event.number, examined_at=event.at)
    run = evolve(run, nodes={**run.nodes, node.name: node})
    if asked := run.examining.get(event.id):
        run = evolve(run, examining={**run.examining, event.id: evolve(asked, left=asked.left - {node.name})})
    return run


def is_spared(run: Run, name: str) -> bool:
    """Whether the node was to be replaced for what a check had found, and that is gone."""
    node = run.nodes.get(name)
    return run.replace is not None and run.replace.detector in BY_CHECKS and node is not None and not node.faults


def tier_of(value: object) -> Tier:
    """The tier that an action or a command names; standard where it names none."""
    return "fast" if value == "fast" else "deep" if value == "deep" else "standard"


def to_examine(run: Run, id_: str, tier: Tier, at: float, nodes: Iterable[str] = (), *, is_command: bool) -> Run:
    """The run whose nodes, or all that are alive, are to be examined."""
    names = tuple(nodes) or tuple(name for name, node in run.nodes.items() if node.state is NodeState.ALIVE)
    asked = Examining(tier, at, names, frozenset(names), is_command)
    return evolve(run, examining={**run.examining, id_: asked})


def checked(command: CommandReceived, run: Run) -> CommandReceived:
    """A person's wish to have nodes examined; with `refused` if there are none of that name, or none at all."""
    named = command.args.get("nodes")
    unknown = [str(name) for name in named if name not in run.nodes] if isinstance(named, list) else []
    refused = f"the run has no node {', '.join(unknown)}; these it has: {', '.join(run.nodes)}" if unknown else ""
    refused = refused or ("" if run.nodes else "no node has answered yet")
    if command.args.get("tier") == "deep" and run.live_attempt:
        refused = refused or f"its ranks need the nodes: pause it first, opt-launch pause {run.name}"
    return evolve(command, args={**command.args, "refused": refused}) if refused else command


def no_longer(run: Run, id_: str) -> Run:
    """What was asked under this id has been answered."""
    if id_ not in run.examining:
        return run
    return evolve(run, examining={key: one for key, one in run.examining.items() if key != id_})


def outcome(run: Run, asked: Examining) -> str:
    """What came of an examination, in a line."""
    heard = [run.nodes[name] for name in asked.nodes if name not in asked.left and name in run.nodes]
    unwell = sorted((node for node in heard if node.findings), key=lambda node: _verdict(node) != "fail")
    told = [_told(node) for node in unwell[:_SHOWN]]
    more = [f"{len(unwell) - _SHOWN} more are not well"] if len(unwell) > _SHOWN else []
    counts = Counter(_verdict(node) for node in heard)
    well = [", ".join(f"{counts[word]} {word}" for word in ("ok", "warn", "unknown", "fail") if counts[word])]
    left = [f"no answer from {', '.join(sorted(asked.left)[:_SHOWN])}"] if asked.left else []
    return "; ".join(filter(None, (*well, *told, *more, *left)))


def _verdict(node: Node) -> str:
    verdicts = {one.verdict for one in node.findings.values()}
    return next((word for word in ("fail", "unknown", "warn") if word in verdicts), "ok")


def _told(node: Node) -> str:
    """The worst of a node."""
    found = sorted(node.findings.values(), key=lambda one: one.verdict != "fail")
    more = f" and {len(found) - 1} more" if len(found) > 1 else ""
    return f"{node.name}: {found[0].verdict}: {found[0].told}{more}"
