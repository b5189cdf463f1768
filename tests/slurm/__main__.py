"""The virtual cluster by hand.

    python -m tests.slurm up [NODES]       start it; prints what to export. With --accounting, sacct answers;
                                           with --wired, each node has a network address of its own
    python -m tests.slurm lose NODE        kill everything on a node
    python -m tests.slurm silence NODE     stop everything on a node
    python -m tests.slurm cut NODE         pull its network cable: all works on, and reaches nobody (with --wired)
    python -m tests.slurm return NODE      start it again, let it go on, plug its cable in
    python -m tests.slurm down             end everything, leave nothing

It lives in OPT_LAUNCH_SLURM, by default /tmp/opt-launch-slurm.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from tests.slurm import wires
from tests.slurm.cluster import Cluster, missing


def main(arguments: list[str]) -> int:
    cluster = Cluster(Path(os.environ.get("OPT_LAUNCH_SLURM", "/tmp/opt-launch-slurm")))
    match arguments:
        case ["up", *options]:
            accounting, wired = "--accounting" in options, "--wired" in options
            if lacks := missing(accounting=accounting) + (wires.missing() if wired else []):
                sys.exit(f"missing: {', '.join(lacks)}")
            nodes = next((int(one) for one in options if one.isdigit()), 8)
            cluster.up(nodes, accounting=accounting, wired=wired)
            print(f"export SLURM_CONF={cluster.conf} OPT_LAUNCH_SITE={cluster.site}")
        case ["lose", node]:
            cluster.lose(node)
        case ["silence", node]:
            cluster.silence(node)
        case ["cut", node]:
            cluster.cut_off(node)
        case ["return", node]:
            cluster.give_back(node)
        case ["down"]:
            cluster.down()
        case _:
            print(__doc__, file=sys.stderr)
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
