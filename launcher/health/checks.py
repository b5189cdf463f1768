"""All checks, by tier: fast ones at any time, standard ones before a start and after a failure, deep ones when idle."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from launcher.health import burn, gpu, host, network, site, storage, xid
from launcher.health.context import Context, SiteCheck
from launcher.health.finding import Finding
from launcher.terms import Remedy, Tier, Verdict
from launcher.trials import GRACE_S, START_S


@dataclass(frozen=True)
class Check:
    """`deadline_s`: who takes longer is stuck; `stuck` and `remedy` are what that says of the host."""

    name: str
    run: Callable[[Context], Iterator[Finding]]
    tier: Tier = "fast"
    deadline_s: float = 5.0
    stuck: Verdict = "unknown"
    remedy: Remedy = "none"


CHECKS: tuple[Check, ...] = (
    # A driver takes seconds for each GPU that nobody holds, where persistence mode is off.
    Check("gpus", gpu.gpus, deadline_s=20, stuck="fail", remedy="reboot_node"),
    Check("gpu-users", gpu.users, "standard", deadline_s=20),
    Check("xids", xid.xids),
    Check("memory", host.memory),
    Check("memory-errors", host.memory_errors),
    Check("processors", host.processors),
    Check("shared-memory", host.shared_memory),
    Check("limits", host.limits),
    Check("processes", host.processes),
    Check("waiting", host.waiting),
    Check("interface", network.interface),
    Check("infiniband", network.infiniband),
    Check("space", storage.space, deadline_s=15, stuck="fail", remedy="drain"),
    Check("writing", storage.writing, "standard", deadline_s=15, stuck="fail", remedy="drain"),
    Check("burn-in", burn.burn_in, "deep", deadline_s=START_S + burn.BURN_S + burn.LIMIT_S + GRACE_S),
)
_BY_TIER: dict[Tier, tuple[Tier, ...]] = {
    "fast": ("fast",),
    "standard": ("fast", "standard"),
    "deep": ("fast", "standard", "deep"),
}


def of_tier(tier: Tier, of_site: Sequence[SiteCheck] = ()) -> Sequence[Check]:
    """The checks of a tier and of those below it, the site's own last."""
    return [one for one in (*CHECKS, *map(_of_site, of_site)) if one.tier in _BY_TIER[tier]]


def by_name(name: str, of_site: Sequence[SiteCheck] = ()) -> Check:
    """Raises KeyError."""
    return {one.name: one for one in (*CHECKS, *map(_of_site, of_site))}[name]


def _of_site(one: SiteCheck) -> Check:
    return Check(f"{site.PREFIX}{one.name}", site.runner(one), one.tier, one.deadline_s)
