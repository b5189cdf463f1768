"""The other agents of the job, as one of them sees them: who there is, and whether they hear a supervisor."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
from typing import Any, Literal

from launcher import wire
from launcher.paths import RunPaths

_UNREACHABLE = (errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EHOSTDOWN, errno.ENETDOWN)  # nobody there has answered
_ANSWER_S = 2.0

Answer = Literal["hears", "deaf", "refused", "timeout"]
Peer = dict[str, Any]


class OtherAgents:
    """`told`: those the supervisor knows; others are known by what they wrote in the run folder."""

    def __init__(self, paths: RunPaths, node: str, job_id: str, secret: bytes) -> None:
        self._paths, self._node, self._job_id, self._secret = paths, node, job_id, secret
        self.told: list[Peer] = []

    def all(self) -> list[Peer]:
        """Their addresses."""
        known = {peer["node"]: peer for peer in self.told}
        for file in self._paths.agents.glob("*.json"):
            with contextlib.suppress(OSError, ValueError):
                peer = json.loads(file.read_text())
                if peer["job_id"] == self._job_id:
                    known[peer["node"]] = peer
        known.pop(self._node, None)
        return list(known.values())

    async def ask(self, peer: Peer) -> Answer:
        """Whether it hears a supervisor; "refused" where nobody serves there any more."""
        try:
            link = await wire.dial(peer["host"], peer["port"], self._secret, timeout_s=_ANSWER_S)
        except TimeoutError:
            return "timeout"
        except OSError as error:
            return "timeout" if error.errno in _UNREACHABLE else "refused"
        try:
            link.send({"type": "ask"})
            answer = await asyncio.wait_for(link.receive(), _ANSWER_S)
        except TimeoutError:
            return "timeout"
        finally:
            link.close()
        return "hears" if answer and answer["hears"] else "deaf"

    async def ask_all(self) -> list[tuple[Peer, Answer]]:
        """What each of them says."""
        peers = self.all()
        return list(zip(peers, await asyncio.gather(*map(self.ask, peers)), strict=True))

    async def answering(self) -> list[int]:
        """The indices of those that are there."""
        return [peer["index"] for peer, answer in await self.ask_all() if answer in ("hears", "deaf")]
