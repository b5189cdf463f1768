"""`opt-launch hosts` as scripts see it: tables, JSON, who did what, how to undo it, and every refusal."""

from __future__ import annotations

import getpass
import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from test_cli import Outcome, call


@pytest.fixture
def hosts(tmp_path: Path) -> Callable[..., Outcome]:
    """`opt-launch hosts` with a site file that names `ledger` beside it, on a machine without Slurm."""
    site = tmp_path / "site.yaml"
    site.write_text("hosts: {ledger: ledger}\n")
    return partial(call, "hosts", cwd=tmp_path, OPT_LAUNCH_SITE=str(site), PATH="/nowhere")


def test_a_person_excludes_hosts_and_lets_them_in_again(hosts: Callable[..., Outcome], tmp_path: Path) -> None:
    me = getpass.getuser()
    assert hosts("list").out == "the host ledger is empty\n"

    said = hosts("exclude", "gpu-[01-03]", "--reason", "a fan is loud", "--for", "2h")
    assert said.code == 0
    assert said.out.startswith("gpu-[01-03]: excluded from all runs until 20")
    assert "undo: opt-launch hosts allow 'gpu-[01-03]'" in said.out

    shown = json.loads(hosts("list", "--json").out)
    assert shown["ledger"] == str(tmp_path / "ledger")
    assert [one["host"] for one in shown["hosts"]] == ["gpu-01", "gpu-02", "gpu-03"]
    exclusion = shown["hosts"][0]["exclusion"]
    assert (exclusion["by"], exclusion["reason"], exclusion["automatic"]) == (me, "a fan is loud", False)
    assert exclusion["until"] > exclusion["at"] > "20"

    assert hosts("allow", "gpu-02").out.splitlines() == [
        f"gpu-02: allowed again; it was excluded by {me}: a fan is loud",
        "undo: opt-launch hosts exclude 'gpu-02' --reason '...'",
    ]
    table = hosts("list").out.splitlines()
    assert [line.split()[:2] for line in table[:3]] == [
        ["HOST", "STATE"],
        ["gpu-01", "excluded"],
        ["gpu-03", "excluded"],
    ]
    assert table[3:] == ["2 excluded, 1 more host not shown (--all)"]
    assert "gpu-02" in hosts("list", "--all").out


def test_history_tells_everything_and_by_whom(hosts: Callable[..., Outcome]) -> None:
    hosts("exclude", "a", "--reason", "first")
    hosts("allow", "a", "--reason", "repaired")
    assert [line.split("  ", 1)[1] for line in hosts("history", "a").out.splitlines()] == [
        f"excluded  until allowed: first  ({getpass.getuser()})",
        f"allowed   repaired  ({getpass.getuser()})",
    ]
    assert [one["kind"] for one in json.loads(hosts("history", "a", "--json").out)] == ["excluded", "allowed"]


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["exclude", "gpu-[01-", "--reason", "x"], "not a list of at most 100,000 nodes: 'gpu-[01-'"),
        (["exclude", "a", "--reason", "x", "--for", "5"], "--for"),
        (["exclude", "a", "--reason", "x", "--for", "0s"], "--for"),
        (["exclude", "a"], "Missing option '--reason'"),
        (["allow", "gpu-02"], "the host ledger does not know gpu-02"),
        (["history", "gpu-02"], "the host ledger does not know gpu-02"),
        (["list", "gpu-[02-03]"], "the host ledger does not know gpu-02, gpu-03"),
    ],
)
def test_what_makes_no_sense_is_refused(hosts: Callable[..., Outcome], arguments: list[str], error: str) -> None:
    said = hosts(*arguments)
    assert (said.code, said.out) == (2, "")
    assert error in said.err


def test_a_ledger_with_damage_is_shown_with_a_warning(hosts: Callable[..., Outcome], tmp_path: Path) -> None:
    hosts("exclude", "a", "--reason", "x")
    (tmp_path / "ledger" / "old.jsonl").write_text('{"v": 7}\n')
    said = hosts("list")
    assert "a     excluded  allowed" in said.out
    lines = said.err.splitlines()
    assert lines[0] == (
        "warning: old.jsonl at byte 0: written by a newer opt-launch (format 7, this one reads 1): left out"
    )
    assert lines[1] == f"  while: reading {tmp_path / 'ledger'}"
    assert lines[2].startswith("  try:   lines of a newer opt-launch need that one to be read")


def test_a_ledger_that_cannot_be_written_is_an_error(hosts: Callable[..., Outcome], tmp_path: Path) -> None:
    (tmp_path / "ledger").write_text("")
    said = hosts("exclude", "a", "--reason", "x")
    assert said.code == 1
    assert said.err == (
        "error: the host ledger cannot be read: not a directory\n"
        f"  while: {tmp_path / 'ledger'}\n  try:   check the path\n"
    )


def test_a_mistake_in_the_site_s_file_is_shown_at_its_place(hosts: Callable[..., Outcome], tmp_path: Path) -> None:
    (tmp_path / "site.yaml").write_text("hosts: {leger: x}\n")
    said = hosts("list")
    assert said.code == 3
    assert "site.yaml:1:9: unknown key 'leger' (did you mean 'ledger'?)" in said.err
