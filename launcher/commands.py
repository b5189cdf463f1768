"""The supervisor's side of the control path: takes commands, executes them by events, answers them once."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from launcher import control, deeds, pausing, policy_set, replacement, verdicts, wire
from launcher.abilities import Abilities
from launcher.events import (
    AttemptEnded,
    CheckpointCommitted,
    CheckpointFailed,
    CommandAnswered,
    CommandReceived,
    Event,
    RunEnded,
    RunHeld,
    RunPaused,
    RunReleased,
    RunResumed,
    RunUnpaused,
)
from launcher.evolve import evolve
from launcher.paths import RunPaths
from launcher.run import Run, RunState
from policies.amended import key_of
from policies.meaning import RunFacts
from policies.schema import Policy
from policies.units import format_duration


@dataclass(frozen=True)
class Grounds:
    """What commands are judged by: the trainer's abilities, what a policy must fit, the policy of now, the owner."""

    trainer: Abilities
    facts: RunFacts
    policy: Callable[[], Policy]
    owner: str


class Commands:
    """Commands by wire and by file. A command is journaled before it is executed, and so survives us."""

    def __init__(
        self,
        paths: RunPaths,
        run: Callable[[], Run],
        emit: Callable[[Event], Event],
        grounds: Grounds,
    ) -> None:
        self._paths, self._run, self._emit = paths, run, emit
        self._grounds = grounds
        self._known: dict[str, wire.Link | None] = {}  # who waits for the answer, if anybody does by wire
        self._saves: set[str] = set()  # commands that are answered when it is done
        self._pauses: set[str] = set()

    @property
    def _trainer(self) -> Abilities:
        return self._grounds.trainer.known(has_told=self._run().has_told)

    def remember(self, id_: str) -> None:
        """A command of the journal, already executed or about to be."""
        self._known.setdefault(id_, None)

    # ------------------------------------------------------------ in

    async def serve(self, link: wire.Link) -> None:
        """One connection of a person: one command, held open until it is answered or given up."""
        message = await link.receive()
        if message is None or message.get("type") != "command":
            return
        event = control.received(message, str(message.get("author", "?")), time.time())
        if event is not None and event.id not in self._known:
            self._take(event, link)
            while await link.receive() is not None:
                pass

    def look_for_files(self, run: Run) -> None:
        """Commands left in the run folder; those answered before are cleared away."""
        for event in control.take_files(self._paths, time.time()):
            if event.id not in self._known:
                self._take(event, None)
            elif event.id not in run.commands:
                control.drop_file(self._paths, event.id)

    def _take(self, event: CommandReceived, link: wire.Link | None) -> None:
        """Journal a command; the actions of a person as they will be done, or why they will not."""
        self._known[event.id] = link
        if event.verb == "do":
            event = deeds.checked(event, self._run(), self._trainer, self._grounds.facts.channels, self._grounds.owner)
        elif event.verb == "replace":
            event = replacement.checked(event, self._run(), self._trainer)
        elif event.verb == policy_set.SET:
            event = policy_set.checked(event, self._grounds.policy(), self._grounds.facts, self._grounds.owner)
        elif verdicts.is_verdict(event):
            event = verdicts.checked(event, self._run())
        elif event.verb == "pause":
            event = pausing.checked(event, self._run(), self._trainer)
        elif event.verb == "save" and (refusal := self._trainer.refusal):
            event = evolve(event, args={"refused": refusal})
        self._emit(event)

    # ------------------------------------------------------------ done

    def execute(self, run: Run, command: CommandReceived) -> None:
        """What `advance` has not already done by the command's event alone."""
        state = run.state
        if state.is_terminal:
            self._say(command.id, False, f"the run is {state}")
            return
        if "refused" in command.args:
            self._say(command.id, False, str(command.args["refused"]))
            return
        if "incident" in command.args and not (command.verb == "release" and state is RunState.HELD):
            ending = deeds.what_ends(run) if command.verb == "approve" else ""
            self._say(command.id, not ending, ending or verdicts.told(command))
            return
        match command.verb:
            case "stop":
                self._say(command.id, True, "stopping at once" if run.stop_now else f"stopping {self._how}")
            case "save" if run.live_attempt is None or state is RunState.RECOVERING:
                self._say(command.id, False, f"nothing to save: the run is {state}")
            case "save":
                self._saves.add(command.id)
            case policy_set.SET:
                self._say(command.id, True, _told_of_change(command))
            case "hold" if state is RunState.HELD:
                self._say(command.id, False, f"held already: {run.hold_reason}")
            case "hold":
                self._say(command.id, True, f"holding {self._how}")
            case "release" if state is RunState.HELD:
                self._emit(RunReleased(at=time.time(), author=command.author))
                self._say(command.id, True, "released")
            case "pause" if state is RunState.PAUSED:
                self._say(command.id, True, self._paused(run))
            case "pause" if run.paused_by:
                self._pauses.add(command.id)
            case "pause":
                self._say(command.id, False, f"not paused: the run is {state}")
            case "unpause" if state is RunState.PAUSED:
                self._emit(RunUnpaused(at=time.time(), author=command.author))
                self._say(command.id, True, "unpaused")
            case "unpause" if run.paused_by:
                self._say(command.id, False, f"{deeds.what_ends(run)}: unpause it once it is")
            case "unpause":
                hint = ": opt-launch release lets it go on" if state is RunState.HELD else ""
                self._say(command.id, False, f"not paused: the run is {state}{hint}")
            case "release":
                self._say(command.id, False, f"not held: the run is {state}")
            case "do" | "replace" if ending := deeds.what_ends(run):
                self._say(command.id, False, ending)
            case "replace":
                self._say(command.id, True, "saving; then a spare takes its place")
            case "do":
                self._say(command.id, True, deeds.told(command.args["actions"]))

    @property
    def _how(self) -> str:
        return (
            "at once: the trainer cannot be told to save"
            if self._trainer.saves == "never"
            else "after a last checkpoint"
        )

    def durable(self, run: Run, event: Event) -> None:
        """Go on from an event that counts."""
        match event:
            case CommandReceived():
                self.execute(run, event)
            case CommandAnswered():
                self._answer(event)
            case CheckpointCommitted() if run.save_requested_at is None:
                self._answer_all(self._saves, True, f"step {event.step} saved")
            case CheckpointFailed() | AttemptEnded():
                self._answer_all(self._saves, False, event.reason)
            case RunPaused():
                self._answer_all(self._pauses, True, self._paused(run))
            case RunHeld() | RunEnded() | RunResumed():
                self._answer_all(self._pauses, False, f"not paused: the run is {run.state}")

    @staticmethod
    def _paused(run: Run) -> str:
        where = "" if run.is_unobserved else f" at step {run.step:,}"
        return f"paused{where}; the nodes are kept"

    def _answer_all(self, waiting: set[str], ok: bool, message: str) -> None:
        for id_ in sorted(waiting):
            self._say(id_, ok, message)
        waiting.clear()

    def _say(self, id_: str, ok: bool, message: str) -> None:
        self._emit(CommandAnswered(at=time.time(), id=id_, ok=ok, message=message))

    def _answer(self, event: CommandAnswered) -> None:
        link = self._known.get(event.id)
        if link is not None:
            link.send({"type": "answer", "ok": event.ok, "message": event.message})
            self._known[event.id] = None
        control.drop_file(self._paths, event.id)


def _told_of_change(command: CommandReceived) -> str:
    for_s = command.args.get("for_s")
    how_long = f" for {format_duration(for_s)}" if isinstance(for_s, (int, float)) else ""
    return f"{key_of(command)} is {command.args['value']} now{how_long}; it was {command.args['before']}"
