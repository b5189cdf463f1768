"""`opt-launch run`: this process becomes the agent of its node, in an allocation that the user has got already.

All tasks of a job do the same with the same command line. The first makes the run folder, or goes on with the one
there is; the others wait for it.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NoReturn

from launcher import access, resume, submit
from launcher.amend import changes as differences
from launcher.backends import own
from launcher.backends.scratch import sweep_scratch
from launcher.document import Document, read_document
from launcher.errors import LaunchError, Mistake, of_the_system
from launcher.events import RunAmended
from launcher.foreground import SHOWN
from launcher.network import own_address
from launcher.paths import RunPaths, user_name
from launcher.place import Place, place_of, training
from launcher.run import RunState
from launcher.sections import RunSpec
from launcher.snapshots import read_run
from launcher.sources import Override, parsed_overrides
from launcher.spec import OF_RUN, ResolvedSpec, read_resolved, resolve_asked
from launcher.torchrun import Asked, parse
from policies.units import parse_rate

FIRST_NODE_S = 300.0  # how long the others wait for the first one
LAST_CALL = "30s"  # torchrun's: so long it waits for further nodes once there are enough
COUNT_S = 120.0  # torch may be on a slow disk
ENDING_S = 60.0  # how long what is being ended may take to be gone
_POLL_S = 0.5
_SIZE = ("cluster.nodes", "cluster.min_nodes", "cluster.spares")
_ELSEWHERE = "192.0.2.1"  # an address that is nobody's (RFC 5737): the way there is the way to all others
_COUNT_DEVICES = """
import sys, torch
print({"gpu": torch.cuda, "xpu": torch.xpu}.get(sys.argv[1], torch.accelerator).device_count())
"""


def enter(arguments: Sequence[str]) -> int:
    """Become the agent of this node. Returns only if there is nothing to do: the exit code. Raises LaunchError."""
    asked = parse(arguments, os.environ, sys.executable)
    place = place_of(asked, os.environ, socket.gethostname().partition(".")[0])
    try:
        resolved = resolved_spec(asked, place)
        access.share(resolved.spec.access)
        paths = RunPaths(asked.root.absolute() / resolved.spec.name)
        meet = _begin if place.index == 0 else _follow
        place, code = meet(resolved, paths, place)
        if code is not None:
            return code
        _become_agent(asked, resolved.spec, paths, place)
    except LaunchError as error:
        if place.index == 0:
            raise
        raise _in_short(error, place) from error


def _in_short(error: LaunchError, place: Place) -> LaunchError:
    """The same mistake is made on every node, and told in full by the first."""
    short = LaunchError(f"{place.node}: {error.message.splitlines()[0]}")
    short.exit_code = error.exit_code
    return short


# ---------------------------------------------------------------- what is asked for


def resolved_spec(asked: Asked, place: Place) -> ResolvedSpec:
    """The spec of a run of this place. Raises ConfigError, LaunchError."""
    file = read_document(asked.config) if asked.config else Document(OF_RUN, {})
    ranks = ranks_per_node(asked.ranks)
    nodes = training(asked, place.count)
    least = asked.nodes[0] if asked.nodes and asked.is_elastic else None
    flags = {
        ("name",): (asked.name, "--name") if asked.name or "name" in file.value else (_name(asked, place), OF_RUN),
        ("policy",): ([*asked.policy] or None, "--policy"),
        ("command",): ([*asked.command], OF_RUN),
        ("cluster", "backend"): ("own", OF_RUN),
        ("cluster", "nodes"): (nodes, OF_RUN),
        ("cluster", "spares"): (place.count - nodes, "--spares"),
        ("cluster", "ranks_per_node"): (ranks, "--nproc-per-node"),
        ("cluster", "min_nodes"): (least, "--nnodes"),
        ("capabilities", "elastic"): (asked.is_elastic or None, "--nnodes"),
    }
    changes, mistakes = parsed_overrides(asked.changes)
    tells_steps = "telemetry" in file.value or any(change.path[0] == "telemetry" for change in changes)
    taken = {change.origin for change in changes if change.path in flags}
    mistakes += [Mistake(origin, "follows from flags and job: leave it out") for origin in sorted(taken)]
    changes += [Override(path, value, origin) for path, (value, origin) in flags.items() if value is not None]
    resolved = resolve_asked(file, changes, mistakes, _built_in(asked, place, ranks, tells_steps=tells_steps))
    if asked.max_restarts:
        rate = parse_rate(f"{asked.max_restarts} per run")
        budget = resolved.policy.budget.model_copy(update={"restarts": rate, "first_step": asked.max_restarts})
        resolved = replace(resolved, policy=resolved.policy.model_copy(update={"budget": budget}))
    return resolved


def _built_in(asked: Asked, place: Place, ranks: int, *, tells_steps: bool) -> dict[str, Any]:
    """What is built in for these runs: as torchrun has it, where that has an opinion."""
    said = os.environ.get("OMP_NUM_THREADS", "")
    threads = int(said) if said.isdigit() and int(said) else len(os.sched_getaffinity(0)) if ranks == 1 else 1
    env = {"ROLE_NAME": asked.role, "TORCHELASTIC_MAX_RESTARTS": str(asked.max_restarts or 0)}
    # A script that tells no steps cannot be told from one that hangs before its first.
    first_step = {} if tells_steps else {"first_step": "3650d"}
    cluster: dict[str, Any] = {"continue_by": "none", "silence": "10s" if place.job or place.count > 1 else "2s"}
    if asked.is_elastic:
        cluster["wait_for_node"] = LAST_CALL
    return {
        "cluster": cluster,
        "launch": {**first_step, "threads": threads, "bind": "none", "env": env},
    }


def ranks_per_node(asked: str) -> int:
    """A number as it is; how many devices torch finds, or processors. Raises LaunchError."""
    if asked.isdigit():
        return int(asked)
    processors = len(os.sched_getaffinity(0))
    if asked == "cpu":
        return processors
    try:
        count = subprocess.run(
            [sys.executable, "-P", "-c", _COUNT_DEVICES, asked], capture_output=True, text=True, timeout=COUNT_S,
            check=True,
        ).stdout  # fmt: skip
    except subprocess.SubprocessError as error:
        told = (getattr(error, "stderr", "") or str(error)).strip().splitlines()[-1]
        raise LaunchError(
            f"torch cannot tell how many devices there are: {told}", f"--nproc-per-node {asked}"
        ) from None
    found = int(count) or (processors if asked == "auto" else 0)
    if not found:
        raise LaunchError(
            "torch finds no device", f"--nproc-per-node {asked}", "--nproc-per-node with a number, or cpu"
        )
    return found


def _name(asked: Asked, place: Place) -> str:
    """That of the script, and the job's id, the id that was given, or the time."""
    which = place.job or asked.meeting_id or f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
    title = re.sub(r"[^A-Za-z0-9._-]+", "-", f"{asked.title}-{which}").lstrip("._-")
    return title[-64:].lstrip("._-") or "run"


# ---------------------------------------------------------------- the run


def _begin(resolved: ResolvedSpec, paths: RunPaths, place: Place) -> tuple[Place, int | None]:
    """On the first node: make the run's folder, or go on with it; the exit code if nothing is left to do."""
    place = replace(place, step=place.step or uuid.uuid4().hex[:8])
    if not paths.root.exists():
        submit.make(resolved, paths.root.parent)
    elif _goes_on(resolved, paths, place):
        return place, 0
    own.announce(paths, place)
    return place, None


def _goes_on(resolved: ResolvedSpec, paths: RunPaths, place: Place) -> bool:
    """Go on with an earlier run of this name; whether it has succeeded already. Raises LaunchError."""
    _refuse_another(resolved.spec, paths)
    _wait_for_its_end(paths, place)
    state = read_run(paths).state
    if state is RunState.SUCCEEDED:
        _tell(f"run {paths.name} has succeeded already: nothing is left to do")
        return True
    before = own.allocation(paths)
    is_requeued = bool(place.job) and before.get("job") == place.job and before.get("life") != place.life
    author = user_name(os.getuid())
    changed = _other_size(resolved, paths, author)
    if changed or state.is_terminal or not is_requeued:  # else the supervisor sees that the job began anew
        resume.begin_again(paths, author, changed)
    return False


def _other_size(resolved: ResolvedSpec, paths: RunPaths, author: str) -> list[RunAmended]:
    """An elastic run goes on with as many nodes as there are this time."""
    was, now = read_resolved(paths.spec), resolved.spec
    if not now.can.elastic:
        return []
    if changes := {key: both for key, both in differences(was, now).items() if key in _SIZE}:
        submit.write_spec(paths, resolved)
        return [RunAmended(at=time.time(), author=author, changes=changes, **submit.asked(now))]
    return []


def _refuse_another(spec: RunSpec, paths: RunPaths) -> None:
    stored = read_resolved(paths.spec)
    hint = "another --name for another run"
    if stored.cluster.backend != "own":
        raise _refused(f"a run named '{paths.name}' was submitted, not started by {OF_RUN}", paths, hint)
    are_elastic = stored.can.elastic and spec.can.elastic
    shape = [(0 if are_elastic else one.cluster.nodes, one.cluster.ranks_per_node) for one in (stored, spec)]
    if shape[0] != shape[1]:
        was, now = (f"{nodes} nodes with {ranks} ranks each" for nodes, ranks in shape)
        raise _refused(f"run '{paths.name}' was started on {was}, and now on {now}", paths, hint)
    if stored.command != spec.command:
        was = " ".join(stored.command or ())
        raise _refused(f"run '{paths.name}' was started with another command: {was}", paths, hint)


def _refused(message: str, paths: RunPaths, hint: str) -> LaunchError:
    error = LaunchError(message, str(paths.root), hint)
    error.exit_code = 3
    return error


def _wait_for_its_end(paths: RunPaths, place: Place) -> None:
    """What worked on the run before may take a moment to be gone. Raises LaunchError if it stays."""
    deadline = time.monotonic() + (ENDING_S if place.job else resume.DYING_S)
    while own.is_at_work(paths, place):
        if time.monotonic() > deadline:
            raise _refused(f"run '{paths.name}' is alive", paths, f"opt-launch status {paths.name}; or another --name")
        time.sleep(_POLL_S)


def _follow(resolved: ResolvedSpec, paths: RunPaths, place: Place) -> tuple[Place, int | None]:
    """On the other nodes: wait for the first one; the exit code if the run is over. Raises LaunchError."""
    deadline = time.monotonic() + FIRST_NODE_S
    while time.monotonic() < deadline:
        began = time.monotonic()
        about = own.allocation(paths)
        if about and own.is_of_us(paths, about, place):
            place = replace(place, step=about["step"])
            state = read_run(paths).state
            return place, (0 if state is RunState.SUCCEEDED else 1) if state.is_terminal else None
        if about:
            _refuse_another(resolved.spec, paths)
            if read_run(paths).state is RunState.SUCCEEDED:
                return place, 0
        time.sleep(max(_POLL_S, 10 * (time.monotonic() - began)))
    raise LaunchError(
        f"the first node did not begin the run within {FIRST_NODE_S:.0f}s", str(paths.root), "see its output"
    )


def _become_agent(asked: Asked, spec: RunSpec, paths: RunPaths, place: Place) -> NoReturn:
    if place.index == 0:
        unused = [*asked.unused, *(asked.meeting if place.job or place.count == 1 else ())]
        if unused:
            _tell(f"not used: {', '.join(unused)}")
        _tell(f"run {paths.name} in {paths.root}")
    sweep_scratch()
    os.environ["OPT_LAUNCH_JOB"] = place.job_id
    os.environ["OPT_LAUNCH_HOST"] = _own_address(asked, spec, place)
    os.environ[SHOWN] = json.dumps(asked.shown(spec.cluster.ranks_per_node))
    for name in ("OPT_LAUNCH_FIRST", "OPT_LAUNCH_SCRATCH"):
        os.environ.pop(name, None)
    if place.index == 0:
        os.environ["OPT_LAUNCH_FIRST"] = "1"
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # stays so over the exec, until the agent listens
    sys.stdout.flush()
    agent = ["-P", "-m", "launcher.agent", str(paths.root), place.node, str(place.index)]
    os.execv(sys.executable, [sys.executable, *agent])


def _own_address(asked: Asked, spec: RunSpec, place: Place) -> str:
    """The address by which the other nodes reach this one. Raises LaunchError."""
    if asked.local_address:
        return asked.local_address
    interface, towards = spec.launch.network.interface, "" if place.job else asked.first_host
    try:
        address = own_address(interface, towards)
        if towards and address.startswith("127.") and towards not in ("localhost", address):
            address = own_address(interface, _ELSEWHERE)  # Debian has a host's own name mean its loopback
    except OSError as error:
        raise of_the_system(error, f"there is no way to {towards or 'where srun was started'}") from error
    return address


def _tell(text: str) -> None:
    print(f"opt-launch: {text}", file=sys.stderr, flush=True)
