"""The incident record of OPT-175B (tests/data/opt175b), and what its operators did in the words of a policy.

What a row says of cause and action is kept apart from what sensors may be made of: `Row.seen` has neither.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from datetime import date
from pathlib import Path

FILE = Path(__file__).parent.parent / "tests" / "data" / "opt175b" / "opt175b_events.csv"

RESTART, EXCLUDE, SKIP = "restart", "exclude", "skip"
# What the record calls an action -> what a policy would have had to do. A replaced node is one that is left out.
DEEDS: dict[str, frozenset[str]] = {
    "restart": frozenset({RESTART}),
    "requeue": frozenset({RESTART}),
    "rollback_checkpoint": frozenset({RESTART}),
    "auto_recover": frozenset({RESTART}),
    "lower_lr": frozenset({"lr"}),
    "lower_clip": frozenset({"clip"}),
    "reset_loss_scale": frozenset({"loss_scale"}),
    "rotate_data": frozenset({SKIP}),
    "replace_nodes": frozenset({EXCLUDE}),
    "exclude_hosts": frozenset({EXCLUDE}),
    "keep_adam": frozenset(),  # nothing changed
    "finish_run": frozenset(),
}
# What no rule can do, in words.
PEOPLE = {
    "start_run": "begin a run",
    "prepare_next_run": "prepare the next run",
    "abandon_lineage": "give up all that was trained",
    "skip_update_on_clip": "change how updates are left out",
    "switch_to_sgd": "change the optimizer",
    "sgd_like_adam": "change settings of the optimizer",
    "change_optimizer": "change the optimizer",
    "raise_weight_decay": "raise the weight decay",
    "lower_adam_beta2": "lower Adam's beta2",
    "change_activation": "change the activation function",
    "change_attention_math": "change how attention is computed",
    "change_initialisation": "change the initialisation",
    "change_hyperparameters": "choose other hyperparameters (not stated which)",
    "change_validation_interval": "validate less often",
    "decouple_checkpoint_interval": "save apart from validation",
    "bisect_dependency": "search the dependencies",
    "rerun_window": "train a window of steps again to compare",
    "run_health_checks": "check the machines",
    "automate_health_checks": "write health checks",
    "manage_nodes": "look after the nodes",
    "enlarge_spare_pool": "get more spare nodes",
    "escalate_provider": "talk to the provider",
    "rewrite_download": "rewrite the download",
}


@dataclass(frozen=True)
class Seen:
    """What sensors may be made of: what sort of event, how it was noticed, where, and what the note tells of it."""

    kind: str
    detection: str
    step: int | None
    note: str


@dataclass(frozen=True)
class Row:
    """A row of the record. `day`: None where no date is stated. `actions`: what people did, in the record's words."""

    number: int
    day: date | None
    run: str
    seen: Seen
    actions: tuple[str, ...]

    @property
    def deeds(self) -> frozenset[str]:
        """What people did, as far as a policy could have."""
        return frozenset[str]().union(*(DEEDS[action] for action in self.actions if action in DEEDS))

    @property
    def by_people(self) -> tuple[str, ...]:
        """What they did beside it, that no rule can."""
        return tuple(dict.fromkeys(PEOPLE[action] for action in self.actions if action in PEOPLE))


def read_rows(file: Path = FILE) -> list[Row]:
    """All rows, in the order of the file. Raises KeyError for an action that is in neither table above."""
    with file.open(newline="", encoding="utf-8") as lines:
        return [_row(number, cells) for number, cells in enumerate(csv.DictReader(lines), start=1)]


def _row(number: int, cells: dict[str, str]) -> Row:
    actions = tuple(action for action in cells["action"].split(";") if action)
    if unknown := [action for action in actions if action not in DEEDS and action not in PEOPLE]:
        raise KeyError(f"row {number}: no meaning is known of {', '.join(unknown)}")
    step = int(cells["step"]) if cells["step"] else None
    day = date.fromisoformat(cells["date"]) if cells["date"] else None
    return Row(number, day, cells["run_id"], Seen(cells["kind"], cells["detection"], step, cells["note"]), actions)
