"""A process that has imported the trainer and forks ranks on request, as the agent's warm process does.

One JSON request a line on stdin, {"target": "module:function", "environments": [{...} per rank], "logs": folder};
two JSON answers a line on stdout, {"pids"} and, when all ranks have ended, {"statuses"} (negative: of a signal).
"""

import importlib
import json
import os
import sys
import traceback
from pathlib import Path

import model.train  # noqa: F401 (what makes the forks warm)


def rank(target: str, environment: dict[str, str], log: str) -> int:
    """Be one rank: its environment, its log, its function."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.environ.update(environment)
    name, function = target.split(":")
    try:
        return getattr(importlib.import_module(name), function)(os.environ) or 0
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


def serve() -> None:
    """Answer requests until stdin ends."""
    sys.path.insert(0, str(Path(__file__).parent))
    for line in sys.stdin:
        request = json.loads(line)
        pids = []
        for number, environment in enumerate(request["environments"]):
            pid = os.fork()
            if pid == 0:
                os._exit(rank(request["target"], environment, f"{request['logs']}/rank{number}.log"))
            pids.append(pid)
        print(json.dumps({"pids": pids}), flush=True)
        statuses = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
        print(json.dumps({"statuses": statuses}), flush=True)


if __name__ == "__main__":
    serve()
