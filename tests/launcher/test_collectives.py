"""The search for bad nodes with real processes and real all-reduces (gloo): killed, stopped, wrong and slow ones."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from launcher.events import CheckFinding, TrialPlace, TrialResult
from launcher.health import burn
from launcher.health.trial import COMMAND, take_part
from launcher.localize import Diagnosis
from launcher.trials import Part, Report, Rounds, findings_of, moved, parts, present, result_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(280)]

LIMIT_S = 30.0
# What a node is started as in place of the program: it, with an all-reduce that goes wrong when others take part.
PROGRAM = """\
import os, pathlib, runpy, sys, time
import torch.distributed as dist
real = dist.all_reduce
def all_reduce(values):
    if dist.get_world_size() > 1:
        {fault}
    return real(values)
dist.all_reduce = all_reduce
runpy.run_module("launcher.health.collective", run_name="__main__")
"""
LIES = "values[7] += 1"
DAWDLES = "time.sleep(1.0)"
TELLS = "pathlib.Path(sys.argv[0] + '.' + str(os.getpid())).touch(); time.sleep(1000)"  # where it is, and stays there


@dataclass
class Nodes:
    """Nodes that are processes of this machine. `fault`: of which, what its all-reduce does; `number`: what it gets."""

    folder: Path
    names: Sequence[str]
    faults: Mapping[str, str] = field(default_factory=dict)
    number: signal.Signals | None = None
    limit_s: float = LIMIT_S
    results: list[TrialResult] = field(default_factory=list)
    over: threading.Event = field(default_factory=threading.Event)

    def search(self) -> dict[str, CheckFinding]:
        rounds: Rounds = ()
        places: dict[str, TrialPlace] = {}
        with ThreadPoolExecutor(len(self.names) + 1) as pool:
            watch = pool.submit(self.signals)
            try:
                while not isinstance(step := present(tuple(self.names), rounds), Diagnosis):
                    asked = {node: part for trial in step for node, part in parts(trial, places, self.limit_s).items()}
                    reports = dict(zip(asked, pool.map(self.plays, asked, asked.values()), strict=True))
                    places = moved(places, dict.fromkeys(reports, "127.0.0.1"), reports)
                    rounds = (*rounds, tuple(result_of(trial, reports) for trial in step))
            finally:
                self.over.set()
            watch.result()
        self.results = [one for trials in rounds for one in trials]
        return findings_of(step, rounds)

    def plays(self, node: str, part: Part) -> Report:
        command = COMMAND
        if node in self.faults:
            program = self.folder / f"{node}.py"
            program.write_text(PROGRAM.format(fault=self.faults[node]))
            command = (sys.executable, "-P", str(program))
        threads = {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
        return take_part(part, {**os.environ, **threads}, command=command)

    def signals(self) -> None:
        """Those that tell where they are get the signal: from outside, as if their node had died or hung."""
        while self.number and not self.over.wait(0.05):
            for file in self.folder.glob("*.py.*"):
                file.unlink()
                os.kill(int(file.suffix[1:]), self.number)

    def outcomes(self, node: str) -> set[str]:
        return {one.outcome for one in self.results if node in one.nodes and len(one.nodes) > 1}


@pytest.fixture(autouse=True)
def _leaves_nothing_behind() -> Iterator[None]:
    before = {*psutil.Process().children(recursive=True)}
    yield
    assert {*psutil.Process().children(recursive=True)} <= before


def test_all_reduces_among_healthy_nodes_pass_and_their_bandwidth_is_told(tmp_path: Path) -> None:
    nodes = Nodes(tmp_path, ("n0", "n1", "n2"))
    told = nodes.search()
    assert {node: one.verdict for node, one in told.items()} == dict.fromkeys(nodes.names, "ok")
    assert {len(one.nodes) for one in nodes.results} == {1, 2, 3}
    assert all(one.bandwidth for one in nodes.results if len(one.nodes) > 1)


def test_a_node_with_wrong_sums_is_named(tmp_path: Path) -> None:
    nodes = Nodes(tmp_path, ("n0", "n1", "n2", "n3"), {"n1": LIES})
    told = nodes.search()
    assert {node for node, one in told.items() if one.verdict == "fail"} == {"n1"}
    assert told["n1"].summary.startswith("failed with n0 and n3, which pass with others")
    assert "wrong sums" in told["n1"].summary


def test_a_node_whose_process_is_killed_is_named(tmp_path: Path) -> None:
    nodes = Nodes(tmp_path, ("n0", "n1", "n2", "n3"), {"n2": TELLS}, signal.SIGKILL)
    told = nodes.search()
    assert {node for node, one in told.items() if one.verdict == "fail"} == {"n2"}
    assert told["n2"].summary.endswith("its process ended by SIGKILL")
    assert nodes.outcomes("n2") == {"failed"}


def test_a_node_that_stands_still_is_named_though_its_partners_wait_as_well(tmp_path: Path) -> None:
    nodes = Nodes(tmp_path, ("n0", "n1", "n2", "n3"), {"n3": TELLS}, signal.SIGSTOP, limit_s=20)
    told = nodes.search()
    assert {node for node, one in told.items() if one.verdict == "fail"} == {"n3"}
    assert nodes.outcomes("n3") == {"timed_out"}


def test_of_two_nodes_one_of_which_stands_still_neither_is_blamed(tmp_path: Path) -> None:
    told = Nodes(tmp_path, ("n0", "n1"), {"n1": TELLS}, signal.SIGSTOP, limit_s=15).search()
    assert {node: one.verdict for node, one in told.items()} == {"n0": "unknown", "n1": "unknown"}


def test_a_slow_node_is_no_broken_one(tmp_path: Path) -> None:
    told = Nodes(tmp_path, [f"n{number}" for number in range(8)], {"n1": DAWDLES}, limit_s=60).search()
    assert not [node for node, one in told.items() if one.verdict == "fail"]
    assert told["n1"].summary.startswith("slow with ")


# ---------------------------------------------------------------- one part


def plays(part: Part, command: Sequence[str] = COMMAND, ended: threading.Event | None = None) -> Report:
    return take_part(part, {**os.environ, "OMP_NUM_THREADS": "1"}, ended, command)


def test_a_burn_in_computes_the_same_bits_all_the_time_and_tells_how_fast_memory_is() -> None:
    report = plays(Part(burn_s=1.0))
    finding = burn.found(report)
    assert (report.outcome, finding.verdict) == ("passed", "ok")
    assert report.copied
    assert finding.summary == f"the same products all the time, memory is copied at {report.copied / 1e9:.1f} GB/s"


def test_a_device_whose_products_differ_fails(tmp_path: Path) -> None:
    program = tmp_path / "flips.py"
    program.write_text(
        "import runpy, torch\n"
        "real, calls = torch.matmul, []\n"
        "def matmul(a, b, out):\n"
        "    real(a, b, out=out)\n"
        "    calls.append(1)\n"
        "    out[5, 5] += len(calls) == 2\n"  # once: a bit that flips
        "torch.matmul = matmul\n"
        "runpy.run_module('launcher.health.collective', run_name='__main__')\n"
    )
    finding = burn.found(plays(Part(burn_s=0.5), (sys.executable, "-P", str(program))))
    assert (finding.verdict, finding.remedy) == ("fail", "drain")
    assert finding.summary == "1 products of the same matrices had other bits"


def test_a_program_that_cannot_begin_says_nothing_of_the_node() -> None:
    report = plays(Part(), (sys.executable, "-c", "raise ImportError('no torch here')"))
    assert (report.outcome, report.said) == ("not_started", "ImportError: no torch here")
    assert burn.found(report).verdict == "unknown"
    assert plays(Part(), ("/nonexistent",)).outcome == "not_started"


def test_a_port_that_is_taken_is_nobodys_fault() -> None:
    import socket

    with socket.socket() as other:
        other.bind(("", 0))
        other.listen()
        report = plays(Part(0, 2, "127.0.0.1", other.getsockname()[1]))
    assert (report.outcome, report.said) == ("not_started", "the port was in use")


def test_it_ends_at_once_when_ranks_need_the_node() -> None:
    ended = threading.Event()
    threading.Timer(0.5, ended.set).start()
    began = time.monotonic()
    plays(Part(burn_s=60.0, limit_s=60.0), ended=ended)
    assert time.monotonic() - began < 10
