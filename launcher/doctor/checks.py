"""What is made of what was read on a machine: one small function for each thing, from a reading to a verdict. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "warn", "fail", "unknown", "skipped"]

LOCAL = frozenset(
    {"ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "tmpfs", "ramfs", "overlay", "squashfs", "devtmpfs", "f2fs", "vfat"}
)
SHARED = frozenset(
    {"nfs", "nfs4", "lustre", "gpfs", "beegfs", "ceph", "cifs", "smb3", "9p", "wekafs", "panfs", "orangefs", "afs"}
    | {"fuse.glusterfs", "fuse.ceph", "fuse.sshfs", "fuse.juicefs", "virtiofs", "pvfs2", "vast", "daos", "dvs"}
)
# What a node with eight ranks, their data loaders and our agent needs, with room: an estimate of ours, no vendor's. A
# rank of NCCL and its loaders have some hundred files open each.
OPEN_FILES, PROCESSES = 4096, 4096
TMP_WARN, TMP_FAIL = 1 << 30, 64 << 20  # bytes
SKEW_WARN_S, SKEW_FAIL_S = 1.0, 60.0


@dataclass(frozen=True)
class Verdict:
    """What is said about one thing. `where`: the node, "" for the machine on which the doctor runs."""

    about: str
    state: State
    said: str
    fix: str = ""
    where: str = ""


@dataclass(frozen=True)
class Folder:
    """A folder, or the nearest above it that exists. `why`: what keeps us from writing there, "" if nothing does."""

    path: str
    exists: bool
    why: str
    kind: str  # of its file system, "" when it cannot be told
    free: int | None  # bytes


@dataclass(frozen=True)
class Limits:
    """Soft limits of a process; None: none. `infiniband`: whether the machine has such adapters."""

    nofile: int | None
    nproc: int | None
    memlock: int | None
    infiniband: bool


def root_folder(folder: Folder) -> Verdict:
    """The folder of the runs: it must be ours to write, and seen by all nodes."""
    if folder.why:
        return Verdict("--root", "fail", f"{folder.path}: {folder.why}", "--root or OPT_LAUNCH_ROOT: a folder of yours")
    made = "" if folder.exists else ", will be made"
    about = f"{folder.path}{made}: {_disk(folder)}"
    if folder.kind in SHARED:
        return Verdict("--root", "ok", about)
    if folder.kind in LOCAL:
        fix = "--root or OPT_LAUNCH_ROOT: a folder that all nodes see; --probe tells for certain"
        return Verdict("--root", "warn", f"{about}, a disk of this machine only", fix)
    return Verdict("--root", "unknown", f"{about}: shared or not cannot be told", "opt-launch doctor --probe")


def python_folders(folders: Sequence[Folder]) -> Verdict:
    """Where our Python and our code are: the nodes must have them in the same place."""
    here = ", ".join(dict.fromkeys(folder.path for folder in folders))
    local = [folder for folder in folders if folder.kind in LOCAL]
    if local:
        said = f"{local[0].path} is on {local[0].kind}, a disk of this machine only"
        fix = "make .venv on a disk that all nodes see; --probe tells for certain"
        return Verdict("python", "warn", said, fix)
    if any(folder.kind not in SHARED for folder in folders):
        return Verdict("python", "unknown", f"{here}: shared or not cannot be told", "opt-launch doctor --probe")
    return Verdict("python", "ok", here)


def open_files(limits: Limits) -> Verdict:
    return _at_least("open files", limits.nofile, OPEN_FILES, "ulimit -n 65536")


def processes(limits: Limits) -> Verdict:
    return _at_least("processes", limits.nproc, PROCESSES, "ulimit -u 65536")


def locked_memory(limits: Limits) -> Verdict:
    """InfiniBand registers memory, which counts as locked."""
    said = _count(limits.memlock, " bytes")
    if limits.memlock is None or not limits.infiniband:
        return Verdict("locked memory", "ok", said + ("" if limits.infiniband else ", no InfiniBand here"))
    fix = "ulimit -l unlimited where you submit (Slurm passes it on), or ask the admins for it on the nodes"
    return Verdict("locked memory", "warn", f"{said}: NCCL cannot register memory with InfiniBand", fix)


def _at_least(about: str, limit: int | None, least: int, command: str) -> Verdict:
    said = _count(limit)
    if limit is None or limit >= least:
        return Verdict(about, "ok", said)
    return Verdict(about, "warn", f"{said}, fewer than {least}", f"{command} where you submit: Slurm passes it on")


def ptrace(scope: int | None) -> Verdict:
    """Yama decides who may look into a process: 0 all of one user, 1 whom it names, 2 admins, 3 nobody."""
    if scope is None:
        return Verdict("ptrace", "ok", "not restricted")
    if scope <= 1:
        return Verdict("ptrace", "ok", f"kernel.yama.ptrace_scope is {scope}")
    said = f"kernel.yama.ptrace_scope is {scope}: no stacks of ranks that hang"
    return Verdict("ptrace", "warn", said, "ask the admins for 1 on the nodes")


def versions(found: Mapping[str, str | None]) -> Verdict:
    """The packages that we stand on."""
    said = ", ".join(f"{name} {version}" for name, version in found.items() if version)
    if missing := [name for name, version in found.items() if not version]:
        return Verdict("versions", "fail", f"not installed: {', '.join(missing)}", f"pip install {' '.join(missing)}")
    return Verdict("versions", "ok", said)


def same_versions(here: Mapping[str, str | None], there: Mapping[str, str | None], python: str) -> Verdict:
    """A node's against those of the machine that submits. `python`: the program there."""
    if differ := [name for name in here if here[name] != there.get(name)]:
        said = ", ".join(f"{name} {there.get(name) or 'missing'} instead of {here[name]}" for name in differ)
        return Verdict("versions", "fail", said, "the same Python for all: cluster.slurm.python, or launch.setup")
    return Verdict("versions", "ok", f"as here, {python}")


def temporary_folder(folder: Folder) -> Verdict:
    """Sockets, mapped pages and caches of each node lie there."""
    said = f"{folder.path}: {_disk(folder)}"
    if folder.why:
        return Verdict("/tmp", "fail", f"{folder.path}: {folder.why}", "TMPDIR: a folder on each node's own disk")
    if folder.kind in SHARED:
        return Verdict("/tmp", "fail", f"{said}, shared: sockets do not work there", "TMPDIR: the node's own disk")
    if folder.free is None:
        return Verdict("/tmp", "unknown", said)
    if folder.free < TMP_WARN:
        state = "fail" if folder.free < TMP_FAIL else "warn"
        return Verdict("/tmp", state, said, "make room there, or set TMPDIR in launch.setup")
    return Verdict("/tmp", "ok", said)


def stack(problem: str) -> Verdict:
    """Whether py-spy could read the stack of a child that names its parent as tracer, as ranks do."""
    if not problem:
        return Verdict("stacks", "ok", "py-spy reads those of a child")
    return Verdict("stacks", "warn", f"py-spy: {problem}", "ask the admins for kernel.yama.ptrace_scope=1 on the nodes")


def gpus(seen: int | None, problem: str, asked: int | None) -> Verdict:
    """`seen`: by nvidia-smi, None where it is missing or fails; `asked`: gpus_per_node."""
    if seen is None and problem:
        return Verdict("GPUs", "fail", f"nvidia-smi: {problem}", "another node: cluster.slurm.exclude; tell the admins")
    if seen is None:
        return Verdict("GPUs", "skipped", "no nvidia-smi")
    if asked and seen < asked:
        return Verdict("GPUs", "fail", f"{seen} seen, {asked} asked for", "cluster.slurm.exclude; tell the admins")
    fix = "" if seen else "cluster.slurm.gpus_per_node"
    return Verdict("GPUs", "ok" if seen else "warn", f"{seen} seen", fix)


def clock(low_s: float, high_s: float, than: str, allowed_s: float = SKEW_WARN_S) -> Verdict:
    """How far a clock is ahead: certainly between `low_s` and `high_s` seconds."""
    fix = "tell the admins: its clock is not synchronized"
    if low_s > allowed_s or high_s < -allowed_s:
        least = max(low_s, -high_s)
        side = "ahead of" if low_s > 0 else "behind"
        state = "fail" if least > SKEW_FAIL_S else "warn"
        return Verdict("clock", state, f"at least {least:.1f} s {side} {than}", fix)
    if low_s < -allowed_s or high_s > allowed_s:
        said = f"between {low_s:+.1f} s and {high_s:+.1f} s of {than}: answers came too slowly to tell"
        return Verdict("clock", "unknown", said)
    return Verdict("clock", "ok", f"within {allowed_s:g} s of {than}")


def _disk(folder: Folder) -> str:
    free = "" if folder.free is None else f", {folder.free / 1e9:,.1f} GB free"
    return f"{folder.kind or 'unknown file system'}{free}"


def _count(limit: int | None, unit: str = "") -> str:
    return "unlimited" if limit is None else f"{limit}{unit}"
