"""Who else may see a run, and steer it: the members of a group, by owner and mode of its files.

The run folder is closed to everybody but its owner, unless a group is named: then its members may read all but the
secret. Where they may steer they leave commands as files, which belong to whoever left them.
"""

from __future__ import annotations

import contextlib
import grp
import os
from collections.abc import Iterator
from pathlib import Path

from launcher.paths import RunPaths
from launcher.sections import Access

RUN, CONTROL = 0o2750, 0o3770  # what is made in them belongs to the group; in control/ each may delete only their own


def why_not(group: str) -> str:
    """What keeps us from letting a group see a run; "" if nothing does."""
    try:
        found = grp.getgrnam(group)
    except KeyError:
        return f"there is no group {group!r} on this machine"
    ours = {os.getegid(), *os.getgroups()}
    if found.gr_gid in ours or os.geteuid() == 0:
        return ""
    known = ", ".join(sorted(name for gid in ours if (name := _name(gid))))
    return f"you are not in the group {group!r} (you are in: {known}); a new membership counts from the next login"


def _name(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return ""


def umask_of(access: Access, present: int) -> int:
    """The umask of a run's processes: with a group its members may read what they write, and never write."""
    return present if access.group is None else (present & ~0o050) | 0o022


def share(access: Access) -> int:
    """Have what this process writes from now on be readable for the run's group. Returns the umask as it was."""
    present = os.umask(0o077)
    os.umask(umask_of(access, present))
    return present


@contextlib.contextmanager
def sharing(access: Access) -> Iterator[None]:
    """As `share`, for a while; what is started meanwhile keeps it."""
    before = share(access)
    try:
        yield
    finally:
        os.umask(before)


def open_folder(folder: Path, access: Access) -> None:
    """Let the group into the empty folder of a run: what is made there later belongs to it. Raises OSError."""
    if access.group is not None:
        os.chown(folder, -1, grp.getgrnam(access.group).gr_gid)
        folder.chmod(RUN)


def open_control(paths: RunPaths, access: Access) -> None:
    """Let the group leave commands, where it may. Raises OSError."""
    if access.group is not None and access.control:
        paths.control.chmod(CONTROL)


def closed_above(folder: Path, access: Access) -> Path | None:
    """The folder on the way to this one that the run's group may not enter, as far as its mode tells."""
    if access.group is None:
        return None
    gid = grp.getgrnam(access.group).gr_gid
    for above in reversed(folder.absolute().parents):
        about = above.stat()
        if not about.st_mode & (0o010 if about.st_gid == gid else 0o001):
            return above
    return None
