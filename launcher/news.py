"""What happens, in a line for whoever looks at the run's own output. Pure."""

from __future__ import annotations

from launcher.events import AttemptStarted, Decision, Event, RunEnded, RunHeld, RunReleased


def news(event: Event, name: str) -> str:
    """The line for an event of the run of this name; "" if it is no news."""
    match event:
        case AttemptStarted():
            restored = f"from step {event.restore[0]:,}" if event.restore else "from the start"
            return f"attempt {event.attempt} {restored} on {', '.join(event.slots)}"
        case Decision():
            advised = {"advise": " (advise only)", "ask": f" (opt-launch incidents {name} approve {event.incident}?)"}
            deeds = ", ".join(event.actions) or "nothing is done"
            return f"{event.rule}: {event.why}: {deeds}{advised.get(event.mode, '')}"
        case RunHeld():
            return f"HELD: {event.reason}: opt-launch release {name}, or opt-launch stop {name}"
        case RunReleased():
            return f"released by {event.author}"
        case RunEnded():
            return event.state + (f": {event.reason}" if event.reason else "")
    return ""
