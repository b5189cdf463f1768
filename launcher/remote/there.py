"""What runs on a host that is asked from another one.

    python -P -m launcher.remote.there '{"verb": "check", "tier": "fast", "folders": [], "interface": ""}'

Prints one line: MARK and JSON, an answer or an error.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from launcher.errors import LaunchError
from launcher.health.here import examine, node_name
from launcher.health.trial import take_part
from launcher.leftovers import clean, collect
from launcher.network import interface_of, own_address
from launcher.remote.answer import MARK, SCHEMA
from launcher.trials import Part


def check(tier: Any, folders: list[str], interface: str) -> dict[str, Any]:
    return {"findings": [asdict(one) for one in examine(tier, folders, interface)]}


def trial(part: dict[str, Any], interface: str) -> dict[str, Any]:
    """A part in an all-reduce with others, who reach this machine at `address`. Raises LaunchError."""
    address = _address(interface)
    name = interface_of(address)
    network = dict.fromkeys(("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"), name) if name else {}
    unset = {key: value for key, value in network.items() if interface or key not in os.environ}
    return {"report": asdict(take_part(Part(**part), {**os.environ, **unset})), "address": address}


def _address(interface: str) -> str:
    """Where others reach us: at the interface; else where ssh has come in, or on the way to where srun was called."""
    over_ssh = os.environ.get("SSH_CONNECTION", "").split()
    if interface or len(over_ssh) != 4:
        return own_address(interface or "auto")
    return over_ssh[2]


VERBS: Mapping[str, Callable[..., dict[str, Any]]] = {
    "check": check,
    "collect": collect,
    "clean": clean,
    "trial": trial,
}


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
