"""What only a comparison of hosts shows: the one that is unlike the others. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from launcher.health.finding import Finding
from launcher.hosts.records import Verdict

LEAST_HOSTS = 3  # of two that differ nobody knows which is right
LEAST_MEMORY = 0.8  # of the median of what is available


@dataclass(frozen=True)
class Reading:
    """A value that hosts of one kind share: where it stands, and what it says of a host that it is another there."""

    code: str
    key: str
    what: str
    verdict: Verdict = "warn"


READINGS = (
    Reading("gpu-count", "driver", "GPUs", "fail"),
    Reading("gpu-versions", "driver", "driver"),
    Reading("gpu-versions", "cuda", "CUDA of the driver"),
    Reading("gpu-versions", "vbios", "VBIOS"),
    Reading("infiniband-count", "ports", "InfiniBand ports", "fail"),
    Reading("cpu-count", "cpus", "CPUs"),
    Reading("burn-in", "product", "product of the same matrices"),  # of other processors other bits may be right
)


def against_peers(found: Mapping[str, Sequence[Finding]]) -> dict[str, list[Finding]]:
    """For each host what most of those that tell of a reading have otherwise than it."""
    return {host: [*_odd(host, found), *_memory(host, found)] for host in found}


def _odd(host: str, found: Mapping[str, Sequence[Finding]]) -> Iterator[Finding]:
    for reading in READINGS:
        values = {name: value for name, of in found.items() if (value := _value(of, reading)) is not None}
        if host not in values or len(values) < LEAST_HOSTS:
            continue
        usual, count = Counter(values.values()).most_common(1)[0]
        if values[host] == usual or count * 2 <= len(values):
            continue
        is_more = isinstance(usual, int) and isinstance(own := values[host], int) and own > usual
        yield Finding(
            code=f"{reading.code}-peers",
            verdict="warn" if is_more else reading.verdict,
            summary=f"{reading.what}: {values[host]}, and {usual} on {count} of {len(values)} hosts",
            evidence={reading.key: values[host]},
            limit=usual,
            limit_source="peers",
            remedy="drain" if reading.verdict == "fail" and not is_more else "none",
        )


def _memory(host: str, found: Mapping[str, Sequence[Finding]]) -> Iterator[Finding]:
    """Whether far less of it is available than elsewhere: something holds it, or a module is gone."""
    about = Reading("memory-available", "available_kib", "memory")
    there = {name: value for name, of in found.items() if isinstance(value := _value(of, about), int)}
    if host not in there or len(there) < LEAST_HOSTS:
        return
    usual = median(there.values())
    if there[host] < LEAST_MEMORY * usual:
        yield Finding(
            code="memory-available-peers",
            verdict="warn",
            summary=f"{there[host] / 2**20:.0f} GiB available, and {usual / 2**20:.0f} GiB on the host in the middle",
            evidence={"available_kib": there[host]},
            limit=round(LEAST_MEMORY * usual),
            limit_source="peers",
        )


def _value(findings: Sequence[Finding], reading: Reading) -> str | float | int | bool | None:
    return next((one.evidence.get(reading.key) for one in findings if one.code == reading.code), None)
