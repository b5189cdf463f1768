"""Files of known hosts, as ssh writes them. Keys that are marked as revoked count as not known; so do authorities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import paramiko
from paramiko.hostkeys import HostKeyEntry, HostKeys

from launcher.errors import of_the_system

_REVOKED = "@revoked"


@dataclass(frozen=True)
class KnownHosts:
    """`revoked`: keys in base64."""

    keys: HostKeys
    revoked: frozenset[str]

    def of(self, name: str) -> list[tuple[str, paramiko.PKey]]:
        """(type, key) of a host, by the name under which keys stand there: "[10.0.0.1]:2222"."""
        return [*(self.keys.lookup(name) or {}).items()]


def read_known_hosts(files: Sequence[str]) -> KnownHosts:
    """All of these together; one that is not there knows nobody. Raises LaunchError."""
    lines = [line.strip() for file in files for line in _lines(file)]
    marked = [line.split() for line in lines if line.startswith(_REVOKED)]
    revoked = frozenset(words[3] for words in marked if len(words) > 3)
    keys = HostKeys()
    for line in lines:
        if line and line[0] not in "#@" and (entry := _entry(line)) and entry.key.get_base64() not in revoked:
            for name in entry.hostnames:
                keys.add(name, entry.key.get_name(), entry.key)
    return KnownHosts(keys, revoked)


def _entry(line: str) -> HostKeyEntry | None:
    try:
        return HostKeyEntry.from_line(line)
    except (paramiko.SSHException, ValueError):  # one that is damaged is nobody's
        return None


def _lines(file: str) -> list[str]:
    try:
        return Path(file).read_text(errors="replace").splitlines()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise of_the_system(error, "the file of known hosts cannot be read", file) from error
