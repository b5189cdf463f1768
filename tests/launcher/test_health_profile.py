"""A contract between real GPU drivers and the simulated one: what is recorded of either, the simulated one repeats."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from simulated_driver import HEALTHY, built, written

from launcher.health.checks import by_name
from launcher.health.context import Context
from launcher.health.here import profile
from launcher.health.runner import Examination

sys.path.insert(0, str(Path(__file__).parents[1]))

from test_cli import call

PROFILES = {
    "healthy": {},
    "hot": {"1.temperature": 92, "1.field.82": 99, "1.reasons": "0x41"},
    "lost": {"1.handle": "!15"},
    "ecc": {"0.ecc": 3, "0.field.230": 1, "0.corrected": 70000},
    "remapped": {"0.rows": "4 2 1 0", "1.rows": "900 12 0 1"},
    "old": {"0.margin": "!13", "0.fabric": "!13", "0.field.230": "!13", "1.ecc": "!999"},
    "in use": {"0.processes": "12 13 14 15 16 17 18", "0.memory.used": 70 << 30, "0.reasons": "0x4", "0.mig": 1},
}
# What a recorder must find again as it was: all that a GPU that has been lost does not take with it.
IS_LOST = {"lost": "1."}


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built(tmp_path_factory.mktemp("driver"))


@pytest.fixture
def simulate(library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """From now on the driver is a simulated one that says this."""

    def use(text: str) -> None:
        (tmp_path / "says").write_text(text)
        monkeypatch.setenv("FAKE_NVML", str(tmp_path / "says"))
        monkeypatch.setenv("LD_LIBRARY_PATH", str(library))

    return use


def found(tmp_path: Path) -> dict[tuple[str, str], str]:
    """What the checks make of it: of each GPU and code the verdict."""
    device = tmp_path / "root/sys/bus/pci/devices/0000:00:00.0"
    device.mkdir(parents=True, exist_ok=True)
    (device / "vendor").write_text("0x10de\n")
    (device / "class").write_text("0x030200\n")
    context = Context(root=tmp_path / "root", environment={})
    return {(one.code, one.subject): one.verdict for one in Examination(context).findings([by_name("gpus")])}


@pytest.mark.parametrize("name", PROFILES)
def test_a_simulated_driver_that_is_recorded_gives_its_profile_back(name: str, simulate: Callable[[str], None]) -> None:
    told = {**HEALTHY, **PROFILES[name]}
    if prefix := IS_LOST.get(name):
        told = {key: value for key, value in told.items() if not key.startswith(prefix) or key.endswith(".handle")}
    simulate(written(told))
    assert sorted(profile().splitlines()) == sorted(written(told).splitlines())


@pytest.mark.parametrize("machine", ["simulated", "real"])
def test_checks_say_of_a_recorded_driver_what_they_say_of_the_driver(
    machine: str, simulate: Callable[[str], None], tmp_path: Path
) -> None:
    if machine == "real" and not Path("/dev/nvidiactl").exists():
        pytest.skip("NO REAL GPU HERE: what is recorded of one, and of it in simulation, was not compared")
    if machine == "simulated":
        simulate(written({**HEALTHY, **PROFILES["hot"]}))
    said, text = found(tmp_path), profile()
    simulate(text)
    assert found(tmp_path) == said
    assert {code for code, _ in said} >= {"gpu-count", "gpu-versions", "gpu-temperature", "gpu-clocks"}


def test_a_driver_that_is_not_loaded_is_recorded_as_that(simulate: Callable[[str], None]) -> None:
    simulate("init=!9\n")
    assert profile() == "init=!9\n"


def test_the_command_writes_a_file_and_says_where_there_is_no_driver(
    simulate: Callable[[str], None], tmp_path: Path
) -> None:
    simulate(written(HEALTHY))
    variables = {name: os.environ[name] for name in ("FAKE_NVML", "LD_LIBRARY_PATH")}
    said = call("hosts", "record", "gpu.profile", cwd=tmp_path, **variables)
    assert (said.code, said.err) == (0, f"gpu.profile: {len(HEALTHY)} readings\n")
    assert sorted((tmp_path / "gpu.profile").read_text().splitlines()) == sorted(written(HEALTHY).splitlines())
    refused = call("hosts", "record", "none/gpu.profile", cwd=tmp_path, **variables)
    assert refused.code == 1
    assert refused.err.startswith("error: the profile cannot be written: no such file or directory")
    if not Path("/dev/nvidiactl").exists():
        refused = call("hosts", "record", cwd=tmp_path, LD_LIBRARY_PATH="/nowhere")
        assert refused.code == 1
        assert refused.err.startswith("error: nothing was recorded: there is no NVIDIA driver here")
