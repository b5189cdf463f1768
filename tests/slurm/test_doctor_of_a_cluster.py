"""The doctor on a real cluster: what it says, and that its probe leaves nothing behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cluster import ROOT, Cluster
from slurm_run import UNPRIVILEGED, opt_launch

# Who runs the tests in the background may have had Ctrl-C ignored, and programs inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

ON_NODES = [
    "--root", "hosts.ledger", "versions", "commands", "requeue", "munge", "network", "clock", "stacks",
    "open files", "processes", "locked memory", "/tmp", "GPUs",
]  # fmt: skip
LATER = "cluster.slurm.extra.begin=now+1hour"


def examined(cluster: Cluster, *arguments: object) -> tuple[int, dict[str, dict[str, Any]], dict[str, dict[str, Any]]]:
    """(exit code, what was said of this machine, what was said of nodes), by what it is about."""
    done = opt_launch(cluster, "doctor", "--json", *arguments)
    assert done.stdout, done.stderr
    checks = json.loads(done.stdout)["checks"]
    here = {one["about"]: one for one in checks if not one["where"]}
    return done.returncode, here, {one["about"]: one for one in checks if one["where"]}


def jobs(cluster: Cluster) -> str:
    return cluster.call("squeue", "-h", "-o", "%i %j %T").stdout


def left_over(cluster: Cluster) -> list[Path]:
    return [*cluster.runs.glob(".doctor.*")]


def test_it_finds_the_cluster_well_and_touches_nothing(cluster: Cluster) -> None:
    before = cluster.call("squeue", "-h", "-a", "-t", "all", "-o", "%i").stdout

    code, here, nodes = examined(cluster)

    assert (code, nodes) == (0, {})
    well = ("slurm", "controller", "version", "partition", "nodes", "accounting", "munge", "requeue", "clock")
    assert {about: here[about]["state"] for about in well} == dict.fromkeys(well, "ok")
    assert "8 of 8 take jobs" in here["nodes"]["said"]
    assert (here["timeouts"]["state"], "KillWait 5 s" in here["timeouts"]["said"]) == ("warn", True)
    assert cluster.call("squeue", "-h", "-a", "-t", "all", "-o", "%i").stdout == before


def test_the_probe_looks_at_two_nodes_of_the_partition_of_the_site_and_leaves_nothing(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    (cluster.runs / "site.yaml").write_text("cluster: {slurm: {partition: short, time: 1h}}\n")
    monkeypatch.setenv("OPT_LAUNCH_SITE", str(cluster.runs / "site.yaml"))

    code, here, nodes = examined(cluster, "--probe", "--set", "cluster.slurm.comment=mine")
    comment = cluster.call("squeue", "-h", "-a", "-t", "all", "-S", "-i", "-o", "%P %k").stdout.splitlines()[0]

    assert (code, here["partition"]["state"]) == (1, "fail")  # the 1h of the site is more than its partition allows
    assert comment == "short mine"
    assert [*nodes] == ON_NODES
    unwell = {about for about, one in nodes.items() if one["state"] not in ("ok", "skipped")}
    assert unwell <= ({"clock"} if nodes["clock"]["state"] == "unknown" else set())  # a busy machine answers slowly
    assert "probe" not in here
    assert nodes["versions"]["where"].count("node") == 2
    assert (jobs(cluster), left_over(cluster)) == ("", [])


def test_a_probe_that_does_not_start_in_time_is_cancelled_and_told(cluster: Cluster) -> None:
    code, here, _ = examined(cluster, "--probe", "--timeout", "1s", "--set", LATER)

    assert (code, here["probe"]["state"]) == (0, "unknown")
    assert "PENDING" in here["probe"]["said"]
    assert "BeginTime" in here["probe"]["said"]
    assert (jobs(cluster), left_over(cluster)) == ("", [])


def test_ctrl_c_cancels_the_probe(cluster: Cluster) -> None:
    command = [str(UNPRIVILEGED), sys.executable, "-m", "cli", "doctor", "--probe", "--set", LATER]
    environment = {**cluster.env, "OPT_LAUNCH_ROOT": str(cluster.runs)}
    with subprocess.Popen(
        command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
        start_new_session=True,
    ) as process:  # fmt: skip
        assert process.stderr
        told = next(line for line in process.stderr if line.startswith("probe: job"))
        assert told.split()[2] in jobs(cluster)
        os.killpg(process.pid, signal.SIGINT)
        rest = process.stderr.read()

    assert "Traceback" not in rest
    assert "the job of the probe was cancelled" in rest
    assert (jobs(cluster), left_over(cluster)) == ("", [])


def where_nodes_do_not_see(cluster: Cluster, hidden: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    """What a probe prints on a machine that has a disk of its own in this folder."""
    hidden.mkdir()
    mounted = f"mount -t tmpfs -o mode=1777 tmpfs {hidden} && exec"
    return subprocess.run(
        ["unshare", "--mount", "sh", "-c", f'{mounted} "$@"', "sh", str(UNPRIVILEGED), sys.executable, "-m", "cli",
         "doctor", "--probe", "--json", *map(str, arguments)],
        cwd=ROOT, env=cluster.env, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def test_a_folder_that_the_nodes_do_not_see_is_a_failure_with_the_reason(cluster: Cluster) -> None:
    hidden = cluster.folder / "hidden"

    done = where_nodes_do_not_see(cluster, hidden, "--root", hidden)

    (probe,) = (one for one in json.loads(done.stdout)["checks"] if one["about"] == "probe")
    assert (done.returncode, probe["state"]) == (1, "fail")
    assert "on a disk that all nodes see" in probe["fix"]
    assert jobs(cluster) == ""


def test_a_host_ledger_that_each_node_has_for_itself_is_told(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    hidden = cluster.folder / "home"
    (cluster.runs / "site.yaml").write_text(f"hosts: {{ledger: {hidden}/hosts}}\n")
    monkeypatch.setenv("OPT_LAUNCH_SITE", str(cluster.runs / "site.yaml"))

    done = where_nodes_do_not_see(cluster, hidden, "--root", cluster.runs)

    (ledger,) = (one for one in json.loads(done.stdout)["checks"] if one["about"] == "hosts.ledger")
    assert (done.returncode, ledger["state"], ledger["where"].count("node")) == (0, "warn", 2)
    assert ledger["said"] == f"{hidden}/hosts: not there: what runs find there is not remembered"
    assert (jobs(cluster), left_over(cluster)) == ("", [])


def test_what_slurm_refuses_is_told_whatever_the_user_has_set(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable, value in (("SQUEUE_FORMAT", "%i"), ("SINFO_FORMAT", "%i"), ("SLURM_TIME_FORMAT", "relative")):
        monkeypatch.setenv(variable, value)

    code, here, _ = examined(cluster, "--probe", "--partition", "nowhere")

    assert (code, here["partition"]["state"], here["probe"]["state"]) == (1, "fail", "fail")
    assert "invalid partition" in here["probe"]["said"].lower()
    assert here["clock"]["state"] == "ok"
    assert left_over(cluster) == []
