"""What checks say of trees of files as the kernel shows them: each of them fails where it should, and only there."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from launcher.health import checks, host, network, storage
from launcher.health.context import Context
from launcher.health.finding import Finding, worst

IB = "sys/class/infiniband/mlx5_0/ports/1"
HEALTHY = {
    "proc/meminfo": "MemTotal:       2000000 kB\nMemAvailable:   1900000 kB\nHardwareCorrupted:     0 kB\n",
    "proc/cpuinfo": "processor\t: 0\n\nprocessor\t: 1\n",
    "proc/7/stat": "7 (a) b) S 1 7 7",
    "proc/uptime": "1000.50 900.00\n",
    "sys/class/net/ib0/operstate": "up\n",
    "sys/devices/system/edac/mc/mc0/ue_count": "0\n",
    "sys/devices/system/edac/mc/mc0/ce_count": "12\n",
    f"{IB}/state": "4: ACTIVE\n",
    f"{IB}/rate": "400 Gb/sec (4X NDR)\n",
    f"{IB}/counters/link_downed": "3\n",
    f"{IB}/counters/symbol_error": "0\n",
}


@pytest.fixture
def node(tmp_path: Path) -> Any:
    """A context over a healthy machine with some files changed (None: taken away), after the check before."""

    def made(changes: dict[str, str | None] | None = None, **about: Any) -> Context:
        for path, text in {**HEALTHY, **(changes or {})}.items():
            file = tmp_path / "root" / path
            file.parent.mkdir(parents=True, exist_ok=True)
            if text is None:
                file.unlink(missing_ok=True)
            else:
                file.write_text(text)
        return Context(**{"root": tmp_path / "root", "environment": {}, **about})

    return made


def one(findings: Any, code: str) -> Finding:
    [found] = [finding for finding in findings if finding.code == code]
    return found


@pytest.mark.parametrize(
    ("check", "code"),
    [
        (host.memory, "memory-available"),
        (host.memory_errors, "memory-errors"),
        (host.processors, "cpu-count"),
        (host.processes, "zombies"),
        (network.infiniband, "infiniband-port"),
    ],
)
def test_a_healthy_machine_is_well(node: Any, check: Any, code: str) -> None:
    assert one(check(node()), code).verdict == "ok"


@pytest.mark.parametrize(
    ("check", "changes", "code", "verdict", "summary"),
    [
        (
            host.memory, {"proc/meminfo": "MemTotal: 2000000 kB\nMemAvailable: 50000 kB\n"},
            "memory-available", "warn", "2% of 2 GiB are available",
        ),
        (
            host.memory, {"proc/meminfo": HEALTHY["proc/meminfo"].replace(" 0 kB", " 4 kB")},
            "memory-corrupted", "warn", "the kernel has taken 4 KiB of broken memory out of use",
        ),
        (
            host.memory_errors, {"sys/devices/system/edac/mc/mc0/ue_count": "1\n"},
            "memory-errors", "fail", "1 errors not corrected since boot, 0 corrected since the last check",
        ),
        (
            host.processes, {f"proc/{pid}/stat": f"{pid} (python) Z 1" for pid in range(100, 1100)},
            "zombies", "warn", "1000 zombies, 0 processes wait for a device",
        ),
        (
            network.infiniband, {f"{IB}/state": "1: DOWN"},
            "infiniband-port", "skipped", "1: DOWN, and never seen active: perhaps nothing is plugged in",
        ),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told(
    node: Any, check: Any, changes: dict[str, str], code: str, verdict: str, summary: str
) -> None:
    found = one(check(node(changes)), code)
    assert (found.verdict, found.summary) == (verdict, summary)


@pytest.mark.parametrize(("given", "verdict"), [("2", "ok"), ("3", "warn"), ("", "ok"), ("many", "ok")])
def test_fewer_processors_than_slurm_gives_are_a_fault(node: Any, given: str, verdict: str) -> None:
    [found] = host.processors(node(environment={"SLURM_CPUS_ON_NODE": given}))
    assert found.verdict == verdict


@pytest.mark.parametrize(
    ("name", "state", "verdict"),
    [
        ("ib0", "up", "ok"),
        ("ib0", "unknown", "ok"),
        ("ib0", "down", "fail"),
        ("eth7", "up", "fail"),
        ("", "up", "skipped"),
    ],
)
def test_the_interface_that_was_named_is_up(node: Any, name: str, state: str, verdict: str) -> None:
    [found] = network.interface(node({"sys/class/net/ib0/operstate": state}, interface=name))
    assert found.verdict == verdict


def test_without_infiniband_or_error_counts_nothing_is_wrong(tmp_path: Path) -> None:
    bare = Context(root=tmp_path)
    assert [found.verdict for found in (*network.infiniband(bare), *host.memory_errors(bare))] == ["skipped", "skipped"]


# ---------------------------------------------------------------- compared with before


def test_a_port_that_was_active_and_is_not_is_a_fault_until_it_is_again(node: Any) -> None:
    first = node()
    assert [found.verdict for found in network.infiniband(first)] == ["ok", "ok"]
    for _ in range(2):
        second = node({f"{IB}/state": "1: DOWN"}, before=first.after)
        found = one(network.infiniband(second), "infiniband-port")
        assert (found.verdict, found.summary) == ("fail", "1: DOWN, and was active at 400 Gb/sec (4X NDR)")
        assert (found.subject, found.remedy, found.limit_source) == ("mlx5_0:1", "drain", "baseline")
        first = second
    third = node({f"{IB}/rate": "200 Gb/sec"}, before=first.after)
    assert one(network.infiniband(third), "infiniband-port").verdict == "warn"


def test_counters_tell_by_how_much_they_have_grown_and_a_reset_is_no_growth(node: Any) -> None:
    first = node()
    [*network.infiniband(first)]
    second = node({f"{IB}/counters/link_downed": "5"}, before=first.after)
    found = one(network.infiniband(second), "infiniband-errors")
    assert (found.verdict, found.evidence) == ("warn", {"link_downed": 2})
    third = node({f"{IB}/counters/link_downed": "1"}, before=second.after)
    assert [found.code for found in network.infiniband(third)] == ["infiniband-count", "infiniband-port"]


def test_memory_errors_that_were_corrected_count_when_they_come_fast(node: Any) -> None:
    first = node()
    [*host.memory_errors(first)]
    for count, verdict in (("112", "ok"), ("113", "warn")):
        at = node({"sys/devices/system/edac/mc/mc0/ce_count": count}, before=first.after)
        assert one(host.memory_errors(at), "memory-errors").verdict == verdict


# ---------------------------------------------------------------- folders


def test_a_folder_must_be_there_have_room_and_take_what_is_written(tmp_path: Path) -> None:
    here = Context(folders=(str(tmp_path),))
    assert [found.verdict for found in (*storage.space(here), *storage.writing(here))] == ["ok", "ok"]
    assert [*tmp_path.iterdir()] == []

    gone = Context(folders=(str(tmp_path / "gone"),))
    assert [found.summary for found in storage.space(gone)] == ["no such file or directory"]
    assert [found.summary for found in storage.writing(gone)] == ["cannot be written: no such file or directory"]

    [full] = storage.space(Context(folders=(str(tmp_path),), bytes_needed=1 << 60))
    assert (full.verdict, full.limit, full.limit_source) == ("fail", 1 << 60, "config")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written_is_a_fault(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    assert [found.verdict for found in storage.writing(Context(folders=(str(tmp_path),)))] == ["fail"]


# ---------------------------------------------------------------- all together


def test_the_worst_finding_is_the_verdict_and_none_at_all_is_not_known_to_be_well() -> None:
    def of(*verdicts: Any) -> str:
        return worst(Finding(code="x", verdict=verdict, summary="") for verdict in verdicts)

    assert of("ok", "fail", "unknown", "warn") == "fail"
    assert of("ok", "warn", "unknown") == "unknown"
    assert of("skipped", "ok") == "ok"
    assert (of(), of("skipped")) == ("unknown", "unknown")


def test_names_are_unique_and_the_standard_tier_holds_the_fast_one() -> None:
    names = [check.name for check in checks.CHECKS]
    assert len(names) == len(set(names))
    assert set(checks.of_tier("fast")) < set(checks.of_tier("standard"))


def test_a_process_that_waits_for_a_device_check_after_check_is_told(node: Any) -> None:
    def stuck(
        at: int, pid: str, before: dict[str, int | str], started: int = 5
    ) -> tuple[Finding, dict[str, int | str]]:
        about = {"proc/uptime": f"{at}.5 0", f"proc/{pid}/stat": f"{pid} (x) D {'0 ' * 18}{started} 0"}
        context = node(about, before=before)
        return one(host.waiting(context), "waiting"), context.after

    after: dict[str, int | str] = {}
    verdicts: list[str] = []
    for at in range(1000, 1361, 60):
        found, after = stuck(at, "8", after)
        verdicts.append(found.verdict)
    assert verdicts == ["ok"] * 5 + ["warn"] * 2
    assert (found.summary, found.remedy) == ("waits for a device: pid 8 for 6 min", "reboot_node")
    assert stuck(1400, "8", after, started=6)[0].verdict == "ok", "another process of the same number"
    assert stuck(9000, "8", after)[0].verdict == "ok", "nobody has looked for hours"
    _, after = stuck(1400, "8", after)
    assert one(host.waiting(node({"proc/8/stat": None}, before=after)), "waiting").verdict == "ok"
