"""A supervisor that cannot be reached is known by what it writes."""

from __future__ import annotations

from pathlib import Path

import pytest

from launcher.paths import write_atomically
from launcher.sightings import Sightings


@pytest.fixture
def live(tmp_path: Path) -> Path:
    file = tmp_path / "live.json"
    file.write_text("1")
    return file


def test_who_writes_while_we_look_is_there_and_for_how_long(live: Path) -> None:
    sightings = Sightings(live)
    sightings.look(100.0, since=97.0)
    assert not sightings.is_there(100.0, 60.0), "it may have been written before its writer died"

    write_atomically(live, "2")
    sightings.look(103.0, since=97.0)
    assert sightings.is_there(103.0, 60.0)
    assert not sightings.is_nobody(162.0, 60.0)
    sightings.look(164.0, since=97.0)
    assert not sightings.is_there(164.0, 60.0)
    assert sightings.is_nobody(164.0, 60.0)


def test_nobody_is_there_only_after_a_while_of_looking(live: Path) -> None:
    sightings = Sightings(live)
    sightings.look(100.0, since=97.0)
    sightings.look(159.0, since=97.0)
    assert not sightings.is_nobody(159.0, 60.0)
    sightings.look(160.0, since=97.0)
    assert sightings.is_nobody(160.0, 60.0)


def test_with_each_word_from_a_supervisor_looking_begins_anew(live: Path) -> None:
    sightings = Sightings(live)
    sightings.look(100.0, since=97.0)
    write_atomically(live, "2")
    sightings.look(170.0, since=165.0)
    assert not sightings.is_there(170.0, 60.0)
    assert not sightings.is_nobody(170.0, 60.0)


def test_a_folder_that_cannot_be_seen_tells_nothing(tmp_path: Path) -> None:
    sightings = Sightings(tmp_path / "gone" / "live.json")
    sightings.look(100.0, since=97.0)
    sightings.look(161.0, since=97.0)
    assert (sightings.is_there(161.0, 60.0), sightings.is_nobody(161.0, 60.0)) == (False, True)
