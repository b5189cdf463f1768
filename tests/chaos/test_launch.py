"""How ranks are started: through a prefix, with which environment, bound to what, and what is told if they cannot."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from live_run import LiveRun

from launcher.binding import ranges
from launcher.events import AttemptStarted
from launcher.network import addresses
from launcher.paths import RunPaths

pytestmark = pytest.mark.timeout(240)
Launch = Callable[..., LiveRun]

BOX = Path(__file__).with_name("box")
SPAWNER = str(Path(__file__).with_name("spawner.py"))
SEEN = [sys.prefix, sys.base_prefix, str(Path(__file__).parents[1])]
BOXED = [str(BOX), "{run}", "{scratch}", "{launcher}", "{cwd}", *SEEN, "--"]


@pytest.fixture(scope="module")
def boxed() -> str:
    """Keys of `launch:` that put ranks into a root and namespaces of their own."""
    if subprocess.run([BOX, "--", "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("PREFIX NOT TESTED: this user may not make namespaces and mount in them")
    return f"prefix: {json.dumps(BOXED)}"


def namespaces(process: psutil.Process | int) -> list[str]:
    pid = process if isinstance(process, int) else process.pid
    return [os.readlink(f"/proc/{pid}/ns/{kind}") for kind in ("pid", "mnt")]


# ---------------------------------------------------------------- behind a prefix


def test_ranks_in_a_container_train_and_a_killed_one_is_recovered_from(launch: Launch, boxed: str) -> None:
    run = launch(section=boxed).reaches(15)

    rank, agent = run.rank(3), run.agent(run.node_of(3))
    assert not {*namespaces(rank)} & {*namespaces(agent)}
    assert "in-a-box" in os.listdir(f"/proc/{rank.pid}/root")
    assert f'"pid": {rank.pid}' in run.paths.live.read_text()
    run.kill(rank)
    end = run.ends()

    (decision,) = run.decisions()
    assert (decision.detector, decision.evidence["rank"]) == ("exit", 3)
    assert (len(end.attempts), end.attempts[1].slots) == (2, end.attempts[0].slots)


def test_a_killed_agent_takes_its_container_along(launch: Launch, boxed: str) -> None:
    run = launch(section=boxed).reaches(15)
    agent = run.agent("node1")
    inside = agent.children(recursive=True)
    assert len(inside) >= 4  # what makes the container, the warm process, two ranks

    run.kill(agent)
    run.wait_for(AttemptStarted, attempt=2)

    assert psutil.wait_procs(inside, timeout=5)[1] == []
    assert run.ends().attempts[1].slots == {"node0": (0, 1), "node2": (2, 3)}


def test_a_stopped_rank_in_a_container_is_seen_and_its_stack_is_taken(launch: Launch, boxed: str) -> None:
    run = launch(section=boxed).reaches(15)
    node = run.node_of(3)

    run.kill(run.rank(3), number=signal.SIGSTOP)
    run.ends()

    (decision,) = run.decisions()
    assert (decision.detector, decision.blame, decision.nodes) == ("hang", "certain", (node,))
    stack = run.paths.incident(decision.incident) / f"{node}.rank3.stack.txt"
    assert "counting.py" in stack.read_text()


FAILING = {
    "not there": (["{run}/nothing"], "launch.prefix: RUN/nothing: No such file or directory"),
    "ends at once": (["sh", "-c", "echo 'no such image' >&2; exit 7"], "launch.prefix: no such image (exit code 7)"),
    "shows too little": ([str(BOX), "{launcher}", "--"], "No such file or directory: the ranks' side must see this"),
}


@pytest.mark.parametrize("prefix", FAILING)
def test_a_prefix_that_starts_nothing_fails_the_run_and_the_reason_is_told(launch: Launch, prefix: str) -> None:
    words, reason = FAILING[prefix]
    run = launch(section=f"prefix: {json.dumps(words)}")

    end = run.ends("FAILED")

    assert reason.replace("RUN", str(run.paths.root)) in end.ended_reason
    log = run.paths.log(1, "node0").read_text()
    assert reason.replace("RUN", str(run.paths.root)) in log


def test_a_node_on_which_the_prefix_fails_is_replaced(launch: Launch) -> None:
    words = ["sh", "-c", 'test "$0" != node0 || exit 9; exec "$@"', "{node}"]
    run = launch(section=f"prefix: {json.dumps(words)}, python: {json.dumps(sys.executable)}")

    end = run.ends()

    (decision,) = run.decisions()
    assert (decision.rule, decision.nodes) == ("rank-exit", ("node0",))
    assert set(end.attempts[1].slots) == {"node1", "node2"}


# ---------------------------------------------------------------- one process a node


def test_a_process_that_starts_the_ranks_of_its_node_is_one_rank_and_all_of_it_ends_with_it(launch: Launch) -> None:
    run = launch(section="mode: per_node", program=SPAWNER, save_every=0).reaches(15)
    assert run.run.attempts[0].slots == {"node0": (0,), "node1": (1,)}

    (helper,) = [one for one in run.agent("node1").children(recursive=True) if one.name() == "sleep"]
    run.kill(run.rank(3))
    run.wait_for(AttemptStarted, attempt=2)
    assert psutil.wait_procs([helper], timeout=5)[1] == []
    end = run.ends()

    (decision,) = run.decisions()
    # Which node told first is the kernel's choice: the dead rank's neighbour may have printed its own broken link.
    assert (decision.detector, decision.evidence["code"]) == ("exit", 1)
    assert end.restarts == 1


# ---------------------------------------------------------------- what a rank finds

TELL = """
import json, os, pathlib
told = {"env": dict(os.environ), "cpus": sorted(os.sched_getaffinity(0)), "shown": []}
for pid in filter(str.isdigit, os.listdir("/proc")):
    try:
        shown = pathlib.Path("/proc", pid, "cmdline").read_bytes()
        told["shown"] += [pid] * (os.environ["MY_TOKEN"].encode() in shown)
    except OSError:
        pass
pathlib.Path(os.environ["TOLD"], os.environ["RANK"]).write_text(json.dumps(told))
"""


def test_what_a_rank_finds_and_who_sees_its_secret(tmp_path: Path) -> None:
    interface = next((name for name in addresses() if name != "lo"), "lo")
    env = {"TOLD": str(tmp_path), "MY_TOKEN": "from-env", "NCCL_SOCKET_IFNAME": "mine", "NCCL_DEBUG": "WARN"}
    run = {
        "name": "tells",
        "command": [sys.executable, "-c", TELL],
        "cluster": {"nodes": 2, "local": {"return_after": "1s"}},
        "launch": {"env": env, "bind": "cores", "network": {"interface": interface}},
        "policy": ["infra"],
    }
    (tmp_path / "RUN.yaml").write_text(json.dumps(run))
    opt_launch = Path(sys.executable).with_name("opt-launch")
    environment = {**os.environ, "MY_TOKEN": "s3cr3t-of-the-test", "CUDA_MY_KEY": "x", "TRITON_CACHE_DIR": "/kept"}

    def call(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [opt_launch, *arguments, "--root", tmp_path], env=environment, cwd=tmp_path,
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip

    try:
        done = call("submit", "RUN.yaml", "--wait")
    finally:  # it is over, if all is well
        call("stop", "tells", "--now", "--yes")

    assert done.returncode == 0, done.stderr
    paths = RunPaths(tmp_path / "tells")
    told = [json.loads((tmp_path / str(rank)).read_text()) for rank in range(2)]
    variables = told[0]["env"]
    assert (variables["MY_TOKEN"], variables["NODE_RANK"], variables["NNODES"]) == ("s3cr3t-of-the-test", "0", "2")
    assert (variables["GLOO_SOCKET_IFNAME"], variables["NCCL_SOCKET_IFNAME"]) == (interface, "mine")
    assert variables["MASTER_ADDR"] == addresses()[interface]
    assert variables["TRITON_CACHE_DIR"] == "/kept"
    assert variables["TORCHINDUCTOR_CACHE_DIR"].startswith(f"{tempfile.gettempdir()}/opt-launch-")

    assert [one["shown"] for one in told] == [[], []]
    files = [file for file in paths.root.rglob("*") if file.is_file()]
    assert [file for file in files if b"s3cr3t" in file.read_bytes()] == [paths.variables]
    assert paths.variables.stat().st_mode & 0o777 == 0o600

    recorded = json.loads(paths.environment(1).read_text())
    assert recorded["variables"][0]["NCCL_DEBUG"] == "WARN"
    assert not {"MY_TOKEN", "CUDA_MY_KEY"} & recorded["variables"][0].keys()
    usable = os.sched_getaffinity(0)
    if len(usable) > 1:
        assert {*told[0]["cpus"]}.isdisjoint(told[1]["cpus"])
        assert {*told[0]["cpus"], *told[1]["cpus"]} == usable
        assert recorded["bind"] == [[ranges(one["cpus"]) for one in told]]
