"""Which checkpoint to go back to, and which may be deleted. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from launcher.events import CheckpointId
from launcher.run import Checkpoint, Run

# What these find is in the weights, and so in every checkpoint since.
IN_THE_WEIGHTS = frozenset({"spike", "non_finite", "scale_collapse", "sdc"})


@dataclass(frozen=True)
class Choice:
    """Where to begin: a checkpoint, or step 0 (`restore` None), and why."""

    restore: CheckpointId | None
    why: str


@dataclass(frozen=True)
class NoChoice:
    """There is history but nothing trustworthy to begin from: the run must be held, never restarted at step 0."""

    reason: str


def choose(run: Run, origin: str = "latest", onset_step: int = -1, below: int | None = None) -> Choice | NoChoice:
    """The checkpoint a restart with `from: origin` begins from.

    `origin`: "latest", "last_good", "before_incident" or "step N". `onset_step`: the step index at which an
    incident of the numbers began; a checkpoint of that step or before holds nothing of it, or, where not every step is
    told, one of the last step told before it. `below`: older than the one of this step, which did not help, if there
    is one.
    """
    if not run.checkpoints:
        return Choice(None, "no checkpoint was ever committed")
    line = [checkpoint for checkpoint in run.lineage() if checkpoint.usable]
    if not line:
        rejected = [c for c in run.checkpoints.values() if c.rejected]
        worst = f": step {rejected[-1].step}: {rejected[-1].rejected}" if rejected else ""
        return NoChoice(f"no usable checkpoint is left of {len(run.checkpoints)}{worst}")
    if origin == "latest":
        return Choice(line[0].id, "latest complete checkpoint")
    if origin.startswith("step "):
        step = int(origin.removeprefix("step "))
        exact = next((c for c in line if c.step == step), None)
        return (
            Choice(exact.id, f"step {step} was asked for") if exact else NoChoice(f"no usable checkpoint at {origin}")
        )
    before = [c for c in line if onset_step < 0 or c.step <= onset_step - run.stride + 1]
    if below is not None and (older := [c for c in before if c.step < below]):
        before, onset_step = older, below - 1
    if origin == "before_incident" and before:
        return Choice(before[0].id, f"newest complete checkpoint from before the incident at step {onset_step}")
    good = next((c for c in before if run.is_good(c)), None)
    if good is not None:
        return Choice(good.id, "last good checkpoint")
    if before:
        return Choice(before[-1].id, "none is good yet: the oldest complete one from before the incident")
    return NoChoice(f"no usable checkpoint from before the incident at step {onset_step}")


def choose_undecided(run: Run) -> Choice | NoChoice:
    """The checkpoint from which a run goes on if nobody decides where: the newest.

    After a hold for what is in the weights it is the newest from before that, if there is one.
    """
    if (onset := tainted_since(run)) is not None:
        sound = choose(run, "before_incident", onset)
        if isinstance(sound, Choice):
            return sound
    return choose(run)


def tainted_since(run: Run) -> int | None:
    """The step at which the trouble began that a run is held for; None where the newest checkpoint holds none of it."""
    held = (one for one in run.incidents if one.state == "HELD" and one.detector in IN_THE_WEIGHTS)
    return min((one.onset_step for one in held if one.onset_step >= 0), default=None)


def tried_before(run: Run) -> int | None:
    """The step of the checkpoint from which the run went on when it was to be cured of what has come again.

    The same story goes on when the numbers go wrong again before they have gone well for a probation beyond the step
    at which they had last time.
    """
    decision = run.pending
    if decision is None or _origin(decision.actions) == "latest":
        return None
    earlier = (one for one in reversed(run.incidents) if one.number != decision.incident and one.mode == "act")
    incident = next((one for one in earlier if _origin(one.actions) != "latest"), None)
    if incident is None or incident.attempt >= len(run.attempts):
        return None
    restore = run.attempts[incident.attempt].restore  # of the attempt that came after it
    again = max(decision.onset_step, 0) <= incident.step + run.probation
    return restore[0] if again and restore else None


def _origin(actions: Mapping[str, object]) -> str:
    restart = actions.get("restart")
    return str(restart.get("from", "latest")) if isinstance(restart, Mapping) else "latest"


def removable(run: Run, keep: int, keep_every: int | None) -> tuple[Checkpoint, ...]:
    """Checkpoints that retention lets go, oldest first.

    Of the current line the newest `keep` stay, every `keep_every`-th step, and always the newest good one; while the
    numbers are in trouble, all from before it; and the newest from before what an incident, that is open or that waits
    for a person, may go back to. Of abandoned lines nothing stays that is older than the newest kept.
    """
    line = [checkpoint for checkpoint in run.lineage() if not checkpoint.removed]
    usable = [checkpoint for checkpoint in line if checkpoint.usable]
    kept = {checkpoint.id for checkpoint in usable[:keep]}
    kept |= {c.id for c in usable if keep_every and c.step % keep_every == 0}
    kept |= {c.id for c in [next((c for c in usable if run.is_good(c)), None)] if c is not None}
    if math.isfinite(run.sound_until):
        kept |= {c.id for c in usable if c.step <= run.sound_until}
    unsettled = [one for one in run.incidents if one.state in ("ASKED", "OPEN", "HELD")]
    onsets = [one.onset_step if one.onset_step >= 0 else one.step for one in unsettled]
    kept |= {c.id for onset in onsets for c in [next((c for c in usable if c.step <= onset), None)] if c is not None}
    if run.attempt and run.attempt.restore:
        kept.add(run.attempt.restore)
    present = [c for c in run.checkpoints.values() if not c.removed]
    in_line = {c.id for c in line}
    newest = max((c.committed_at for c in usable[:1]), default=0.0)
    old = [c for c in present if c.id not in kept and (c.id in in_line or c.committed_at < newest)]
    return tuple(sorted(old, key=lambda c: (c.step, c.attempt)))
