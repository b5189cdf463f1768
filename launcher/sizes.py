"""On how many nodes a run can go on. Pure.

Of our own trainer the data-parallel degree follows the nodes, and the global batch stays. An elastic command sees to
that by itself.
"""

from __future__ import annotations

from launcher.sections import RunSpec, Trainer


def smaller(spec: RunSpec) -> tuple[int, ...]:
    """The numbers of nodes below the wanted one that the run may go on with, largest first."""
    return tuple(nodes for nodes, why_not in asked(spec).items() if not why_not)


def asked(spec: RunSpec) -> dict[int, str]:
    """Each number of nodes that `min_nodes` asks for beside `nodes`, largest first, and why it does not fit; "": fits.

    Empty for a command that does not say that it is elastic: nobody knows what fewer ranks would make of it.
    """
    cluster, trainer = spec.cluster, spec.trainer
    if cluster.min_nodes is None or not (trainer or spec.can.elastic):
        return {}
    sizes = range(cluster.nodes - 1, cluster.min_nodes - 1, -1)
    if trainer is None:
        return dict.fromkeys(sizes, "")
    return {nodes: _why_not(trainer, nodes * cluster.ranks_per_node) for nodes in sizes}


def _why_not(trainer: Trainer, ranks: int) -> str:
    """Why the trainer cannot run on so many ranks."""
    fsdp, rest = divmod(ranks, trainer.parallel.tensor)
    if rest:
        return f"its ranks ({ranks}) are no multiple of tensor {trainer.parallel.tensor}"
    sequences = trainer.batch_tokens // trainer.seq_len
    if sequences % fsdp:
        return f"a batch of {sequences} sequences cannot be divided among {fsdp} fsdp ranks"
    if trainer.micro_batch and (sequences // fsdp) % trainer.micro_batch:
        return f"micro_batch {trainer.micro_batch} does not divide the {sequences // fsdp} sequences of a rank"
    return ""


def skipped(spec: RunSpec) -> str:
    """For a person: the numbers of nodes that were asked for and do not fit, with the reasons."""
    return "; ".join(f"{nodes} nodes skipped: {why_not}" for nodes, why_not in asked(spec).items() if why_not)
