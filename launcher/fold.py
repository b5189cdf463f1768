"""What follows from journal and metrics, event by event: what viewers show, and what a supervisor acts on. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from launcher.advance import advance
from launcher.events import JUDGEMENTS, CommandReceived, Event, Judgement
from launcher.ledger import Ledger
from launcher.run import Run
from policies.engine import decide, initial, next_deadline
from policies.schema import Policy
from policies.state import EngineState


@dataclass
class View:
    """The run, and where its time went. `epoch`, `seq`: the place of the last event in it."""

    run: Run = field(default_factory=Run)
    books: Ledger = field(default_factory=Ledger)
    epoch: int = 0
    seq: int = 0

    def take(self, event: Event) -> None:
        self.run = advance(self.run, event)
        self.books.take(event)
        self.epoch, self.seq = event.epoch, event.seq

    def taken(self, events: Iterable[Event]) -> View:
        """Itself, after all these events."""
        for event in events:
            self.take(event)
        return self

    def copied(self) -> View:
        """The same, to go on by itself."""
        return View(self.run, self.books.copied(), self.epoch, self.seq)


@dataclass(frozen=True)
class Memory:
    """What only a supervisor needs besides. `unheard`: judgements that have not come back from the journal yet.

    `commands`: the ids of all that were ever received, so that none is done twice.
    """

    engine: EngineState
    unheard: tuple[Judgement, ...] = ()
    commands: frozenset[str] = frozenset()


class Fold:
    """The whole of it. `deadline`: when a Tick is wanted, in Unix seconds. `taken`: events since it was begun here."""

    def __init__(self, policy: Policy, view: View | None = None, memory: Memory | None = None) -> None:
        self._policy, self.taken = policy, 0
        self.view = view or View()
        self.memory = memory or Memory(initial(policy))
        self.deadline = next_deadline(policy, self.memory.engine)

    @property
    def run(self) -> Run:
        return self.view.run

    def take(self, event: Event) -> tuple[Judgement, ...]:
        """Go on by one event; what is found and decided upon it."""
        self.taken += 1
        self.view.take(event)
        engine, judgements, self.deadline = decide(self._policy, self.memory.engine, event)
        unheard, commands = self.memory.unheard, self.memory.commands
        if isinstance(event, JUDGEMENTS):
            unheard = tuple(one for one in unheard if one.id != event.id)
        elif isinstance(event, CommandReceived):
            commands |= {event.id}
        self.memory = Memory(engine, (*unheard, *judgements), commands)
        return judgements

    def unsaid(self) -> list[Judgement]:
        """Judgements that a supervisor had no time to journal."""
        journaled = {id_ for incident in self.run.incidents for id_ in incident.judgements}
        return [one for one in self.memory.unheard if one.id not in journaled]
