"""What a person asks for with `do`: one rung of the policy grammar, checked before it becomes a decision."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from launcher.abilities import Abilities
from launcher.checkpoints import NoChoice, choose
from launcher.document import parse_document
from launcher.errors import ConfigError
from launcher.events import CommandReceived, Json
from launcher.evolve import evolve
from launcher.run import Run, RunState
from launcher.validation import Finding, validated
from policies.meaning import deed_flaws
from policies.schema import Rung

ARGUMENT = "ACTIONS"  # how the person called the text


def parsed(text: str, channels: frozenset[str]) -> dict[str, Any]:
    """The rung of a text, as values of JSON. Raises ConfigError with every mistake and its place."""
    document = parse_document(text.encode(), ARGUMENT)
    _, flaws = _read(document.value, channels)
    mistakes = [document.mistake(path, message, at_key=message.startswith("unknown key")) for path, message in flaws]
    if mistakes:
        raise ConfigError(sorted(mistakes, key=lambda one: (one.line, one.column)))
    return document.value


def checked(
    command: CommandReceived, run: Run, trainer: Abilities, channels: frozenset[str], owner: str
) -> CommandReceived:
    """The command with `actions` as a decision carries them; without them and with `refused` if they cannot be done."""
    why, asked = str(command.args.get("why", "")), command.args.get("actions")
    rung, flaws = _read(asked, channels) if isinstance(asked, dict) else (None, [((), "no actions")])
    refused = "; ".join(message for _, message in flaws) or (lacking(run, rung, trainer) if rung else "")
    if rung and rung.run and command.author != owner:
        refused = f"what is run is run as {owner}: only they may ask for it"
    if rung is None or refused:
        return evolve(command, args={"why": why, "refused": refused})
    return evolve(command, args={"why": why, "actions": rung.plain(f"{command.author}: {why}")})


def _read(values: Mapping[str, Any], channels: frozenset[str]) -> tuple[Rung | None, list[Finding]]:
    rung, findings = validated(Rung, values)
    flaws = deed_flaws(rung, channels) if rung else ()
    return rung, [*findings, *(flaw for flaw in flaws if flaw[0] or not findings)]


def lacking(run: Run, rung: Rung, trainer: Abilities) -> str:
    """What is not there that these actions need, in words; "" if nothing is lacking."""
    trains = run.live_attempt is not None and run.state not in (RunState.HELD, RunState.RECOVERING)
    if ending := what_ends(run):
        return ending
    if rung.hold and run.state is RunState.HELD:
        return f"held already: {run.hold_reason}"
    saves = rung.save or (rung.restart and rung.restart.save_first)
    if saves and trainer.refusal:
        return trainer.refusal
    if told := _deaf_to(rung, trainer):
        return told
    if not trains and (saves or rung.collect):
        return f"no ranks train that could save or be looked at: the run is {run.state}"
    return _no_checkpoint(run, rung.restart.from_) if rung.restart else ""


def _deaf_to(rung: Rung, trainer: Abilities) -> str:
    """What the trainer cannot be told."""
    asked = rung.set.model_dump(exclude_none=True) if rung.set else {}
    unknown = [name for name in asked if name not in trainer.settings]
    unknown += ["skip"] if rung.skip and not trainer.skips else []
    return f"the trainer cannot be told: {', '.join(unknown)}" if unknown else ""


def _no_checkpoint(run: Run, origin: str) -> str:
    if origin == "last_good" and not any(run.is_good(one) for one in run.lineage()):
        steps = ", ".join(str(one.step) for one in run.lineage() if one.usable)
        return "no checkpoint is known to be good" + (f": complete are those of step {steps}" if steps else "")
    if origin.startswith("step ") and not run.checkpoints:
        return "no checkpoint was ever committed"
    choice = choose(run, origin)
    return choice.reason if isinstance(choice, NoChoice) else ""


def what_ends(run: Run) -> str:
    """Why nothing else is begun: the run is at its end, or halted by a person; "" if it goes on."""
    if run.state.is_terminal:
        return f"the run is {run.state}"
    if run.stop_requested:
        return f"the run is being stopped, as {run.stop_requested} asked"
    if run.hold_requested:
        return f"the run is being held: {run.hold_requested}"
    if run.state is RunState.PAUSED:
        return f"the run is paused: {run.paused_by}; unpause it first"
    if run.paused_by:
        return f"the run is being paused: {run.paused_by}"
    return f"the job is ending: {run.job_ending}" if run.job_ending else ""


def told(actions: Json) -> str:
    """In a few words what is done."""
    assert isinstance(actions, dict)
    return ", ".join(_told(name, value) for name, value in actions.items())


def _told(name: str, value: Json) -> str:
    if name == "restart" and isinstance(value, dict):
        return f"restart from {value['from']}" + (" after a save" if value.get("save_first") else "")
    if name == "set" and isinstance(value, dict):
        return "set " + ", ".join(f"{key} {one}" for key, one in value.items())
    if name == "skip" and isinstance(value, dict):
        return f"skip {value['batches']} batches"
    return name
