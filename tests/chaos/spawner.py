"""One process a node that starts the node's ranks itself, each in a session of its own, and leaves when one fails.

Beside them it starts a helper that never ends by itself.

python spawner.py SCRIPT ARGUMENT...
"""

from __future__ import annotations

import os
import subprocess
import sys
import time


def main() -> int:
    count, node, nodes = (int(os.environ[name]) for name in ("OPT_LAUNCH_RANKS_PER_NODE", "NODE_RANK", "NNODES"))
    assert (os.environ["RANK"], os.environ["WORLD_SIZE"]) == (str(node), str(nodes))
    assert (os.environ["LOCAL_RANK"], os.environ["LOCAL_WORLD_SIZE"]) == ("0", "1")
    ranks = [
        subprocess.Popen(
            [sys.executable, *sys.argv[1:]], start_new_session=True,
            env={**os.environ, "RANK": str(node * count + local), "LOCAL_RANK": str(local),
                 "WORLD_SIZE": str(nodes * count), "LOCAL_WORLD_SIZE": str(count)},
        )
        for local in range(count)
    ]  # fmt: skip
    subprocess.Popen(["sleep", "600"], start_new_session=True)
    while not any(rank.poll() for rank in ranks):
        if all(rank.poll() == 0 for rank in ranks):
            return 0
        time.sleep(0.05)
    return 1


if __name__ == "__main__":
    sys.exit(main())
