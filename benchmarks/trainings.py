"""Trainings that go wrong, with the shipped policy, with none for numbers, and as recommended; and healthy ones.

    python benchmarks/trainings.py [--seeds 1 2 3 4 5] [--only lr poison flip scale healthy] [--keep FOLDER]

The real trainer under `opt-launch submit`, backend local. Each fault is trained three times for each seed:
recommended   the settings without the fault
default       with the fault, policy: [default]
off           with the fault, policy: [infra]: nothing looks at numbers
Healthy runs are trained once each, with the policy `default`. What came of each is kept in FOLDER and not done again:
a second call goes on. Remove FOLDER when trainings or policies have changed.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from curve_plot import Curve, Panel, drawn
from harness import OptLaunch, table, wait_for
from training_cases import FAULTS, HEALTHY, Fault, Training

RECOMMENDED, DEFAULT, OFF = "recommended", "default", "off"
POLICIES = {RECOMMENDED: "default", DEFAULT: "default", OFF: "infra"}
LIMIT_S = 180.0


@dataclass(frozen=True)
class Outcome:
    """What came of a training. `rows`: (attempt, step, loss); `decisions`: as the journal has them."""

    state: str
    why: str
    val_loss: float
    seconds: float
    rows: list[tuple[int, int, float]]
    decisions: list[dict[str, Any]]
    onsets: int
    overflows: int

    def of_numbers(self) -> list[dict[str, Any]]:
        """Decisions about numbers."""
        return [one for one in self.decisions if one["detector"] not in ("exit", "node_lost", "person")]


def train(training: Training, seed: int, policy: str) -> Outcome:
    """Train to the end, or until a person would be called."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="opt-launch-trainings-") as folder:
        run = training.start(Path(folder) / "x", seed, policy)
        try:
            training.disturb(run)
            wait_for(run, "over", lambda: _ending(run) is not None, LIMIT_S)
            return _outcome(run, time.monotonic() - began)
        finally:
            run.end()


def _ending(run: OptLaunch) -> dict[str, Any] | None:
    """The event with which a run has ended, or is held."""
    last = run.events("run_ended", "run_held", "run_resumed", "run_released")[-1:]
    return last[0] if last and last[0]["type"] in ("run_ended", "run_held") else None


def _outcome(run: OptLaunch, seconds: float) -> Outcome:
    end = _ending(run)
    assert end is not None
    steps = run.metrics()
    done = [float(event["result"].get("val_loss", math.nan)) for event in run.events("trainer_done")]
    kept = ("attempt", "step", "rule", "detector", "mode", "actions", "why", "onset_step")
    return Outcome(
        end.get("state", "HELD"),
        end.get("reason", ""),
        done[-1] if done else math.nan,
        seconds,
        [(step["attempt"], step["step"], float(step["metrics"]["loss"])) for step in steps],
        [{key: one[key] for key in kept if key in one} for one in run.events("decision")],
        len(run.events("incident_opened")),
        sum(bool(step["metrics"].get("skipped")) for step in steps),
    )


def kept(folder: Path, training: Training, seed: int, variant: str) -> Outcome:
    """The outcome of a training, from the folder if it is there."""
    file = folder / f"{training.name}.{seed}.{variant}.json"
    if not file.exists():
        outcome = train(training, seed, POLICIES[variant])
        print(
            f"{file.stem}: {outcome.state} {outcome.val_loss:.4f}, {_deeds(outcome)}, {outcome.seconds:.0f} s",
            flush=True,
        )
        half = file.with_suffix(".new")
        half.write_text(json.dumps(asdict(outcome)))
        half.replace(file)
    return Outcome(**json.loads(file.read_text()))


# ---------------------------------------------------------------- what is told


def _deeds(outcome: Outcome) -> str:
    """As in "restart with skip; set lr x0.5": what was done about numbers."""
    return "; ".join(_deed(one["actions"]) for one in outcome.of_numbers() if one["mode"] == "act") or "nothing"


def _deed(actions: dict[str, Any]) -> str:
    words = []
    if "set" in actions:
        words += [f"{name} {value}" for name, value in actions["set"].items()]
    if "skip" in actions:
        words.append(f"skip {actions['skip']['batches']}")
    if "restart" in actions:
        words.append(actions["restart"]["from"].replace("_", " "))
    return ", ".join(words) or " ".join(actions)


def _loss(outcome: Outcome, than: Outcome) -> str:
    """The validation loss, and by how much it is above another's."""
    if not math.isfinite(outcome.val_loss):
        return "not finite" if outcome.state == "SUCCEEDED" else outcome.state
    return f"{outcome.val_loss:.3f} ({outcome.val_loss / than.val_loss - 1:+.1%})".replace("%", " %")


def of_fault(fault: Fault, of: dict[int, dict[str, Outcome]]) -> list[list[str]]:
    return [
        [
            fault.title,
            str(seed),
            f"{one[RECOMMENDED].val_loss:.3f}",
            _loss(one[DEFAULT], one[RECOMMENDED]),
            _loss(one[OFF], one[RECOMMENDED]),
            _deeds(one[DEFAULT]),
        ]
        for seed, one in of.items()
    ]


def of_healthy(training: Training, outcome: Outcome) -> list[str]:
    others = len(outcome.decisions) - len(outcome.of_numbers())
    return [
        training.name.replace("-", " "),
        f"{outcome.val_loss:.3f}",
        str(outcome.overflows),
        str(others),
        str(outcome.onsets),
        str(len(outcome.of_numbers())),
    ]


def parts(outcome: Outcome) -> Iterator[list[tuple[int, float]]]:
    """(step, loss) of each attempt in turn."""
    for attempt in sorted({number for number, _, _ in outcome.rows}):
        yield [(step, loss) for number, step, loss in outcome.rows if number == attempt]


def panel(fault: Fault, of: dict[int, dict[str, Outcome]]) -> Panel:
    curves = [Curve(variant, [*parts(one[variant])]) for variant in (OFF, RECOMMENDED, DEFAULT) for one in of.values()]
    return Panel(fault.title, curves)


# ---------------------------------------------------------------- all of it


def main() -> None:
    options = _options()
    options.keep.mkdir(parents=True, exist_ok=True)
    faults = [fault for fault in FAULTS if fault.name in options.only]
    variants = {RECOMMENDED: "recommended", DEFAULT: "training", OFF: "training"}
    wanted = {
        (fault.name, seed, variant): (getattr(fault, which), seed, variant)
        for fault in faults
        for seed in options.seeds
        for variant, which in variants.items()
    }
    healthy = [(one, seed, DEFAULT) for seed, one in enumerate(HEALTHY, 101) if "healthy" in options.only]
    with ThreadPoolExecutor(options.jobs) as pool:
        # One after another of the same training: what several faults are compared with is trained once.
        firsts = list(dict.fromkeys([*wanted.values(), *healthy]))
        done = dict(zip(firsts, pool.map(lambda one: kept(options.keep, *one), firsts), strict=True))
    rows, panels = [], []
    for fault in faults:
        of = {
            seed: {variant: done[wanted[fault.name, seed, variant]] for variant in variants} for seed in options.seeds
        }
        rows += of_fault(fault, of)
        panels.append(panel(fault, of))
    if rows:
        head = ["fault", "seed", "recommended", "default", "off", "what default did"]
        print("\n" + table(head, rows))
    if healthy:
        head = ["healthy run", "validation loss", "overflows", "other decisions", "onsets", "acted on numbers"]
        print("\n" + table(head, [of_healthy(one[0], done[one]) for one in healthy]))
        panels.append(Panel("healthy runs", [Curve(DEFAULT, [*parts(done[one])]) for one in healthy]))
    options.svg.write_text(drawn(panels))
    print(f"\ncurves: {options.svg}")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    names = [*(one.name for one in FAULTS), "healthy"]
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    parser.add_argument("--only", nargs="+", choices=names, default=names)
    parser.add_argument("--jobs", type=int, default=1, help="trainings at once")
    parser.add_argument("--keep", type=Path, default=Path("build/trainings"))
    parser.add_argument("--svg", type=Path, default=Path("build/trainings.svg"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
