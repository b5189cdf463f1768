"""What the doctor makes of what it reads, and how it tells it."""

# ruff: noqa: E501  messages are compared whole
from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from launcher.backends.slurm_words import Node, Partition, node_words, nodes_of, partitions_of, settings_of
from launcher.doctor import checks, cluster_checks, readings
from launcher.doctor.checks import Folder, Limits, Verdict
from launcher.doctor.cluster_checks import OnNode, Peer
from launcher.doctor.examination import with_answers
from launcher.doctor.show import json_of, text_of

ROOT = Path(__file__).parents[2]
CAPTURED = ROOT / "tests" / "data" / "slurm" / "22.05"
SETTINGS = settings_of((CAPTURED / "scontrol_config.txt").read_text())
PARTITIONS = [*partitions_of((CAPTURED / "scontrol_partition.txt").read_text())]
NODES = [*nodes_of((CAPTURED / "scontrol_node_later.txt").read_text())]
SHARED = Folder("/scratch/runs", exists=True, why="", kind="lustre", free=10**13)
LIMITS = Limits(nofile=65536, nproc=None, memlock=None, infiniband=True)


def told(verdict: Verdict) -> tuple[str, str]:
    return verdict.state, verdict.said


# ---------------------------------------------------------------- this machine


@pytest.mark.parametrize(
    ("folder", "state", "said"),
    [
        (SHARED, "ok", "/scratch/runs: lustre, 10,000.0 GB free"),
        (replace(SHARED, exists=False), "ok", "/scratch/runs, will be made: lustre, 10,000.0 GB free"),
        (replace(SHARED, kind="ext4"), "warn", "/scratch/runs: ext4, 10,000.0 GB free, a disk of this machine only"),
        (replace(SHARED, kind="tmpfs"), "warn", "/scratch/runs: tmpfs, 10,000.0 GB free, a disk of this machine only"),
        (replace(SHARED, kind="fuse.new"), "unknown", "/scratch/runs: fuse.new, 10,000.0 GB free: shared or not cannot be told"),
        (replace(SHARED, kind=""), "unknown", "/scratch/runs: unknown file system, 10,000.0 GB free: shared or not cannot be told"),
        (replace(SHARED, why="/scratch may not be written"), "fail", "/scratch/runs: /scratch may not be written"),
    ],
)  # fmt: skip
def test_the_folder_of_the_runs(folder: Folder, state: str, said: str) -> None:
    assert told(checks.root_folder(folder)) == (state, said)


@pytest.mark.parametrize(("kind", "state"), [("nfs4", "ok"), ("overlay", "warn"), ("fuse.new", "unknown")])
def test_where_python_is(kind: str, state: str) -> None:
    verdict = checks.python_folders([SHARED, replace(SHARED, path="/venv", kind=kind)])
    assert verdict.state == state
    assert "/venv" in verdict.said


@pytest.mark.parametrize(
    ("limits", "states"),
    [
        (LIMITS, ["ok", "ok", "ok"]),
        (replace(LIMITS, nofile=1024, nproc=100, memlock=65536), ["warn", "warn", "warn"]),
        (replace(LIMITS, memlock=65536, infiniband=False), ["ok", "ok", "ok"]),
        (Limits(None, None, None, infiniband=False), ["ok", "ok", "ok"]),
    ],
)
def test_limits(limits: Limits, states: list[str]) -> None:
    found = [check(limits) for check in (checks.open_files, checks.processes, checks.locked_memory)]
    assert [one.state for one in found] == states
    assert all(one.fix.startswith("ulimit -") for one in found if one.state != "ok")


@pytest.mark.parametrize(("scope", "state"), [(None, "ok"), (0, "ok"), (1, "ok"), (2, "warn"), (3, "warn")])
def test_ptrace(scope: int | None, state: str) -> None:
    assert checks.ptrace(scope).state == state


def test_versions_here_and_there() -> None:
    here = {"Python": "3.11.2", "torch": "2.13.0", "submitit": "1.5.4"}
    assert told(checks.versions(here)) == ("ok", "Python 3.11.2, torch 2.13.0, submitit 1.5.4")
    assert told(checks.versions(here | {"torch": None})) == ("fail", "not installed: torch")
    assert checks.same_versions(here, dict(here), "/venv/bin/python").state == "ok"
    assert told(checks.same_versions(here, {"Python": "3.11.2", "torch": "2.12.0"}, "/usr/bin/python3")) == (
        "fail",
        "torch 2.12.0 instead of 2.13.0, submitit missing instead of 1.5.4",
    )


@pytest.mark.parametrize(
    ("folder", "state"),
    [
        (replace(SHARED, kind="tmpfs"), "ok"),
        (SHARED, "fail"),
        (replace(SHARED, kind="ext4", free=10**8), "warn"),
        (replace(SHARED, kind="ext4", free=10**6), "fail"),
        (replace(SHARED, kind="ext4", free=None), "unknown"),
        (replace(SHARED, kind="ext4", why="/tmp may not be written"), "fail"),
    ],
)
def test_the_temporary_folder(folder: Folder, state: str) -> None:
    assert checks.temporary_folder(folder).state == state


@pytest.mark.parametrize(
    ("seen", "problem", "asked", "state"),
    [
        (None, "", 8, "skipped"), (None, "NVML: driver mismatch", 8, "fail"), (8, "", 8, "ok"), (7, "", 8, "fail"),
        (8, "", None, "ok"), (0, "", None, "warn"),
    ],
)  # fmt: skip
def test_gpus(seen: int | None, problem: str, asked: int | None, state: str) -> None:
    assert checks.gpus(seen, problem, asked).state == state


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (-0.2, 0.3, ("ok", "within 1 s of x")),
        (1.2, 1.6, ("warn", "at least 1.2 s ahead of x")),
        (-9.0, -3.0, ("warn", "at least 3.0 s behind x")),
        (-3700.0, -3600.0, ("fail", "at least 3600.0 s behind x")),
        (-4.0, 0.1, ("unknown", "between -4.0 s and +0.1 s of x: answers came too slowly to tell")),
    ],
)
def test_a_clock_is_judged_by_what_is_certain(low: float, high: float, verdict: tuple[str, str]) -> None:
    assert told(checks.clock(low, high, "x")) == verdict


def test_the_kind_of_a_file_system_is_that_of_the_innermost_mount() -> None:
    mounts = "\n".join(
        [
            "22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw",
            "30 22 0:40 / /home rw shared:2 - nfs4 server:/home rw",
            "31 30 0:41 / /home/with\\040space rw - lustre mds:/l rw",
            "32 22 0:42 / /scratch rw - xfs /dev/sdb rw",
            "33 22 0:43 / /scratch rw - beegfs beegfs rw",
            "a line of another kind",
        ]
    )
    paths = {"/": "ext4", "/homes/a": "ext4", "/home/a": "nfs4", "/home/with space/b": "lustre", "/scratch": "beegfs"}
    assert {path: readings.kind_of(mounts, path) for path in paths} == paths
    assert readings.kind_of("", "/") == ""


def test_this_machine_can_be_read(tmp_path: Path) -> None:
    here = readings.folder(tmp_path / "not" / "yet")
    assert (here.exists, here.why) == (False, "")
    assert here.kind
    assert here.free
    assert readings.stack() == ""
    assert readings.missing(("sh", "no-such-command")) == ("no-such-command",)
    (tmp_path / "file").touch()
    assert readings.folder(tmp_path / "file" / "x").why == f"{tmp_path / 'file'} is no folder"


# ---------------------------------------------------------------- Slurm


@pytest.mark.parametrize(
    ("ping", "state", "said"),
    [
        ("Slurmctld(primary) at host is UP\n", "ok", "Slurmctld(primary) at host is UP"),
        ("Slurmctld(primary) at a is DOWN\nSlurmctld(backup) at b is UP\n", "ok", "Slurmctld(backup) at b is UP"),
        ("Slurmctld(primary) at host is DOWN\n", "fail", "Slurmctld(primary) at host is DOWN"),
        ("scontrol: error: x\nscontrol: fatal: no configuration\n", "fail", "scontrol: fatal: no configuration"),
        ("", "fail", "no answer"),
        (None, "fail", "no answer"),
    ],
)
def test_the_controller(ping: str | None, state: str, said: str) -> None:
    assert told(cluster_checks.controller(ping)) == (state, said)


@pytest.mark.parametrize(
    ("version", "state"), [("22.05.8", "ok"), ("24.11.0-1", "ok"), ("20.02.7", "warn"), ("", "unknown")]
)
def test_versions_of_slurm(version: str, state: str) -> None:
    assert cluster_checks.version({"SLURM_VERSION": version}).state == state


@pytest.mark.parametrize(
    ("wanted", "time_s", "state", "said"),
    [
        (None, None, "ok", "train: UP, no time limit"),
        (None, 1e9, "ok", "train: UP, no time limit"),
        ("short", 300.0, "ok", "short: UP, limit 5m"),
        ("short", 3600.0, "fail", "short: UP, limit 5m; asked for: limit 1h"),
        ("short,train", 3600.0, "ok", "train: UP, no time limit; short: UP, limit 5m"),
        ("tarin", None, "fail", "there is no tarin"),
    ],
)
def test_the_partition(wanted: str | None, time_s: float | None, state: str, said: str) -> None:
    assert told(cluster_checks.partition(wanted, PARTITIONS, time_s)) == (state, said)


def test_partitions_that_cannot_be_used() -> None:
    down = [replace(one, state="DOWN") for one in PARTITIONS]
    assert cluster_checks.partition(None, down, None).state == "fail"
    assert told(cluster_checks.partition(None, [Partition("a", False, "UP", None)], None)) == (
        "fail",
        "there is no default",
    )


def test_nodes_that_take_no_jobs_are_named_with_their_reasons() -> None:
    verdict = cluster_checks.nodes(["train"], NODES)
    assert told(verdict) == (
        "ok",
        "5 of 8 take jobs; node4 IDLE+MAINTENANCE+RESERVED+PLANNED; node5 DOWN+NOT_RESPONDING (Not responding); "
        "node6 IDLE+DRAIN (bad dimm)",
    )
    closed = [Node(f"n{index}", "DOWN", node_words("DOWN"), "", ("train",)) for index in range(5)]
    assert told(cluster_checks.nodes(["train"], closed)) == (
        "fail",
        "0 of 5 take jobs; n0 DOWN; n1 DOWN; n2 DOWN; 2 more",
    )


def test_what_slurm_has_been_set_to() -> None:
    assert told(cluster_checks.requeue(SETTINGS)) == ("ok", "JobRequeue is 1")
    assert cluster_checks.requeue({"JobRequeue": "0"}).said == "JobRequeue is 0; our jobs ask to be requeued"
    assert cluster_checks.requeue({}).state == "unknown"
    assert told(cluster_checks.timeouts(SETTINGS))[0] == "warn"
    assert told(cluster_checks.timeouts({"SlurmdTimeout": "300 sec", "KillWait": "30 sec"})) == (
        "ok",
        "SlurmdTimeout 300 s, KillWait 30 s",
    )
    assert cluster_checks.timeouts({}).state == "unknown"
    assert {cluster_checks.accounting(code).state for code in (0, 1, None)} == {"ok"}


@pytest.mark.parametrize(
    ("auth", "problem", "state"),
    [
        ("auth/munge", "", "ok"), ("auth/munge", "no socket", "fail"), ("auth/munge", None, "unknown"),
        ("auth/slurm", None, "skipped"), ("", "", "ok"),
    ],
)  # fmt: skip
def test_munge(auth: str, problem: str | None, state: str) -> None:
    assert cluster_checks.munge(auth, problem).state == state


# ---------------------------------------------------------------- the probe

READING = OnNode(
    node="n1", address="10.0.0.1", at=0.0, python="/p", versions={}, limits=LIMITS, temporary=SHARED, munge="",
    missing=(), ledger="", job="", stack="", gpus=None, gpu_problem="", peers=(Peer("n2", "10.0.0.2", "", 0.0004),), unheard=(),
)  # fmt: skip


@pytest.mark.parametrize(
    ("reading", "state", "said"),
    [
        (READING, "ok", "10.0.0.1, to n2 and back in 0.4 ms"),
        (replace(READING, unheard=("n2",)), "fail", "10.0.0.1 was not reached by n2"),
        (replace(READING, peers=(Peer("n2", "10.0.0.2", "timed out"),)), "fail", "from 10.0.0.1: n2 at 10.0.0.2: timed out"),
        (replace(READING, peers=()), "skipped", "10.0.0.1; one node only, nobody to call"),
    ],
)  # fmt: skip
def test_the_network_is_well_only_both_ways(reading: OnNode, state: str, said: str) -> None:
    assert told(cluster_checks.network(reading)) == (state, said)


@pytest.mark.parametrize(
    ("here", "there", "state", "said"),
    [
        ("", "", "ok", "/l: the same there as here"),
        ("read-only file system", "not there", "warn", "/l: read-only file system"),
        ("", "not there", "warn", "/l: not there: what runs find there is not remembered"),
    ],
)
def test_a_host_ledger_is_well_where_nodes_and_this_machine_share_it(
    here: str, there: str, state: str, said: str
) -> None:
    assert told(cluster_checks.host_ledger("/l", here, there)) == (state, said)


def test_a_folder_is_shared_where_a_file_of_another_machine_is_seen_and_may_be_written(tmp_path: Path) -> None:
    (tmp_path / "mark").touch()
    assert readings.mark(tmp_path / "mark") == ""
    assert readings.mark(tmp_path / "other") == "not the same folder there as here"
    assert readings.mark(tmp_path / "nowhere" / "mark") == "not there"


def test_what_became_of_asking_to_be_requeued() -> None:
    line = (CAPTURED / "scontrol_job_busy.txt").read_text().splitlines()
    assert cluster_checks.job_requeue(line[0]).state == "ok"
    assert cluster_checks.job_requeue(line[1]).state == "fail"
    assert cluster_checks.job_requeue("").state == "unknown"
    assert cluster_checks.node_commands(("sbatch",)).state == "fail"


def test_nodes_that_say_the_same_are_told_once() -> None:
    same, other = Verdict("a", "ok", "x"), Verdict("a", "fail", "y", "z")
    found = cluster_checks.together({"n1": [same], "n2": [other], "n3": [same]})
    assert [(one.state, one.where) for one in found] == [("ok", "n1, n3"), ("fail", "n2")]


def test_what_the_nodes_have_answered_takes_the_place_of_what_was_supposed_here() -> None:
    root, python = Verdict("--root", "warn", "local", "--probe tells"), Verdict("python", "unknown", "who knows")
    munge, wrong = Verdict("munge", "warn", "w"), Verdict("python", "fail", "missing")
    there = [Verdict("--root", "ok", "seen", where="n1"), Verdict("versions", "ok", "as here", where="n1")]

    assert with_answers([root, munge, python], there) == [munge, *there]
    assert with_answers([root, wrong], there) == [wrong, *there]
    assert with_answers([root, python], [Verdict("probe", "unknown", "never started")])[:2] == [root, python]


# ---------------------------------------------------------------- how it is told


def test_a_line_for_each_in_words_with_the_fix_where_it_is_needed() -> None:
    found = [Verdict("munge", "ok", "well", "never shown"), Verdict("clock", "warn", "3 s", "set it", "n1, n2")]
    assert text_of(found, colours=False).splitlines() == [
        "+ ok      munge         well",
        "! warn    clock         n1, n2: 3 s",
        "                        try: set it",
        "1 ok, 1 warn",
    ]
    assert text_of(found, colours=True).startswith("\x1b[32m+ ok     \x1b[0m munge")
    assert json_of(found)["ok"] is True
    assert json_of([*found, Verdict("x", "fail", "y")])["ok"] is False
    assert json_of(found)["checks"][1] == {
        "about": "clock", "state": "warn", "said": "3 s", "fix": "set it", "where": "n1, n2",
    }  # fmt: skip


def doctor(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command where there is no Slurm."""
    environment = {**os.environ, "PATH": str(folder), "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-m", "cli", "doctor", *arguments], cwd=folder, env=environment, capture_output=True,
        text=True, check=False, timeout=60,
    )  # fmt: skip


def test_without_slurm_the_rest_is_told_and_a_probe_fails(tmp_path: Path) -> None:
    plain, probed = doctor(tmp_path), doctor(tmp_path, "--probe", "--json")

    assert plain.returncode == 0
    assert plain.stdout.startswith("! warn    slurm         not in PATH: sbatch, ")
    assert "\x1b" not in plain.stdout
    assert (probed.returncode, probed.stderr) == (1, "")
    assert json.loads(probed.stdout)["checks"][-1]["about"] == "probe"
    assert not [*tmp_path.iterdir()]


def test_a_mistake_of_the_site_is_told_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "site.yaml").write_text("cluster: {slurm: {partion: x}}\n")
    monkeypatch.setenv("OPT_LAUNCH_SITE", str(tmp_path / "site.yaml"))
    done = doctor(tmp_path)
    assert (done.returncode, done.stdout) == (3, "")
    assert "site.yaml:1:19: unknown key 'partion' (did you mean 'partition'?)" in done.stderr
