"""The network interfaces of this machine."""

from __future__ import annotations

import os
import socket

import psutil

from launcher.errors import LaunchError


def addresses() -> dict[str, str]:
    """The IPv4 address of each interface that has one."""
    found = {
        name: next((one.address for one in those if one.family == socket.AF_INET), "")
        for name, those in sorted(psutil.net_if_addrs().items())
    }
    return {name: address for name, address in found.items() if address}


def interface_of(host: str) -> str | None:
    """The network interface that has this address; None if none has."""
    for name, those in psutil.net_if_addrs().items():
        if any(one.address == host for one in those):
            return name
    return None


def own_address(interface: str, towards: str = "") -> str:
    """The address by which others reach this machine: that of the interface, or of the way `towards` one of them.

    That is where srun was started, unless said otherwise. The name of the host will not do: Debian maps it to a
    loopback address. Raises LaunchError if there is no such interface.
    """
    if interface != "auto":
        if interface not in (known := addresses()):
            raise LaunchError(f"no interface {interface!r} with an IPv4 address here, only {', '.join(known)}")
        return known[interface]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((towards or os.environ.get("SLURM_LAUNCH_NODE_IPADDR", "127.0.0.1"), 9))  # sends nothing
        return probe.getsockname()[0]


def reachable_address(interface: str, towards: str = "") -> str:
    """`own_address` for an agent: where there is no such interface it is to tell of that, and so must be reached."""
    try:
        return own_address(interface, towards)
    except LaunchError:
        return own_address("auto", towards)
