"""What a node's ranks run on and with: recorded per attempt, since the bits of a result depend on it."""

from __future__ import annotations

import hashlib
import platform
import re
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from launcher.events import Json
from launcher.machine import boot_id, gpu_uuids
from launcher.sections import FROM_ENV, Launch

PACKAGES = ("torch", "numpy", "nvidia-nccl-cu12", "opt-launch")
# What of the ranks' variables is recorded: what tells libraries how to compute and communicate, and nothing private.
_TELLING = re.compile(
    r"(NCCL|GLOO|UCX|FI|TORCH|TORCHINDUCTOR|TORCHDYNAMO|PYTORCH|TRITON|CUDA|CUBLAS|CUDNN|OMP|MKL|KMP|OPENBLAS)_\w+"
)
_MACHINES = ("boot_id", "gpus")  # which machines they were: what they compute does not depend on it
_PRIVATE = re.compile("KEY|TOKEN|SECRET|PASS", re.IGNORECASE)


def environment(launch: Launch, environ: Mapping[str, str]) -> dict[str, Any]:
    """Processor and its abilities, Python, packages, telling variables, threads per rank of this node; which machine.

    Python and packages are ours: what ranks have behind a prefix cannot be seen from here.
    """
    about = _cpuinfo()
    return {
        "cpu": about.get("model name", platform.processor() or "unknown"),
        "cpu_flags": hashlib.sha256(about.get("flags", "").encode()).hexdigest()[:12],
        "machine": platform.machine(),
        "python": platform.python_version(),
        "prefix": list(launch.prefix),
        "packages": {name: version for name in PACKAGES if (version := _version(name))},
        "threads": launch.threads,
        "variables": telling_variables(launch, environ),
        "boot_id": boot_id(),
        "gpus": gpu_uuids(),
    }


def telling_variables(launch: Launch, environ: Mapping[str, str]) -> dict[str, str]:
    """Those that ranks are started with and that may be shown; what was taken from the submitter may not."""
    asked = {**environ, **launch.env}
    return {
        name: value
        for name, value in sorted(asked.items())
        if _TELLING.fullmatch(name) and not _PRIVATE.search(name) and launch.env.get(name) != FROM_ENV
    }


def of_attempt(by_node: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """One attempt's environment: for each key the values found on its nodes, and the nodes themselves."""
    keys = sorted({key for one in by_node.values() for key in one})
    found = {key: [one.get(key) for one in by_node.values()] for key in keys}
    distinct = {key: [v for i, v in enumerate(values) if v not in values[:i]] for key, values in found.items()}
    return {**distinct, "nodes": sorted(by_node)}


def changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Json]:
    """What two attempts have recorded differently: its dotted name, and both values, None where there is none.

    What only one of them knows is nothing that has changed. Of code with the same digest nothing else counts.
    """
    known = before.keys() & after.keys() - {"nodes", *_MACHINES}
    if _digest(before) and _digest(before) == _digest(after):
        known.discard("code")
    old, new = ({k: v for key in known for k, v in _flat(key, one[key]).items()} for one in (before, after))
    return {key: [old.get(key), new.get(key)] for key in sorted({*old, *new}) if old.get(key) != new.get(key)}


def _digest(recorded: Mapping[str, Any]) -> str:
    return (recorded.get("code") or {}).get("digest", "")


def _flat(key: str, value: Any) -> dict[str, Any]:
    """The values under a key by their dotted names; those of several nodes as a list, unless they are all the same."""
    if isinstance(value, dict):
        return {name: one for inner, held in value.items() for name, one in _flat(f"{key}.{inner}", held).items()}
    if not isinstance(value, list):
        return {key: value}
    if value and all(isinstance(one, dict) for one in value):
        inner = sorted({name for one in value for name in one})
        return {f"{key}.{name}": _one([one.get(name) for one in value]) for name in inner}
    return {key: _one(value)}


def _one(values: list[Any]) -> Any:
    distinct = [one for at, one in enumerate(values) if one not in values[:at]]
    return distinct[0] if len(distinct) == 1 else distinct


def _cpuinfo() -> dict[str, str]:
    """The first processor of /proc/cpuinfo."""
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    except OSError:
        return {}
    return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
