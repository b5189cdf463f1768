"""Runs commands on hosts over ssh (paramiko), as ~/.ssh/config says: HostName, Port, User, IdentityFile, ProxyJump.

Host keys must be known, whatever StrictHostKeyChecking says. Nobody is asked anything: keys and an agent, no passwords.
"""

from __future__ import annotations

import logging
import os
import shlex
import socket
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NotYet
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import paramiko

from launcher.errors import LaunchError, Unreachable, of_the_system
from launcher.remote.answer import Output
from launcher.remote.known import KnownHosts, read_known_hosts

CONFIG = "~/.ssh/config"
CONNECT_S = 10.0
HANDSHAKE_S = 30.0  # for each of: banner and host key, our key, a channel
MOST_BYTES = 8 << 20
_KNOWN_HOSTS = "~/.ssh/known_hosts"
_GLOBAL_KNOWN_HOSTS = "/etc/ssh/ssh_known_hosts"
_PORT = 22
_SILENT = ("protocol banner", "No existing session")  # paramiko's words for a server that does not begin to talk


@dataclass(frozen=True)
class Target:
    """Where a name leads to."""

    name: str
    address: str
    port: int
    user: str | None
    keys: tuple[str, ...]
    only_these: bool  # of the keys: neither an agent's nor the usual ones
    known_hosts: tuple[str, ...]
    jumps: tuple[str, ...]

    @property
    def key_name(self) -> str:
        """Under which its key stands in known_hosts."""
        return self.address if self.port == _PORT else f"[{self.address}]:{self.port}"


class Ssh:
    """Connections by one configuration file. Those to jump hosts are shared."""

    def __init__(self, config: Path | None = None) -> None:
        """Raises LaunchError if the file cannot be read; the usual one need not be there."""
        logging.getLogger("paramiko").addHandler(logging.NullHandler())
        logging.getLogger("paramiko").propagate = False  # what it says there is in what it raises
        self._config = _read_config(config)
        self._lock = threading.Lock()
        self._jumps: dict[str, Future[paramiko.SSHClient]] = {}
        self._known: dict[tuple[str, ...], KnownHosts] = {}

    def run(self, host: str, command: Sequence[str], limit_s: float, /) -> Output:
        deadline = time.monotonic() + limit_s
        client = self._connected(self._target(host), deadline, (host,))
        try:
            return _output(client, command, deadline, limit_s)
        except TimeoutError:
            raise Unreachable(f"no answer within {limit_s:g} s") from None
        except (paramiko.SSHException, EOFError, OSError) as error:
            raise Unreachable(f"the connection broke: {_words(error)}") from error
        finally:
            client.close()

    def close(self) -> None:
        """Close the connections to jump hosts."""
        with self._lock:
            clients = [one.result() for one in self._jumps.values() if one.done() and not one.exception()]
            self._jumps.clear()
        for client in clients:
            client.close()

    def _connected(self, target: Target, deadline: float, towards: tuple[str, ...]) -> paramiko.SSHClient:
        """A connection that has proved both sides' keys. `towards`: for whose sake. Raises Unreachable, LaunchError."""
        client = paramiko.SSHClient()
        known = self._known_hosts(target.known_hosts)
        client.set_missing_host_key_policy(_Refuse(known.revoked))
        for kind, key in known.of(target.key_name):
            client.get_host_keys().add(target.key_name, kind, key)
        try:
            keys: Any = list(target.keys) or None
            client.connect(
                target.address, target.port, target.user, sock=self._way(target, deadline, towards), key_filename=keys,
                allow_agent=not target.only_these, look_for_keys=not target.only_these,
                timeout=_left(deadline), banner_timeout=_left(deadline), auth_timeout=_left(deadline),
            )  # fmt: skip
        except Exception as error:  # paramiko raises what it meets with
            client.close()
            raise error if isinstance(error, LaunchError) else _unreachable(error, target) from error
        return client

    def _known_hosts(self, files: tuple[str, ...]) -> KnownHosts:
        """Read once: there may be many thousands, and many hosts that are asked."""
        with self._lock:
            if files not in self._known:
                self._known[files] = read_known_hosts(files)
            return self._known[files]

    def _way(self, target: Target, deadline: float, towards: tuple[str, ...]) -> Any:
        """A connection to its port, or a channel to it through its jump hosts."""
        if not target.jumps:
            return socket.create_connection((target.address, target.port), _left(deadline, CONNECT_S))
        last = target.jumps[-1]
        if last in towards:
            raise LaunchError("its jump hosts lead to each other", f"ProxyJump of {target.name}")
        try:
            jump = self._jump(target.jumps, deadline, (*towards, last))
        except Unreachable as error:
            raise Unreachable(f"jump host {last}: {error.message}", error.where, error.hint) from error
        transport = jump.get_transport()
        if transport is None:
            raise Unreachable(f"jump host {last}: the connection broke")
        try:
            there = (target.address, target.port)
            return transport.open_channel("direct-tcpip", there, ("127.0.0.1", 0), timeout=_left(deadline))
        except paramiko.ChannelException as error:
            raise Unreachable(f"jump host {last} cannot connect to it: {error.text.lower()}") from error

    def _jump(self, jumps: tuple[str, ...], deadline: float, towards: tuple[str, ...]) -> paramiko.SSHClient:
        """The connection to the last of these jump hosts. Whoever comes first makes it, and the others wait for it."""
        key = ",".join(jumps)
        with self._lock:
            is_first = key not in self._jumps
            future = self._jumps.setdefault(key, Future())
        if is_first:
            try:
                last = self._target(jumps[-1])
                last = replace(last, jumps=jumps[:-1]) if len(jumps) > 1 else last
                future.set_result(self._connected(last, deadline, towards))
            except LaunchError as error:
                future.set_exception(error)
        try:
            return future.result(max(0.0, deadline - time.monotonic()))
        except NotYet:
            raise Unreachable("no answer in time") from None

    def _target(self, name: str) -> Target:
        user, _, host = name.rpartition("@")
        host, _, port = host.partition(":") if host.count(":") == 1 else (host, "", "")
        about = self._config.lookup(host)
        if about.get("proxycommand", "none") != "none":
            hint = "write ProxyJump instead, or use --via srun"
            raise LaunchError("ProxyCommand is not supported", f"{host} in the ssh configuration", hint)
        jumps = about.get("proxyjump", "none")
        known = about.get("userknownhostsfile", _KNOWN_HOSTS).split()
        known += about.get("globalknownhostsfile", _GLOBAL_KNOWN_HOSTS).split()
        return Target(
            name=host,
            address=about.get("hostname", host),
            port=int(port or about.get("port", _PORT)),
            user=user or about.get("user"),
            keys=tuple(file for file in map(os.path.expanduser, about.get("identityfile", ())) if os.path.exists(file)),
            only_these=about.get("identitiesonly", "no") == "yes",
            known_hosts=tuple(map(os.path.expanduser, known)),
            jumps=() if jumps == "none" else tuple(one.strip() for one in jumps.split(",")),
        )


class _Refuse(paramiko.MissingHostKeyPolicy):
    """A host whose key is not known is not talked to."""

    def __init__(self, revoked: frozenset[str]) -> None:
        self._revoked = revoked

    def missing_host_key(self, client: Any, hostname: Any, key: Any) -> None:  # noqa: ARG002
        is_revoked = key.get_base64() in self._revoked
        raise _UnknownKey(f"{'revoked: ' if is_revoked else ''}{key.get_name()} {key.fingerprint}")


class _UnknownKey(Exception):
    """The key of a host, which is in no file of known hosts."""


def _read_config(named: Path | None) -> paramiko.SSHConfig:
    path = named or Path(CONFIG).expanduser()
    if named is None and not path.exists():
        return paramiko.SSHConfig()
    try:
        return paramiko.SSHConfig.from_path(str(path))
    except paramiko.ConfigParseError as error:
        raise LaunchError(f"the ssh configuration is wrong: {error}", str(path)) from error
    except OSError as error:
        raise of_the_system(error, "the ssh configuration cannot be read", str(path)) from error


def _output(client: paramiko.SSHClient, command: Sequence[str], deadline: float, limit_s: float) -> Output:
    """Run it; stdout and stderr as one. Raises TimeoutError, OSError, SSHException."""
    transport = client.get_transport()
    if transport is None:
        raise EOFError("closed")
    channel = transport.open_session(timeout=_left(deadline))
    channel.set_combine_stderr(True)
    channel.exec_command(shlex.join(command))
    channel.shutdown_write()
    data = bytearray()
    while chunk := _received(channel, deadline):
        data += chunk
        if len(data) > MOST_BYTES:
            raise Unreachable(f"it says more than {MOST_BYTES >> 20} MiB")
    if not channel.status_event.wait(max(0.0, deadline - time.monotonic())):
        raise TimeoutError(limit_s)
    return Output(channel.recv_exit_status(), data.decode("utf-8", "replace"))


def _received(channel: paramiko.Channel, deadline: float) -> bytes:
    channel.settimeout(max(0.01, deadline - time.monotonic()))
    return channel.recv(1 << 16)


def _left(deadline: float, most_s: float = HANDSHAKE_S) -> float:
    return max(0.1, min(most_s, deadline - time.monotonic()))


def _unreachable(error: Exception, target: Target) -> LaunchError:
    """What went wrong with a connection, in words, and what to do about it."""
    where = f"ssh to {target.address} port {target.port}"
    known = target.known_hosts[0]
    match error:
        case paramiko.BadHostKeyException():
            hint = (
                f"if it was installed anew: ssh-keygen -f {known} -R '{target.key_name}', then ssh {target.name} once"
            )
            return Unreachable("its host key has changed: perhaps it is another machine", where, hint)
        case _UnknownKey():
            hint = f"ssh {target.name} once, and compare the key; it goes to {known}"
            return Unreachable(f"its host key is not known: {error}", where, hint)
        case paramiko.AuthenticationException() | paramiko.PasswordRequiredException():
            hint = f"'ssh {target.name}' must work without a password: a key, or one in ssh-agent"
            return Unreachable(f"it refuses our keys: {_words(error)}", where, hint)
        case socket.gaierror():
            hint = "check the name, or give its HostName in the ssh configuration"
            return Unreachable("nobody knows an address of it", where, hint)
        case ConnectionRefusedError():
            return Unreachable("it refuses connections: no ssh server is there", where, "--via srun needs none")
        case TimeoutError():
            return Unreachable("no answer in time", where, "it may be down: ping it, or ask sinfo")
        case paramiko.SSHException() if "authentication methods" in str(error):
            hint = f"IdentityFile of {target.name} in the ssh configuration, a key in ~/.ssh, or ssh-agent"
            return Unreachable("we have no key to show it", where, hint)
        case paramiko.SSHException() if any(text in str(error) for text in _SILENT):
            return Unreachable("it takes the connection, and says nothing in time", where, "it may be overloaded")
        case paramiko.SSHException() | EOFError() | OSError() | ValueError():
            return Unreachable(f"no connection: {_words(error)}", where)
    return Unreachable(f"no connection: {type(error).__name__}: {error}", where)


def _words(error: BaseException) -> str:
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return (text or type(error).__name__).lower().rstrip(".")
