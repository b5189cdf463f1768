"""A real ssh server for tests: its own port on loopback, its own keys, in a folder. The system's is left alone."""

from __future__ import annotations

import contextlib
import getpass
import os
import pwd
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

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
    lacks = [name for name in ("sshd", "ssh-keygen") if shutil.which(name, path=_PATH) is None]
    shell = pwd.getpwuid(os.getuid()).pw_shell
    return lacks or ([f"a login shell for {getpass.getuser()}, who has {shell}"] if _is_closed(shell) else [])


def require() -> None:
    """Skip, loudly, what cannot be tried here; in CI only for what nobody could install."""
    if lacks := missing():
        why = f"SSH NOT TESTED: missing {', '.join(lacks)} (make sshd installs a server where root and apt allow)"
        is_ours = any("shell" in one for one in lacks)
        (pytest.fail if os.environ.get("CI") == "true" and not is_ours else pytest.skip)(why)


def _is_closed(shell: str) -> bool:
    return Path(shell).name in ("nologin", "false")


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
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
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
