"""A person pauses a run: checked before it is journaled, so that no step is lost unasked. Pure."""

from __future__ import annotations

from launcher.abilities import Abilities
from launcher.deeds import what_ends
from launcher.events import CommandReceived
from launcher.evolve import evolve
from launcher.replacement import why_steps_would_be_lost
from launcher.run import Run, RunState


def checked(command: CommandReceived, run: Run, trainer: Abilities) -> CommandReceived:
    """The command with who wants it and why as its `reason`; with `refused` as well if it cannot be done."""
    now = command.args.get("now") is True
    reason = f"{command.author}: {command.args.get('reason') or 'no reason given'}"
    args = {"reason": reason, "now": now}
    refused = _why_not(run, trainer, now=now)
    return evolve(command, args=args | {"refused": refused} if refused else args)


def _why_not(run: Run, trainer: Abilities, *, now: bool) -> str:
    if run.state is RunState.HELD:
        return f"held already: {run.hold_reason}"
    if run.paused_by and now and not run.pause_now and run.state is not RunState.PAUSED:
        return ""  # it takes too long
    if ending := what_ends(run):
        return ending
    attempt = run.live_attempt
    if now or attempt is None or not (attempt.has_begun or run.is_unobserved):
        return ""
    lost = why_steps_would_be_lost(run, trainer)
    return f"{lost}: --now pauses it all the same" if lost else ""
