"""Whether blame becomes an exclusion from all runs, and which exclusions a run applies. Pure.

A wrong exclusion harms every run, so each must pass the same guards: what a run alone suspects must be repeated, and
must follow the host; what many nodes have at once is a common cause; only so many an hour; never fewer nodes than are
needed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from launcher.hosts.fold import Blame, Host
from launcher.hosts.records import Excluded, Remedy
from launcher.hosts.standing import cooldown_s, excluded, strikes

DAY_S, HOUR_S = 86400.0, 3600.0
REPEATS = 2  # in a day, before a suspicion becomes an exclusion
COMMON_NODES, COMMON_SHARE = 3, 0.3
BREAKER_NODES, BREAKER_SHARE = 2, 0.1  # an hour: the larger of the two


@dataclass(frozen=True)
class Suspicion:
    """Why a host is to be left out. Its `Blamed` is in the ledger already.

    `proof`: hard, something was measured on the host; soft, a run failed there; lost, nothing but silence.
    """

    id: str
    host: str
    code: str
    why: str
    proof: Literal["hard", "soft", "lost"]
    remedy: Remedy = "none"
    evidence: Mapping[str, str | float | int | bool | None] = field(default_factory=dict)


@dataclass(frozen=True)
class Scene:
    """The run that asks: its name, the nodes of its allocation that may be used, and how few it can do with."""

    run: str
    by: str
    nodes: Sequence[str]
    needed: int


@dataclass(frozen=True)
class Kept:
    """A host is not left out, and why. `guarded`: there was reason enough, and a guard forbade it."""

    host: str
    why: str
    guarded: bool = False


def judge(hosts: Mapping[str, Host], one: Suspicion, scene: Scene, now: float) -> Excluded | Kept:
    """The exclusion to be written, or why there is none."""
    host = hosts.get(one.host, Host(one.host))
    left_out = excluded(hosts, now)
    if one.host in left_out:
        return Kept(one.host, "it is excluded already")
    if why := _weak(hosts, one, scene, now):
        return Kept(one.host, why)
    if why := _guarded(hosts, one, scene, left_out, now):
        return Kept(one.host, why, guarded=True)
    strike = strikes(host, now) + 1
    lasts_s = None if one.remedy == "service" else cooldown_s(strike)
    known = host.identity
    return Excluded(
        id=one.id,
        at=now,
        by=scene.by,
        host=one.host,
        reason=one.why,
        until=None if lasts_s is None else now + lasts_s,
        automatic=True,
        code=one.code,
        remedy=one.remedy,
        strikes=strike,
        boot_id=known.boot_id if known else "",
        gpus=known.gpus if known else (),
        evidence=dict(one.evidence),
    )


def applied(left_out: Mapping[str, Excluded], candidates: Iterable[str], needed: int) -> dict[str, Excluded]:
    """Of the excluded hosts those that a choice among `candidates` does without; at least `needed` are left.

    What a person has excluded stays so. Of the others those come back first that would be back soonest.
    """
    candidates = [*candidates]
    found = {name: left_out[name] for name in candidates if name in left_out}
    lacking = needed - (len(candidates) - len(found))
    soonest = sorted((one.until or float("inf"), name) for name, one in found.items() if one.automatic)
    for _, name in soonest[: max(0, lacking)]:
        del found[name]
    return found


def _weak(hosts: Mapping[str, Host], one: Suspicion, scene: Scene, now: float) -> str:
    """What is missing for more than a suspicion; "" if nothing is."""
    if one.proof == "hard":
        return ""
    if one.proof == "lost":
        return "a lost node is left out of the next attempt only"
    if len(_blames(hosts, one.host, one.code, now - DAY_S, now)) < REPEATS:
        return f"left out of the next attempt only: one {one.code} in a day is not held against it"
    others = {
        name
        for name in scene.nodes
        if name != one.host
        and any(blame.run == scene.run for blame in _blames(hosts, name, one.code, now - DAY_S, now))
    }
    if others:
        return f"the same happened to run {scene.run} on {', '.join(sorted(others))}: it does not follow the host"
    return ""


def _guarded(
    hosts: Mapping[str, Host], one: Suspicion, scene: Scene, left_out: Mapping[str, Excluded], now: float
) -> str:
    """The guard that forbids it; "" if none does."""
    same = {name for name in scene.nodes if _blames(hosts, name, one.code, now - HOUR_S, now)} | {one.host}
    if len(same) >= COMMON_NODES and len(same) >= COMMON_SHARE * len(scene.nodes):
        return f"{len(same)} of {len(scene.nodes)} nodes have {one.code}: a common cause, so none is excluded"
    recent = sum(
        exclusion.automatic and now - HOUR_S < exclusion.at <= now
        for host in hosts.values()
        for exclusion in host.exclusions.values()
    )
    limit = max(BREAKER_NODES, int(BREAKER_SHARE * len(hosts.keys() | set(scene.nodes))))
    if recent >= limit:
        return f"{recent} hosts were excluded in the last hour, and no more than {limit} are"
    usable = [name for name in scene.nodes if name not in left_out and name != one.host]
    if len(usable) < scene.needed:
        return f"{scene.needed} nodes are needed, and {len(usable)} would be left"
    return ""


def _blames(hosts: Mapping[str, Host], name: str, code: str, since: float, now: float) -> list[Blame]:
    found = hosts[name].blames.values() if name in hosts else ()
    return [one for one in found if one.code == code and since < one.at <= now]
