"""What is made of what Slurm says of itself, and of what became of the probe. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from launcher.backends.slurm_words import Node, Partition
from launcher.doctor.checks import Folder, Limits, Verdict
from policies.units import format_duration

KNOWN_FROM = (20, 11)  # the oldest Slurm whose words we know
KILL_WAIT_S = 10
_SHOWN = 3


@dataclass(frozen=True)
class Peer:
    """One node called by another. `problem`: "" when the right one answered, `rtt_s` later."""

    node: str
    address: str
    problem: str
    rtt_s: float = 0.0


@dataclass(frozen=True)
class OnNode:
    """What was read on a node, as the probe's task tells it."""

    node: str
    address: str
    at: float
    python: str
    versions: Mapping[str, str | None]
    limits: Limits
    temporary: Folder
    munge: str | None
    missing: tuple[str, ...]  # of Slurm's commands
    ledger: str  # what keeps it from the folder of the host ledger, "" if nothing
    job: str  # what scontrol shows of the job, "" if nothing
    stack: str
    gpus: int | None
    gpu_problem: str
    peers: tuple[Peer, ...]
    unheard: tuple[str, ...]  # nodes that did not call it


def commands(missing: Sequence[str]) -> Verdict:
    """Whether Slurm is here at all."""
    if missing:
        said = f"not in PATH: {', '.join(missing)}. Only virtual nodes (backend: local) can be used"
        return Verdict("slurm", "warn", said, "on a cluster: a login node, or its module for Slurm")
    return Verdict("slurm", "ok", "sbatch, srun, squeue, sinfo, scontrol, scancel are in PATH")


def controller(ping: str | None) -> Verdict:
    """`scontrol ping`, None when it did not answer in time."""
    lines = [line.strip() for line in (ping or "").splitlines() if line.strip()]
    if up := [line for line in lines if re.search(r"\bUP\b", line)]:
        return Verdict("controller", "ok", "; ".join(up))
    return Verdict(
        "controller",
        "fail",
        lines[-1] if lines else "no answer",
        "wait, or ask the admins; runs that train are not disturbed",
    )


def version(settings: Mapping[str, str]) -> Verdict:
    said = settings.get("SLURM_VERSION", "")
    numbers = tuple(int(part) for part in re.findall(r"\d+", said)[:2])
    if len(numbers) < 2:
        return Verdict("version", "unknown", f"SLURM_VERSION is {said!r}")
    if numbers < KNOWN_FROM:
        return Verdict("version", "warn", f"Slurm {said}: older than any we know", "try opt-launch doctor --probe")
    return Verdict("version", "ok", f"Slurm {said}")


def partition(wanted: str | None, partitions: Sequence[Partition], time_s: float | None) -> Verdict:
    """The partition that is asked for, or the default one. `time_s`: the time limit that is asked for."""
    name = wanted or next((one.name for one in partitions if one.default), None)
    if name is None:
        return Verdict("partition", "fail", "there is no default", "cluster.slurm.partition in site.yaml")
    missing = [one for one in name.split(",") if one not in {known.name for known in partitions}]
    if missing:
        known = ", ".join(one.name for one in partitions) or "none"
        return Verdict("partition", "fail", f"there is no {', '.join(missing)}", f"cluster.slurm.partition: {known}")
    found = [one for one in partitions if one.name in name.split(",")]
    said = "; ".join(f"{one.name}: {one.state}, {_limit(one.limit_s)}" for one in found)
    if not any(one.state == "UP" for one in found):
        return Verdict("partition", "fail", said, "another cluster.slurm.partition, or wait")
    longest = None if any(one.limit_s is None for one in found) else max(one.limit_s or 0 for one in found)
    if longest is not None and (time_s or 0) > longest:
        return Verdict("partition", "fail", f"{said}; asked for: {_limit(time_s)}", "a shorter cluster.slurm.time")
    return Verdict("partition", "ok", said)


def nodes(names: Sequence[str], found: Sequence[Node]) -> Verdict:
    """The nodes of these partitions: how many take jobs, and why the others do not."""
    all_of = [node for node in found if set(node.partitions) & set(names)]
    closed = [node for node in all_of if not node.takes_jobs]
    said = f"{len(all_of) - len(closed)} of {len(all_of)} take jobs"
    told = [f"{node.name} {node.said}" + (f" ({node.reason})" if node.reason else "") for node in closed[:_SHOWN]]
    more = [f"{len(closed) - _SHOWN} more"] if len(closed) > _SHOWN else []
    said = "; ".join([said, *told, *more])
    if len(closed) == len(all_of):
        return Verdict("nodes", "fail", said, "another cluster.slurm.partition, or ask the admins")
    return Verdict("nodes", "ok", said)


def accounting(code: int | None) -> Verdict:
    """The exit code of sacct. We need none of what it says."""
    said = "sacct answers" if code == 0 else "sacct does not answer; it is not needed"
    return Verdict("accounting", "ok", said)


def munge(auth: str, problem: str | None) -> Verdict:
    """`auth`: Slurm's AuthType, "" unknown. `problem`: "" if munge works, None where there is no such command."""
    if auth and not auth.endswith("/munge"):
        return Verdict("munge", "skipped", f"Slurm uses {auth}")
    if problem is None:
        return Verdict("munge", "unknown", "the command munge is not in PATH")
    if problem:
        return Verdict("munge", "fail", problem, "ask the admins: munged does not run on this machine")
    return Verdict("munge", "ok", "credentials can be made")


def requeue(settings: Mapping[str, str]) -> Verdict:
    """JobRequeue is what jobs get that do not ask; ours do. Whether that is let through, the probe tells."""
    said = settings.get("JobRequeue")
    if said is None:
        return Verdict("requeue", "unknown", "JobRequeue is not told", "opt-launch doctor --probe")
    return Verdict("requeue", "ok", f"JobRequeue is {said}" + ("" if said == "1" else "; our jobs ask to be requeued"))


def timeouts(settings: Mapping[str, str]) -> Verdict:
    """How soon Slurm notices a dead node, and how long a job that is ended has."""
    notice, wait = (_seconds(settings.get(name, "")) for name in ("SlurmdTimeout", "KillWait"))
    if notice is None or wait is None:
        return Verdict("timeouts", "unknown", "SlurmdTimeout and KillWait are not told")
    said = f"SlurmdTimeout {notice} s, KillWait {wait} s"
    if wait < KILL_WAIT_S:
        fix = "opt-launch stop saves first"
        return Verdict("timeouts", "warn", f"{said}: a job that is cancelled may not have time to save", fix)
    return Verdict("timeouts", "ok", said)


# ---------------------------------------------------------------- the probe


def job_requeue(shown: str) -> Verdict:
    """What became of our asking to be requeued: `Requeue=` of the job as a node sees it."""
    match = re.search(r"(?:^|\s)Requeue=(\d)", shown)
    if match is None:
        return Verdict("requeue", "unknown", "scontrol does not show the job on the node")
    if match[1] == "0":
        fix = "cluster.continue_by: chain, if sbatch works on nodes; else none"
        return Verdict("requeue", "fail", "the site takes --requeue from jobs", fix)
    return Verdict("requeue", "ok", "the job may be requeued, and scontrol shows it; nothing was requeued to try")


def node_commands(missing: Sequence[str]) -> Verdict:
    if missing:
        fix = "launch.setup: what puts them into PATH; without scontrol a run cannot outlive its job"
        return Verdict("commands", "fail", f"not in PATH: {', '.join(missing)}", fix)
    return Verdict("commands", "ok", "scontrol, sbatch, scancel, sinfo are in PATH")


def network(reading: OnNode) -> Verdict:
    """TCP among the nodes, on the interface that agents and ranks will use."""
    fix = "launch.network.interface: one that all nodes share; or a firewall between them: ask the admins"
    if not reading.peers:
        return Verdict("network", "skipped", f"{reading.address}; one node only, nobody to call")
    if wrong := [peer for peer in reading.peers if peer.problem]:
        told = "; ".join(f"{peer.node} at {peer.address}: {peer.problem}" for peer in wrong[:_SHOWN])
        return Verdict("network", "fail", f"from {reading.address}: {told}", fix)
    if reading.unheard:
        return Verdict("network", "fail", f"{reading.address} was not reached by {', '.join(reading.unheard)}", fix)
    slowest = max(peer.rtt_s for peer in reading.peers)
    others = ", ".join(peer.node for peer in reading.peers)
    return Verdict("network", "ok", f"{reading.address}, to {others} and back in {slowest * 1000:.1f} ms")


def shared_folder(took_s: float, folder: str) -> Verdict:
    """A file of ours was read there and one of theirs here."""
    return Verdict("--root", "ok", f"{folder}: read and written there, seen here after {_tenths(took_s)} s at most")


def host_ledger(folder: str, here: str, there: str) -> Verdict:
    """Whether runs on all nodes remember hosts in one place. `here`, `there`: what keeps us, or a node, from it."""
    fix = "hosts.ledger in site.yaml: a folder that all nodes see and write"
    if here or there:
        said = f"{folder}: {here}" if here else f"{folder}: {there}: what runs find there is not remembered"
        return Verdict("hosts.ledger", "warn", said, fix)
    return Verdict("hosts.ledger", "ok", f"{folder}: the same there as here")


def lost(folder: str, asked: int, answered: Sequence[str]) -> Verdict:
    """The job runs, and not all of its nodes are heard."""
    said = f"{len(answered)} of {asked} nodes answered in {folder}"
    fix = "--root: a folder that all nodes see and write; look also at the nodes' network"
    return Verdict("--root", "fail", said, fix)


def ended(state: str, log: Sequence[str]) -> Verdict:
    """The job is over, and nodes have not told anything."""
    said = f"the job ended ({state or 'unknown to Slurm'}) before its nodes answered"
    if log:
        return Verdict(
            "probe", "fail", f"{said}: {' | '.join(log)}", "what its log says; --set cluster.slurm.python=..."
        )
    fix = "--root and .venv on a disk that all nodes see: the job could not even write its log"
    return Verdict("probe", "fail", said, fix)


def never_started(state: str, reason: str, waited_s: float) -> Verdict:
    said = f"the job was {state} after {waited_s:.0f} s{f' ({reason})' if reason else ''}, and was cancelled"
    return Verdict("probe", "unknown", said, "--timeout 10m, another --partition, or --set cluster.nodes=1")


def together(by_node: Mapping[str, Sequence[Verdict]]) -> Iterator[Verdict]:
    """The same checks on several nodes, check by check; what is the same on some is said once."""
    for checks in zip(*by_node.values(), strict=True):
        nodes: dict[Verdict, list[str]] = {}
        for node, check in zip(by_node, checks, strict=True):
            nodes.setdefault(check, []).append(node)
        yield from (replace(check, where=", ".join(on)) for check, on in nodes.items())


def _limit(seconds: float | None) -> str:
    return "no time limit" if seconds is None else f"limit {format_duration(seconds)}"


def _tenths(seconds: float) -> str:
    return f"{max(0.1, seconds):.1f}"


def _seconds(text: str) -> int | None:
    match = re.match(r"\d+", text)
    return int(match[0]) if match else None
