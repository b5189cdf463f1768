"""A person has a node replaced: checked before it becomes a decision, like `do`. Pure."""

from __future__ import annotations

from launcher.abilities import Abilities
from launcher.crew import is_to_leave
from launcher.events import CommandReceived
from launcher.evolve import evolve
from launcher.run import NodeState, Run, RunState


def checked(command: CommandReceived, run: Run, trainer: Abilities) -> CommandReceived:
    """The command with the `actions` and `nodes` of its decision; with `refused` instead if it cannot be done."""
    why, name = str(command.args.get("reason") or "no reason given"), str(command.args.get("node", ""))
    if refused := _why_not(run, name, trainer):
        return evolve(command, args={"why": why, "refused": refused})
    return evolve(command, args={"why": why, "actions": {"replace": "blamed"}, "nodes": [name]})


def _why_not(run: Run, name: str, trainer: Abilities) -> str:
    attempt = run.live_attempt
    if run.state not in (RunState.RUNNING, RunState.SUSPECT) or attempt is None:
        return f"nothing to replace: the run is {run.state}"
    if name not in attempt.slots:
        return f"{name!r} does not train; these do: {', '.join(attempt.slots)}"
    if lost := why_steps_would_be_lost(run, trainer):
        return lost
    if run.replacing_since is not None:
        return "a node is being replaced already"
    idle = (one for one in run.nodes.values() if one.name not in attempt.slots and not is_to_leave(run, one))
    if not any(one.state is NodeState.ALIVE and not one.excluded and not one.barred for one in idle):
        return f"no spare is there to take the place of {name}"
    return ""


def why_steps_would_be_lost(run: Run, trainer: Abilities) -> str:
    """Why an attempt that is asked to save and end would not be gone on with where it was; "" if it would."""
    if trainer.begins_anew:
        return "the trainer always begins at step 0: its steps would be lost"
    if trainer.saves == "never":
        return "the trainer cannot be told to save: its steps would be lost"
    if run.save_every is None and not run.checkpoints and not trainer.signal:
        return "the command has saved nothing so far: its steps would be lost"
    return ""
