"""How an attempt begins: enough nodes, a checkpoint, then ranks on each of its nodes. Pure."""

from __future__ import annotations

from launcher.abilities import Abilities
from launcher.checkpoints import Choice, NoChoice, choose, choose_undecided, tried_before
from launcher.crew import assign, by_preference, size_of
from launcher.events import AttemptStarted, JobEnding, RunHeld
from launcher.moves import Emit, Fleet, Inspect, Limits, Move, Search, Send
from launcher.run import Attempt, Node, NodeState, Run, RunState


def start(run: Run, fleet: Fleet, limits: Limits) -> list[Move]:
    """Nodes, then a checkpoint, then the attempt."""
    if not run.nodes_wanted:
        return []
    nodes = available(run, fleet)
    size = _size(run, fleet, limits, len(nodes))
    if size is None:
        return _wait_for_nodes(run, fleet, limits, nodes)
    if not fleet.settled and (not run.attempts or size < run.nodes_wanted):
        return []
    if run.state is RunState.PENDING and _is_examined_first(nodes, size, fleet.now, limits):
        return []
    if not fleet.searched:
        return [Search()]
    choice = _choice(run)
    if isinstance(choice, NoChoice):
        return [Emit(RunHeld(at=fleet.now, reason=choice.reason))]
    if choice.restore is None and fleet.unfinished:
        reason = f"the only checkpoint is not whole: {fleet.unfinished[-1]}; remove it to begin at step 0"
        return [Emit(RunHeld(at=fleet.now, reason=reason))]
    if choice.restore is not None and choice.restore not in fleet.inspected:
        return [Inspect(choice.restore)]
    slots = assign(run, nodes[:size])
    started = AttemptStarted(
        at=fleet.now,
        attempt=len(run.attempts) + 1,
        slots=slots,
        incarnations={node: run.nodes[node].incarnation for node in slots},
        restore=choice.restore,
        why=choice.why,
        resumes_itself=limits.trainer.resumes_itself and choice.restore is None,
        observed=limits.trainer.observed,
        settings=dict(run.settings),
        skips=run.skips,
    )
    return [Emit(started)]


def _is_examined_first(nodes: list[Node], size: int, now: float, limits: Limits) -> bool:
    """Whether a new allocation waits for what examinations say of its nodes.

    For a while only, from when enough nodes are there: a check may be stuck, and an agent may come again and again.
    """
    enough_at = sorted(node.joined_at for node in nodes)[size - 1]
    return now < enough_at + limits.examined_within_s and any(not node.examinations for node in nodes)


def _choice(run: Run) -> Choice | NoChoice:
    """Where the next attempt begins: as was decided, if anything was."""
    restart = run.pending.actions.get("restart") if run.pending else None
    if run.pending is None or not isinstance(restart, dict):
        return choose_undecided(run)
    origin = str(restart.get("from", "latest"))
    return choose(run, origin, -1 if origin == "latest" else run.pending.onset_step, below=tried_before(run))


def available(run: Run, fleet: Fleet) -> list[Node]:
    """Nodes that may take part, the preferred first."""
    nodes = (
        node
        for node in run.nodes.values()
        if node.name in fleet.answering
        and node.state is NodeState.ALIVE
        and not node.excluded
        and not node.barred
        and fleet.answering[node.name].incarnation == node.incarnation
        and not fleet.answering[node.name].ranks_alive
    )
    return by_preference(run, nodes)


def _size(run: Run, fleet: Fleet, limits: Limits, there: int) -> int | None:
    """How many nodes to begin with; None: more are to be waited for. Most new allocations begin whole."""
    has_waited = _has_waited(run, fleet, limits)
    if run.state is not RunState.RECOVERING:
        begins = limits.begins_smaller and has_waited
        return size_of(run, there, limits.smaller if begins else (), may_shrink=begins)
    may_shrink = run.pending is not None and "shrink" in run.pending.actions and has_waited
    return size_of(run, there, limits.smaller, may_shrink=may_shrink)


def _has_waited(run: Run, fleet: Fleet, limits: Limits) -> bool:
    return run.recovering_since is not None and fleet.now >= run.recovering_since + limits.wait_for_node_s


def _has_all(run: Run) -> bool:
    return len(run.nodes) >= run.nodes_wanted + run.spares_wanted


def _wait_for_nodes(run: Run, fleet: Fleet, limits: Limits, nodes: list[Node]) -> list[Move]:
    barred = [node for node in run.nodes.values() if node.barred]
    is_vain = run.state is RunState.PENDING and bool(barred) and _has_all(run)  # nobody else is going to come
    if not is_vain and (run.state is RunState.PENDING or not _has_waited(run, fleet, limits)):
        return []
    waited = "" if is_vain else f"waited {limits.wait_for_node_s:.0f}s, "
    have = ", ".join(sorted(node.name for node in nodes)) or "none"
    without = "".join(f"; without {node.name}, {node.barred}" for node in barred)
    reason = f"{run.nodes_wanted} nodes are needed, {waited}have: {have}{without}"
    if run.pending is not None and "requeue" in run.pending.actions:
        return [Emit(JobEnding(at=fleet.now, reason=reason))]
    return [Emit(RunHeld(at=fleet.now, reason=reason))]


def begin(run: Run, attempt: Attempt, fleet: Fleet, trainer: Abilities) -> list[Move]:
    """Start the ranks on nodes that have not yet done so; the first node opens the rendezvous store before."""
    to_start = [
        node
        for node in attempt.slots
        if node in fleet.answering
        and fleet.answering[node].incarnation == attempt.incarnations[node]
        and fleet.answering[node].attempt < attempt.number
    ]
    if not to_start:
        return []
    first = next(iter(attempt.slots))
    if fleet.store is None or fleet.store[0] != attempt.number:
        return [Send(first, {"type": "store", "attempt": attempt.number})] if first in fleet.answering else []
    restore = run.checkpoints.get(attempt.restore) if attempt.restore else None
    message = {
        "type": "start",
        "attempt": attempt.number,
        "world_size": attempt.ranks,
        "group_world_size": len(attempt.slots),
        "master_addr": fleet.store[1],
        "master_port": fleet.store[2],
        "restore": restore.id if restore else None,
        "restore_digest": restore.manifest_digest if restore else "",
        "args": trainer.args_for(restore.path, restore.step) if restore else [],
        "settings": dict(attempt.settings),
        "skips": [list(span) for span in attempt.skips],
    }
    order = list(attempt.slots)
    return [
        Send(node, {**message, "ranks": list(attempt.slots[node]), "group_rank": order.index(node)})
        for node in to_start
    ]
