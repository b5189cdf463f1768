"""The host ledger as files: writers of many processes, damage, snapshots, and a folder that may not be written."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launcher.errors import LaunchError, WrongUse
from launcher.hosts import ledger as module
from launcher.hosts.fold import fold
from launcher.hosts.ledger import SNAPSHOT, Ledger
from launcher.hosts.names import folded, unfolded
from launcher.hosts.records import Blamed, Excluded, Record, Served

NOW = time.time() - 1000  # what is older than four weeks is left out of snapshots
REPOSITORY = Path(__file__).parents[2]


def blamed(host: str, number: int = 0) -> Blamed:
    return Blamed(id=f"{host}-{number}", at=NOW + number, by="run demo", host=host, run="demo", code="exit")


def file_of(folder: Path) -> Path:
    [file] = folder.glob("*.jsonl")
    return file


def test_what_one_writes_another_reads(tmp_path: Path) -> None:
    left_out = Excluded(
        id="e", at=NOW, by="run demo", host="gpu-01", reason="hot", until=None, automatic=True, gpus=("G1",),
        evidence={"reading": 91, "limit": 90.5, "source": "device"},
    )  # fmt: skip
    Ledger(tmp_path / "hosts").append(left_out, Served(id="s", at=NOW, by="x", hosts=("a", "gpu-01"), hours=2))
    hosts = Ledger(tmp_path / "hosts").read().hosts
    assert hosts["gpu-01"].exclusions == {"e": left_out}
    assert [*hosts["a"].services.values()] == [(NOW, 2)]


def test_a_folder_that_is_not_there_is_an_empty_ledger(tmp_path: Path) -> None:
    assert Ledger(tmp_path / "none").read().hosts == {}
    assert Ledger(tmp_path / "none").history("a") == []


def test_a_reader_goes_on_where_it_was(tmp_path: Path) -> None:
    reader, writer = Ledger(tmp_path), Ledger(tmp_path)
    writer.append(blamed("a"))
    assert len(reader.read().hosts["a"].blames) == 1
    writer.append(blamed("a", 1), blamed("b"))
    Ledger(tmp_path).append(blamed("a", 2))
    assert {name: len(host.blames) for name, host in reader.read().hosts.items()} == {"a": 3, "b": 1}


def test_writers_of_many_processes_lose_nothing(tmp_path: Path) -> None:
    program = (
        "import sys, time; from pathlib import Path; from launcher.hosts.ledger import Ledger\n"
        "from launcher.hosts.records import Blamed\n"
        "ledger = Ledger(Path(sys.argv[1]))\n"
        "for i in range(100):\n"
        "    about = {'at': time.time(), 'by': 'x', 'run': 'r', 'code': 'exit', 'why': 'y' * 99}\n"
        "    ledger.append(Blamed(id=f'{sys.argv[2]}-{i}', host='a', **about))\n"
        "    ledger.read()\n"
    )
    writers = [
        subprocess.Popen([sys.executable, "-c", program, str(tmp_path), str(number)], cwd=REPOSITORY)
        for number in range(4)
    ]
    for writer in writers:
        assert writer.wait(60) == 0
    reading = Ledger(tmp_path).read()
    assert (len(reading.hosts["a"].blames), reading.damage) == (400, ())
    assert len([*tmp_path.glob("*.jsonl")]) == 4


# ---------------------------------------------------------------- damage


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (b"garbage\n", "not a record"),
        (b"\xff\xfe\x00\n", "not a record"),
        (b"[]\n", "not a record"),
        (b'{"v": 2, "kind": "blamed", "id": "x"}\n', "written by a newer opt-launch (format 2, this one reads 1)"),
        (b'{"v": 2, "kind": "dreamt"}\n', "written by a newer opt-launch (format 2, this one reads 1)"),
        (b'{"v": 1, "id": "x", "at": 1, "by": "x", "kind": "dreamt"}\n', "not a record"),
        (b'{"v": 1, "id": "x", "at": NaN, "by": "x", "kind": "seen", "host": "a"}\n', "not a record: at"),
        (b'{"v": 1, "id": "x", "at": 1e300, "by": "x", "kind": "seen", "host": "a"}\n', "not a record: at"),
        (b'{"v": 1, "id": "x", "at": 1, "by": "x", "kind": "seen"}\n', "not a record: host: field required"),
    ],
)
def test_a_line_that_is_no_record_is_kept_where_it_is_left_out_and_told(tmp_path: Path, line: bytes, why: str) -> None:
    ledger = Ledger(tmp_path)
    ledger.append(blamed("a"))
    first = file_of(tmp_path).stat().st_size
    with file_of(tmp_path).open("ab") as file:
        file.write(line)
    ledger.append(blamed("a", 1))

    reading = Ledger(tmp_path).read()

    assert len(reading.hosts["a"].blames) == 2
    [damage] = reading.damage
    assert (damage.file, damage.offset) == (file_of(tmp_path).name, first)
    assert damage.reason.startswith(why)
    assert line in file_of(tmp_path).read_bytes()


def test_a_line_that_is_being_written_is_waited_for_and_an_old_one_told(tmp_path: Path) -> None:
    ledger, reader = Ledger(tmp_path), Ledger(tmp_path)
    ledger.append(blamed("a"), blamed("a", 1))
    whole = file_of(tmp_path).read_bytes()
    file_of(tmp_path).write_bytes(whole[:-5])
    assert (len(reader.read().hosts["a"].blames), reader.read().damage) == (1, ())

    os.utime(file_of(tmp_path), (NOW, NOW))
    [damage] = reader.read().damage
    assert damage.reason == "a line that was never finished"

    file_of(tmp_path).write_bytes(whole)
    assert (len(reader.read().hosts["a"].blames), reader.read().damage) == (2, ())


@settings(max_examples=50, deadline=None)
@given(data=st.binary(max_size=200))
def test_no_bytes_whatever_keep_the_rest_from_being_read(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    folder = tmp_path_factory.mktemp("ledger")
    (folder / "other.jsonl").write_bytes(data)
    ledger = Ledger(folder)
    ledger.append(blamed("a"))
    assert len(Ledger(folder).read().hosts["a"].blames) == 1


# ---------------------------------------------------------------- snapshots


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A snapshot after every read."""
    monkeypatch.setattr(module, "SNAPSHOT_AFTER", 0)


def everything(folder: Path) -> object:
    """What a reader finds who has no snapshot."""
    records: list[Record] = [record for name in ("a", "b") for record in Ledger(folder).history(name)]
    return fold(records)


@pytest.mark.usefixtures("at_once")
def test_a_snapshot_says_the_same_as_the_records(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    ledger.append(blamed("a"), Served(id="s", at=NOW, by="x", hosts=("a", "b"), hours=2))
    ledger.read()
    assert (tmp_path / SNAPSHOT).exists()
    ledger.append(blamed("b"), Excluded(id="e", at=NOW, by="x", host="a", reason="r", until=None, automatic=False))
    assert Ledger(tmp_path).read().hosts == everything(tmp_path)
    assert Ledger(tmp_path).read().hosts == everything(tmp_path)


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("spoil", ["damaged", "deleted", "of another version", "of a file that is gone"])
def test_a_snapshot_that_is_no_good_is_made_anew(tmp_path: Path, spoil: str) -> None:
    ledger = Ledger(tmp_path)
    ledger.append(blamed("a"))
    ledger.read()
    snapshot = tmp_path / SNAPSHOT
    text = snapshot.read_text()
    if spoil == "damaged":
        snapshot.write_text(text[:-9])
    elif spoil == "deleted":
        snapshot.unlink()
    elif spoil == "of another version":
        snapshot.write_text(json.dumps(json.loads(text) | {"format": 9, "hosts": {}}))
    else:
        file_of(tmp_path).rename(tmp_path / "another-name.jsonl")
    assert [*Ledger(tmp_path).read().hosts["a"].blames] == ["a-0"]


@pytest.mark.usefixtures("at_once")
def test_damage_is_told_again_by_who_reads_a_snapshot(tmp_path: Path) -> None:
    Ledger(tmp_path).append(blamed("a"))
    (tmp_path / "b.jsonl").write_bytes(b"garbage\n")
    assert list(map(str, Ledger(tmp_path).read().damage)) == ["b.jsonl at byte 0: not a record: left out"]
    assert list(map(str, Ledger(tmp_path).read().damage)) == ["b.jsonl at byte 0: not a record: left out"]


# ---------------------------------------------------------------- the folder


def test_the_ledger_of_one_person_is_closed_and_that_of_a_group_is_read_by_it(tmp_path: Path) -> None:
    Ledger(tmp_path / "mine").append(blamed("a"))
    assert ((tmp_path / "mine").stat().st_mode & 0o777, file_of(tmp_path / "mine").stat().st_mode & 0o777) == (
        0o700,
        0o600,
    )
    (tmp_path / "ours").mkdir()
    (tmp_path / "ours").chmod(0o2770)
    Ledger(tmp_path / "ours").append(blamed("a"))
    assert file_of(tmp_path / "ours").stat().st_mode & 0o777 == 0o640


def test_a_folder_that_cannot_be_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LaunchError, match="the host ledger cannot be read: not a directory"):
        Ledger(tmp_path / "file").read()
    with pytest.raises(LaunchError, match="the host ledger cannot be written"):
        Ledger(tmp_path / "file").append(blamed("a"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written_is_told(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(LaunchError, match="cannot be written: permission denied"):
        Ledger(tmp_path).append(blamed("a"))


# ---------------------------------------------------------------- lists of nodes


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("gpu-7", ["gpu-7"]),
        ("gpu-[01-03,7],a", ["a", "gpu-01", "gpu-02", "gpu-03", "gpu-7"]),
        ("rack1-999999", ["rack1-999999"]),
        ("a.example.org", ["a.example.org"]),
    ],
)
def test_lists_are_read_as_slurm_writes_them(text: str, names: list[str]) -> None:
    assert unfolded([text]) == names


def test_names_are_told_as_short_as_it_goes() -> None:
    assert folded(["n3", "n1", "x", "n2"]) == "n[1-3],x"


@pytest.mark.parametrize(
    "text", ["", "gpu-[01-", "n[3-1]", "a b", "a;rm", "@all", "a^b", "-x", "n[1-2][1-2]", "n[1-999999999]", "n\x1b"]
)
def test_what_is_no_list_is_refused(text: str) -> None:
    with pytest.raises(WrongUse, match="not a list"):
        unfolded([text])


def test_every_list_that_is_none_is_told_at_once() -> None:
    with pytest.raises(WrongUse, match=r"'a\[', 'b\['"):
        unfolded(["a[", "ok", "b["])
