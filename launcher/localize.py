"""Which node is bad, found by collectives in small sets: `localize(nodes)`. Pure.

    alone    every node by itself: what fails here is the node's own fault
    pairs    neighbours, all pairs at once: who passes is proven to work
    witness  each suspect with a proven node of its own, all at once; who is cleared is a witness in the next round
    group    all proven nodes together; one that fails is halved, and every leaf is tested

A trial that fails or takes too long blames all who took part, never one of them. A node is *bad* once it has failed
with two nodes that are proven, so neither a bad partner nor one broken link makes a healthy node bad. Two nodes that
pass with others and fail with each other, twice, have a broken *link*. Where that cannot be told it is *undecided*.
Slow is not broken: a pair below 80 % of the median bandwidth is treated likewise, and its culprit is *slow*.

With k bad of N nodes, k <= N/4, three rounds of pairs suffice. Sources: the pairs of DLRover's node check, and the
distinct proven witness, without which pairs of suspects blame good nodes (benchmarks/localize.py compares them).
"""

from __future__ import annotations

import statistics
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

SLOW_SHARE = 0.8  # of the median bandwidth of pairs; single runs flutter, so a runner tells the best of three
FEWEST_FOR_MEDIAN = 4
PROOF = 2  # proven partners with whom a bad node has failed
BLIND_ROUNDS = 3  # of pairs among suspects where nobody is proven; enough for all pairs of four nodes

Trial: TypeAlias = tuple[str, ...]  # the nodes that take part


@dataclass(frozen=True)
class Result:
    """What came of a trial. `absent`: nodes that never reported their start. `bandwidth`: of the bus, any unit."""

    outcome: Literal["passed", "failed", "timed_out"]
    absent: frozenset[str] = frozenset()
    bandwidth: float | None = None


Round: TypeAlias = tuple[Trial, ...]  # run at the same time, no node in two of them
Results: TypeAlias = Mapping[Trial, Result]
Search: TypeAlias = Generator[Round, Results, "Diagnosis"]
_Rounds: TypeAlias = Generator[Round, Results, None]


@dataclass
class Diagnosis:
    """Every node is in one of `good`, `bad`, `slow`, `absent` or in a set of `undecided`; certain are all but the last.

    `bad`, `slow`: node -> why. `links`: pairs that work with others only. `interactions`: sets that fail together
    though each part of them passes. `rounds`: of pairs; alone and groups come on top.
    """

    good: set[str] = field(default_factory=set)
    bad: dict[str, str] = field(default_factory=dict)
    slow: dict[str, str] = field(default_factory=dict)
    absent: set[str] = field(default_factory=set)
    links: list[Trial] = field(default_factory=list)
    undecided: list[frozenset[str]] = field(default_factory=list)
    interactions: list[Trial] = field(default_factory=list)
    rounds: int = 0


def localize(nodes: Sequence[str], *, group: bool = True) -> Search:
    """Yields rounds, wants their results, returns the diagnosis. Neighbours in `nodes` should be close in the network.

    A trial without a result counts as timed out.
    """
    found = Diagnosis()
    alone = tuple((node,) for node in nodes)
    results = _complete(alone, (yield alone))
    found.absent = {node for (node,), result in results.items() if node in result.absent}
    found.bad = {
        node: "fails alone" if result.outcome == "failed" else "does not come to an end alone"
        for (node,), result in results.items()
        if result.outcome != "passed" and node not in found.absent
    }
    rest = [node for node in nodes if node not in found.bad and node not in found.absent]
    if len(rest) < 2:
        if len(nodes) == 1:
            found.good = set(rest)
        elif rest:
            found.undecided = [frozenset(rest)]  # with nobody left it could only be tried alone
        return found
    book = _Book(rest)
    yield from _play(book, _neighbours(rest))
    yield from _resolve(book)
    if group and len(good := [node for node in rest if node in book.proven]) > 2:
        yield from _as_a_group(book, good, found)
    book.conclude(found)
    return found


# ---------------------------------------------------------------- what the pairs have told


class _Book:
    """All pairs so far. `proven`: nodes that have passed with another, and nothing since then speaks against it."""

    def __init__(self, nodes: Sequence[str]) -> None:
        self.nodes = nodes
        self.proven: set[str] = set()
        self.absent: set[str] = set()
        self.tried: dict[frozenset[str], list[str]] = {}  # pair -> outcomes: passed, slow, failed, timed_out
        self.partners: dict[str, set[str]] = {node: set() for node in nodes}
        self.rounds = 0
        self._bandwidths: list[float] = []

    def learn(self, results: Results) -> None:
        """The outcomes of a round of pairs."""
        self.rounds += 1
        self._bandwidths += [one.bandwidth for one in results.values() if one.outcome == "passed" and one.bandwidth]
        for pair, result in results.items():
            if result.absent:  # it says nothing of who was there
                self.absent |= result.absent
                continue
            outcome = "slow" if self._is_slow(result) else result.outcome
            self.tried.setdefault(frozenset(pair), []).append(outcome)
            for node, other in (pair, pair[::-1]):
                self.partners[node].add(other)
            if outcome == "passed":
                self.proven.update(pair)

    def _is_slow(self, result: Result) -> bool:
        if result.outcome != "passed" or not result.bandwidth or len(self._bandwidths) < FEWEST_FOR_MEDIAN:
            return False
        return result.bandwidth < SLOW_SHARE * statistics.median(self._bandwidths)

    def doubt(self, nodes: Iterable[str]) -> None:
        """Forget what these nodes have passed: since then they have failed."""
        nodes = set(nodes)
        self.proven -= nodes
        self.tried = {pair: told for pair, told in self.tried.items() if told[-1] != "passed" or not pair & nodes}
        self.partners = {node: set() for node in self.nodes}
        for node, other in self.tried:
            self.partners[node].add(other)
            self.partners[other].add(node)

    def failed_with(self, node: str) -> list[str]:
        """The proven nodes with which this one has failed or was slow."""
        partners = (other for other in self.partners[node] if other in self.proven)
        return sorted(other for other in partners if self._last(node, other) != "passed")

    def open(self) -> list[str]:
        """Nodes of which it is not yet known what they are; those that have failed come first."""
        found = [node for node in self.nodes if node not in self.proven and node not in self.absent]
        found = [node for node in found if len(self.failed_with(node)) < PROOF]
        return sorted(found, key=lambda node: not self.partners[node])

    def doubtful_links(self) -> list[Trial]:
        """Pairs of proven nodes that have failed once."""
        return [
            tuple(sorted(pair, reverse=True))  # the other one comes first this time
            for pair, told in self.tried.items()
            if pair <= self.proven and len(told) == 1 and told[0] != "passed"
        ]

    def conclude(self, found: Diagnosis) -> None:
        found.rounds = self.rounds
        found.absent |= self.absent
        found.good = {node for node in self.proven if node not in found.absent}
        found.links = [
            tuple(sorted(pair))
            for pair, told in self.tried.items()
            if pair <= self.proven and len(told) > 1 and told[-1] != "passed"
        ]
        for node in self.nodes:
            partners = [] if node in self.proven or node in found.absent else self.failed_with(node)
            if len(partners) >= PROOF:
                broken = [other for other in partners if self._last(node, other) != "slow"]
                if len(broken) >= PROOF:
                    found.bad[node] = f"failed with {_and(broken)}, which pass with others"
                else:
                    found.slow[node] = f"slow with {_and(partners)}, which are fast with others"
        found.undecided = _connected(self, set(self.open()) - found.absent)

    def _last(self, node: str, other: str) -> str:
        return self.tried[frozenset((node, other))][-1]


def _connected(book: _Book, nodes: set[str]) -> list[frozenset[str]]:
    """Undecided nodes in sets that have failed with each other."""
    sets: list[frozenset[str]] = []
    while nodes:
        found, todo = set(), [min(nodes)]
        while todo:
            if (node := todo.pop()) not in found:
                found.add(node)
                todo += [other for other in book.partners[node] if other in nodes]
        nodes = nodes - found
        sets.append(frozenset(found))
    return sets


# ---------------------------------------------------------------- rounds


def _play(book: _Book, pairs: Round) -> _Rounds:
    """One round of pairs."""
    if pairs:
        book.learn(_complete(pairs, (yield pairs)))


def _resolve(book: _Book) -> _Rounds:
    """Witnesses for all who are suspected, until nothing more can be learned."""
    blind = 0
    while True:
        links = list(_disjoint(book.doubtful_links()))
        busy = {node for link in links for node in link}
        pairs = [*links, *_with_witnesses(book, busy)]
        if not pairs and not book.proven and blind < BLIND_ROUNDS:
            blind += 1
            pairs = [*_among_suspects(book)]
        if not pairs:
            return
        yield from _play(book, tuple(pairs))


def _with_witnesses(book: _Book, busy: set[str]) -> Iterator[Trial]:
    """Each suspect with a proven node of its own that it has not met."""
    free = [node for node in book.nodes if node in book.proven and node not in busy]
    for suspect in book.open():
        witness = next((node for node in free if node not in book.partners[suspect]), None)
        if witness is not None:
            free.remove(witness)
            yield (suspect, witness)


def _among_suspects(book: _Book) -> Iterator[Trial]:
    """Nobody is proven: pairs that have not met, in the hope that two good ones meet."""
    left = book.open()
    while left:
        node = left.pop(0)
        other = next((one for one in left if one not in book.partners[node]), None)
        if other is not None:
            left.remove(other)
            yield (node, other)


def _as_a_group(book: _Book, nodes: Sequence[str], found: Diagnosis) -> _Rounds:
    """All together; what fails is halved until a leaf fails, and who fails there is no longer proven."""
    failing: list[Trial] = [tuple(nodes)] if (yield from _fails(tuple(nodes))) else []
    while failing:
        halves = {whole: _halves(whole) for whole in failing if len(whole) > 3}
        for leaf in (whole for whole in failing if len(whole) <= 3):
            yield from _leaf(book, leaf, found)
        parts = tuple(half for both in halves.values() for half in both)
        if not parts:
            return
        results = _complete(parts, (yield parts))
        bad = {half for half, result in results.items() if result.outcome != "passed"}
        found.interactions += [whole for whole, both in halves.items() if not bad & set(both)]
        failing = [half for half in parts if half in bad]


def _fails(trial: Trial) -> Generator[Round, Results, bool]:
    results = yield (trial,)
    return _complete((trial,), results)[trial].outcome != "passed"


def _leaf(book: _Book, leaf: Trial, found: Diagnosis) -> _Rounds:
    """Two or three nodes that fail together: each pair of them anew, and what fails with witnesses."""
    pairs = [(a, b) for position, a in enumerate(leaf) for b in leaf[position + 1 :]]
    book.doubt(leaf)
    for pair in pairs:
        yield from _play(book, (pair,))
    if all(book.tried[frozenset(pair)][-1] == "passed" for pair in pairs if frozenset(pair) in book.tried):
        found.interactions.append(leaf)
    yield from _resolve(book)


def _neighbours(nodes: Sequence[str]) -> Round:
    """Pairs of neighbours; the last of an odd number waits for a witness."""
    return tuple(zip(nodes[::2], nodes[1::2], strict=False))


def _halves(whole: Trial) -> tuple[Trial, Trial]:
    middle = len(whole) // 2
    return whole[:middle], whole[middle:]


def _disjoint(pairs: Iterable[Trial]) -> Iterator[Trial]:
    """Of these pairs as many as can run at the same time, the first ones first."""
    busy: set[str] = set()
    for pair in pairs:
        if not busy & set(pair):
            busy |= set(pair)
            yield pair


def _complete(trials: Round, results: Results) -> dict[Trial, Result]:
    """The result of every trial; who never told of one has not come to its end."""
    return {trial: results.get(trial, Result("timed_out")) for trial in trials}


def _and(names: Sequence[str]) -> str:
    return " and ".join(names[:PROOF])
