"""What tests of the trainer share."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from rank_harness import Ranks, Training


@pytest.fixture(scope="session")
def ranks() -> Iterator[Ranks]:
    server = Ranks()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two dozen small files of a language that can be learned a little."""
    folder = tmp_path_factory.mktemp("text")
    for number in range(24):
        (folder / f"{number:02}.txt").write_text("".join(f"{i} + {number} = {i + number}\n" for i in range(120)))
    return folder


@pytest.fixture
def short() -> Iterator[Path]:
    """A folder with a short name: Unix sockets have no room for more than 108 bytes."""
    folder = Path(tempfile.mkdtemp(prefix="ol"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def training(ranks: Ranks, text: Path, tmp_path: Path, short: Path) -> Training:
    return Training(ranks, text, tmp_path, short)
