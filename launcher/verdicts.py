"""What a person says about one incident: checked before it is journaled. Pure."""

from __future__ import annotations

from launcher.events import CommandReceived
from launcher.evolve import evolve
from launcher.run import Incident, Run, RunState

VERBS = ("approve", "hold", "release", "note")


def is_verdict(command: CommandReceived) -> bool:
    """Whether a command is about one incident; hold and release may also be about the whole run."""
    return command.verb in ("approve", "note") or (command.verb in VERBS and "incident" in command.args)


def checked(command: CommandReceived, run: Run) -> CommandReceived:
    """The command with the rule of its incident; about no incident, and `refused`, if there is nothing to say it to."""
    number = command.args.get("incident")
    incident = next((one for one in run.incidents if one.number == number), None)
    if incident is None or isinstance(number, bool):
        known = f"1 to {len(run.incidents)}" if run.incidents else "none so far"
        return _refused(command, f"there is no incident {number!r}: {known}")
    if refusal := _why_not(command, incident, run):
        return _refused(command, refusal)
    return evolve(command, args={**command.args, "rule": incident.rule})


def _refused(command: CommandReceived, why: str) -> CommandReceived:
    return evolve(command, args={"incident": None, "refused": why})


def _why_not(command: CommandReceived, incident: Incident, run: Run) -> str:
    what = f"incident {incident.number}"
    is_asked = incident.state == "ASKED"
    match command.verb:
        case "note":
            return "" if str(command.args.get("text", "")).strip() else "a note without a word"
        case "approve":
            return "" if is_asked else f"nothing is asked about {what}: it is {incident.state}"
        case "hold":
            return "" if is_asked or is_under_way(run, incident) else f"nothing waits to be done about {what}"
    is_held = incident.state == "HELD" and run.state is RunState.HELD
    return "" if is_held or incident.state == "LEFT" else f"{what} is not held: it is {incident.state}"


def is_under_way(run: Run, incident: Incident) -> bool:
    """Whether a restart that an incident has caused has not begun its attempt yet."""
    pending = run.pending
    return pending is not None and pending.incident == incident.number and "restart" in pending.actions


def told(command: CommandReceived) -> str:
    """What comes of one that was not refused."""
    number = command.args["incident"]
    return {
        "approve": "approved",
        "hold": f"incident {number} is left as it is",
        "release": f"rule {command.args['rule']} may speak of it again",
        "note": f"noted at incident {number}",
    }[command.verb]
