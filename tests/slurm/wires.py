"""A network for a virtual cluster: each node in a namespace of its own with its own address, and a cable to pull."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

_FIRST, _LAST = 1, 250


def missing() -> list[str]:
    """What such a network needs and this machine has not or does not let us do; empty when it can be laid."""
    if lacks := [name for name in ("ip", "nsenter") if shutil.which(name, path=_path()) is None]:
        return lacks
    try:
        Wires.lay(["node0"]).remove()
    except (OSError, subprocess.CalledProcessError) as error:
        return [f"the right to make network namespaces ({error})"]
    return []


class Wires:
    """`number` names it among those of this machine; its nodes have the addresses 10.77.NUMBER.1 and so on."""

    def __init__(self, number: int, nodes: list[str]) -> None:
        self._bridge, self._net, self._nodes = f"opt{number}", f"10.77.{number}", nodes

    @classmethod
    def lay(cls, nodes: list[str]) -> Wires:
        """Lay a new one. Raises CalledProcessError where that is not permitted."""
        for number in range(_FIRST, _LAST):
            taken = Path(f"/sys/class/net/opt{number}").exists()
            if taken or _ip("link", "add", f"opt{number}", "type", "bridge", check=number == _LAST - 1):
                continue
            wires = cls(number, nodes)
            wires._connect()
            return wires
        raise OSError("no number is free for another network")

    @classmethod
    def known(cls, file: Path, nodes: list[str]) -> Wires | None:
        """The one that is noted in this file, if any is."""
        return cls(int(file.read_text()), nodes) if file.exists() else None

    def note(self, file: Path) -> None:
        """Have `known` find it there."""
        file.write_text(self._bridge.removeprefix("opt"))

    def _connect(self) -> None:
        _ip("addr", "add", f"{self.host}/24", "dev", self._bridge)
        _ip("link", "set", self._bridge, "up")
        for node in self._nodes:
            space, plug = self._space(node), self._plug(node)
            _ip("netns", "add", space)
            _ip("link", "add", plug, "type", "veth", "peer", "name", "eth0", "netns", space)
            _ip("link", "set", plug, "master", self._bridge, "up")
            _ip("-n", space, "addr", "add", f"{self.address(node)}/24", "dev", "eth0")
            _ip("-n", space, "link", "set", "lo", "up")
            _ip("-n", space, "link", "set", "eth0", "up")

    @property
    def host(self) -> str:
        """The address of this machine there."""
        return f"{self._net}.254"

    def address(self, node: str) -> str:
        return f"{self._net}.{self._nodes.index(node) + 1}"

    def inside(self, node: str) -> list[str]:
        """What to put before a command that is to run on the node."""
        return ["nsenter", f"--net=/run/netns/{self._space(node)}"]

    def cut(self, node: str) -> None:
        """Pull its cable: nothing goes out or comes in, and nobody is told."""
        _ip("link", "set", self._plug(node), "down")

    def mend(self, node: str) -> None:
        _ip("link", "set", self._plug(node), "up")

    def remove(self) -> None:
        """Leave nothing of it; nothing may run there any more."""
        for node in self._nodes:
            _ip("link", "delete", self._plug(node), check=False)
            _ip("netns", "delete", self._space(node), check=False)
        _ip("link", "delete", self._bridge, check=False)

    def _space(self, node: str) -> str:
        return f"{self._bridge}-{node}"

    def _plug(self, node: str) -> str:
        return f"{self._bridge}.{self._nodes.index(node)}"


def _path() -> str:
    return os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/sbin"))


def _ip(*arguments: str, check: bool = True) -> int:
    env = {**os.environ, "PATH": _path()}
    return subprocess.run(["ip", *arguments], env=env, check=check, capture_output=True).returncode
