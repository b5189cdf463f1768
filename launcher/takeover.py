"""An agent's watch over the supervisor: when none is heard it asks the other agents, starts one, or gives up.

Times are monotonic seconds.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from enum import Enum

from launcher.other_agents import OtherAgents
from launcher.paths import RunPaths
from launcher.sightings import Sightings

TAKEOVER_S = 3.0  # times (index + 1)
ALONE_S = 60.0  # wait so long when no other agent can be reached and none refused, and nobody writes
STARTING_S = 30.0  # how long a supervisor may take from its start to its first word
EXIT_PAST_JOB = 76  # of a supervisor whose job another has taken the place of


class Finding(Enum):
    """What an agent that hears no supervisor is to do."""

    NOTHING = "there is one, or is not needed yet"
    SUCCEED = "ask the other agents, and start one"
    GIVE_UP = "leave: none can be had"
    LEAVE = "leave: the run has gone on in another job"


class Takeover:
    """`heard_at`: when a supervisor last spoke to us, or when we last did something about not having heard.

    `index`: of the agent; the smaller it is, the sooner it acts. `unsupervised_s`: without one for so long it gives up.
    """

    def __init__(self, paths: RunPaths, node: str, index: int, others: OtherAgents, unsupervised_s: float) -> None:
        self._paths, self._node, self._index, self._others = paths, node, index, others
        self._unsupervised_s = unsupervised_s
        self._lately_s = min(ALONE_S, unsupervised_s / 2)
        self._sightings = Sightings(paths.live)
        self.heard_at = time.monotonic()
        self._supervised_at = self.heard_at  # when there was one, whether or not we could hear it
        self._asking = False
        self._starting: tuple[subprocess.Popen[bytes], float, int] | None = None  # since when, and the epoch then

    def heard(self) -> None:
        """A supervisor has spoken."""
        self.heard_at = self._supervised_at = time.monotonic()

    @property
    def hears(self) -> bool:
        """Whether a supervisor has spoken lately."""
        return time.monotonic() - self.heard_at < TAKEOVER_S

    def shift(self, late_s: float) -> None:
        """We stood still for so long ourselves: it was not the supervisor that was silent."""
        self.heard_at += late_s
        self._supervised_at += late_s

    def look(self, now: float, epoch: int, still_s: float | None) -> Finding:
        """What is to be done. `epoch`: of the newest supervisor heard. `still_s`: since when ranks stand; None without.

        For too long without one we leave, unless the work shows that one is there and takes us for alive.
        """
        if self._starting is not None and self._starting[0].poll() == EXIT_PAST_JOB:
            return Finding.LEAVE
        if now - self._supervised_at > self._unsupervised_s:
            if not (self.is_sighted(now) and still_s is not None and still_s < self._lately_s):
                return Finding.GIVE_UP
            self._supervised_at = now
        elif now - self.heard_at > TAKEOVER_S * (self._index + 1) and not self._asking and not self._starts(epoch):
            self._asking = True
            return Finding.SUCCEED
        return Finding.NOTHING

    def is_sighted(self, now: float) -> bool:
        """Whether a supervisor that we cannot reach has lately written something."""
        return self._sightings.is_there(now, self._lately_s)

    async def succeed(self, epoch: int) -> None:
        """Start a supervisor, unless another agent hears one, or we may be the one that is cut off."""
        self._sightings.look(time.monotonic(), self._supervised_at)
        try:
            answers = [answer for _, answer in await self._others.ask_all()]
        finally:
            self._asking = False
        if "hears" in answers:
            self._supervised_at = time.monotonic()
            self.heard_at = self._supervised_at - TAKEOVER_S * self._index  # only our own link is broken: ask again
        elif not answers or any(answer != "timeout" for answer in answers) or self._is_alone():
            self.start(epoch)
            self.heard_at = time.monotonic()

    def _is_alone(self) -> bool:
        """Whether nobody is there, as far as can be told by one who may be cut off: nobody writes either."""
        return self._sightings.is_nobody(time.monotonic(), ALONE_S)

    def start(self, epoch: int) -> None:
        """Start a supervisor as our child: it dies with us. An older one of ours is fenced off by its epoch."""
        command = [sys.executable, "-P", "-m", "launcher.supervisor", str(self._paths.root), self._node]
        with self._paths.supervisor_log(self._node).open("ab") as log:
            started = subprocess.Popen(  # in a group of its own: Slurm signals ours
                [*command, str(os.getpid())], stdin=subprocess.DEVNULL, stdout=log, stderr=log, process_group=0
            )
        self._starting = started, time.monotonic(), epoch

    def _starts(self, epoch: int) -> bool:
        """Whether the one we started has not spoken yet, and may: another would only take over from it."""
        if self._starting is None:
            return False
        process, since, epoch_then = self._starting
        return process.poll() is None and epoch == epoch_then and time.monotonic() - since < STARTING_S
