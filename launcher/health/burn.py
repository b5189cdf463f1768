"""A burn-in: each device of an idle node computes the same product again and again, and copies memory.

That nothing is found proves little: small computations miss most of the devices that corrupt data.
"""

from __future__ import annotations

from collections.abc import Iterator

from launcher.health.context import Context
from launcher.health.finding import Finding
from launcher.health.trial import take_part
from launcher.trials import Part, Report

BURN_S = 10.0
LIMIT_S = 60.0  # for all else: the first use of a device, the sums
CODE = "burn-in"


def burn_in(at: Context) -> Iterator[Finding]:
    """What this machine's devices compute by themselves."""
    yield found(take_part(Part(burn_s=BURN_S, limit_s=LIMIT_S), at.environment))


def found(report: Report) -> Finding:
    """What the report of a burn-in says. Pure. What could not begin, or lacked memory, is no fault of a device."""
    if report.outcome == "passed":
        speed = f", memory is copied at {report.copied / 1e9:.1f} GB/s" if report.copied else ""
        digests = sorted({*report.digests})
        return Finding(
            code=CODE, verdict="ok" if len(digests) <= 1 else "fail",
            summary=f"the same products all the time{speed}" if len(digests) <= 1 else "devices compute other products",
            evidence={"copied_gb_s": round((report.copied or 0) / 1e9, 2), "product": " ".join(digests)},
            remedy="none" if len(digests) <= 1 else "service",
        )  # fmt: skip
    is_ours = report.outcome == "failed" and "memory" not in report.said.lower()
    return Finding(
        code=CODE,
        verdict="fail" if is_ours else "unknown",
        summary=report.said or report.outcome.replace("_", " "),
        remedy="drain" if is_ours else "none",
    )
