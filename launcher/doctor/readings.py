"""What is read of the machine on which this runs: a login node, or a node of the probe. Decides nothing."""

from __future__ import annotations

import contextlib
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

from launcher.doctor.checks import Folder, Limits
from launcher.evidence import py_spy

PACKAGES = ("torch", "py-spy", "submitit", "opt-launch")
_CALL_LIMIT_S = 20.0
# As a rank does, it lets its parent look into it.
_CHILD = """\
import ctypes, os, time
ctypes.CDLL(None).prctl(0x59616D61, os.getppid(), 0, 0, 0)
print(flush=True)
time.sleep(60)"""


def folder(path: Path) -> Folder:
    """What a folder is like; of one that does not exist, the nearest above it. Writes nothing."""
    path = path.absolute()
    there = path
    while not there.exists() and there != there.parent:
        there = there.parent
    why = "" if there.is_dir() else f"{there} is no folder"
    if not why and not os.access(there, os.W_OK | os.X_OK):
        why = f"{there} may not be written"
    try:
        free = shutil.disk_usage(there).free
    except OSError:
        free = None
    try:
        kind = kind_of(Path("/proc/self/mountinfo").read_text(), os.path.realpath(there))
    except OSError:
        kind = ""
    return Folder(str(path), path.exists(), why, kind, free)


def mark(path: Path) -> str:
    """What keeps this machine from a file that another has put into a folder they share; "" if nothing."""
    with contextlib.suppress(OSError):
        os.listdir(path.parent)  # has network file systems look again
    if not os.path.exists(path):
        return "not the same folder there as here" if os.path.isdir(path.parent) else "not there"
    return "" if os.access(path.parent, os.W_OK | os.X_OK) else "may not be written there"


def kind_of(mounts: str, path: str) -> str:
    """The kind of the file system on which a path lies, by the lines of /proc/self/mountinfo; "" unknown."""
    best, kind = "", ""
    for line in mounts.splitlines():
        before, _, after = line.partition(" - ")
        fields = before.split()
        if len(fields) < 5 or not after:
            continue
        point = fields[4].replace("\\040", " ").rstrip("/")
        if (path + "/").startswith(point + "/") and len(point) >= len(best):
            best, kind = point, after.split()[0]
    return kind


def python_folders() -> list[Folder]:
    """The Python under which this runs and our own code, without what belongs to the system."""
    of_system = {"/usr", "/usr/local"}
    ours = Path(__file__).resolve().parents[2]
    found = dict.fromkeys(Path(one) for one in (sys.prefix, sys.base_prefix) if one not in of_system)
    return [folder(path) for path in (*found, *([] if ours.is_relative_to(sys.prefix) else [ours]))]


def temporary_folder() -> Folder:
    return folder(Path(tempfile.gettempdir()))


def limits() -> Limits:
    """The soft limits of this process."""
    adapters = Path("/sys/class/infiniband")
    return Limits(
        nofile=_soft(resource.RLIMIT_NOFILE),
        nproc=_soft(resource.RLIMIT_NPROC),
        memlock=_soft(resource.RLIMIT_MEMLOCK),
        infiniband=adapters.is_dir() and any(adapters.iterdir()),
    )


def _soft(which: int) -> int | None:
    soft = resource.getrlimit(which)[0]
    return None if soft == resource.RLIM_INFINITY else soft


def ptrace_scope() -> int | None:
    """Yama's setting; None where there is no Yama."""
    try:
        return int(Path("/proc/sys/kernel/yama/ptrace_scope").read_text())
    except (OSError, ValueError):
        return None


def versions() -> dict[str, str | None]:
    """Of Python and the packages that matter; None for one that is not installed."""
    found: dict[str, str | None] = {"Python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


def missing(commands: Iterable[str]) -> tuple[str, ...]:
    """Those of these commands that are not in PATH."""
    return tuple(name for name in commands if shutil.which(name) is None)


def munge(auth_info: str) -> str | None:
    """What is wrong with making a credential, "" if nothing; None where there is no command to try it with.

    `auth_info`: Slurm's AuthInfo, which may name a socket of its own.
    """
    if shutil.which("munge") is None:
        return None
    socket = next((part[7:] for part in auth_info.split(",") if part.startswith("socket=")), "")
    code, said = _run(["munge", "-n", *(["--socket", socket] if socket else [])])
    return "" if code == 0 else said or "munge failed"


def stack() -> str:
    """What keeps py-spy from reading the stack of a child; "" if nothing does."""
    program = py_spy()
    if program is None:
        return "is not installed"
    with subprocess.Popen([sys.executable, "-c", _CHILD], stdout=subprocess.PIPE) as child:
        assert child.stdout
        child.stdout.readline()
        code, said = _run([program, "dump", "--nonblocking", "--pid", str(child.pid)])
        child.kill()
    return "" if code == 0 else said or f"left with {code}"


def gpus() -> tuple[int | None, str]:
    """How many nvidia-smi lists, and what went wrong; (None, "") where there is no nvidia-smi."""
    if shutil.which("nvidia-smi") is None:
        return None, ""
    code, said = _run(["nvidia-smi", "--list-gpus"], whole=True)
    if code != 0:
        return None, said.splitlines()[0] if said else f"left with {code}"
    return sum(line.startswith("GPU ") for line in said.splitlines()), ""


def _run(command: list[str], *, whole: bool = False) -> tuple[int, str]:
    """The exit code and what was said, or the last line of it."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_CALL_LIMIT_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        return 1, str(error)
    said = (done.stdout + done.stderr).strip()
    return done.returncode, said if whole else said.rpartition("\n")[2]
