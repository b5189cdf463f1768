"""What is made of Slurm's words. tests/data/slurm/README.md says which were captured and which written by hand."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import pytest

from launcher.backends.slurm_words import (
    InQueue,
    Job,
    is_over,
    is_queued,
    job_of,
    last_that_ran,
    moment,
    node_words,
    nodes_of,
    queue_of,
    reports,
    span_s,
)

DATA = Path(__file__).parents[1] / "data" / "slurm"
CAPTURED = DATA / "22.05"
BY_HAND = ("20.11", "21.08", "23.02", "23.11", "24.05", "24.11")


def lines(name: str, folder: Path = CAPTURED) -> list[str]:
    return (folder / name).read_text().splitlines()


def named_jobs(file: str, folder: Path = CAPTURED) -> list[tuple[str, Job]]:
    """(name, job) of each line."""
    found = []
    for line in lines(file, folder):
        job = job_of(line)
        assert job is not None
        found.append((line.split("JobName=")[1].split()[0], job))
    return found


# ---------------------------------------------------------------- jobs, captured


def test_what_waits_in_the_queue_can_be_taken_out_of_it() -> None:
    jobs = dict(named_jobs("scontrol_job_busy.txt"))
    assert {name for name, job in jobs.items() if is_queued(job.state)} == {
        *("begin", "resources", "held", "requeued", "requeuehold", "special")
    }
    assert not any(map(is_queued, ("", "RUNNING", "COMPLETING", "SUSPENDED")))


def test_jobs_at_a_busy_moment() -> None:
    jobs = dict(named_jobs("scontrol_job_busy.txt"))

    assert {name: (job.state, job.reason, job.restarts) for name, job in jobs.items()} == {
        "mixed": ("RUNNING", "", 0),
        "allocated": ("RUNNING", "", 0),
        "begin": ("PENDING", "BeginTime", 0),
        "resources": ("PENDING", "Resources", 0),
        "held": ("PENDING", "JobHeldUser", 0),
        "suspended": ("SUSPENDED", "", 0),
        "timeout": ("RUNNING", "", 0),
        "failed": ("FAILED", "NonZeroExitCode", 0),
        "completed": ("COMPLETED", "", 0),
        "cancelled": ("CANCELLED", "", 0),
        "requeued": ("PENDING", "BeginTime", 1),
        "requeuehold": ("PENDING", "job requeued in held state", 1),
        "special": ("SPECIAL_EXIT", "job requeued in held state", 1),
        "nodefail": ("RUNNING", "", 0),
        "draining": ("RUNNING", "", 0),
        "completing": ("COMPLETING", "", 0),
    }
    assert jobs["mixed"].ends_at == datetime(2026, 11, 25, 1, 5, 43).timestamp()
    assert jobs["allocated"].ends_at is None  # no limit


@pytest.mark.parametrize(
    ("file", "over"),
    [
        ("busy", {"failed", "completed", "cancelled"}),
        (
            "later",
            {"failed", "completed", "cancelled", "timeout", "nodefail", "draining", "completing"},
        ),
    ],
)
def test_which_of_them_are_over(file: str, over: set[str]) -> None:
    jobs = named_jobs(f"scontrol_job_{file}.txt")
    assert {name for name, job in jobs if is_over(job.state)} == over


def test_squeue_and_scontrol_agree_on_what_is_over() -> None:
    for moment_of in ("busy", "later"):
        by_squeue = [line.split("|")[1] for line in lines(f"squeue_{moment_of}.txt")]
        by_scontrol = [job.state for _, job in named_jobs(f"scontrol_job_{moment_of}.txt")]
        assert sorted(by_squeue) == sorted(by_scontrol)


def test_lines_of_the_queue_with_reasons_of_many_words_and_times_that_are_none() -> None:
    told = queue_of("\n".join(lines("squeue_later.txt")))
    assert told["11"] == InQueue("PENDING", "ReqNodeNotAvail, May be reserved for other job", None)
    assert told["5"] == InQueue("PENDING", "JobHeldUser", None)
    assert told["1"] == InQueue("RUNNING", "", moment("2026-11-25T01:05:43"))
    assert queue_of("7_3|PENDING|2026-11-25T01:05:43|None\nslurm_load_jobs error: x\n") == {
        "7_3": InQueue("PENDING", "", moment("2026-11-25T01:05:43"))
    }


def test_every_end_time_that_squeue_prints_is_a_time_or_none() -> None:
    ends = [line.split("|")[2] for line in lines("squeue_busy.txt") + lines("squeue_later.txt")]
    assert {end for end in ends if moment(end) is None} == {"NONE", "N/A"}


@pytest.mark.parametrize("name", ["squeue_unknown.txt", "sacct_without_accounting.txt", "scontrol_node_busy.txt"])
def test_what_tells_of_no_job_is_none(name: str) -> None:
    assert job_of((CAPTURED / name).read_text()) is None


def test_values_that_no_version_prints_are_no_error() -> None:
    odd = "JobId=1 JobState=A_STATE Restarts=many EndTime=soon"
    assert job_of(odd) == Job("A_STATE", "", 0, None)


# ---------------------------------------------------------------- nodes, captured


def test_nodes_by_sinfo_and_what_is_gone() -> None:
    busy, later = (reports((CAPTURED / f"sinfo_{file}.txt").read_text()) for file in ("busy", "later"))

    assert {name for name, report in busy.items() if report.down} == set()
    assert {name: report.down for name, report in later.items() if report.down} == {"node5": "Slurm says: down*"}
    assert len(busy) == len(later) == 8


def test_nodes_by_scontrol_and_which_take_jobs() -> None:
    busy, later = (
        {node.name: node for node in nodes_of((CAPTURED / f"scontrol_node_{file}.txt").read_text())}
        for file in ("busy", "later")
    )

    assert {name for name, node in busy.items() if not node.takes_jobs} == {"node6"}
    assert {name: (node.said, node.reason) for name, node in later.items() if not node.takes_jobs} == {
        "node4": ("IDLE+MAINTENANCE+RESERVED+PLANNED", ""),
        "node5": ("DOWN+NOT_RESPONDING", "Not responding"),
        "node6": ("IDLE+DRAIN", "bad dimm"),
    }
    assert later["node0"].partitions == ("train", "urgent", "short")


# ---------------------------------------------------------------- written by hand


@pytest.mark.parametrize("version", BY_HAND)
def test_jobs_of_other_versions(version: str) -> None:
    jobs = named_jobs("scontrol_job.txt", DATA / version)
    by_sacct = [line.split("|") for line in lines("sacct.txt", DATA / version)]

    assert [(name, is_over(job.state)) for name, job in jobs] == [(name, name == "over") for name, _ in jobs]
    assert [(name, is_over(state)) for name, state in by_sacct] == [(name, name == "over") for name, _ in by_sacct]
    assert jobs[0][1].ends_at == datetime(2026, 1, 3, 10, 0, 10).timestamp()


@pytest.mark.parametrize("version", BY_HAND)
def test_nodes_of_other_versions(version: str) -> None:
    states = reports((DATA / version / "sinfo.txt").read_text())
    nodes = [*nodes_of((DATA / version / "scontrol_node.txt").read_text())]

    assert {name for name, report in states.items() if report.down} == {
        name for name in states if name.startswith("gone")
    }
    assert {node.name for node in nodes if node.takes_jobs} == {
        node.name for node in nodes if node.name.startswith("open")
    }
    assert not [node.reason for node in nodes if "@" in node.reason or "=" in node.reason.replace("returned=", "")]
    assert len(states) >= 7
    assert len(nodes) >= 5


# ---------------------------------------------------------------- words


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ("down*", {"down", "not_responding"}),
        ("DOWN*+DRAIN", {"down", "not_responding", "drain"}),
        ("MIXED+DRAIN", {"mixed", "drain"}),
        ("IDLE+CLOUD+POWERED_DOWN", {"idle", "cloud", "powered_down"}),
        ("allocated+", {"allocated", "completing"}),
        ("idle*~", {"idle", "not_responding", "powered_down"}),
        ("mixed-", {"mixed", "planned"}),
        ("", set()),
        ("+", {"completing"}),
        ("\x1b[31m?", {"\x1b[31m?"}),
    ],
)
def test_a_state_of_a_node_taken_apart(state: str, words: set[str]) -> None:
    assert node_words(state) == words


@pytest.mark.parametrize(
    ("state", "over"),
    [
        ("", True), ("CANCELLED by 1000", True), ("CANCELLED+", True), ("CANCELLED,COMPLETING", False),
        ("COMPLETING", False), ("PREEMPTED", False), ("REQUEUED", False), ("something new", False), ("?", False),
    ],
)  # fmt: skip
def test_only_a_job_that_is_known_to_be_over_is(state: str, over: bool) -> None:
    assert is_over(state) is over


@pytest.mark.parametrize(
    "text", ["Unknown", "N/A", "NONE", "None", "(null)", "", "when it is done", "2026-13-01T00:00"]
)
def test_no_time(text: str) -> None:
    assert moment(text) is None


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("UNLIMITED", None), ("infinite", None), ("INVALID", None), ("", None), ("NOT_SET", None),
        ("00:05:00", 300), ("5", 300), ("5:30", 330), ("12:00:00", 43200), ("2-00:00:00", 172800), ("1-12", 129600),
        ("1-12:30", 131400), ("365-00:00:00", 31536000),
    ],
)  # fmt: skip
def test_time_limits(text: str, seconds: float | None) -> None:
    assert span_s(text) == seconds


def test_of_a_chain_the_last_job_that_ran_tells_how_it_ended() -> None:
    text = "7|TIMEOUT|2026-11-25T00:00:00\n8|CANCELLED by 1000|2026-11-25T02:00:00\n9|CANCELLED by 1000|None\n"
    assert last_that_ran(text) == ("8", "CANCELLED by 1000")
    assert last_that_ran("7|CANCELLED by 0|None\n8|CANCELLED by 0|None\n") == ("7", "CANCELLED by 0")
    assert last_that_ran("") is None
