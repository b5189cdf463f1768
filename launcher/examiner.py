"""An agent's examinations of its node: one at a time, in a thread beside the agent's loop, and at low priority.

What comes of one is told when it was asked for, or when it is not what was told last; the rest would be noise in the
journal.
"""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from launcher.health.checks import of_tier
from launcher.health.context import Context, Heard, SiteCheck
from launcher.health.finding import WORST, Finding, worst
from launcher.health.gpu import given, on_bus
from launcher.health.lasting import Lasting
from launcher.health.runner import Examination
from launcher.sections import RunSpec
from launcher.terms import Tier, Verdict
from launcher.xid_watch import XidWatch

IDLE_S = 120.0  # a node that may be needed at once is left alone
NICENESS = 10  # ranks come first; a check still gets a tenth of a processor, so that none is late for want of it
LAST = 19  # niceness of what loads an idle node: whoever else is there comes first
SOON_S = 10.0  # until the next look at what may have been a matter of a moment
AGAIN_S = 5.0  # between looks that failing ranks ask for
MOST_TOLD = 32  # findings of one examination
AT_START = "start"  # asks for the first one of an agent
UNWELL = ("fail", "unknown", "warn")


@dataclass(frozen=True)
class _Asked:
    tier: Tier
    id: str = ""


class Examiner:
    """`every_s`: between fast examinations; None for none but those asked for. `tell(message)` takes what is found.

    `burn_every_s`: between deep examinations of a node that is idle, which load it; None for none.
    """

    def __init__(
        self,
        at: Context,
        every_s: float | None,
        tell: Callable[[dict[str, Any]], None],
        burn_every_s: float | None = None,
    ) -> None:
        self._at, self._every_s, self._tell, self._burn_every_s = at, every_s, tell, burn_every_s
        self._idle_since: float | None = None
        self._burnt_at: float | None = None
        self._ended = threading.Event()  # of the deep one that goes on
        self._has_begun = False
        self._xids: XidWatch | None = None
        self._due: deque[_Asked] = deque()
        self._ids: set[str] = set()
        self._is_busy = False
        self._lasting = Lasting()
        self._told: dict[str, tuple[Verdict, str]] = {}  # key -> verdict and check, of what is known not to be ok
        self._left_behind: dict[str, subprocess.Popen[bytes]] = {}  # by check: not even SIGKILL has ended it
        self._number = 0
        self._began_at = time.monotonic()
        self._looked_at: dict[Tier, float] = {}
        self._turn_of = self._present_turn()

    def ask(self, tier: Tier, id_: str = "") -> None:
        """Have the node examined; asked again under the same id, it is the same examination."""
        asked = _Asked(tier, id_)
        if id_ not in self._ids and asked not in self._due:
            self._ids |= {id_} - {""}
            self._due.append(asked)

    def rank_failed(self) -> None:
        """Perhaps the node can say why."""
        if self._every_s is not None:
            self.look_soon("fast")

    def look_soon(self, tier: Tier) -> None:
        """Have the node examined for news; that many ask changes nothing."""
        now = time.monotonic()
        if now - self._looked_at.get(tier, -AGAIN_S) >= AGAIN_S:
            self._looked_at[tier] = now
            self.ask(tier)

    def turn(self, *, is_idle: bool = False) -> None:
        """Begin what is due. Called several times a second, in the agent's loop. `is_idle`: no ranks need the node."""
        self._watch_idleness(is_idle)
        if self._is_busy:
            return
        if self._every_s is not None and not self._due and self._is_time(self._every_s):
            self.ask("fast")
        if self._every_s is not None and not self._has_begun:
            self._has_begun = True
            self._xids = XidWatch(self._heard) if on_bus(self._at) or given(self._at) else None
        if self._due:
            self._at = replace(self._at, heard_since=self._xids.since if self._xids else None)
            self._ended = threading.Event()
            self._is_busy, self._began_at, self._turn_of = True, time.monotonic(), self._present_turn()
            about = (self._due.popleft(), asyncio.get_running_loop())
            threading.Thread(target=self._examine, args=about, name="examiner", daemon=True).start()

    def _heard(self, xid: Heard) -> None:
        """At once, and with all others that came with it: one fault is many XIDs."""
        self._at = replace(self._at, heard=(*self._at.heard, xid)[-MOST_TOLD:])
        if not self._due:
            self.ask("fast")

    def make_way(self) -> None:
        """Ranks need the node: a deep examination ends at once."""
        self._ended.set()
        self._due = deque(one for one in self._due if one.tier != "deep")

    def _watch_idleness(self, is_idle: bool) -> None:
        """A deep examination is due when the node has been idle for a while, and again after long."""
        now = time.monotonic()
        self._idle_since = (self._idle_since or now) if is_idle else None
        if self._burn_every_s is None or self._idle_since is None or now < self._idle_since + IDLE_S:
            return
        if self._burnt_at is None or now > self._burnt_at + self._burn_every_s:
            self._burnt_at = now
            self.ask("deep")

    def _is_time(self, every_s: float) -> bool:
        """All nodes look at the same moment of the clock: what it costs the ranks, it costs all of them at once."""
        soon = self._lasting.is_in_doubt() and time.monotonic() - self._began_at > min(SOON_S, every_s)
        return soon or self._present_turn() != self._turn_of

    def _present_turn(self) -> int:
        return int(time.time() // self._every_s) if self._every_s else 0

    def _examine(self, asked: _Asked, loop: asyncio.AbstractEventLoop) -> None:
        """In a thread: it ends, whatever the checks do."""
        is_deep = asked.tier == "deep"
        ended = self._ended if is_deep else threading.Event()
        niceness = LAST if is_deep else NICENESS
        began, examination = time.monotonic(), Examination(self._at, niceness, self._left_behind, ended)
        findings: list[Finding] = []
        try:
            findings.extend(examination.findings(of_tier(asked.tier, self._at.site)))
        finally:
            took_s = time.monotonic() - began
            with contextlib.suppress(RuntimeError):  # the agent has left meanwhile
                loop.call_soon_threadsafe(self._over, asked, examination, findings, took_s)

    def _over(self, asked: _Asked, examination: Examination, findings: list[Finding], took_s: float) -> None:
        self._is_busy = False
        self._at = replace(self._at, before={**self._at.before, **examination.after}, after={})
        findings = self._lasting.judged(findings)
        unwell = {one.key: one for one in findings if one.verdict in UNWELL}
        news = [one for key, one in unwell.items() if self._told.get(key, ("",))[0] != one.verdict]
        cured = [*self._cured(examination, findings)]
        if news or cured or asked.id or not self._number:
            self._number += 1
            order = sorted(unwell.values() if asked.id else news, key=lambda one: WORST.index(one.verdict))
            told = [*order, *cured][:MOST_TOLD]  # the rest is news the next time
            for one in told:
                if one.verdict in UNWELL:
                    self._told[one.key] = (one.verdict, examination.check_of.get(one.key, ""))
                else:
                    del self._told[one.key]
            about = {"number": self._number, "tier": asked.tier, "id": asked.id, "took_s": round(took_s, 3)}
            measured = sum(one.verdict in ("ok", "warn", "fail") for one in findings)
            verdict = worst(one for one in findings if one.verdict != "skipped")
            about |= {"verdict": verdict, "measured": measured, "findings": [asdict(one) for one in told]}
            self._tell({"type": "examined", **about})
        self.turn()

    def _cured(self, examination: Examination, findings: list[Finding]) -> list[Finding]:
        """What was not ok and is now, or is no longer found by a check that has told all it had to tell."""
        now = {one.key: one for one in findings}
        gone = [key for key, (_, check) in self._told.items() if key not in now and check in examination.completed]
        return [
            *(now[key] for key in self._told if key in now and now[key].verdict not in UNWELL),
            *(
                Finding(code=key.split()[0], subject=key.partition(" ")[2], verdict="ok", summary="is gone")
                for key in gone
            ),
        ]


def examiner_of(spec: RunSpec, folder: Path, tell: Callable[[dict[str, Any]], None]) -> Examiner:
    """That of an agent of this run, whose folder must be there and writable; the first examination is due at once."""
    site = tuple(
        SiteCheck(one.name, tuple(one.command), one.nagios, one.tier, one.timeout) for one in spec.health.checks
    )
    named = spec.launch.network.interface
    at = Context(folders=(str(folder),), interface="" if named == "auto" else named, site=site)
    examiner = Examiner(at, spec.health.every, tell, spec.health.burn_in)
    if (tier := spec.health.before_start) in ("fast", "standard"):
        examiner.ask(tier, AT_START)
    return examiner
