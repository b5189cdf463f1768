"""How the allocation of a run stands, as far as that can be told from here. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True)
class Waiting:
    """An allocation that waits for its turn, so that no process of the run can live.

    `job_id` and `reason` are the scheduler's, "" for a run that waits for others of its sweep. `starts_at`: when it is
    expected to begin, Unix seconds, None where nobody says. `is_ours`: we may give its place up.
    """

    job_id: str = ""
    reason: str = ""
    starts_at: float | None = None
    is_ours: bool = True

    def __str__(self) -> str:
        if not self.job_id:
            return "waits for its turn: other runs of its sweep come first"
        told = f"job {self.job_id} waits in the queue" + (f": {self.reason}" if self.reason else "")
        when = "" if self.starts_at is None else f"{datetime.fromtimestamp(self.starts_at):%Y-%m-%d %H:%M}"
        return told + (f"; expected to start {when}" if when else "")


@dataclass(frozen=True)
class Standing:
    """`lives`: whether it waits or lives; None where the scheduler, who would know, does not answer.

    `told_at`: when that was said, `away_since`: since when nobody answers; Unix seconds, None where there is nobody to
    ask, or who answers. `how`: what was said of its end.
    """

    lives: bool | None
    jobs: tuple[str, ...] = ()
    waiting: Waiting | None = None
    told_at: float | None = None
    away_since: float | None = None
    how: str = ""

    @property
    def may_live(self) -> bool:
        """What may live is not started twice."""
        return self.lives is not False
