"""What agents tell of the ranks of an attempt, as events: each once, and only of the attempt that lives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from launcher.events import Event, LineMatched, RankExited, SettingsApplied, StepDone, TrainerDone
from launcher.run import Attempt, Run
from launcher.settings import asked_by

Message = dict[str, Any]


class Testimony:
    """Agents repeat what was not acknowledged: what is journaled is recognised.

    `done_codes`: with which a rank's exit is a success.
    """

    def __init__(self, run: Callable[[], Run], done_codes: frozenset[int]) -> None:
        self._run, self._done_codes = run, done_codes
        self._last_step: dict[int, int] = {}
        self._exits: set[tuple[int, int]] = set()

    def remember_all(self, run: Run) -> None:
        """What predecessors had journaled."""
        for attempt in run.attempts:
            self._exits |= {(attempt.number, rank) for rank in attempt.exits}
            if attempt.first_step_at is not None:
                self._last_step[attempt.number] = attempt.last_step - 1

    def remember(self, event: Event) -> None:
        """What is being journaled."""
        if isinstance(event, StepDone):
            self._last_step[event.attempt] = event.step
        elif isinstance(event, RankExited):
            self._exits.add((event.attempt, event.rank))

    def event_of(self, node: str, message: Message) -> Event | None:
        """The event of a message; None if it is out of date or was said before."""
        live = self._run().live_attempt
        if live is None or message.get("attempt") != live.number:
            return None
        attempt, at = live.number, message["at"]
        match message["type"]:
            case "line_matched":
                return LineMatched(at=at, attempt=attempt, node=node, **_some(message, "rank", "rule", "line"))
            case "step_done" if message["step"] > self._last_step.get(attempt, -1):
                return _step_done(attempt, message)
            case "rank_exited" if (attempt, message["rank"]) not in self._exits and self._run().pending is None:
                code = 0 if message["code"] in self._done_codes else message["code"]
                about = _some(message, "rank", "step", "error_type", "error")
                return RankExited(at=at, attempt=attempt, node=node, code=code, **about)
            case "settings_applied" if asked := asked_by(self._run(), message["id"] or ""):
                about = _some(message, "step", "effective", "problem")
                return SettingsApplied(at=at, attempt=attempt, id=message["id"] or "", asked=asked, **about)
            case "done" if live.done is None:
                return _done(live, message)
        return None


def _step_done(attempt: int, message: Message) -> StepDone:
    checksums = {
        what: {int(rank): number for rank, number in of.items()} for what, of in message.get("checksums", {}).items()
    }
    return StepDone(
        at=message["at"],
        attempt=attempt,
        step=message["step"],
        metrics={key: float(value) for key, value in message["metrics"].items()},  # infinities come as text
        samples=tuple(message["samples"]) if message["samples"] else None,
        step_s=message["step_s"],
        blocked_s=message["blocked_s"],
        compute_s=tuple(message.get("compute_s", ())),
        checksums=checksums,
    )


def _done(live: Attempt, message: Message) -> TrainerDone:
    result = {key: float(value) for key, value in message["result"].items()}
    about = _some(message, "at", "step", "final_digest")
    return TrainerDone(attempt=live.number, result=result, **about)


def _some(message: Message, *keys: str) -> dict[str, Any]:
    return {key: message[key] for key in keys}
