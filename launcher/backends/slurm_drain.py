"""Draining nodes in Slurm and opening them again: where we may, and never against another's word."""

from __future__ import annotations

import re
from dataclasses import dataclass

from launcher.backends.slurm_calls import call
from launcher.backends.slurm_words import Node, nodes_of

# As slurm_strerror says it, in the versions from 20.11 on.
_REFUSED = re.compile(r"invalid user id|permission denied|access denied", re.IGNORECASE)
_AWAY = re.compile(r"unable to contact|connect|timed out|socket|backup|standby", re.IGNORECASE)


@dataclass(frozen=True)
class Answer:
    """What came of it. `refused`: we lack the right to."""

    ok: bool
    detail: str
    refused: bool = False


def drain(node: str, reason: str) -> Answer | None:
    """Have Slurm give the node to nobody else. Harmless when done twice; None where Slurm does not answer."""
    seen = _show(node)
    if seen is None or isinstance(seen, Answer):
        return seen
    if seen.is_drained and seen.reason == reason:
        return Answer(True, "drained")
    if seen.reason or seen.is_drained or seen.is_down:
        said = f"{seen.said} ({seen.reason})" if seen.reason else seen.said
        return Answer(False, f"left as it is: Slurm says {said}")
    return _update(node, "drained", "State=DRAIN", f"Reason={reason}")


def undrain(node: str, reason: str) -> Answer | None:
    """Open a node again that we drained for this reason. None where Slurm does not answer."""
    seen = _show(node)
    if seen is None or isinstance(seen, Answer):
        return seen
    if not seen.is_drained:
        return Answer(True, "was opened by somebody else")
    if seen.reason != reason:
        return Answer(False, f"left as it is: the reason is another's by now ({seen.reason})")
    return _update(node, "opened again", "State=UNDRAIN")


def _show(node: str) -> Node | Answer | None:
    """The node as it is; an answer where there is none, None where nobody answers."""
    said = call("scontrol", "-o", "show", "node", node)
    if said is None:
        return None
    if said.returncode != 0:
        return Answer(False, told) if "not found" in (told := _told(said.stderr or said.stdout)).lower() else None
    return next(iter(nodes_of(said.stdout)), None)


def _update(node: str, done: str, *changes: str) -> Answer | None:
    said = call("scontrol", "update", f"NodeName={node}", *changes)
    if said is None or (said.returncode != 0 and _AWAY.search(said.stderr)):
        return None
    if said.returncode == 0:
        return Answer(True, done)
    return Answer(False, f"Slurm refuses: {_told(said.stderr)}", refused=bool(_REFUSED.search(said.stderr)))


def _told(text: str) -> str:
    return " ".join(text.rsplit("error:", maxsplit=1)[-1].split())[:200]
