"""What the planner sees of the fleet, and what it may want done: plain values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from launcher.abilities import Abilities
from launcher.events import CheckpointId, Decision, Event
from launcher.trials import Report


@dataclass(frozen=True)
class Inventory:
    """What an answering agent last said of itself. `cleared`: the attempt up to which it has killed all ranks."""

    incarnation: str
    attempt: int
    ranks_alive: int
    cleared: int = 0
    collected: frozenset[str] = frozenset()  # ids of decisions whose evidence it has written
    tried: Mapping[str, Report] = field(default_factory=dict)  # by the key of a round of trials, how its part went


@dataclass(frozen=True)
class Fleet:
    """The shell's view at `now` (Unix seconds). `settled`: no further agent is expected to show up soon.

    `searched`: checkpoints that nobody tells us of were looked for after the ranks had ended. `unfinished`: what was
    found then and is not whole.
    """

    now: float
    answering: Mapping[str, Inventory]
    settled: bool = True
    store: tuple[int, str, int] | None = None  # (attempt, host, port) of the rendezvous store
    inspected: frozenset[CheckpointId] = frozenset()  # checkpoints whose files were just looked at
    searched: bool = True
    unfinished: tuple[str, ...] = ()
    committing: bool = False  # all parts of a checkpoint are there: it is about to exist


@dataclass(frozen=True)
class Limits:
    """The part of the spec that recovery needs. `smaller`: numbers of nodes below the wanted one, largest first.

    `examined_within_s`: for so long a first start waits for examinations; 0 where there are none.
    `begins_smaller`: also in a new allocation, whose nodes come one by one, those that are there are enough in time.
    """

    wait_for_node_s: float = 120.0
    continue_by: Literal["requeue", "chain", "none"] = "requeue"  # when the scheduler ends the job
    trainer: Abilities = field(default_factory=Abilities)
    smaller: tuple[int, ...] = ()
    begins_smaller: bool = False
    examined_within_s: float = 0.0


@dataclass(frozen=True)
class Emit:
    """Journal this event."""

    event: Event


@dataclass(frozen=True)
class Send:
    """Tell an agent; repeated while it is still needed."""

    node: str
    message: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class Inspect:
    """Look at the files of a checkpoint before it is used."""

    checkpoint: CheckpointId


@dataclass(frozen=True)
class Search:
    """Look for checkpoints that the trainer has made by itself."""


@dataclass(frozen=True)
class Requeue:
    """Have the scheduler begin the job anew, without these nodes."""

    exclude: tuple[str, ...] = ()


@dataclass(frozen=True)
class Errand:
    """Start the command of this decision, unless that was done before."""

    decision: Decision


Move = Emit | Send | Inspect | Search | Requeue | Errand
