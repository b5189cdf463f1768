"""Checks of GPUs: nvidia-ml-py itself over a simulated driver, a small library built here from C."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import psutil
import pynvml
import pytest
from simulated_driver import HEALTHY, ONE, SONAME, built

from launcher.health import runner
from launcher.health.checks import by_name
from launcher.health.context import Context
from launcher.health.finding import Finding
from launcher.health.runner import Examination

GPUS = [
    "gpu-recovery", "gpu-ecc", "gpu-rows", "gpu-temperature", "gpu-clocks", "gpu-links", "gpu-memory-temperature",
    "gpu-power", "gpu-ecc-corrected", "gpu-pcie", "gpu-replays", "gpu-link-errors", "gpu-fabric",
]  # fmt: skip
NODE = {("gpu-count", ""), ("gpu-versions", "")}


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the simulated driver of today."""
    return built(tmp_path_factory.mktemp("driver"))


@pytest.fixture(scope="module")
def old_driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built(tmp_path_factory.mktemp("old"), "-DOLD_DRIVER")


Children = Callable[[], list[psutil.Process]]
Examine = Callable[..., dict[tuple[str, str], Finding]]


@pytest.fixture
def examine(driver: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Examine:
    """What is found on a machine with two GPUs on its bus, by code and subject; `None` takes a value away."""

    def run(
        changes: dict[str, object] | None = None, library: Path | None = driver, on_bus: int = 2, limit_s: float = 20,
        given: str = "", check: str = "gpus", before: dict[str, int | str] | None = None,
    ) -> dict[tuple[str, str], Finding]:  # fmt: skip
        told = {key: value for key, value in {**HEALTHY, **(changes or {})}.items() if value is not None}
        (tmp_path / "says").write_text("".join(f"{key}={value}\n" for key, value in told.items()))
        for number in range(on_bus):
            device = tmp_path / f"root/sys/bus/pci/devices/0000:{number:02x}:00.0"
            device.mkdir(parents=True, exist_ok=True)
            (device / "vendor").write_text("0x10de\n")
            (device / "class").write_text("0x030200\n")
        monkeypatch.setenv("FAKE_NVML", str(tmp_path / "says"))
        monkeypatch.setenv("LD_LIBRARY_PATH", str(library or tmp_path))
        monkeypatch.setenv("SLURM_GPUS_ON_NODE", given)
        monkeypatch.setattr(runner, "AGAIN_S", 0.0)
        asked = replace(by_name(check), deadline_s=limit_s)
        examination = Examination(Context(root=tmp_path / "root", before=before or {}))
        found = {(one.code, one.subject): one for one in examination.findings([asked])}
        if before is not None:
            before |= examination.after
        return found

    return run


def test_the_simulated_driver_has_the_shapes_that_nvidia_ml_py_declares(driver: Path) -> None:
    library = ctypes.CDLL(str(driver / SONAME))
    library.fake_size_of_field.restype = ctypes.c_ulong
    assert library.fake_size_of_field() == ctypes.sizeof(pynvml.c_nvmlFieldValue_t)
    shapes = {
        "fabric": "c_nvmlGpuFabricInfo_v2_t", "memory": "c_nvmlMemory_v2_t", "process": "c_nvmlProcessInfo_v3_t",
        "pci": "nvmlPciInfo_t", "event": "c_nvmlEventData_t",
    }  # fmt: skip
    for name, shape in shapes.items():
        size = getattr(library, f"fake_size_of_{name}")
        size.restype = ctypes.c_ulong
        assert size() == ctypes.sizeof(getattr(pynvml, shape))
    offsets = [getattr(pynvml.c_nvmlFieldValue_t, name).offset for name in ("nvmlReturn", "value")]
    assert offsets == [28, 32]
    assert ctypes.sizeof(pynvml.c_nvmlTemperature_v1_t) == 12


def test_healthy_gpus_are_well(examine: Examine) -> None:
    found = examine()
    assert found.keys() == NODE | {(code, f"GPU-{gpu}") for code in GPUS for gpu in range(2)}
    assert {one.verdict for one in found.values()} == {"ok"}


@pytest.mark.parametrize(
    ("changes", "code", "verdict", "summary", "remedy"),
    [
        ({"1.temperature": 87}, "gpu-temperature", "warn", "87 C", "none"),
        ({"1.reasons": "0x41"}, "gpu-clocks", "warn", "thermal slowdown by the hardware", "none"),
        ({"1.reasons": "0x85"}, "gpu-clocks", "warn", "power brake", "none"),
        ({"1.ecc": 3}, "gpu-ecc", "fail", "3 memory errors not corrected since boot", "reset_gpu"),
        ({"1.rows": "1 2 1 0"}, "gpu-rows", "warn", "3 rows of memory replaced, rows wait for a reset", "reset_gpu"),
        ({"1.rows": "9 9 1 1"}, "gpu-rows", "fail", "18 rows of memory replaced, no spare row is left", "service"),
        ({"1.field.230": 2}, "gpu-recovery", "fail", "the driver asks for a reboot of the node", "reboot_node"),
        ({"1.field.230": 99}, "gpu-recovery", "fail", "the driver asks for action 99, which is not known", "drain"),
        ({"1.link.1": 0}, "gpu-links", "fail", "NVLink 1 is down", "reset_gpu"),
        ({"1.ecc": "!999"}, "gpu-ecc", "unknown", "cannot be read: Unknown Error", "none"),
        ({"1.field.82": 95}, "gpu-memory-temperature", "warn", "memory at 95 C", "none"),
        ({"1.power": "!999"}, "gpu-power", "warn", "what it draws cannot be read: Unknown Error", "none"),
        ({"1.pcie.width": 8}, "gpu-pcie", "fail", "8 of 16 lanes", "reboot_node"),
        ({"1.reasons": 0}, "gpu-pcie", "warn", "16 of 16 lanes, at generation 1 of 5 while busy", "none"),
        ({"1.fabric": "2 0 0 0"}, "gpu-fabric", "fail", "joining the fabric of NVSwitches: in progress", "reset_gpu"),
        (
            {"1.fabric": "3 999 0 0"},
            "gpu-fabric",
            "fail",
            "joining the fabric of NVSwitches: completed, with error 999 (Unknown Error)",
            "reset_gpu",
        ),
        ({"1.mig": 1}, "gpu-mig", "warn", "it is divided (MIG), and ranks want whole GPUs", "none"),
        ({"1.ecc.mode": 0}, "gpu-ecc-mode", "warn", "errors of its memory are not looked for (ECC is off)", "none"),
        (
            {"1.persistence": 0},
            "gpu-persistence",
            "warn",
            "persistence mode is off: each first use takes seconds",
            "none",
        ),
        ({"1.threshold.1": None}, "gpu-temperature", "unknown", "41 C, and its limit is not told", "none"),
    ],
)
def test_what_is_wrong_with_one_gpu_is_told_of_it_and_of_no_other(
    examine: Examine, changes: dict[str, object], code: str, verdict: str, summary: str, remedy: str
) -> None:
    found = examine(changes)
    bad = found[code, "GPU-1"]
    assert (bad.verdict, bad.summary, bad.remedy) == (verdict, summary, remedy)
    assert {one.verdict for key, one in found.items() if key != (code, "GPU-1")} == {"ok"}


def test_a_divided_gpu_is_no_gpu_for_a_job_that_was_given_it(examine: Examine) -> None:
    assert examine({"1.mig": 1}, given="2")["gpu-mig", "GPU-1"].verdict == "fail"


def test_of_newer_gpus_the_limit_is_told_by_its_distance(examine: Examine) -> None:
    found = examine({"1.threshold.1": None, "1.margin": 46})["gpu-temperature", "GPU-1"]
    assert (found.verdict, found.limit) == ("ok", 87)
    assert examine({"1.threshold.1": None, "1.margin": 0})["gpu-temperature", "GPU-1"].verdict == "unknown"


def test_gpus_of_one_node_that_differ_are_told(examine: Examine) -> None:
    found = examine({"1.vbios": "96.00.01"})["gpu-versions", ""]
    assert (found.verdict, found.summary) == (
        "warn", "driver 570.86.15, and VBIOS 96.00.01, 96.00.74 on one machine",
    )  # fmt: skip
    three = {"count": 3, "2.uuid": "GPU-2"} | {f"2.{key}": value for key, value in ONE.items()}
    found = examine({**three, "2.power.limit": 500000}, on_bus=3)
    assert found["gpu-power-limit", "gpu2"].summary == "it may draw 500 W, and others here 700 W"


def test_what_counters_say_is_how_much_they_have_grown(examine: Examine) -> None:
    before: dict[str, int | str] = {}
    examine(before=before)
    hour = {key: int(value) - 3600 if key.endswith("/at") else value for key, value in before.items()}
    same = examine(before={**hour})
    assert {one.verdict for one in same.values()} == {"ok"}
    more = {"1.pcie.replays": 3 + 60 * 32, "1.corrected": 7 + 3600 * 11, "1.field.38": 3600 * 200}
    found = examine(more, before={**hour})
    bad = {key for key, one in found.items() if one.verdict != "ok"}
    assert bad == {(code, "GPU-1") for code in ("gpu-replays", "gpu-ecc-corrected", "gpu-link-errors")}
    assert found["gpu-replays", "GPU-1"].evidence["a_minute"] == pytest.approx(32, abs=0.5)


def test_nvlinks_whose_errors_grow_again_and_again_are_bad_and_a_burst_is_not(examine: Examine) -> None:
    before: dict[str, int | str] = {}
    examine(before=before)
    verdicts = []
    for number in range(1, 18):
        before = {key: int(value) - 60 if key.endswith("links/at") else value for key, value in before.items()}
        verdicts.append(examine({"1.field.52": 2 + number}, before=before)["gpu-link-errors", "GPU-1"].verdict)
    assert verdicts == ["ok"] * 15 + ["warn"] * 2


def test_who_is_on_a_gpu_is_told_before_a_start(examine: Examine, tmp_path: Path) -> None:
    found = examine(check="gpu-users")
    assert {one.verdict for one in found.values()} == {"ok"}
    (tmp_path / "root" / "proc" / "77").mkdir(parents=True)
    is_root = os.geteuid() == 0
    if is_root:
        os.chown(tmp_path / "root" / "proc" / "77", 65534, 65534)
    found = examine({"1.processes": "77 78"}, check="gpu-users", given="2")["gpu-processes", "GPU-1"]
    assert (found.verdict, found.summary) == (
        ("fail", "2 processes, 1 of somebody else") if is_root else ("ok", "2 processes")
    )
    found = examine({"1.processes": "77"}, check="gpu-users", given="1")["gpu-processes", "GPU-1"]
    assert found.verdict == "ok", "of two that are seen one is ours, and nobody knows which"
    found = examine({"1.memory.used": 3 << 30}, check="gpu-users")["gpu-memory", "GPU-1"]
    assert (found.verdict, found.summary) == ("warn", "3.0 GiB are in use, and no process tells of them")


def test_a_limit_is_the_device_s_own(examine: Examine) -> None:
    hot = examine({"1.temperature": 87})["gpu-temperature", "GPU-1"]
    assert (hot.limit, hot.limit_source, hot.evidence) == (87, "device", {"celsius": 87})
    assert examine({"1.temperature": 87, "1.threshold.1": 90})["gpu-temperature", "GPU-1"].verdict == "ok"


def test_what_a_gpu_does_not_support_is_not_told_and_never_counts_as_well(examine: Examine) -> None:
    found = examine(dict.fromkeys([key for key in HEALTHY if key.startswith("1.") and key != "1.uuid"]))
    assert not [code for code, subject in found if subject == "GPU-1"]


def test_a_field_that_is_not_supported_is_not_read_as_nothing_asked_for(examine: Examine) -> None:
    assert ("gpu-recovery", "GPU-1") not in examine({"1.field.230": "!3"})
    assert examine({"1.field.230": "!999"})["gpu-recovery", "GPU-1"].verdict == "unknown"


def test_where_no_link_is_up_nothing_is_said_of_links(examine: Examine) -> None:
    found = examine({f"{gpu}.link.{link}": 0 for gpu in range(2) for link in range(2)})
    assert "gpu-links" not in {code for code, _ in found}


@pytest.mark.parametrize("changes", [{"1.handle": "!15"}, {"1.ecc": "!15"}])
def test_a_gpu_that_has_fallen_off_the_bus_is_a_fault(examine: Examine, changes: dict[str, object]) -> None:
    [lost] = [one for (code, _), one in examine(changes).items() if code == "gpu-lost"]
    assert (lost.verdict, lost.remedy, lost.subject in ("gpu1", "GPU-1")) == ("fail", "reboot_node", True)


def test_fewer_gpus_than_the_bus_or_slurm_has_are_a_fault(examine: Examine) -> None:
    few = examine({"count": 1})["gpu-count", ""]
    assert (few.verdict, few.summary, few.limit_source) == ("fail", "1 GPUs of 2", "kernel")
    few = examine(given="4")["gpu-count", ""]
    assert (few.verdict, few.summary, few.limit_source) == ("fail", "2 GPUs of 4", "config")


def test_a_job_is_judged_by_the_gpus_that_it_was_given(examine: Examine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    assert examine({"count": 1}, given="1")["gpu-count", ""].verdict == "ok"  # it may see no others
    assert examine({"count": 1})["gpu-count", ""].verdict == "warn"
    assert examine({"init": "!9"})["gpu-driver", ""].verdict == "warn"  # it wants none


def test_a_driver_that_is_not_loaded_or_not_there_is_a_fault_where_there_are_gpus(examine: Examine) -> None:
    found = examine({"init": "!9"})["gpu-driver", ""]
    assert (found.verdict, found.summary) == ("fail", "the driver cannot be asked: Driver Not Loaded")
    if not Path(f"/usr/lib/x86_64-linux-gnu/{SONAME}").exists():
        assert examine(library=None)["gpu-driver", ""].verdict == "fail"


def test_without_gpus_nothing_is_asked(examine: Examine) -> None:
    [found] = examine({"init": "block"}, on_bus=0).values()
    assert (found.verdict, found.summary) == ("skipped", "there is no NVIDIA GPU, and none is expected")


@pytest.mark.parametrize("key", ["init", "count", "1.ecc"])
def test_a_driver_that_never_answers_is_a_fault_and_its_process_is_gone(
    examine: Examine, children: Children, key: str
) -> None:
    found = examine({key: "block"}, limit_s=1.0)["gpus", ""]
    assert (found.verdict, found.summary, found.remedy) == ("fail", "no answer within 1 s", "reboot_node")
    assert children() == []


def test_a_driver_of_years_ago_is_asked_as_it_knows(examine: Examine, old_driver: Path) -> None:
    found = examine(library=old_driver)
    assert found["gpu-temperature", "GPU-1"].summary == "41 C"
    assert ("gpu-clocks", "GPU-1") not in found
