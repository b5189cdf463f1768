"""What events make of the nodes of a run, and what that says of the run. Pure."""

from __future__ import annotations

from launcher.events import (
    AgentJoined,
    NodeAllowed,
    NodeBack,
    NodeDown,
    NodeDraining,
    NodeExamined,
    NodeExcluded,
    NodeSilent,
    NodeUndrained,
)
from launcher.evolve import evolve
from launcher.examined import is_spared, node_examined
from launcher.incidents import spared
from launcher.run import Node, NodeState, Run, RunState


def joined(run: Run, event: AgentJoined) -> Run:
    node = Node(event.node, event.index, event.incarnation, event.host, event.port, event.pid, joined_at=event.at)
    known = run.nodes.get(event.node)
    if known and known.incarnation == event.incarnation:
        about = {"findings": known.findings, "examinations": known.examinations, "examined_at": known.examined_at}
        node = evolve(node, excluded=known.excluded, avoided=known.avoided, **about)
    if known:
        node = evolve(node, draining=known.draining, barred=known.barred)
    if run.state is RunState.PENDING and run.recovering_since is None:
        run = evolve(run, recovering_since=event.at)
    return _with_node(run, node)


def silent(run: Run, event: NodeSilent) -> Run:
    node = run.nodes.get(event.node)
    if node is None or node.state is NodeState.LOST or run.state.is_terminal:
        return run
    return looked_at(_with_node(run, evolve(node, state=NodeState.SUSPECT, silent_since=event.since)))


def back(run: Run, event: NodeBack) -> Run:
    node = run.nodes.get(event.node)
    if node is None:
        return run
    return looked_at(_with_node(run, evolve(node, state=NodeState.ALIVE, silent_since=None)))


def down(run: Run, event: NodeDown) -> Run:
    """A node that leaves because the run is over is not lost."""
    node = run.nodes.get(event.node)
    if node is None or run.state.is_terminal:
        return run
    return looked_at(_with_node(run, evolve(node, state=NodeState.LOST)))


def draining(run: Run, event: NodeDraining) -> Run:
    node = run.nodes.get(event.node)
    return run if node is None else _with_node(run, evolve(node, draining=event.reason))


def undrained(run: Run, event: NodeUndrained) -> Run:
    node = run.nodes.get(event.node)
    return run if node is None else spared(_with_node(run, evolve(node, draining="")), event.node)


def examined(run: Run, event: NodeExamined) -> Run:
    run = node_examined(run, event)
    return spared(run, event.node) if is_spared(run, event.node) else run


def excluded(run: Run, event: NodeExcluded) -> Run:
    node = run.nodes.get(event.node)
    return run if node is None else _with_node(run, evolve(node, barred=event.reason))


def allowed(run: Run, event: NodeAllowed) -> Run:
    node = run.nodes.get(event.node)
    return run if node is None else _with_node(run, evolve(node, barred=""))


def _with_node(run: Run, node: Node) -> Run:
    return evolve(run, nodes={**run.nodes, node.name: node})


def looked_at(run: Run) -> Run:
    """RUNNING or SUSPECT, by what is amiss now."""
    if run.state not in (RunState.RUNNING, RunState.SUSPECT) or run.attempt is None:
        return run
    amiss = any(run.nodes[name].state is not NodeState.ALIVE for name in run.attempt.slots if name in run.nodes)
    return evolve(run, state=RunState.SUSPECT if amiss or run.steps_stopped else RunState.RUNNING)
