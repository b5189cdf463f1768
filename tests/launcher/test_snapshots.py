"""A snapshot and what came after it are the run; a snapshot that cannot be trusted is as if it were not there."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parents[1] / "policies"))

from long_run import write_long_run
from simulated_fleet import Simulation
from tale import Tale
from test_policy_properties import events_of, told

from launcher import snapshots
from launcher.codec import encode
from launcher.events import Decision, EpochStarted, Event, StepDone, Warned, from_json, to_json
from launcher.evolve import evolve
from launcher.fold import Fold, Memory, View
from launcher.journal import claim_epoch, read_journal, seal
from launcher.ledger import RECENT
from launcher.paths import RunPaths
from launcher.reader import Place, Reader
from launcher.snapshots import KEEP, Snapshots, policy_version, read_fold, read_view, write_snapshot
from policies.load import load_policy

POLICY = load_policy(["default"])


def run_folder(root: Path) -> RunPaths:
    paths = RunPaths(root / "run")
    paths.make_folders()
    paths.policy.write_text("the policy\n")
    return paths


@pytest.fixture
def paths(tmp_path: Path) -> RunPaths:
    return run_folder(tmp_path)


class Past:
    """A history told event by event, each with its place, and the fold over it at any of them."""

    def __init__(self, paths: RunPaths) -> None:
        self.paths, self.fold, self.seq = paths, Fold(POLICY), 0
        self.events: list[Event] = []
        self.take_over()

    def take_over(self) -> None:
        self.epoch, self.seq = claim_epoch(self.paths), 0
        self.tell(started(seal(self.paths, self.epoch)))

    def tell(self, event: Event, *, decide: bool = True) -> None:
        """Journal an event, and what is decided upon it."""
        self.seq += 1
        event = from_json(to_json(evolve(event, epoch=self.epoch, seq=self.seq)))
        is_step = isinstance(event, StepDone)
        file = self.paths.metrics(self.epoch, event.attempt) if is_step else self.paths.journal(self.epoch)
        with file.open("a") as stream:
            stream.write(f"{to_json(event)}\n")
        self.events.append(event)
        for decision in self.fold.take(event):
            if decide:
                self.tell(decision)

    def tell_all(self, events: Sequence[Event]) -> Past:
        for event in events:
            if isinstance(event, EpochStarted):
                self.take_over()
            else:
                self.tell(event)
        return self

    def snapshot(self) -> Path:
        view = self.fold.view
        write_snapshot(self.paths, policy_version(self.paths), view, self.fold.memory)
        return self.paths.snapshot(view.epoch, view.seq)


def started(sealed: Any = ()) -> EpochStarted:
    return EpochStarted(at=1000.0, host="h", pid=1, node="n0", job_id="1", sealed=sealed)


def told_by(fold: Fold) -> Any:
    """All that a fold says, in a form in which not-a-number equals itself."""
    view, memory = encode(View, fold.view), encode(Memory, fold.memory)
    return json.dumps([view, memory, fold.deadline, [to_json(one) for one in fold.unsaid()]], sort_keys=True)


def from_start(paths: RunPaths) -> Fold:
    fold = Fold(POLICY)
    for event in read_journal(paths).events:
        fold.take(event)
    return fold


def taken_over(paths: RunPaths) -> Fold:
    """What a new supervisor goes on from."""
    return read_fold(paths, POLICY, seal(paths, 1 << 20))[0]


def places_used(paths: RunPaths, monkeypatch: pytest.MonkeyPatch) -> list[Place]:
    """The places from which the journal was read, by a viewer and by a supervisor."""
    used: list[Place] = []
    read = Reader.events

    def seen(self: Reader, after: Place = (0, 0), **options: Any) -> Any:
        used.append(after)
        return read(self, after, **options)

    with monkeypatch.context() as patched:
        patched.setattr(Reader, "events", seen)
        read_view(paths)
        taken_over(paths)
    return used


# ---------------------------------------------------------------- from any place, by any history


def cut_everywhere(paths: RunPaths, events: Sequence[Event], cut: int, decide: bool = True) -> None:
    """Tell a history, with a snapshot somewhere in it: what follows is the same as without."""
    past = Past(paths).tell_all(events[:cut])
    past.snapshot()
    assert told_by(taken_over(paths)) == told_by(past.fold)
    past.tell_all(events[cut:])
    whole = told_by(from_start(paths))
    assert told_by(past.fold) == whole
    assert told_by(taken_over(paths)) == whole
    assert json.dumps(encode(View, read_view(paths))) == json.dumps(encode(View, past.fold.view))
    shutil.rmtree(paths.state)
    assert told_by(taken_over(paths)) == whole


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(told, st.data())
def test_a_snapshot_at_any_place_and_the_rest_are_the_whole(
    tmp_path_factory: pytest.TempPathFactory, story: Any, data: st.DataObject
) -> None:
    events = events_of(story)
    cut_everywhere(run_folder(tmp_path_factory.mktemp("s")), events, data.draw(st.integers(0, len(events))))


def wandering(seed: Sequence[tuple[str, int]]) -> list[Event]:
    """What a simulated fleet comes to that trains, saves and loses nodes."""
    world = Simulation(Tale(probation=2, target=None))
    world.until(lambda run: run.step >= 1)
    for what, number in seed:
        match what:
            case "lose" if f"n{number}" not in world.dead:
                world.lose(f"n{number}")
            case "return" if f"n{number}" in world.dead:
                world.give_back(f"n{number}")
            case "save" if world.run.live_attempt and world.run.step > (world.run.head or (0, 0))[0]:
                world.tale.save()
                world.tale.verify()
            case "epoch":
                world.tale.epoch()
        for _ in range(number * 2 + 1):
            world.turn()
    return world.tale.events


deeds = st.tuples(st.sampled_from(["lose", "return", "save", "epoch", "train"]), st.integers(0, 2))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(deeds, max_size=8), st.data())
def test_the_same_of_a_simulated_fleet(
    tmp_path_factory: pytest.TempPathFactory, seed: list[tuple[str, int]], data: st.DataObject
) -> None:
    events = wandering(seed)
    cut_everywhere(run_folder(tmp_path_factory.mktemp("s")), events, data.draw(st.integers(0, len(events))))


def test_a_decision_that_its_supervisor_had_no_time_to_journal_is_not_forgotten(paths: RunPaths) -> None:
    past = Past(paths).tell_all(Tale().train(3).events)
    tale = Tale().train(3).silent()
    past.tell(tale.stopped().events[-2])
    past.tell(tale.events[-1], decide=False)
    past.snapshot()

    again = taken_over(paths)

    assert [one.detector for one in again.unsaid()] == ["node_lost"]
    again.take(evolve(again.unsaid()[0], epoch=2, seq=1))
    assert again.unsaid() == []


def test_a_long_run_is_the_same_from_its_snapshot_with_hardly_anything_read(
    paths: RunPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_long_run(paths, POLICY, 5000, fault_every=900, takeover_every=1500)
    events = read_journal(paths).events
    fold = Fold(POLICY)
    for event in events[:-100]:
        fold.take(event)
    write_snapshot(paths, policy_version(paths), fold.view, fold.memory)

    assert set(places_used(paths, monkeypatch)) == {(events[-101].epoch, events[-101].seq)}
    assert told_by(taken_over(paths)) == told_by(from_start(paths))
    assert not taken_over(paths).unsaid()
    assert len([event for event in events if isinstance(event, Decision)]) >= 5


def test_what_lies_before_a_snapshot_is_not_read(paths: RunPaths) -> None:
    past = Past(paths).tell_all(Tale().train(40).events)
    metrics = paths.metrics(past.epoch, 1)
    past.take_over()
    past.snapshot()
    metrics.write_bytes(bytes(metrics.stat().st_size))

    fold, damage = read_fold(paths, POLICY, seal(paths, past.epoch + 1))

    assert (fold.run.step, damage) == (40, [])


def test_what_a_viewer_holds_does_not_grow_with_the_steps(paths: RunPaths) -> None:
    write_long_run(paths, POLICY, 6000, fault_every=2500, takeover_every=4000)

    view = read_view(paths)

    assert len(view.books.kept) <= 3 * RECENT
    assert view.run.step + view.books.lost == 6000


# ---------------------------------------------------------------- what must not be trusted


def poisoned(paths: RunPaths) -> tuple[Past, Path]:
    """A history, and a snapshot of it in which the run has the name of a lie."""
    past = Past(paths).tell_all(Tale().train(9).events)
    past.fold.view.run = evolve(past.fold.run, name="lie")
    return past, past.snapshot()


def believed(paths: RunPaths) -> bool:
    """Whether viewers and supervisors take the lie; they must agree."""
    names = {read_view(paths).run.name, taken_over(paths).run.name}
    assert len(names) == 1
    return names == {"lie"}


def test_a_snapshot_that_holds_is_what_is_gone_on_from(paths: RunPaths) -> None:
    poisoned(paths)

    assert believed(paths)


def rewritten(**changes: Any) -> Callable[[Path], None]:
    """The head of a snapshot says something else."""

    def write(file: Path) -> None:
        head, found, body = file.read_text().partition(',"fold":')
        told = json.loads(f"{head}}}") | changes
        file.write_text(json.dumps(told)[:-1] + found + body)

    return write


def flipped(file: Path) -> None:
    data = bytearray(file.read_bytes())
    position = data.index(b'"lie"') + 1
    data[position] ^= 1
    file.write_bytes(data)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda file: file.write_bytes(file.read_bytes()[:-1]),
        lambda file: file.write_bytes(file.read_bytes()[:200]),
        lambda file: file.write_bytes(b""),
        lambda file: file.write_bytes(b"\xff\xfe"),
        lambda file: file.write_text("[]"),
        lambda file: file.write_bytes(bytes(file.stat().st_size)),
        lambda file: file.write_text('{"format":1,"fold":{}}'),
        flipped,
        rewritten(format=2),
        rewritten(code="of another version"),
        rewritten(seals="of another journal"),
        rewritten(more="than is known"),
        lambda file: file.rename(file.with_name("000007.000000001.json")),
        lambda file: file.rename(file.with_name("000001.000000999.json")),
        lambda file: file.rename(file.with_name("notes.json")),
        lambda file: shutil.rmtree(file.parent),
    ],
)
def test_a_snapshot_that_does_not_hold_is_as_if_it_were_not_there(
    paths: RunPaths, spoil: Callable[[Path], Any]
) -> None:
    past, file = poisoned(paths)
    spoil(file)

    assert not believed(paths)
    assert read_view(paths).run.name == "tale"
    assert read_view(paths).run.step == past.fold.run.step


def test_an_older_snapshot_that_holds_does_where_the_newest_does_not(paths: RunPaths) -> None:
    past, _ = poisoned(paths)
    past.tell(Warned(at=2000.0, text="later"))
    flipped(past.snapshot())

    assert believed(paths)


def test_the_snapshot_of_another_run_is_not_taken(tmp_path: Path) -> None:
    ours, theirs = run_folder(tmp_path / "ours"), run_folder(tmp_path / "theirs")
    past = Past(ours).tell_all(Tale().train(9).events)
    other = Past(theirs)
    other.tell(Warned(at=1.0, text="another beginning"))
    for one in (past, other):
        one.take_over()
        one.tell(Warned(at=2.0, text="here"))
    other.fold.view.run = evolve(other.fold.run, name="lie")
    other.tell(Warned(at=3.0, text="there"))
    past.tell(Warned(at=3.0, text="here"))
    shutil.copy(other.snapshot(), ours.state)

    assert not believed(ours)


def test_a_supervisor_of_another_policy_begins_at_the_start_and_viewers_need_not(paths: RunPaths) -> None:
    poisoned(paths)
    paths.policy.write_text("another policy\n")

    assert taken_over(paths).run.name == "tale"
    assert read_view(paths).run.name == "lie"


def test_a_snapshot_beyond_what_was_sealed_is_void_with_the_tail_that_it_tells_of(paths: RunPaths) -> None:
    past = Past(paths).tell_all(Tale().train(5).events)
    length = paths.journal(past.epoch).stat().st_size
    past.tell(Warned(at=3000.0, text="too late"))
    past.fold.view.run = evolve(past.fold.run, name="lie")
    past.snapshot()
    assert believed(paths)

    epoch = claim_epoch(paths)
    name = f"journal/{paths.journal(past.epoch).name}"
    sealed = tuple(evolve(one, length=length) if one.file == name else one for one in seal(paths, epoch))
    paths.journal(epoch).write_text(f"{to_json(evolve(started(sealed), epoch=epoch, seq=1))}\n")

    assert not believed(paths)
    assert read_view(paths).run.step == 5


def test_a_successor_goes_on_from_the_snapshot_of_its_predecessor(paths: RunPaths) -> None:
    past, _ = poisoned(paths)
    for text in ("more", "and more"):
        past.take_over()
        past.tell(Warned(at=3000.0, text=text))

    assert believed(paths)
    assert read_view(paths).run.epoch == past.epoch


# ---------------------------------------------------------------- writing


def written(paths: RunPaths) -> list[str]:
    return sorted(file.name for file in paths.state.iterdir())


def test_snapshots_are_written_now_and_then_and_the_newest_few_are_kept(
    paths: RunPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshots, "EVERY", 10)
    past = Past(paths).tell_all(Tale().train(3).events)
    writer = Snapshots(paths, policy_version(paths))
    seen = list[str]()
    for number in range(60):
        past.tell(Warned(at=3000.0, text=str(number)))
        writer.durable(past.fold)
        writer.close()
        seen += sorted({*written(paths)} - {*seen})

    first = past.seq - 59  # what there was before is reason enough for one at once
    assert seen == [paths.snapshot(past.epoch, seq).name for seq in range(first, first + 60, 10)]
    assert written(paths) == seen[-KEEP:]


def test_what_is_written_is_the_fold_of_the_moment_though_it_goes_on(
    paths: RunPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshots, "EVERY", 10)
    past = Past(paths).tell_all(Tale().train(30).events)
    writer = Snapshots(paths, policy_version(paths))
    then, place = told_by(past.fold), (past.epoch, past.seq)
    writer.durable(past.fold)
    past.tell_all(Tale().train(30).steps(10).events[-10:])
    writer.close()

    snapshot = read_fold(paths, POLICY, seal(paths, 1 << 20))[0]
    assert written(paths) == [paths.snapshot(*place).name]
    assert told_by(snapshot) == told_by(past.fold) != then


def test_a_folder_that_takes_no_snapshots_does_no_harm(
    paths: RunPaths, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(snapshots, "EVERY", 10)
    past = Past(paths).tell_all(Tale().train(3).events)
    paths.state.rmdir()
    paths.state.write_text("in the way")
    writer = Snapshots(paths, policy_version(paths))
    writer.durable(past.fold)
    writer.close()

    assert "no snapshot" in caplog.text
    assert taken_over(paths).run.step == 3


def test_what_a_supervisor_left_that_died_over_a_snapshot_is_cleared_away(paths: RunPaths) -> None:
    past = Past(paths).tell_all(Tale().train(3).events)
    (paths.state / ".000001.000000007.json.4711").write_text("half of a")

    file = past.snapshot()

    assert written(paths) == [file.name]
