"""The search for the bad node beside two others, on made-up clusters: rounds, accuracy, and good nodes blamed.

    python benchmarks/localize.py

Any number of nodes is bad, at random places; a trial fails when a bad node takes part. The others are written down here
from their descriptions: DLRover's node check (two rounds: neighbours, then the fastest with the slowest; a node is good
if it passes once; an odd one makes a group of three) and plain bisection (what fails is halved; a single node that is
left over is called bad without a test of its own).
"""

from __future__ import annotations

import random
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from launcher.localize import Result, localize

SIZES = (4, 5, 9, 16, 33, 128, 129, 512, 2048)
TRIALS_OF = {512: 60, 2048: 20}
TRIALS = 300


@dataclass(frozen=True)
class Answer:
    """What a method says of a cluster: whom it blames, whom it leaves open, after how many rounds of pairs or sets."""

    blamed: frozenset[int]
    undecided: frozenset[int]
    rounds: int


Method = Callable[[int, frozenset[int]], Answer]


def ours(size: int, bad: frozenset[int]) -> Answer:
    search = localize([str(node) for node in range(size)], group=False)
    trials = next(search)
    while True:
        told = {
            trial: Result("failed" if len(trial) > 1 and any(int(node) in bad for node in trial) else "passed")
            for trial in trials
        }
        try:
            trials = search.send(told)
        except StopIteration as over:
            found = over.value
            undecided = frozenset(int(node) for one in found.undecided for node in one)
            return Answer(frozenset(map(int, found.bad)), undecided, found.rounds)


def dlrover(size: int, bad: frozenset[int]) -> Answer:
    """Times of healthy groups are random; those of failed ones are 3600 s."""
    passed: set[int] = set()
    first = [*range(size)]
    groups = [first[i : i + 2] for i in range(0, size - 1, 2)]
    if size % 2:
        groups[-1].append(size - 1)
    seconds: dict[int, float] = {}
    for group in groups:
        fails = bool(bad & set(group))
        passed |= set() if fails else set(group)
        seconds |= dict.fromkeys(group, 3600.0 if fails else random.random())
    by_time = sorted(first, key=lambda node: seconds[node])
    groups = [[by_time[i], by_time[-1 - i]] for i in range(size // 2)]
    if size % 2:
        groups[-1].append(by_time[size // 2])
    for group in groups:
        passed |= set() if bad & set(group) else set(group)
    return Answer(frozenset(first) - passed, frozenset(), 2)


def bisection(size: int, bad: frozenset[int]) -> Answer:
    """Tests one after the other."""
    blamed: set[int] = set()
    tests, todo = 0, [tuple(range(size))]
    while todo:
        nodes = todo.pop()
        if len(nodes) == 1:
            blamed |= set(nodes)
            continue
        tests += 1
        if bad & set(nodes):
            middle = len(nodes) // 2
            todo += [nodes[:middle], nodes[middle:]]
    return Answer(frozenset(blamed), frozenset(), tests)


def measured(method: Method, size: int, count: int) -> str:
    answers: list[tuple[frozenset[int], Answer]] = []
    for _ in range(TRIALS_OF.get(size, TRIALS)):
        bad = frozenset(random.sample(range(size), count))
        answers.append((bad, method(size, bad)))
    exact = statistics.fmean(answer.blamed == bad for bad, answer in answers)
    wrong = statistics.fmean(len(answer.blamed - bad) for bad, answer in answers)
    opened = statistics.fmean(bool(answer.undecided) for _, answer in answers)
    rounds = statistics.fmean(answer.rounds for _, answer in answers)
    most = max(answer.rounds for _, answer in answers)
    told = f"{100 * exact:.0f} %" + (f" ({100 * opened:.0f} % undecided)" if opened else "")
    return f"{told} / {wrong:.2f} / {rounds:.1f} (at most {most})"


def counts(size: int) -> Sequence[int]:
    return sorted({1, size // 4, size // 3})


def main() -> None:
    random.seed(1)
    print("| nodes, bad | opt-launch | DLRover's two rounds | bisection |")
    print("| --- | --- | --- | --- |")
    for size in SIZES:
        for count in counts(size):
            cells = " | ".join(measured(method, size, count) for method in (ours, dlrover, bisection))
            print(f"| {size}, {count} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
