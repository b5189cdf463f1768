"""Which hosts may take part at a moment, and which do badly. Pure.

excluded    an exclusion counts: it has not run out, nobody has taken it back, no reset has cured it
probation   one has run out less than two hours ago: another now lasts longer
ok          else
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import fsum
from typing import Literal, NamedTuple

from launcher.hosts.fold import WINDOW_S, Host
from launcher.hosts.records import Excluded, Remedy

PROBATION_S = 2 * 3600.0
COOLDOWNS_S = (1800.0, 2 * 3600.0, 8 * 3600.0)  # of the first, second and third strike; then until a person allows it
LEAST_DAYS = 7.0  # a rate is of so many node-days at least: one failure in a first hour is no rate
RESET: frozenset[Remedy] = frozenset({"reset_gpu", "reboot_node"})  # what a reboot cures
LEMON_FAILURES = 3
LEMON_TIMES = 10.0  # the rate of all hosts together


class Standing(NamedTuple):
    """A host at a moment. `days`: node-days served in the window; `rate`: failures per node-day of at least a week.

    `exclusion`: the one that counts longest; of a `probation` the one that has run out. `is_lemon`: fails far more
    often than others.
    """

    name: str
    state: Literal["excluded", "probation", "ok"]
    exclusion: Excluded | None
    failures: int
    days: float
    rate: float
    is_lemon: bool = False


def standings(hosts: Mapping[str, Host], now: float) -> dict[str, Standing]:
    """Every host's, by name."""
    boxes = _excluded_boxes(hosts, now)
    found = {name: _standing(host, boxes, now) for name, host in hosts.items()}
    days, failures = sum(one.days for one in found.values()), sum(one.failures for one in found.values())
    usual = failures / max(days, LEAST_DAYS * len(found)) if found else 0.0
    return {
        name: one if one.failures < LEMON_FAILURES or one.rate <= LEMON_TIMES * usual else one._replace(is_lemon=True)
        for name, one in found.items()
    }


def excluded(hosts: Mapping[str, Host], now: float) -> dict[str, Excluded]:
    """The hosts that are left out now, each with the exclusion that counts longest."""
    boxes = _excluded_boxes(hosts, now)
    found = ((name, _counting(host, boxes, now)) for name, host in hosts.items() if host.exclusions or boxes)
    return {name: one for name, one in found if one is not None}


def strikes(host: Host, now: float) -> int:
    """How many exclusions in a row led here: each within the last one, or in the probation after it."""
    count, end = 0, -1.0
    for one in sorted(_kept(host), key=lambda one: one.at):
        if one.automatic and one.at <= now:
            count = count + 1 if one.at <= end + PROBATION_S else 1
            end = max(end, float("inf") if one.until is None else one.until)
    return count if now <= end + PROBATION_S else 0


def cooldown_s(strike: int) -> float | None:
    """How long the exclusion of this strike (from 1) lasts; None: until a person allows the host."""
    return COOLDOWNS_S[strike - 1] if strike <= len(COOLDOWNS_S) else None


def is_cured(one: Excluded, host: Host) -> bool:
    """Whether the machine has been reset, or is another one, since it was left out for what a reset cures."""
    then, now = one, host.identity
    if now is None or one.remedy not in RESET or now.at <= one.at:
        return False
    rebooted = bool(then.boot_id and now.boot_id) and then.boot_id != now.boot_id
    return rebooted or (bool(then.gpus and now.gpus) and set(then.gpus) != set(now.gpus))


def _standing(host: Host, boxes: Mapping[str, Excluded], now: float) -> Standing:
    since = now - WINDOW_S
    failures = sum([since <= one.at <= now for one in host.blames.values()])
    days = fsum([hours for at, hours in host.services.values() if at >= since]) / 24  # in whatever order
    rate = failures / max(days, LEAST_DAYS)
    state, exclusion = _state(host, boxes, now) if host.exclusions or boxes else ("ok", None)
    return Standing(host.name, state, exclusion, failures, days, rate)


def _state(
    host: Host, boxes: Mapping[str, Excluded], now: float
) -> tuple[Literal["excluded", "probation", "ok"], Excluded | None]:
    if (one := _counting(host, boxes, now)) is not None:
        return "excluded", one
    over = [one for one in _kept(host) if one.until is not None and one.until <= now < one.until + PROBATION_S]
    return ("probation", max(over, key=lambda one: one.until or 0.0)) if over else ("ok", None)


def _excluded_boxes(hosts: Mapping[str, Host], now: float) -> dict[str, Excluded]:
    """GPU -> the exclusion of the machine that it is in."""
    return {gpu: one for host in hosts.values() if host.exclusions for one in _active(host, now) for gpu in one.gpus}


def _counting(host: Host, boxes: Mapping[str, Excluded], now: float) -> Excluded | None:
    """The exclusion that counts longest: of this name, or of the same machine under another one."""
    found = [*_active(host, now)]
    if boxes and host.identity:
        found += [boxes[gpu] for gpu in host.identity.gpus if gpu in boxes and boxes[gpu].host != host.name]
    return max(found, key=lambda one: (not one.automatic, one.until or float("inf"), one.at), default=None)


def _active(host: Host, now: float) -> Iterator[Excluded]:
    return (one for one in _kept(host) if (one.until is None or now < one.until) and not is_cured(one, host))


def _kept(host: Host) -> Iterator[Excluded]:
    return (one for id_, one in host.exclusions.items() if id_ not in host.ended)
