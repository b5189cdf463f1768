"""What happens, in a line for whoever looks at the run's own output. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from launcher.events import (
    AttemptStarted,
    Decision,
    DrainDone,
    DrainUndone,
    EnvironmentChanged,
    Event,
    IncidentClosed,
    IncidentOpened,
    RunEnded,
    RunHeld,
    RunPaused,
    RunReleased,
    RunUnpaused,
)

_SHOWN = 4


def news(event: Event, name: str) -> str:
    """The line for an event of the run of this name; "" if it is no news."""
    match event:
        case AttemptStarted():
            start = "as the script resumes by itself" if event.resumes_itself else "from the start"
            begins = f"from step {event.restore[0]:,}" if event.restore else start
            return f"attempt {event.attempt} {begins} on {', '.join(event.slots)}"
        case Decision() if event.mode == "act" and event.actions.keys() & {"hold", "stop"}:
            return ""  # what comes of it tells why too
        case Decision():
            advised = {"advise": " (advise only)", "ask": f" (opt-launch incidents {name} approve {event.incident}?)"}
            deeds = ", ".join(event.actions) or "nothing is done"
            return f"{event.rule}: {event.why}: {deeds}{advised.get(event.mode, '')}"
        case IncidentOpened():
            return f"{event.rule}: {event.why}: watched, nothing is decided yet"
        case IncidentClosed() if event.outcome != "left":
            return f"incident {event.incident} {event.outcome}: {event.why}"
        case DrainDone():
            return f"{event.node}: {event.detail}" + (f" in Slurm: {event.reason}" if event.ok else "")
        case DrainUndone():
            return f"{event.node}: {event.detail}"
        case EnvironmentChanged():
            return differs(event.attempt, [*event.changes])
        case RunHeld():
            return f"HELD: {event.reason}: opt-launch release {name}, or opt-launch stop {name}"
        case RunReleased():
            return f"released by {event.author}"
        case RunPaused():
            return f"PAUSED: {event.reason}: opt-launch unpause {name}, or opt-launch stop {name}"
        case RunUnpaused():
            return f"unpaused by {event.author}"
        case RunEnded():
            return event.state + (f": {event.reason}" if event.reason else "")
    return ""


def differs(attempt: int, names: Sequence[str]) -> str:
    """That an attempt runs on something else than the one before, in a line."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"attempt {attempt} differs from the one before: {', '.join(names[:_SHOWN])}{more}"
