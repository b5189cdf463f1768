"""Who may see a run and steer it: what can be told without other users. The rest: tests/chaos/test_shared_runs.py."""

from __future__ import annotations

import grp
import json
import os
import tempfile
from pathlib import Path

import pytest

from launcher.access import closed_above, umask_of, why_not
from launcher.control import received, take_files
from launcher.paths import RunPaths, user_name, write_atomically
from launcher.sections import Access

OURS = grp.getgrgid(os.getegid()).gr_name


@pytest.mark.parametrize(
    ("present", "of_the_run"),
    [(0o022, 0o022), (0o077, 0o027), (0o002, 0o022), (0o000, 0o022), (0o027, 0o027), (0o177, 0o127)],
)
def test_a_group_may_read_whatever_the_umask_and_never_write(present: int, of_the_run: int) -> None:
    assert umask_of(Access(group="x"), present) == of_the_run
    assert umask_of(Access(), present) == present


def test_a_group_must_exist_and_be_ours() -> None:
    assert why_not(OURS) == ""
    assert why_not("no-such-group") == "there is no group 'no-such-group' on this machine"


def test_the_way_to_the_run_must_be_open() -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as name:  # the folders that tests are given are closed
        folder = Path(name)
        (folder / "runs" / "demo").mkdir(parents=True)
        folder.chmod(0o710)
        os.chown(folder, -1, os.getegid())
        assert closed_above(folder / "runs" / "demo", Access(group=OURS)) is None
        folder.chmod(0o701)
        assert closed_above(folder / "runs" / "demo", Access(group=OURS)) == folder
        assert closed_above(folder / "runs" / "demo", Access()) is None


@pytest.mark.parametrize(
    "body",
    [
        None, [], "stop", 3, {}, {"id": "../live", "verb": "stop"}, {"id": "a1", "verb": "sudo"},
        {"id": "a1", "verb": "stop", "args": []}, {"id": 3, "verb": "stop"}, {"id": "a" * 129, "verb": "stop"},
    ],
)  # fmt: skip
def test_what_is_no_command(body: object) -> None:
    assert received(body, "ann", 1.0) is None


def test_what_a_command_says_is_kept_in_lines_of_print() -> None:
    actions = {"restart": {"from": "step 20", "save_first": True}, "notify": ["a\nb"]}
    event = received(
        {"id": "a1", "verb": "do", "args": {"why": "é\x1b[2J\nx" + "y" * 999, "actions": actions}}, "a", 1.0
    )
    assert event is not None
    why = str(event.args.pop("why"))
    assert (why[:7], len(why)) == ("é [2J x", 500)
    assert event.args == {"actions": actions | {"notify": ["a b"]}}


@pytest.mark.parametrize("text", ["NaN", "1e999", "[" * 20 + "]" * 20])
def test_what_no_journal_should_hold_is_no_command(text: str) -> None:
    body = json.loads(f'{{"id": "a1", "verb": "hold", "args": {{"reason": {text}}}}}')
    assert received(body, "ann", 1.0) is None


def test_a_file_is_a_command_only_under_its_own_name(tmp_path: Path) -> None:
    paths = RunPaths(tmp_path)
    paths.make_folders()
    for name, id_ in (("a1", "a1"), ("a2", "a3")):
        write_atomically(
            paths.control / f"{name}.json", json.dumps({"id": id_, "verb": "save", "args": {}}), mode=0o640
        )
    os.link(paths.control / "a1.json", tmp_path / "elsewhere")  # whose file it is cannot be told any more

    assert take_files(paths, 1.0) == []
    assert [*paths.control.iterdir()] == []

    (tmp_path / "elsewhere").rename(paths.control / "a1.json")
    (event,) = take_files(paths, 1.0)
    assert (event.id, event.verb, event.author) == ("a1", "save", user_name(os.getuid()))
