"""A comparison of hosts names the odd one out, and nobody where there is no majority."""

from __future__ import annotations

from typing import Any

import pytest

from launcher.errors import LaunchError, Unreachable
from launcher.health.finding import Finding
from launcher.health.peers import against_peers
from launcher.remote.answer import MARK, Answer, Output, answer_of
from launcher.remote.examined import examined, exit_code


def host(**values: Any) -> list[Finding]:
    about = {"driver": "gpu-versions", "gpus": "gpu-count", "available_kib": "memory-available"}
    keys = {"gpus": "driver"}
    return [
        Finding(code=about[name], verdict="ok", summary="", evidence={keys.get(name, name): value})
        for name, value in values.items()
    ]


@pytest.mark.parametrize(
    ("values", "odd"),
    [
        ([{"driver": "570"}] * 3, {}),
        ([{"driver": "570"}, {"driver": "570"}, {"driver": "535"}], {2: ("gpu-versions-peers", "warn")}),
        ([{"driver": "570"}, {"driver": "535"}], {}),
        ([{"driver": "570"}] * 2 + [{"driver": "535"}] * 2, {}),
        ([{"driver": "570"}] * 3 + [{}], {}),
        ([{"gpus": 8}, {"gpus": 7}, {"gpus": 8}], {1: ("gpu-count-peers", "fail")}),
        ([{"gpus": 4}, {"gpus": 8}, {"gpus": 4}], {1: ("gpu-count-peers", "warn")}),
        (
            [{"available_kib": 100}, {"available_kib": 95}, {"available_kib": 40}],
            {2: ("memory-available-peers", "warn")},
        ),
    ],
)
def test_who_is_unlike_most_others_is_told(values: list[dict[str, Any]], odd: dict[int, tuple[str, str]]) -> None:
    found = against_peers({str(index): host(**one) for index, one in enumerate(values)})
    assert {int(name): (one.code, one.verdict) for name, findings in found.items() for one in findings} == odd


def answer(name: str, at: float, *findings: dict[str, Any]) -> Answer:
    return Answer(name, {"schema": 1, "at": at, "findings": [*findings]}, sent_at=100.0, came_at=102.0)


@pytest.mark.parametrize(
    ("at", "verdict"), [(101.0, None), (102.9, None), (104.0, "warn"), (98.5, "warn"), (90.0, "warn"), (200.0, "fail")]
)
def test_a_clock_that_is_certainly_wrong_is_told(at: float, verdict: str | None) -> None:
    [one] = examined([answer("a", at)])
    assert [finding.verdict for finding in one.findings if finding.code == "clock"] == ([verdict] if verdict else [])


def test_what_was_found_outweighs_who_could_not_be_asked() -> None:
    bad = {"code": "space", "verdict": "fail", "summary": "full"}
    silent = Answer("b", problem=Unreachable("no answer"))
    assert exit_code(examined([answer("a", 101.0), silent])) == 5
    assert exit_code(examined([answer("a", 101.0, bad), silent])) == 1
    assert exit_code(examined([answer("a", 101.0)])) == 0


def test_findings_that_are_none_are_a_problem_of_the_host() -> None:
    [one] = examined([answer("a", 101.0, {"code": "x", "verdict": "splendid", "summary": ""})])
    assert one.verdict == "unknown"
    assert "cannot be read: 0.verdict" in str(one.problem)


@pytest.mark.parametrize(
    ("text", "error"),
    [
        (f"{MARK}{{", "its answer cannot be read"),
        (f"{MARK}[]", "its answer cannot be read"),
        (f'{MARK}{{"schema": 2}}', "a newer opt-launch answers there (format 2, this one reads 1)"),
        (f'{MARK}{{"schema": 1, "error": {{"message": "it is full"}}}}', "it is full"),
        ("", "its opt-launch ended with exit code 0"),
    ],
)
def test_an_answer_that_is_none_is_told(text: str, error: str) -> None:
    with pytest.raises(LaunchError) as caught:
        answer_of(Output(0, text), "python")
    assert str(caught.value).startswith(error)
