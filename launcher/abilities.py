"""What a trainer can do when it is asked, in the words of who asks: the plan of recovery. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

SAVE_LIMIT_S = 60.0
SETTINGS = frozenset({"lr", "clip", "loss_scale"})
SILENT = "the trainer has told of no step, so it cannot be told to save: see 'telemetry' and 'capabilities.save_now'"


@dataclass(frozen=True)
class Abilities:
    """What a trainer can do. As it stands: all that our own can, asked through the reporter.

    `signal`: asks for a save instead of the reporter, which then comes within `save_s` or not at all. `resume_args`:
    appended to the command when it is to begin from a checkpoint. `resumes_itself`: it goes on from where nobody but
    it knows, `begins_anew`: always at step 0. `done_step`: to end well before is to end early.
    `settings`, `skips`: what it lets itself be told. `observed`: else nothing is declared of how it tells its steps: it
    may use the reporter or not, and that it does is known from its first step on.
    """

    saves: Literal["goes_on", "exits", "never"] = "goes_on"
    signal: str = ""
    save_s: float = SAVE_LIMIT_S
    resume_args: tuple[str, ...] = ()
    resumes_itself: bool = False
    begins_anew: bool = False
    done_step: int | None = None
    settings: frozenset[str] = SETTINGS
    skips: bool = True
    observed: bool = True
    refusal: str = ""  # why it cannot save and go on

    def args_for(self, path: str, step: int) -> list[str]:
        """What the command gets to begin from this checkpoint."""
        return [arg.replace("{dir}", path).replace("{step}", str(step)) for arg in self.resume_args]

    def known(self, *, has_told: bool) -> Abilities:
        """What it is known to be able to do, once it has told of a step or before."""
        if has_told or self.observed or self.signal or self.saves == "never":
            return self
        return replace(self, saves="never", refusal=SILENT)
