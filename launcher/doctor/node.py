"""What a task of the probe does on its node: reads what is there, calls the other nodes, tells it in the shared folder.

The doctor on the login node is the meeting point. A task says hello in a file; when all have, the doctor answers in
one file with everybody's address; then the tasks call each other, and report in a file each.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from launcher.backends.slurm_calls import call
from launcher.doctor import readings
from launcher.doctor.checks import Folder, Limits
from launcher.doctor.cluster_checks import OnNode, Peer
from launcher.errors import LaunchError
from launcher.network import own_address
from launcher.paths import write_atomically

ASKED, ANSWER, HELLO, REPORT = "asked.json", "answer.json", "hello.{}.json", "report.{}.json"
COMMANDS = ("scontrol", "sbatch", "scancel", "sinfo")
MEET_S = 90.0  # the doctor gives up before
CALL_S = 5.0
HEARD_S = 10.0
_POLL_S = 0.1


class Answering:
    """Tells whoever calls our name, and remembers who did."""

    def __init__(self, node: str) -> None:
        self._node = node
        self._socket = socket.create_server(("", 0), backlog=64)
        self.port: int = self._socket.getsockname()[1]
        self.heard: set[str] = set()
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            caller, _ = self._socket.accept()
            with caller, contextlib.suppress(OSError):
                caller.settimeout(CALL_S)
                name = caller.recv(256).decode("utf-8", "replace")
                caller.sendall(self._node.encode())
                self.heard.add(name)

    def unheard(self, nodes: Sequence[str], limit_s: float) -> tuple[str, ...]:
        """Those of these nodes that have not called within the limit."""
        deadline = time.monotonic() + limit_s
        while not self.heard.issuperset(nodes) and time.monotonic() < deadline:
            time.sleep(_POLL_S)
        return tuple(node for node in nodes if node not in self.heard)


def examine(folder: str) -> None:
    """submitit's task on one node."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCONT):
        signal.signal(number, signal.SIG_DFL)  # submitit would outlive them
    room, node = Path(folder), os.environ["SLURMD_NODENAME"]
    asked = json.loads((room / ASKED).read_text())
    server = Answering(node)
    try:
        address = own_address(asked["interface"])
    except LaunchError as error:
        address = str(error)
    hello = {"node": node, "address": address, "port": server.port}
    write_atomically(room / HELLO.format(node), json.dumps(hello))
    found = _read(asked)
    others = _answer(room)
    if others is None:  # nobody waits for us any more
        if os.environ["SLURM_PROCID"] == "0":
            shutil.rmtree(room, ignore_errors=True)
        return
    others = [one for one in others if one["node"] != node]
    peers = tuple(_call(node, one) for one in others)
    unheard = server.unheard([one["node"] for one in others], HEARD_S)
    reading = OnNode(node=node, address=address, peers=peers, unheard=unheard, at=time.time(), **found)
    write_atomically(room / REPORT.format(node), json.dumps(asdict(reading)))


def read_report(body: dict[str, Any]) -> OnNode:
    """What a task has told."""
    nested = {
        "limits": Limits(**body["limits"]),
        "temporary": Folder(**body["temporary"]),
        "missing": tuple(body["missing"]),
        "peers": tuple(Peer(**peer) for peer in body["peers"]),
        "unheard": tuple(body["unheard"]),
    }
    return OnNode(**{**body, **nested})


def _read(asked: dict[str, Any]) -> dict[str, Any]:
    gpus, problem = readings.gpus()
    shown = call("scontrol", "-o", "show", "job", os.environ["SLURM_JOB_ID"])
    return {
        "python": sys.executable,
        "versions": readings.versions(),
        "limits": readings.limits(),
        "temporary": readings.temporary_folder(),
        "munge": readings.munge(asked["auth_info"]),
        "missing": readings.missing(COMMANDS),
        "ledger": readings.mark(Path(asked["mark"])),
        "job": shown.stdout if shown is not None else "",
        "stack": readings.stack(),
        "gpus": gpus,
        "gpu_problem": problem,
    }


def _answer(room: Path) -> list[dict[str, Any]] | None:
    """Everybody's hello, once the doctor has heard all; None if that never happens."""
    deadline = time.monotonic() + MEET_S
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError, ValueError):
            os.listdir(room)  # has network file systems look again
            return json.loads((room / ANSWER).read_text())
        time.sleep(_POLL_S)
    return None


def _call(node: str, other: dict[str, Any]) -> Peer:
    name, address = other["node"], other["address"]
    begun = time.monotonic()
    try:
        with socket.create_connection((address, other["port"]), CALL_S) as line:
            line.settimeout(CALL_S)
            line.sendall(node.encode())
            answer = line.recv(256).decode("utf-8", "replace")
    except OSError as error:
        return Peer(name, address, (error.strerror or str(error)).lower())
    problem = "" if answer == name else f"{answer or 'nobody'} answered instead"
    return Peer(name, address, problem, time.monotonic() - begun)
