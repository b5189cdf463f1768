"""What the records of the host ledger come to, in any order and in parts; who is left out, and who fails often."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.hosts.fold import Host, fold, pruned
from launcher.hosts.guard import Kept, Scene, Suspicion, applied, judge
from launcher.hosts.records import Allowed, Blamed, Excluded, Found, Record, Remedy, Seen, Served
from launcher.hosts.standing import excluded, standings, strikes

NOW = 1_700_000_000.0
HOUR, DAY = 3600.0, 86400.0


def blamed(host: str, at: float = NOW - 10, code: str = "exit", run: str = "demo", id_: str = "") -> Blamed:
    return Blamed(id=id_ or f"{host}@{at}", at=at, by="run demo", host=host, run=run, code=code, why="it broke")


def excluding(host: str, at: float = NOW - 10, lasts: float | None = HOUR, **about: object) -> Excluded:
    values = {
        "id": f"x-{host}@{at}",
        "reason": "hot",
        "automatic": True,
        "until": None if lasts is None else at + lasts,
    }
    return Excluded(**{"at": at, "by": "run demo", "host": host} | values | about)  # type: ignore[arg-type]


def served(*hosts: str, days: float, id_: str = "a1", at: float = NOW - HOUR) -> Served:
    return Served(id=id_, at=at, by="run demo", hosts=hosts, hours=24 * days, run="demo")


names = st.sampled_from(["a", "b", "c"])
times = st.integers(0, 40).map(lambda day: NOW - day * DAY / 2)
ids = st.integers(0, 5).map(str)
boots = st.sampled_from(["b1", "b2"])
records: st.SearchStrategy[Record] = st.one_of(
    st.builds(Seen, id=ids, at=times, by=names, host=names, boot_id=boots, gpus=st.just(("G1",))),
    st.builds(Served, id=ids, at=times, by=names, hosts=st.lists(names).map(tuple), hours=st.floats(0, 99)),
    st.builds(Blamed, id=ids, at=times, by=names, host=names, run=names, code=names),
    st.builds(Found, id=ids, at=times, by=names, host=names, code=names, verdict=st.sampled_from(["ok", "fail"])),
    st.builds(
        Excluded, id=ids, at=times, by=names, host=names, reason=names, automatic=st.booleans(),
        until=st.none() | times, remedy=st.sampled_from(["none", "reboot_node"]), boot_id=st.just("b1"),
    ),
    st.builds(Allowed, id=ids, at=times, by=names, host=names, ends=st.lists(ids).map(tuple)),
)  # fmt: skip


@given(st.lists(records, max_size=12), st.randoms(), st.integers(0, 12))
def test_the_order_of_records_does_not_matter_nor_that_some_are_read_twice(
    told: list[Record], random, part: int
) -> None:
    unique = list({(one.kind, one.id): one for one in told}.values())  # an id stands for one fact
    shuffled = [*unique, *unique[:part]]
    random.shuffle(shuffled)

    in_parts = fold(shuffled[part:], fold(shuffled[:part]))

    assert in_parts == fold(unique)
    assert standings(in_parts, NOW) == standings(fold(unique), NOW)


@given(st.lists(records, max_size=12))
def test_what_is_forgotten_for_its_age_would_not_have_counted(told: list[Record]) -> None:
    before = standings(fold(told), NOW)
    after = standings(pruned(fold(told), NOW), NOW)
    assert {name: (one.state, one.failures, one.days) for name, one in after.items()} == {
        name: (one.state, one.failures, one.days) for name, one in before.items()
    }


# ---------------------------------------------------------------- exclusions


def test_an_exclusion_ends_with_its_time_and_is_followed_by_two_hours_of_probation() -> None:
    hosts = fold([excluding("a", at=NOW, lasts=HOUR)])
    states = [standings(hosts, NOW + hours * HOUR)["a"].state for hours in (0.5, 1, 2.9, 3)]
    assert states == ["excluded", "probation", "probation", "ok"]


def test_a_person_takes_back_what_there_is_and_nothing_that_comes_later() -> None:
    first, second = excluding("a", at=NOW - 50), excluding("a", at=NOW - 20)
    allowed = Allowed(id="p", at=NOW + 5 * DAY, by="alice", host="a", ends=(first.id,))  # her clock is days ahead
    assert excluded(fold([first, allowed]), NOW) == {}
    assert excluded(fold([first, allowed, second]), NOW) == {"a": second}


def test_a_machine_stays_left_out_under_another_name() -> None:
    left_out = excluding("a", gpus=("G1", "G2"))
    seen = Seen(id="s", at=NOW, by="r", host="b", gpus=("G2", "G3"))
    assert excluded(fold([left_out, seen]), NOW) == {"a": left_out, "b": left_out}
    assert excluded(fold([left_out, replace(seen, gpus=("G9",))]), NOW) == {"a": left_out}


@pytest.mark.parametrize(
    ("remedy", "boot", "gpus", "is_out"),
    [
        ("reboot_node", "b2", ("G1",), False),
        ("reset_gpu", "b1", ("G7",), False),
        ("reset_gpu", "b1", ("G1",), True),
        ("reset_gpu", "", (), True),
        ("service", "b2", ("G7",), True),
        ("none", "b2", ("G7",), True),
    ],
)
def test_a_reboot_or_other_gpus_cure_only_what_a_reset_cures(
    remedy: Remedy, boot: str, gpus: tuple[str, ...], *, is_out: bool
) -> None:
    left_out = excluding("a", lasts=None, remedy=remedy, boot_id="b1", gpus=("G1",))
    seen = Seen(id="s", at=NOW, by="r", host="a", boot_id=boot, gpus=gpus)
    assert ("a" in excluded(fold([left_out, seen]), NOW)) == is_out


def test_what_was_seen_before_the_exclusion_cures_nothing() -> None:
    left_out = excluding("a", remedy="reboot_node", boot_id="b2")
    seen = Seen(id="s", at=left_out.at - 1, by="r", host="a", boot_id="b1")
    assert "a" in excluded(fold([left_out, seen]), NOW)


def test_strikes_count_while_each_comes_in_the_probation_of_the_last() -> None:
    first, second = excluding("a", at=NOW, lasts=1800), excluding("a", at=NOW + HOUR, lasts=2 * HOUR)
    both = fold([second, first])["a"]
    assert strikes(both, NOW + HOUR) == 2
    assert strikes(both, NOW + 10 * HOUR) == 0
    assert strikes(fold([first, excluding("a", at=NOW + 9 * HOUR)])["a"], NOW + 9 * HOUR) == 1
    taken_back = Allowed(id="p", at=NOW, by="alice", host="a", ends=(first.id, second.id))
    assert strikes(fold([first, second, taken_back])["a"], NOW + HOUR) == 0


# ---------------------------------------------------------------- rates


def test_a_rate_is_of_a_week_at_least_so_that_a_first_failure_makes_no_lemon() -> None:
    hosts = fold([blamed("young"), served("young", days=0.1), blamed("old"), served("old", days=14, id_="a2")])
    found = standings(hosts, NOW)
    assert {name: round(one.rate, 3) for name, one in found.items()} == {"young": 0.143, "old": 0.071}
    assert not any(one.is_lemon for one in found.values())


def test_a_host_that_fails_ten_times_as_often_as_all_together_is_a_lemon() -> None:
    many = [served(*(f"n{i}" for i in range(50)), days=20)]
    bad = [blamed("n7", at=NOW - i * DAY) for i in range(1, 5)]
    found = standings(fold([*many, *bad]), NOW)
    assert [name for name, one in found.items() if one.is_lemon] == ["n7"]


def test_failures_and_service_of_more_than_four_weeks_ago_do_not_count() -> None:
    hosts = fold([blamed("a", at=NOW - 29 * DAY), served("a", days=3, at=NOW - 29 * DAY)])
    assert (standings(hosts, NOW)["a"].failures, standings(hosts, NOW)["a"].days) == (0, 0)


def test_of_an_attempt_that_is_told_again_and_again_the_most_hours_count() -> None:
    hosts = fold([served("a", days=1), served("a", days=2), served("a", days=1.5), served("a", days=1, id_="a2")])
    assert standings(hosts, NOW)["a"].days == 3


# ---------------------------------------------------------------- guards

NODES = [f"n{i}" for i in range(8)]


def verdict(told: list[Record], suspicion: Suspicion, nodes: list[str] = NODES, needed: int = 4) -> Excluded | Kept:
    return judge(fold(told), suspicion, Scene("demo", "run demo", nodes, needed), NOW)


def suspicion(host: str = "n0", proof: str = "soft", code: str = "exit", **about: object) -> Suspicion:
    return Suspicion(**{"id": "s1", "host": host, "code": code, "why": "it broke", "proof": proof} | about)  # type: ignore[arg-type]


def why_kept(found: Excluded | Kept) -> str:
    assert isinstance(found, Kept)
    return found.why


def test_a_lost_node_without_a_finding_is_never_excluded_from_other_runs() -> None:
    told = [blamed("n0", at=NOW - i * 60, code="node_lost") for i in range(5)]
    assert "next attempt only" in why_kept(verdict([*told], suspicion(proof="lost", code="node_lost")))


def test_a_failure_that_follows_a_host_excludes_it_the_second_time_for_half_an_hour() -> None:
    once = [blamed("n0")]
    assert "next attempt only" in why_kept(verdict([*once], suspicion()))
    found = verdict([*once, blamed("n0", at=NOW - HOUR)], suspicion())
    assert isinstance(found, Excluded)
    assert (found.host, found.until, found.strikes, found.automatic) == ("n0", NOW + 1800, 1, True)


def test_a_failure_that_moves_from_host_to_host_is_the_script_s() -> None:
    told = [blamed("n0"), blamed("n1", at=NOW - 60), blamed("n0", at=NOW - 120)]
    assert "does not follow the host" in why_kept(verdict([*told], suspicion()))
    elsewhere = [blamed("n0"), blamed("n1", at=NOW - 60, run="other"), blamed("n0", at=NOW - 120)]
    assert isinstance(verdict([*elsewhere], suspicion()), Excluded)


def test_what_was_measured_excludes_at_once_and_service_until_a_person_allows_it() -> None:
    found = verdict([blamed("n0", code="xid-64")], suspicion(proof="hard", code="xid-64", remedy="service"))
    assert isinstance(found, Excluded)
    assert found.until is None


def test_each_strike_lasts_longer_and_the_fourth_until_a_person_allows_the_host() -> None:
    at, lasting = NOW - 20 * HOUR, []
    told: list[Record] = []
    for _ in range(4):
        scene = Scene("demo", "run demo", NODES, 4)
        found = judge(fold(told), suspicion(proof="hard", id=f"s{at}"), scene, at)
        assert isinstance(found, Excluded)
        lasting.append(None if found.until is None else found.until - at)
        told.append(found)
        at = (found.until or at) + 60
    assert lasting == [1800, 2 * HOUR, 8 * HOUR, None]


def test_an_exclusion_keeps_what_tells_the_machine_again() -> None:
    seen = Seen(id="s", at=NOW - 99, by="r", host="n0", boot_id="b1", gpus=("G1",))
    found = verdict([seen], suspicion(proof="hard", remedy="reset_gpu"))
    assert isinstance(found, Excluded)
    assert (found.boot_id, found.gpus, found.remedy) == ("b1", ("G1",), "reset_gpu")


def test_what_three_nodes_and_a_third_have_at_once_is_a_common_cause() -> None:
    three = [blamed(f"n{i}", at=NOW - 60 * i, code="xid-79") for i in range(3)]
    assert "common cause" in why_kept(verdict([*three], suspicion(proof="hard", code="xid-79")))
    many = [f"n{i}" for i in range(20)]
    assert isinstance(verdict([*three], suspicion(proof="hard", code="xid-79"), many), Excluded)
    assert isinstance(verdict([*three[:2]], suspicion(proof="hard", code="xid-79")), Excluded)


def test_only_so_many_are_excluded_in_an_hour_whoever_asks() -> None:
    two = [excluding("m1"), excluding("m2")]
    assert "no more than 2" in why_kept(verdict([*two], suspicion(proof="hard")))
    assert isinstance(verdict([excluding("m1"), excluding("m2", at=NOW - 2 * HOUR)], suspicion(proof="hard")), Excluded)
    by_hand = [replace(one, automatic=False) for one in two]
    assert isinstance(verdict([*by_hand], suspicion(proof="hard")), Excluded)
    fleet = [served(*(f"m{i}" for i in range(30)), days=1)]
    assert isinstance(verdict([*two, *fleet], suspicion(proof="hard")), Excluded)


def test_never_so_many_that_too_few_are_left() -> None:
    assert "4 nodes are needed, and 3" in why_kept(verdict([], suspicion(proof="hard"), NODES[:4]))
    assert isinstance(verdict([], suspicion(proof="hard"), NODES[:5]), Excluded)
    assert isinstance(verdict([excluding("n1")], suspicion(proof="hard"), NODES[:5], needed=3), Excluded)
    assert "and 3 would be" in why_kept(verdict([excluding("n1")], suspicion(proof="hard"), NODES[:5]))


def test_who_is_excluded_already_is_not_excluded_again() -> None:
    assert "already" in why_kept(verdict([excluding("n0")], suspicion(proof="hard")))


@given(st.dictionaries(st.sampled_from(NODES), st.tuples(st.booleans(), st.none() | st.just(HOUR))), st.integers(0, 9))
def test_a_choice_does_without_the_excluded_as_far_as_enough_are_left(
    told: dict[str, tuple[bool, float | None]], needed: int
) -> None:
    left_out = {name: excluding(name, lasts=lasts, automatic=by_rule) for name, (by_rule, lasts) in told.items()}

    found = applied(left_out, NODES, needed)

    by_hand = {name for name, one in left_out.items() if not one.automatic}
    assert by_hand <= found.keys() <= left_out.keys()
    left = len(NODES) - len(found)
    assert left >= min(needed, len(NODES) - len(by_hand))
    assert found.keys() == left_out.keys() or left <= needed


def test_of_the_excluded_those_come_back_first_who_would_be_back_soonest() -> None:
    left_out = {"n0": excluding("n0", lasts=None), "n1": excluding("n1", lasts=HOUR), "n2": excluding("n2", lasts=60)}
    assert set(applied(left_out, NODES[:4], 2)) == {"n0", "n1"}


def test_nothing_is_known_of_a_host_that_was_never_told_of() -> None:
    assert strikes(Host("x"), NOW) == 0
