"""Checks of GPUs: nvidia-ml-py itself over a simulated driver, a small library built here from C."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import psutil
import pynvml
import pytest

from launcher.health.checks import by_name
from launcher.health.context import Context
from launcher.health.finding import Finding
from launcher.health.runner import Examination

SOURCE = Path(__file__).parents[1] / "data" / "nvml" / "fake_nvml.c"
SONAME = "libnvidia-ml.so.1"
ONE = {
    "temperature": 41, "threshold.1": 87, "ecc": 0, "rows": "0 0 0 0", "reasons": "0x1", "field.230": 0,
    "link.0": 1, "link.1": 1,
}  # fmt: skip
HEALTHY = {"count": 2} | {
    f"{gpu}.{key}": value for gpu in range(2) for key, value in {"uuid": f"GPU-{gpu}", **ONE}.items()
}
GPUS = ["gpu-recovery", "gpu-ecc", "gpu-rows", "gpu-temperature", "gpu-clocks", "gpu-links"]


def built(folder: Path, *flags: str) -> Path:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        why = "GPU CHECKS NOT TESTED: no C compiler to build the simulated driver with"
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(why)
    folder.mkdir(exist_ok=True)
    command = [compiler, "-Wall", "-Werror", "-shared", "-fPIC", f"-Wl,-soname,{SONAME}", *flags]
    subprocess.run([*command, "-o", str(folder / SONAME), str(SOURCE)], check=True)
    return folder


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
        given: str = "",
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
        check = replace(by_name("gpus"), deadline_s=limit_s)
        examination = Examination(Context(root=tmp_path / "root"))
        return {(one.code, one.subject): one for one in examination.findings([check])}

    return run


def test_the_simulated_driver_has_the_shapes_that_nvidia_ml_py_declares(driver: Path) -> None:
    library = ctypes.CDLL(str(driver / SONAME))
    library.fake_size_of_field.restype = ctypes.c_ulong
    assert library.fake_size_of_field() == ctypes.sizeof(pynvml.c_nvmlFieldValue_t)
    offsets = [getattr(pynvml.c_nvmlFieldValue_t, name).offset for name in ("nvmlReturn", "value")]
    assert offsets == [28, 32]
    assert ctypes.sizeof(pynvml.c_nvmlTemperature_v1_t) == 12


def test_healthy_gpus_are_well(examine: Examine) -> None:
    found = examine()
    assert found.keys() == {("gpu-count", "")} | {(code, f"GPU-{gpu}") for code in GPUS for gpu in range(2)}
    assert {one.verdict for one in found.values()} == {"ok"}


@pytest.mark.parametrize(
    ("changes", "code", "verdict", "summary", "remedy"),
    [
        ({"1.temperature": 87}, "gpu-temperature", "warn", "87 C", "none"),
        ({"1.reasons": "0x40"}, "gpu-clocks", "warn", "thermal slowdown by the hardware", "none"),
        ({"1.reasons": "0x85"}, "gpu-clocks", "warn", "power brake", "none"),
        ({"1.ecc": 3}, "gpu-ecc", "fail", "3 memory errors not corrected since boot", "reset_gpu"),
        ({"1.rows": "1 2 1 0"}, "gpu-rows", "warn", "3 rows of memory replaced, rows wait for a reset", "reset_gpu"),
        ({"1.rows": "9 9 1 1"}, "gpu-rows", "fail", "18 rows of memory replaced, no spare row is left", "service"),
        ({"1.field.230": 2}, "gpu-recovery", "fail", "the driver asks for a reboot of the node", "reboot_node"),
        ({"1.field.230": 99}, "gpu-recovery", "fail", "the driver asks for action 99, which is not known", "drain"),
        ({"1.link.1": 0}, "gpu-links", "fail", "NVLink 1 is down", "reset_gpu"),
        ({"1.ecc": "!999"}, "gpu-ecc", "unknown", "cannot be read: Unknown Error", "none"),
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
