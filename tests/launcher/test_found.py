"""Checkpoints of a trainer that tells nobody of them: found, told from halves, inspected, set aside."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tale import Tale

from launcher import found
from launcher.events import CheckpointCommitted, CheckpointRejected, CheckpointRemoved, CheckpointSetAside, Event
from launcher.finder import Finder
from launcher.foreign import CheckpointFiles
from launcher.run import Run


def files(glob: str = "out/ckpt-{step}", verify: str = "sizes", **complete: str) -> CheckpointFiles:
    return CheckpointFiles.model_validate({"glob": glob, "verify": verify, "complete": complete or {"marker": "DONE"}})


def write(folder: Path, step: int, text: str = "weights", *, done: bool = True, age_s: float = 0.0) -> Path:
    checkpoint = folder / "out" / f"ckpt-{step}"
    (checkpoint / "shards").mkdir(parents=True, exist_ok=True)
    names = ["shards/0", *(["DONE"] if done else [])]
    for name in names:
        (checkpoint / name).write_text(text if name != "DONE" else "")
        then = time.time() - age_s
        os.utime(checkpoint / name, (then, then))
    return checkpoint


def seen(folder: Path, run: Run | None = None, what: CheckpointFiles | None = None) -> found.Look:
    return found.look(what or files(), folder, run or Run(), time.time())


def now(tale: Tale) -> Tale:
    """Set the clock of the tale to ours."""
    tale.at = time.time() - 50
    return tale


# ---------------------------------------------------------------- names


@pytest.mark.parametrize(
    ("pattern", "name", "step"),
    [
        ("out/ckpt-{step}", "out/ckpt-300", 300),
        ("out/iter_{step}", "out/iter_0000300", 300),
        ("out/ckpt-{step}.pt", "out/ckpt-300.pt", 300),
        ("./out/ckpt-{step}/", "out/ckpt-300", 300),
        ("out/*/step{step}-*.pt", "out/a/step7-ab.pt", 7),
        ("out/{step}/ckpt-{step}", "out/7/ckpt-7", 7),
        ("o[u]t/ckpt-{step}", "o[u]t/ckpt-1", 1),
        ("out/{step}/ckpt-{step}", "out/7/ckpt-8", None),
        ("out/ckpt-{step}", "out/ckpt-300.tmp", None),
        ("out/ckpt-{step}", "out/ckpt-latest", None),
        ("out/ckpt-{step}", "out/old/ckpt-3", None),
        ("*/ckpt-{step}", "set_aside/ckpt-3", None),
    ],
)
def test_a_name_tells_the_step(tmp_path: Path, pattern: str, name: str, step: int | None) -> None:
    (tmp_path / name).mkdir(parents=True)
    places = found.matches(pattern, tmp_path)
    assert [one.step for one in places] == ([] if step is None else [step])
    assert all(Path(one.path).samefile(tmp_path / name) for one in places)


# ---------------------------------------------------------------- whole or not


def test_a_checkpoint_is_whole_with_its_marker(tmp_path: Path) -> None:
    write(tmp_path, 10)
    half = write(tmp_path, 20, done=False)
    look = seen(tmp_path)
    assert [one.step for one in look.new] == [10]
    assert look.unfinished == (str(half),)
    assert look.new[0].bytes == len("weights")


def test_a_marker_may_lie_beside(tmp_path: Path) -> None:
    (tmp_path / "iter_0010.pt").write_text("w")
    what = files("iter_{step}.pt", marker="iter_{step}.ok")
    assert seen(tmp_path, what=what).unfinished
    (tmp_path / "iter_0010.ok").touch()
    assert [one.step for one in seen(tmp_path, what=what).new] == [10]


def test_a_checkpoint_that_is_written_anew_is_not_whole_though_the_old_marker_is_there(tmp_path: Path) -> None:
    checkpoint = write(tmp_path, 10, age_s=60)
    (checkpoint / "shards" / "0").write_text("half of the new")
    assert seen(tmp_path).unfinished == (str(checkpoint),)


def test_a_checkpoint_that_has_settled_is_whole(tmp_path: Path) -> None:
    what = files(settled="30s")
    write(tmp_path, 10, age_s=31)
    write(tmp_path, 20, age_s=5)
    tale = now(Tale()).start()
    assert [one.step for one in seen(tmp_path, tale.run, what).new] == [10]


@pytest.mark.parametrize(("code", "whole"), [(-9, []), (0, [20])])
def test_what_was_still_being_written_when_its_ranks_were_killed_never_settles(
    tmp_path: Path, code: int, whole: list[int]
) -> None:
    """Of ranks that ended well it is whole at once."""
    what = files(settled="30s")
    tale = now(Tale()).start()
    write(tmp_path, 20, age_s=time.time() - tale.at - 5)
    for rank in range(4):
        tale.exit(rank, code)
    tale.at = time.time() - 30
    tale.end_attempt()
    later = found.look(what, tmp_path, tale.run, time.time() + 1000)
    assert [one.step for one in later.new] == whole


# ---------------------------------------------------------------- what is new


def committed(tale: Tale, folder: Path) -> Tale:
    """The tale with all that there is to be found."""
    for one in seen(folder, tale.run).new:
        tale.tell(
            CheckpointCommitted(
                at=tale.at, step=one.step, attempt=tale.number, parent=tale.run.head, manifest_digest=one.digest,
                bytes=one.bytes, path=one.path, written_at=one.written_at,
            )
        )  # fmt: skip
    return tale


def test_what_is_known_is_not_new(tmp_path: Path) -> None:
    write(tmp_path, 10)
    tale = committed(now(Tale()).train(10), tmp_path)
    assert [c.step for c in tale.run.lineage()] == [10]
    write(tmp_path, 20)
    assert [one.step for one in seen(tmp_path, tale.run).new] == [20]


def test_of_what_was_there_before_the_run_only_the_newest_count(tmp_path: Path) -> None:
    for step in range(10, 100, 10):
        write(tmp_path, step)
    write(tmp_path, 100, done=False)
    assert [one.step for one in seen(tmp_path).new] == [70, 80, 90]


def test_after_going_back_an_abandoned_one_is_not_new_until_it_is_written_again(tmp_path: Path) -> None:
    write(tmp_path, 10, age_s=40)
    write(tmp_path, 20, age_s=30)
    tale = committed(now(Tale()).train(20), tmp_path)
    tale.reject((20, 1)).end_attempt()
    tale.at = time.time() - 20
    tale.start((10, 1))
    assert seen(tmp_path, tale.run).new == ()
    # Damage done to it before the attempt began makes it no new one.
    write(tmp_path, 20, "damaged", age_s=25)
    assert seen(tmp_path, tale.run).new == ()
    write(tmp_path, 20, "anew")
    assert [one.step for one in seen(tmp_path, tale.run).new] == [20]


def test_what_the_trainer_has_deleted_is_gone_unless_all_is(tmp_path: Path) -> None:
    first, second = write(tmp_path, 10), write(tmp_path, 20)
    tale = committed(now(Tale()).train(20), tmp_path)
    first.rename(tmp_path / "first")
    assert seen(tmp_path, tale.run).gone == ((10, 1),)
    second.rename(tmp_path / "second")
    assert seen(tmp_path, tale.run).gone == ()  # rather a disk that is not mounted


# ---------------------------------------------------------------- content


def flip(path: Path, at: int) -> None:
    about = path.stat()
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)
        file.seek(at)
        file.write(bytes([byte[0] ^ 1]))
    os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))


@pytest.mark.parametrize(
    ("verify", "at", "noticed"),
    [
        ("sizes", 0, False),
        ("sampled", 0, True),
        ("sampled", (4 << 20) - 1, True),
        ("sampled", 100_000, False),
        ("full", 100_000, True),
    ],
)
def test_how_much_of_a_checkpoint_is_verified(tmp_path: Path, verify: Any, at: int, noticed: bool) -> None:
    path = write(tmp_path, 10)
    shard = path / "shards" / "0"
    shard.write_bytes(os.urandom(4 << 20))
    (path / "DONE").touch()
    (one,) = seen(tmp_path, what=files(verify=verify)).new
    assert found.inspect(one.path, one.digest, verify) == ""
    flip(shard, at)
    assert bool(found.inspect(one.path, one.digest, verify)) is noticed


def test_a_checkpoint_that_lacks_a_file_or_has_another_size_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, 10)
    (one,) = seen(tmp_path).new
    (path / "shards" / "0").write_text("weight")
    assert "not as it was" in found.inspect(one.path, one.digest, "sizes")
    (path / "shards" / "0").unlink()
    assert "not as it was" in found.inspect(one.path, one.digest, "sizes")
    path.rename(tmp_path / "elsewhere")
    assert "is not there" in found.inspect(one.path, one.digest, "sizes")


def test_later_ones_are_set_aside_and_none_is_written_over(tmp_path: Path) -> None:
    for step in (10, 20, 30):
        write(tmp_path, step)
    assert [to for _, to in found.set_aside("out/ckpt-{step}", tmp_path, 20)] == [
        str(tmp_path / "out" / "set_aside" / "ckpt-30")
    ]
    write(tmp_path, 30, "again")
    assert [to for _, to in found.set_aside("out/ckpt-{step}", tmp_path, 20)] == [
        str(tmp_path / "out" / "set_aside" / "ckpt-30.1")
    ]
    assert [one.step for one in found.matches("out/ckpt-{step}", tmp_path)] == [10, 20]


# ---------------------------------------------------------------- the one who looks


class World:
    """A Finder whose events count at once."""

    def __init__(self, folder: Path, *, newest: bool, tale: Tale) -> None:
        self.tale, self.told = tale, list[Event]()
        self.finder = Finder(files(), newest, folder, self.emit, lambda _node, _said: None)

    def emit(self, event: Event) -> Event:
        self.told.append(event)
        self.tale.tell(event)
        self.finder.durable(self.tale.run, event)
        return event

    async def until(self, true: Callable[[], Any]) -> None:
        for _ in range(6000):
            if true():
                return
            await asyncio.sleep(0.01)
        raise AssertionError(self.told)

    async def searched(self) -> None:
        """Asked again and again, as the planner does: the search before may just be ending."""
        await self.until(lambda: self.finder.searched or self.finder.search())

    def of(self, kind: type[Event]) -> list[Any]:
        return [event for event in self.told if isinstance(event, kind)]


def test_what_was_there_before_the_run_is_where_it_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path, 10)
    write(tmp_path, 20)

    async def story() -> None:
        world = World(tmp_path, newest=False, tale=now(Tale()))
        assert not world.finder.searched
        await world.searched()
        assert [one.id for one in world.tale.run.lineage()] == [(20, 0), (10, 0)]
        assert all(one.verified for one in world.tale.run.lineage())
        assert world.finder.unfinished == ()

    asyncio.run(story())


def test_the_line_goes_on_over_attempts_and_what_is_written_over_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path, 10, age_s=45)
    write(tmp_path, 20, age_s=44)

    async def story() -> None:
        world = World(tmp_path, newest=False, tale=now(Tale()).train(20))
        world.finder.durable(world.tale.run, world.tale.events[-1])
        await world.searched()
        world.tale.reject((20, 1)).end_attempt()
        world.tale.at = time.time() - 10
        world.tale.start((10, 1)).steps(10)
        world.finder.durable(world.tale.run, world.tale.events[-11])
        assert not world.finder.searched
        write(tmp_path, 20, "anew")
        await world.searched()
        assert world.tale.run.checkpoints[20, 2].parent == (10, 1)
        assert [(one.step, one.attempt) for one in world.of(CheckpointRemoved)] == [(20, 1)]

    asyncio.run(story())


def test_one_that_has_changed_is_rejected_and_later_ones_are_hidden_from_a_trainer_that_takes_the_newest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path, 10)
    damaged = write(tmp_path, 20)
    half = write(tmp_path, 30, done=False)

    async def story() -> None:
        world = World(tmp_path, newest=True, tale=now(Tale()).train(20))
        world.finder.durable(world.tale.run, world.tale.events[-1])
        await world.searched()
        (damaged / "shards" / "0").write_text("x")
        world.finder.inspect(world.tale.run.checkpoints[20, 1])
        await world.until(lambda: world.of(CheckpointRejected))
        assert half.exists()
        world.finder.inspect(world.tale.run.checkpoints[10, 1])
        await world.until(lambda: (10, 1) in world.finder.inspected)
        assert [Path(one.path).name for one in world.of(CheckpointSetAside)] == ["ckpt-20", "ckpt-30"]
        assert world.tale.run.checkpoints[20, 1].removed
        assert (tmp_path / "out" / "set_aside" / "ckpt-20" / "shards" / "0").read_text() == "x"

    asyncio.run(story())
