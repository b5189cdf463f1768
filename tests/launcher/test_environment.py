"""What two attempts have recorded, compared."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from launcher.code.plan import plan
from launcher.code.take import take
from launcher.environment import changes, of_attempt
from launcher.events import EnvironmentChanged, Event
from launcher.paths import RunPaths
from launcher.sections import RunSpec
from launcher.surroundings import Surroundings

NODE = {"cpu": "x", "packages": {"torch": "2.13", "numpy": "2"}, "variables": {"NCCL_DEBUG": "WARN"}, "bind": ["0-3"]}


def recorded(*nodes: dict[str, Any], **more: Any) -> dict[str, Any]:
    return of_attempt({f"node{index}": node for index, node in enumerate(nodes)}) | more


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (recorded(NODE), recorded(NODE), {}),
        (recorded(NODE), recorded(NODE, NODE), {}),
        (recorded(NODE), recorded(NODE | {"cpu": "y"}), {"cpu": ["x", "y"]}),
        (recorded(NODE), recorded(NODE, NODE | {"cpu": "y"}), {"cpu": ["x", ["x", "y"]]}),
        (
            recorded(NODE),
            recorded(NODE | {"packages": {"torch": "2.14"}}),
            {"packages.numpy": ["2", None], "packages.torch": ["2.13", "2.14"]},
        ),
        (recorded(NODE), recorded(NODE | {"variables": {}}), {"variables.NCCL_DEBUG": ["WARN", None]}),
        (recorded(NODE), recorded(NODE, code={"commit": "a"}), {}),
        (
            recorded(NODE, code={"commit": "a", "files": {"x.py": "1", "y.py": "1"}}),
            recorded(NODE, code={"commit": "a", "files": {"x.py": "2"}}),
            {"code.files.x.py": ["1", "2"], "code.files.y.py": ["1", None]},
        ),
        (
            recorded(NODE, code={"snapshot": 1, "commit": "a", "digest": "d"}),
            recorded(NODE, code={"snapshot": 2, "commit": "b", "digest": "d"}),
            {},
        ),
        (
            recorded(NODE, code={"snapshot": 1, "commit": "a", "digest": "d"}),
            recorded(NODE, code={"snapshot": 2, "commit": "a", "digest": "e"}),
            {"code.digest": ["d", "e"], "code.snapshot": [1, 2]},
        ),
    ],
)
def test_what_two_attempts_have_differently_is_told_with_both_values(
    before: dict[str, Any], after: dict[str, Any], expected: dict[str, Any]
) -> None:
    assert changes(before, json.loads(json.dumps(after))) == expected


class Told(list[Event]):
    def emit(self, event: Event) -> Event:
        self.append(event)
        return event


def attempts(paths: RunPaths, *records: tuple[int, dict[str, Any]]) -> list[EnvironmentChanged]:
    """What is told when these attempts start one after the other, on one node."""
    told = Told()

    async def start() -> None:
        surroundings = Surroundings(paths, ["python", "train.py"], told.emit)
        for attempt, node in records:
            surroundings.record(attempt, {"node0": node})
            assert paths.environment(attempt).exists(), "at once, whatever git does"
            await asyncio.wait_for(asyncio.gather(*surroundings._tasks), 30)

    asyncio.run(start())
    return [event for event in told if isinstance(event, EnvironmentChanged)]


@pytest.fixture
def paths(tmp_path: Path) -> RunPaths:
    made = RunPaths(tmp_path / "runs" / "a")
    made.make_folders()
    (tmp_path / "train.py").write_text("1")
    spec = RunSpec.model_validate({"name": "a", "command": ["python", "train.py"], "launch": {"code": "in_place"}})
    take(made, plan(spec, tmp_path, made.root.parent))
    return made


def test_each_attempt_is_compared_with_the_last_one_that_is_known(paths: RunPaths) -> None:
    told = attempts(paths, (1, NODE), (2, NODE), (5, NODE | {"cpu": "y"}), (6, NODE | {"cpu": "y"}))

    assert [(one.attempt, one.changes) for one in told] == [(5, {"cpu": ["x", "y"]})]


def test_a_script_that_was_changed_between_attempts_is_told(paths: RunPaths, tmp_path: Path) -> None:
    assert attempts(paths, (1, NODE)) == []
    (tmp_path / "train.py").write_text("2")

    (changed,) = attempts(paths, (2, NODE))
    assert [*changed.changes] == ["code.files.train.py"]
    assert json.loads(paths.environment(2).read_text())["code"]["mode"] == "in_place"


def test_what_cannot_be_recorded_disturbs_nobody(paths: RunPaths) -> None:
    attempts(paths, (1, NODE))
    paths.environment(1).write_text("{")
    paths.code_record(1).write_text("{")

    assert attempts(paths, (2, NODE)) == []
