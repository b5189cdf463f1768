"""The journal keeps what counts, in order, whoever else writes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from launcher.events import EpochStarted, Event, RunHeld, StepDone, Tick, Warned, to_json
from launcher.evolve import evolve
from launcher.journal import (
    BALLAST_BYTES,
    JournalWriter,
    Superseded,
    claim_epoch,
    make_ballast,
    newest_epoch,
    read_journal,
    seal,
    write_first_epoch,
)
from launcher.paths import RunPaths
from launcher.reader import Reader

HERE = "host"


@pytest.fixture
def paths(tmp_path: Path) -> RunPaths:
    paths = RunPaths(tmp_path / "run")
    paths.make_folders()
    return paths


class Supervisor:
    """A writer of one epoch that remembers what became of what it wrote."""

    def __init__(self, paths: RunPaths, *, seals: bool = True) -> None:
        self.paths = paths
        self.epoch = claim_epoch(paths)
        self.durable: list[Event] = []
        self.lost: list[Exception] = []
        self._news = threading.Condition()
        self.writer = JournalWriter(paths, self.epoch, self._on_durable, self._on_lost)
        if seals:
            self.begin()

    def begin(self) -> None:
        sealed = seal(self.paths, self.epoch)
        self.put(EpochStarted(at=0, host=HERE, pid=1, node="n0", job_id="1", sealed=sealed))

    def put(self, event: Event) -> None:
        """Write, and wait until it is durable or lost."""
        event = self.writer.put(event)
        with self._news:
            assert self._news.wait_for(lambda: event in self.durable or self.lost, 10)

    def say(self, text: str) -> None:
        self.put(Warned(at=0, text=text))

    def step(self, step: int, attempt: int = 1) -> None:
        self.put(StepDone(at=0, attempt=attempt, step=step))

    def _on_durable(self, events: list[Event]) -> None:
        with self._news:
            self.durable += events
            self._news.notify_all()

    def _on_lost(self, error: Exception) -> None:
        with self._news:
            self.lost.append(error)
            self._news.notify_all()


def told(paths: RunPaths) -> list[str | int]:
    """What counts: texts of warnings and numbers of steps, in order."""
    said = (
        event.text if isinstance(event, Warned) else event.step if isinstance(event, StepDone) else None
        for event in read_journal(paths).events
    )
    return [one for one in said if one is not None]


# ---------------------------------------------------------------- epochs


def test_no_two_threads_claim_the_same_epoch(paths: RunPaths) -> None:
    with ThreadPoolExecutor(16) as pool:
        epochs = [future.result() for future in [pool.submit(claim_epoch, paths) for _ in range(64)]]

    assert sorted(epochs) == list(range(1, 65))
    assert newest_epoch(paths) == 64


def test_no_two_processes_claim_the_same_epoch(paths: RunPaths) -> None:
    program = (
        "import sys; from pathlib import Path; from launcher.journal import claim_epoch; "
        "from launcher.paths import RunPaths; sys.stdin.readline(); "
        "print([claim_epoch(RunPaths(Path(sys.argv[1]))) for _ in range(20)])"
    )
    command = [sys.executable, "-c", program, str(paths.root)]
    racers = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    for racer in racers:  # all at the same moment
        assert racer.stdin
        racer.stdin.write("\n")
        racer.stdin.flush()
    claims = [json.loads(racer.communicate(timeout=60)[0]) for racer in racers]

    assert sorted(epoch for claim in claims for epoch in claim) == list(range(1, 81))


# ---------------------------------------------------------------- order


def test_what_was_written_is_read_back_in_order_with_epoch_and_seq(paths: RunPaths) -> None:
    writer = Supervisor(paths)
    writer.say("a")
    writer.step(0)
    writer.say("b")
    writer.step(1)
    writer.writer.close()

    read = read_journal(paths)

    assert list(read.events) == writer.durable
    assert [(event.epoch, event.seq) for event in read.events] == [(1, n) for n in range(1, 6)]
    assert told(paths) == ["a", 0, "b", 1]
    assert read.damage == ()


@settings(max_examples=25, deadline=None)
@given(st.lists(st.lists(st.sampled_from(["say", "step", "step 2"]), max_size=12), min_size=1, max_size=4))
def test_journal_and_metrics_of_all_epochs_interleave_as_they_were_written(
    tmp_path_factory: pytest.TempPathFactory, epochs: list[list[str]]
) -> None:
    paths = RunPaths(tmp_path_factory.mktemp("run"))
    paths.make_folders()
    expected: list[Event] = []
    for kinds in epochs:
        epoch = claim_epoch(paths)
        writer = JournalWriter(paths, epoch, expected.extend, lambda error: pytest.fail(str(error)))
        writer.put(EpochStarted(at=0, host=HERE, pid=1, node="n", job_id="1", sealed=seal(paths, epoch)))
        for number, kind in enumerate(kinds):
            attempt = 2 if kind == "step 2" else 1
            event = Warned(at=0, text="w") if kind == "say" else StepDone(at=0, attempt=attempt, step=number)
            writer.put(event)
        writer.close()

    assert list(read_journal(paths).events) == expected


garbage = st.sampled_from(
    [b"", b"", b"\n", b"\x00\xff\n", b'{"type":"coffee_break","at":0}\n', b'{"type":"warned","at":0,"te']
)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["say", "step"]), garbage), min_size=1, max_size=30), st.data())
def test_from_any_place_on_the_rest_is_read_whatever_lies_between(
    tmp_path_factory: pytest.TempPathFactory, lines: list[tuple[str, bytes]], data: st.DataObject
) -> None:
    paths = RunPaths(tmp_path_factory.mktemp("run"))
    paths.make_folders()
    for seq, (kind, rubbish) in enumerate(lines, start=1):
        event = Warned(at=0, text="w") if kind == "say" else StepDone(at=0, attempt=1, step=seq)
        file = paths.journal(1) if kind == "say" else paths.metrics(1, 1)
        whole = rubbish if rubbish.endswith(b"\n") else b""
        line = f"{to_json(evolve(event, epoch=1, seq=seq))}\n".encode()
        file.write_bytes((file.read_bytes() if file.exists() else b"") + whole + line)
    torn = lines[-1][1]
    paths.journal(1).write_bytes((paths.journal(1).read_bytes() if paths.journal(1).exists() else b"") + torn)

    events = read_journal(paths).events
    after = data.draw(st.integers(0, len(lines) + 1))

    assert list(Reader(paths).events((1, after))) == [event for event in events if event.seq > after]
    assert Reader(paths).has((1, after)) == (1 <= after <= len(lines))
    assert not Reader(paths).has((2, after))


def test_the_first_epoch_may_be_written_by_a_command(paths: RunPaths) -> None:
    start = EpochStarted(at=0, host="", pid=0, node="", job_id="")
    write_first_epoch(paths, [start, Warned(at=0, text="submitted")])
    write_first_epoch(paths, [start, Warned(at=0, text="resumed")])

    assert told(paths) == ["submitted", "resumed"]
    last = read_journal(paths).events[2]
    assert isinstance(last, EpochStarted)
    assert [one.file for one in last.sealed] == ["journal/000001.jsonl"]


# ---------------------------------------------------------------- torn, damaged and void lines


@pytest.mark.parametrize("torn", [b'{"type":"warned","at":0,"te', b'{"type":"warned","at":0,"text":"torn"}', b"\x00"])
def test_a_torn_last_line_was_never_acted_upon_and_is_left_out(paths: RunPaths, torn: bytes) -> None:
    Supervisor(paths).say("whole")
    with paths.journal(1).open("ab") as file:
        file.write(torn)

    assert told(paths) == ["whole"]
    assert read_journal(paths).damage == ()


def test_an_unsealed_predecessor_is_read_and_sealed_to_its_last_whole_line(paths: RunPaths) -> None:
    Supervisor(paths).say("whole")
    whole = paths.journal(1).stat().st_size
    with paths.journal(1).open("ab") as file:
        file.write(b'{"type":"warned","at":0,"text":"torn"')
    claim_epoch(paths)  # the next supervisor has claimed and not yet written

    assert told(paths) == ["whole"]
    assert [(one.file, one.length) for one in seal(paths, 2)] == [("journal/000001.jsonl", whole)]


def test_a_new_supervisor_reads_exactly_what_it_seals(paths: RunPaths) -> None:
    old = Supervisor(paths)
    old.say("counts")
    sealed = seal(paths, claim_epoch(paths))
    old.say("too late")

    texts = [event.text for event in read_journal(paths, sealed).events if isinstance(event, Warned)]

    assert texts == ["counts"]


def test_damage_in_the_middle_is_reported_and_the_rest_is_read(paths: RunPaths) -> None:
    writer = Supervisor(paths)
    for text in ("before", "victim", "after"):
        writer.say(text)
    data = paths.journal(1).read_bytes()
    offset = data.index(b'{"type":"warned"', data.index(b"before"))
    paths.journal(1).write_bytes(data.replace(b'"text":"victim"', b'"text"\xff"victim"'))

    read = read_journal(paths)

    assert told(paths) == ["before", "after"]
    assert [(one.file, one.offset) for one in read.damage] == [("journal/000001.jsonl", offset)]


def test_an_event_of_a_newer_version_is_reported(paths: RunPaths) -> None:
    Supervisor(paths).say("known")
    with paths.journal(1).open("ab") as file:
        file.write(b'{"type":"coffee_break","at":0}\n')

    assert told(paths) == ["known"]
    assert "coffee_break" in read_journal(paths).damage[0].reason


# ---------------------------------------------------------------- fencing


def test_a_woken_supervisor_writes_into_the_void(paths: RunPaths) -> None:
    old = Supervisor(paths)
    old.say("old")
    old.step(0)
    new = Supervisor(paths)
    new.say("new")
    durable = len(old.durable)

    old.say("late")
    with paths.metrics(1, 1).open("a") as file:  # as if already on its way to the disk
        file.write('{"type":"step_done","at":0,"epoch":1,"seq":9,"attempt":1,"step":99}\n')
    with paths.metrics(1, 7).open("a") as file:  # a file the seal does not name
        file.write('{"type":"step_done","at":0,"epoch":1,"seq":10,"attempt":7,"step":100}\n')

    assert told(paths) == ["old", 0, "new"]
    assert len(old.durable) == durable
    assert [type(error) for error in old.lost] == [Superseded]


def test_what_is_void_stays_void_for_later_epochs(paths: RunPaths) -> None:
    old = Supervisor(paths)
    old.say("old")
    Supervisor(paths).say("second")
    old.say("late")
    with paths.metrics(1, 7).open("a") as file:
        file.write('{"type":"step_done","at":0,"epoch":1,"seq":10,"attempt":7,"step":100}\n')
    Supervisor(paths).say("third")

    assert told(paths) == ["old", "second", "third"]


def test_a_superseded_writer_is_told_so_once_and_nothing_of_it_becomes_durable(paths: RunPaths) -> None:
    old = Supervisor(paths)
    claim_epoch(paths)
    before = list(old.durable)

    for number in range(5):
        old.writer.put(Tick(at=number))
    old.writer.close()

    assert old.durable == before
    assert [type(error) for error in old.lost] == [Superseded]


def test_an_epoch_that_never_wrote_seals_nothing(paths: RunPaths) -> None:
    first = Supervisor(paths)
    first.say("first")
    claim_epoch(paths)  # died before its first line
    third = Supervisor(paths)
    third.say("third")

    assert told(paths) == ["first", "third"]


def test_many_supervisors_at_once_leave_one_history(paths: RunPaths) -> None:
    """Whoever loses the race sees it, and nothing that was acknowledged is lost or doubled."""
    found: list[Supervisor] = []

    def live(number: int) -> None:
        supervisor = Supervisor(paths)
        found.append(supervisor)
        for word in range(5):
            if not supervisor.lost:
                supervisor.say(f"{number}.{word}")

    with ThreadPoolExecutor(6) as pool:
        for future in [pool.submit(live, number) for number in range(12)]:
            future.result()

    read = read_journal(paths).events
    acknowledged = {(event.epoch, event.seq) for one in found for event in one.durable}
    kept = [(event.epoch, event.seq) for event in read]
    assert kept == sorted(set(kept))
    assert acknowledged <= set(kept)


# ---------------------------------------------------------------- a full disk


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of twelve megabytes."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        if os.environ.get("OPT_LAUNCH_IN_NAMESPACE") or not shutil.which("unshare"):
            pytest.skip("FULL DISK NOT TESTED: neither root nor user namespaces can mount a small file system here")
        pytest.skip("a small file system needs root; tested through unshare below")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_costs_the_ballast_and_no_event(small_disk: Path) -> None:
    paths = RunPaths(small_disk / "run")
    paths.make_folders()
    make_ballast(paths)
    assert paths.ballast.stat().st_size == BALLAST_BYTES
    supervisor = Supervisor(paths)
    _fill(small_disk)

    text = "x" * 20_000
    for _ in range(10):
        supervisor.say(text)

    assert not supervisor.lost
    assert not paths.ballast.exists()
    assert told(paths) == [text] * 10
    assert read_journal(paths).damage == ()


def test_without_ballast_an_event_waits_for_the_disk_and_is_not_torn(small_disk: Path) -> None:
    paths = RunPaths(small_disk / "run")
    paths.make_folders()
    supervisor = Supervisor(paths)
    filler = _fill(small_disk)

    supervisor.writer.put(Warned(at=0, text="x" * 20_000))
    time.sleep(0.3)
    assert len(supervisor.durable) == 1  # only its beginning
    assert paths.journal(1).read_bytes().count(b"\n") == 1
    filler.unlink()
    supervisor.say("room again")

    assert [len(str(text)) for text in told(paths)] == [20_000, 10]


def test_a_supervisor_that_waits_for_the_disk_still_sees_its_successor(small_disk: Path) -> None:
    paths = RunPaths(small_disk / "run")
    paths.make_folders()
    supervisor = Supervisor(paths)
    filler = _fill(small_disk)
    supervisor.writer.put(Warned(at=0, text="x" * 20_000))
    paths.epoch(2).mkdir()

    supervisor.writer.close()

    filler.unlink()
    assert [type(error) for error in supervisor.lost] == [Superseded]


def _fill(folder: Path) -> Path:
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as file:
        for size in (1 << 20, 4096):
            try:
                while True:
                    file.write(bytes(size))
            except OSError:
                pass
    return filler


@pytest.mark.skipif(os.geteuid() == 0, reason="root mounts by itself: the tests above ran")
def test_a_full_disk_as_tested_in_a_namespace_of_our_own(tmp_path: Path) -> None:
    """The tests of a full disk again, where only a user namespace may mount."""
    probe = subprocess.run(["unshare", "-rm", "true"], capture_output=True, check=False)
    if probe.returncode != 0:
        pytest.skip("FULL DISK NOT TESTED: neither root nor user namespaces can mount a small file system here")
    # It is root there, and the folder of root's own tests may lie here.
    options = ["-q", "-p", "no:cacheprovider", f"--basetemp={tmp_path / 'inside'}"]
    tests = [sys.executable, "-m", "pytest", *options, __file__, "-k", "disk and not namespace"]
    env = {**os.environ, "OPT_LAUNCH_IN_NAMESPACE": "1"}
    done = subprocess.run(["unshare", "-rm", *tests], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_seals_name_lengths_and_digests_of_all_older_files(paths: RunPaths) -> None:
    old = Supervisor(paths)
    old.step(0)
    new = Supervisor(paths)
    new.put(RunHeld(at=0, reason="x"))

    sealed = {one.file: one for one in seal(paths, 3)}

    assert sorted(sealed) == ["journal/000001.jsonl", "journal/000002.jsonl", "metrics/000001.0001.jsonl"]
    assert all(one.length == (paths.root / one.file).stat().st_size for one in sealed.values())
    for one in sealed.values():
        assert one.digest == xxhash.xxh3_128_hexdigest((paths.root / one.file).read_bytes())
