"""The search for bad nodes among hosts that are asked from outside: each trial is a command on each of its hosts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from launcher.events import CheckFinding, TrialPlace
from launcher.localize import Diagnosis, Round
from launcher.remote.answer import Answer
from launcher.remote.ask import Question, Transport, ask
from launcher.trials import (
    GRACE_S,
    LIMIT_S,
    START_S,
    Part,
    Report,
    Rounds,
    findings_of,
    moved,
    parts,
    present,
    result_of,
)

Watch = Callable[[Iterator[Answer], int, str], Iterator[Answer]]


def search(
    transport: Transport, hosts: Sequence[str], python: str, interface: str, watch: Watch, limit_s: float = LIMIT_S
) -> dict[str, CheckFinding]:
    """What all-reduces among the hosts say of each. `watch(answers, total, what)` sees those of a round go by."""
    rounds: Rounds = ()
    places: dict[str, TrialPlace] = {}
    while not isinstance(step := present(tuple(hosts), rounds), Diagnosis):
        asked = {host: part for trial in step for host, part in parts(trial, places, limit_s).items()}
        questions = {host: _question(part, python, interface) for host, part in asked.items()}
        answers = watch(ask(transport, questions, parallel=len(asked)), len(asked), _name(step, len(rounds)))
        told = {one.host: _report(one) for one in answers}
        reports = {host: report for host, (report, _) in told.items()}
        places = moved(places, {host: address for host, (_, address) in told.items()}, reports)
        rounds = (*rounds, tuple(result_of(trial, reports) for trial in step))
    return findings_of(step, rounds)


def _question(part: Part, python: str, interface: str) -> Question:
    limit_s = START_S + part.burn_s + part.limit_s + GRACE_S
    return Question("trial", {"part": asdict(part), "interface": interface}, python, limit_s)


def _report(answer: Answer) -> tuple[Report, str]:
    """How it went, and where the host can be met; of one that cannot be asked, that it took no part."""
    told: Mapping[str, Any] | None = answer.told
    if told is None:
        return Report("not_started", answer.problem.message if answer.problem else ""), ""
    try:
        return Report(**{**told["report"], "digests": tuple(told["report"]["digests"])}), str(told["address"])
    except (KeyError, TypeError) as error:
        return Report("not_started", f"its answer cannot be read: {error}"), ""


def _name(trials: Round, number: int) -> str:
    size = max(map(len, trials))
    how = "each alone" if size == 1 else f"{len(trials)} pairs" if size == 2 else f"{size} together"
    return f"round {number + 1}: {how}"
