"""What runs on a host that is asked from another one.

    python -P -m launcher.remote.there '{"verb": "check", "tier": "fast", "folders": [], "interface": ""}'

Prints one line: MARK and JSON, an answer or an error.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from launcher.errors import LaunchError
from launcher.health.here import examine, node_name
from launcher.leftovers import clean, collect
from launcher.remote.answer import MARK, SCHEMA


def check(tier: Any, folders: list[str], interface: str) -> dict[str, Any]:
    return {"findings": [asdict(one) for one in examine(tier, folders, interface)]}


VERBS: Mapping[str, Callable[..., dict[str, Any]]] = {"check": check, "collect": collect, "clean": clean}


def main(argv: list[str]) -> int:
    asked = json.loads(argv[0])
    verb = VERBS.get(asked.pop("verb"))
    try:
        if verb is None:
            raise LaunchError("an older opt-launch answers there", hint="use the same one on both sides: --python")
        told = verb(**asked)
    except LaunchError as error:
        told = {"error": {"message": error.message, "where": error.where, "hint": error.hint}}
    answer = {"schema": SCHEMA, "host": node_name(), "at": time.time(), **told}
    sys.stdout.write(f"\n{MARK}{json.dumps(answer)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
