"""A GPU driver for tests: a small library built here from C, below nvidia-ml-py itself. What it says is a profile."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "data" / "nvml" / "fake_nvml.c"
SONAME = "libnvidia-ml.so.1"
ONE = {
    "temperature": 41, "threshold.1": 87, "ecc": 0, "rows": "0 0 0 0", "reasons": "0x1", "field.230": 0,
    "link.0": 1, "link.1": 1, "corrected": 7, "vbios": "96.00.74", "power": 71000, "power.limit": 700000,
    "pcie.width": 16, "pcie.width.max": 16, "pcie.generation": 1, "pcie.generation.max": 5, "pcie.replays": 3,
    "field.82": 44, "threshold.2": 95, "field.38": 0, "field.52": 2, "field.59": 0, "fabric": "3 0 0 0",
    "mig": 0, "ecc.mode": 1, "persistence": 1, "processes": "", "memory.used": 0,
}  # fmt: skip
HEALTHY = {"driver": "570.86.15", "cuda": 12080, "count": 2} | {
    f"{gpu}.{key}": value for gpu in range(2) for key, value in {"uuid": f"GPU-{gpu}", **ONE}.items()
}


def built(folder: Path, *flags: str) -> Path:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        why = "GPU CHECKS NOT TESTED: no C compiler to build the simulated driver with"
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(why)
    folder.mkdir(exist_ok=True)
    command = [compiler, "-Wall", "-Werror", "-shared", "-fPIC", f"-Wl,-soname,{SONAME}", *flags]
    subprocess.run([*command, "-o", str(folder / SONAME), str(SOURCE)], check=True)
    return folder


def written(profile: dict[str, object]) -> str:
    """A profile as the library reads it."""
    return "".join(f"{key}={value}\n" for key, value in profile.items())
