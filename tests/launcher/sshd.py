"""A real ssh server for tests: its own port on loopback, its own keys, in a folder. The system's is left alone.

It runs as whoever runs the tests. A user without a login shell is given one by a small library that is loaded into it.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

OPEN_SHELL = Path(__file__).parents[1] / "data" / "ssh" / "open_shell.c"
START_S = 20.0
_PATH = os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/sbin"))
_CONFIG = """\
Port {port}
ListenAddress 127.0.0.1
HostKey {folder}/host_key
PidFile none
AuthorizedKeysFile {folder}/authorized_keys
StrictModes no
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin yes
MaxStartups 200
MaxSessions 100
AllowTcpForwarding yes
PrintMotd no
LogLevel VERBOSE
"""


def missing() -> list[str]:
    """What a server needs and this machine has not."""
    wanted = ("sshd", "ssh-keygen", *(["cc"] if _has_no_shell() else []))
    return [name for name in wanted if shutil.which(name, path=_PATH) is None]


def require() -> None:
    """Skip, loudly, what cannot be tried here; in CI that is a failure."""
    if lacks := missing():
        why = f"SSH NOT TESTED: missing {', '.join(lacks)} (make sshd installs a server where root and apt allow)"
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(why)


def _has_no_shell() -> bool:
    return Path(pwd.getpwuid(os.getuid()).pw_shell).name in ("nologin", "false")


def _with_a_shell(folder: Path) -> dict[str, str]:
    """The environment of a server whose user has a login shell."""
    if not _has_no_shell():
        return {**os.environ}
    library = folder / "open_shell.so"
    subprocess.run(
        ["cc", "-Wall", "-Werror", "-shared", "-fPIC", "-o", str(library), str(OPEN_SHELL), "-ldl"], check=True
    )
    return {**os.environ, "LD_PRELOAD": str(library)}


def make_key(file: Path, kind: str = "ed25519") -> str:
    """A new key; its public part."""
    file.unlink(missing_ok=True)
    subprocess.run(["ssh-keygen", "-q", "-t", kind, "-N", "", "-f", str(file)], check=True)
    return file.with_name(f"{file.name}.pub").read_text()


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


class Sshd:
    """A server that lets in whoever has the key `user_key` of its folder."""

    def __init__(self, folder: Path, host_key: str = "ed25519") -> None:
        self.folder, self.port = folder, free_port()
        folder.mkdir(parents=True, exist_ok=True)
        self.host_key = " ".join(make_key(folder / "host_key", host_key).split()[:2])
        (folder / "authorized_keys").write_text(make_key(folder / "user_key"))
        (folder / "config").write_text(_CONFIG.format(port=self.port, folder=folder))

    @property
    def known_host(self) -> str:
        """Its line of known_hosts."""
        return f"[127.0.0.1]:{self.port} {self.host_key}\n"

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text()

    @contextlib.contextmanager
    def running(self) -> Iterator[Sshd]:
        """Up; afterwards it and what it has started are gone."""
        if os.geteuid() == 0:
            os.makedirs("/run/sshd", mode=0o755, exist_ok=True)  # where it locks itself in before it knows who calls
        command = [shutil.which("sshd", path=_PATH) or "", "-D", "-e", "-f", str(self.folder / "config")]
        with (self.folder / "log").open("wb") as log:
            environment = _with_a_shell(self.folder)
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment)
        try:
            self._wait(process)
            yield self
        finally:
            process.terminate()
            process.wait(START_S)

    def _wait(self, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline and process.poll() is None:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1) as sock:
                if sock.recv(4) == b"SSH-":
                    return
            time.sleep(0.05)
        raise AssertionError(f"sshd did not start: {self.log}")
