"""The search for the bad node, on clusters that are made up: who is named, who never is, and in how many rounds."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launcher.localize import Diagnosis, Result, Round, Trial, localize


@dataclass
class World:
    """A cluster whose faults are known. `links`: pairs that fail together; `large`: node -> fails in sets so large.

    `dies`: nodes that fail from this round on.
    """

    size: int
    bad: frozenset[str] = frozenset()
    hangs: frozenset[str] = frozenset()
    slow: frozenset[str] = frozenset()
    absent: frozenset[str] = frozenset()
    alone: frozenset[str] = frozenset()
    links: frozenset[frozenset[str]] = frozenset()
    large: dict[str, int] = field(default_factory=dict)
    dies: dict[str, int] = field(default_factory=dict)
    rounds: list[Round] = field(default_factory=list)

    @property
    def nodes(self) -> list[str]:
        return names(range(self.size))

    def result(self, trial: Trial) -> Result:
        there = set(trial)
        if there & self.absent:
            return Result("timed_out", absent=frozenset(there & self.absent))
        if len(trial) == 1:
            return Result("failed" if there & self.alone else "passed")
        dead = {node for node, since in self.dies.items() if len(self.rounds) >= since}
        if there & self.hangs:
            return Result("timed_out")
        too_large = any(len(trial) >= size for node, size in self.large.items() if node in there)
        if there & (self.bad | dead) or too_large or any(link <= there for link in self.links):
            return Result("failed")
        return Result("passed", bandwidth=40.0 if there & self.slow else 100.0)

    def diagnose(self, *, group: bool = True) -> Diagnosis:
        """Run the search to its end; every round must be one that can be run."""
        search = localize(self.nodes, group=group)
        trials = next(search)
        while True:
            self.rounds.append(trials)
            told = [node for trial in trials for node in trial]
            assert len(told) == len(set(told)), "a node in two trials of a round"
            assert all(len(trial) != 3 or len(self.rounds) > 2 for trial in trials), "never three where two would do"
            try:
                trials = search.send({trial: self.result(trial) for trial in trials})
            except StopIteration as over:
                return over.value


def names(numbers: Iterable[int]) -> list[str]:
    return [f"n{number:04d}" for number in numbers]


def some(*numbers: int) -> frozenset[str]:
    return frozenset(names(numbers))


def pair(a: int, b: int) -> frozenset[str]:
    return frozenset(names((a, b)))


# ---------------------------------------------------------------- who is named


def test_of_healthy_nodes_all_are_good_after_one_round_of_pairs_and_one_group() -> None:
    world = World(8)
    found = world.diagnose()
    assert (found.good, found.rounds, len(world.rounds)) == (set(world.nodes), 1, 3)
    assert found == Diagnosis(good=found.good, rounds=1)


@pytest.mark.parametrize("fault", ["bad", "hangs"])
@pytest.mark.parametrize("size", [3, 4, 5, 8, 9, 64, 65])
def test_one_bad_node_is_named_wherever_it_is_and_whether_it_fails_or_hangs(size: int, fault: str) -> None:
    for number in range(size):
        found = World(size, **{fault: some(number)}).diagnose()
        assert found.bad.keys() == some(number)
        assert found.good == set(names(range(size))) - some(number)
        assert found.rounds <= 3


def test_why_it_is_bad_is_told_with_those_that_prove_it() -> None:
    found = World(8, bad=some(2)).diagnose()
    assert found.bad == {"n0002": "failed with n0000 and n0003, which pass with others"}


def test_two_bad_nodes_of_one_pair_are_both_named() -> None:
    found = World(8, bad=some(2, 3)).diagnose()
    assert (found.bad.keys(), found.rounds) == (some(2, 3), 3)


def test_who_fails_alone_takes_no_further_part() -> None:
    world = World(6, alone=some(1))
    assert world.diagnose().bad == {"n0001": "fails alone"}
    assert not any("n0001" in trial for trials in world.rounds[1:] for trial in trials)


@pytest.mark.parametrize("when", ["at once", "in a pair"])
def test_who_never_comes_is_not_called_bad_and_its_partner_gets_another(when: str) -> None:
    world = World(6, absent=some(1))
    if when == "in a pair":
        known = world.result
        world.result = lambda trial: known(trial) if len(trial) > 1 else Result("passed")  # type: ignore[method-assign]
    found = world.diagnose()
    assert (found.absent, found.bad) == (some(1), {})
    assert found.good == set(world.nodes) - some(1)


def test_of_two_nodes_nobody_can_say_which() -> None:
    found = World(2, bad=some(1)).diagnose()
    assert (found.bad, found.undecided) == ({}, [some(0, 1)])


def test_with_one_healthy_node_nobody_can_say_which() -> None:
    found = World(4, bad=some(0, 1, 2)).diagnose()
    assert (found.bad, found.undecided) == ({}, [some(0, 1, 2, 3)])


def test_two_healthy_of_four_are_enough_where_they_meet() -> None:
    for bad in combinations(range(4), 2):
        found = World(4, bad=some(*bad)).diagnose()
        assert found.bad.keys() == some(*bad)


def test_a_single_node_is_tried_alone_and_an_empty_set_not_at_all() -> None:
    assert World(1).diagnose().good == some(0)
    assert World(1, alone=some(0)).diagnose().bad == {"n0000": "fails alone"}
    assert World(0).diagnose() == Diagnosis()


def test_who_is_left_over_alone_was_never_tried_with_anybody() -> None:
    assert World(3, alone=some(0), absent=some(2)).diagnose().undecided == [some(1)]


def test_a_broken_link_blames_no_node_and_is_tried_twice() -> None:
    world = World(8, links=frozenset([pair(2, 3)]))
    found = world.diagnose(group=False)
    assert (found.bad, found.undecided, found.links) == ({}, [], [("n0002", "n0003")])
    assert found.good == set(world.nodes)
    tries = [trial for trials in world.rounds for trial in trials if set(trial) == pair(2, 3)]
    assert tries == [("n0002", "n0003"), ("n0003", "n0002")]


def test_what_fails_once_and_then_passes_is_no_broken_link() -> None:
    world = World(8, links=frozenset([pair(2, 3)]))
    known = world.result
    world.result = lambda trial: known(trial) if len(world.rounds) < 3 else Result("passed")  # type: ignore[method-assign]
    found = world.diagnose()
    assert (found.links, found.bad, found.good) == ([], {}, set(world.nodes))


def test_a_slow_node_is_not_a_broken_one() -> None:
    found = World(12, slow=some(5), bad=some(0)).diagnose()
    assert (found.slow.keys(), found.bad.keys()) == (some(5), some(0))
    assert found.slow["n0005"].startswith("slow with ")


def test_where_all_are_equally_slow_nobody_is() -> None:
    assert World(12, slow=some(*range(12))).diagnose().slow == {}


# ---------------------------------------------------------------- groups


def test_a_link_that_no_pair_has_tried_is_found_when_the_group_fails() -> None:
    found = World(16, links=frozenset([pair(3, 6)])).diagnose()
    assert (found.bad, found.good) == ({}, some(*range(16)))
    assert found.interactions == [tuple(names(range(8)))]  # each half of them passes


def test_what_fails_only_in_large_groups_blames_no_node() -> None:
    found = World(32, large={"n0009": 8}).diagnose()
    assert (found.bad, found.links) == ({}, [])
    assert found.interactions == [tuple(names(range(8, 16)))]


@pytest.mark.parametrize("size", [7, 8, 9, 16, 33])
def test_a_node_that_dies_between_the_pairs_and_the_group_is_found_in_its_leaf(size: int) -> None:
    for number in range(size):
        found = World(size, dies={names([number])[0]: 3}).diagnose()
        assert found.bad.keys() == some(number)
        assert found.good == set(names(range(size))) - some(number)


def test_every_leaf_is_tested_before_anything_is_said_of_it() -> None:
    world = World(16, large={"n0005": 2, "n0011": 3})
    found = world.diagnose()
    assert found.bad.keys() == some(5)
    for node in found.bad:
        assert sum(node in trial and len(trial) == 2 for trials in world.rounds for trial in trials) >= 2


# ---------------------------------------------------------------- what always holds


@st.composite
def worlds(draw: st.DrawFn) -> World:
    """Any bad, slow and absent nodes; of each healthy node at most one link is broken."""
    size = draw(st.integers(2, 40))
    numbers = st.sets(st.integers(0, size - 1))
    bad, hangs, slow, absent, alone = (some(*draw(numbers)) for _ in range(5))
    shuffled = draw(st.permutations(range(size)))
    links = [pair(a, b) for a, b in zip(shuffled[::2], shuffled[1::2], strict=False)]
    kept = draw(st.integers(0, len(links)))
    return World(size, bad, hangs, slow, absent, alone, frozenset(links[:kept]))


@settings(max_examples=400, deadline=None)
@given(worlds(), st.booleans())
def test_a_healthy_node_is_never_called_bad(world: World, group: bool) -> None:
    found = world.diagnose(group=group)
    assert found.bad.keys() <= world.bad | world.hangs | world.alone
    assert found.absent <= world.absent
    assert not found.good & (world.bad | world.hangs | world.alone | world.absent)


@settings(max_examples=200, deadline=None)
@given(worlds(), st.booleans())
def test_every_node_is_in_exactly_one_place(world: World, group: bool) -> None:
    found = world.diagnose(group=group)
    places = [found.good, found.bad, found.slow, found.absent, *found.undecided]
    assert sorted(node for place in places for node in place) == world.nodes


@settings(max_examples=200, deadline=None)
@given(worlds(), st.booleans(), st.randoms())
def test_it_comes_to_an_end_whatever_the_results_are(world: World, group: bool, chance: random.Random) -> None:
    outcomes = (Result("passed"), Result("failed"), Result("timed_out"), Result("passed", bandwidth=1.0))
    world.result = lambda trial: chance.choice(outcomes)  # type: ignore[method-assign]
    world.diagnose(group=group)
    assert len(world.rounds) < 20 + 8 * world.size


@settings(max_examples=30, deadline=None)
@given(st.integers(4, 2048), st.randoms())
def test_with_up_to_a_quarter_bad_all_are_named_in_three_rounds(size: int, chance: random.Random) -> None:
    bad = some(*chance.sample(range(size), chance.randint(0, size // 4)))
    found = World(size, bad=bad).diagnose()
    assert (found.bad.keys(), found.undecided) == (bad, [])
    assert found.rounds <= 3


@pytest.mark.parametrize("size", [2048, 2047, 1025])
def test_with_a_third_bad_all_are_named_and_nobody_else(size: int) -> None:
    bad = some(*random.Random(1).sample(range(size), size // 3))
    found = World(size, bad=bad).diagnose()
    assert (found.bad.keys(), found.undecided) == (bad, [])


def test_who_tells_nothing_has_not_come_to_an_end() -> None:
    search = localize(["a", "b"])
    next(search)
    with pytest.raises(StopIteration) as over:
        search.send({("a",): Result("passed")})
    assert over.value.value.bad == {"b": "does not come to an end alone"}
