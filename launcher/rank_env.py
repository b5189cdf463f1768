"""The environment of the ranks of one node: what torchrun sets, and what we add. Pure."""

from __future__ import annotations

import json
from typing import Any

from launcher.paths import RunPaths
from launcher.program import Program


def rank_env(start: dict[str, Any], paths: RunPaths, node: str, program: Program) -> dict[int, dict[str, str]]:
    """rank -> variables, of the ranks that the supervisor's message `start` wants on this node."""
    size, place, nodes = str(start["world_size"]), str(start["group_rank"]), str(start["group_world_size"])
    shared = {
        "WORLD_SIZE": size,
        "ROLE_WORLD_SIZE": size,
        "LOCAL_WORLD_SIZE": str(len(start["ranks"])),
        "GROUP_RANK": place,
        "GROUP_WORLD_SIZE": nodes,
        "NODE_RANK": place,
        "NNODES": nodes,
        "MASTER_ADDR": start["master_addr"],
        "MASTER_PORT": str(start["master_port"]),
        "TORCHELASTIC_RUN_ID": f"{paths.name}.{start['attempt']}",
        "TORCHELASTIC_RESTART_COUNT": str(start["attempt"] - 1),
        "OPT_LAUNCH_RUN": paths.name,
        "OPT_LAUNCH_ATTEMPT": str(start["attempt"]),
        "OPT_LAUNCH_NODE": node,
        "OPT_LAUNCH_TRAINER": str(paths.trainer),
        "OPT_LAUNCH_CHECKPOINTS": str(paths.checkpoints),
        "OPT_LAUNCH_RESTORE": start["restore"],
        "OPT_LAUNCH_RESTORE_DIGEST": start["restore_digest"],
        "OPT_LAUNCH_SETTINGS": json.dumps(start["settings"]),
        "OPT_LAUNCH_SKIPS": json.dumps(start["skips"]),
    }
    if program.starts_ranks:
        shared["OPT_LAUNCH_RANKS_PER_NODE"] = str(program.starts_ranks)
    if program.target:
        shared["TORCHELASTIC_USE_AGENT_STORE"] = "True"
    return {rank: shared | _of_rank(str(rank), local) for local, rank in enumerate(start["ranks"])}


def _of_rank(rank: str, local: int) -> dict[str, str]:
    return {"RANK": rank, "ROLE_RANK": rank, "OPT_LAUNCH_RANK": rank, "LOCAL_RANK": str(local)}
