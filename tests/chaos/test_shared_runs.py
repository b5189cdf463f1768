"""A run that a team sees and steers: real users, one of whom trains, one of the team, and one who has no business."""

from __future__ import annotations

import grp
import json
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from live_run import COUNTING, LiveRun

from launcher.advance import fold
from launcher.events import CommandReceived
from launcher.journal import read_journal
from launcher.paths import RunPaths
from launcher.run import Run

ROOT = Path(__file__).parents[2]
SHOWN = ROOT / ".ci" / "shown"
TEAM = grp.getgrnam("users")
LIMIT_S = 60.0
SPEC = """\
name: team
command: {command}
cluster: {{backend: local, nodes: 1, ranks_per_node: 2, silence: 2s}}
policy: [infra]
access: {{group: users, control: true}}
"""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0, reason="ACCESS OF OTHERS NOT TESTED: only root can become several users"),
]


@dataclass(frozen=True)
class User:
    """Somebody with a number, no name, and perhaps the team's group."""

    uid: int
    in_team: bool
    umask: str = "022"

    def call(self, folder: Path, *command: object, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run a command as this user."""
        groups = f"--groups={TEAM.gr_gid}" if self.in_team else "--clear-groups"
        become = ["setpriv", f"--reuid={self.uid}", f"--regid={self.uid}", groups, "--inh-caps=-all"]
        environment = {**os.environ, "HOME": str(folder), "TMPDIR": str(folder / "tmp"), "PYTHONDONTWRITEBYTECODE": "1"}
        return subprocess.run(
            [str(SHOWN), sys.executable, *become, "sh", "-c", f'umask {self.umask}; exec "$@"', "sh",
             *map(str, command)],
            cwd=ROOT, env=environment | variables, capture_output=True, text=True, timeout=100, check=False,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip


OWNER, MEMBER, STRANGER = User(54321, True, "077"), User(54322, True, "077"), User(54323, False)


class TeamRun:
    """The owner's run in a folder that everybody can reach."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.paths = RunPaths(folder / "runs" / "team")
        for part, mode in (("", 0o755), ("tmp", 0o1777), ("runs", 0o1777)):
            (folder / part).mkdir(exist_ok=True)
            (folder / part).chmod(mode)
        command = [
            "sh",
            "-c",
            'echo "here we are"; exec "$@"',
            "sh",
            sys.executable,
            COUNTING,
            "--run",
            self.paths.root,
            "--steps",
            100000,
        ]
        (folder / "RUN.yaml").write_text(SPEC.format(command=json.dumps([*map(str, command)])))

    def cli(self, user: User, *arguments: object) -> subprocess.CompletedProcess[str]:
        root = str(self.folder / "runs")
        return user.call(self.folder, sys.executable, "-m", "cli", *arguments, OPT_LAUNCH_ROOT=root)

    @property
    def run(self) -> Run:
        return fold(read_journal(self.paths).events)

    def wait(self, true: Callable[[Run], object]) -> None:
        deadline = time.monotonic() + LIMIT_S
        while not true(self.run):
            assert time.monotonic() < deadline, self.run
            time.sleep(0.1)

    def authors(self) -> list[tuple[str, str]]:
        """(verb, author) of all commands of the journal."""
        events = read_journal(self.paths).events
        return [(event.verb, event.author) for event in events if isinstance(event, CommandReceived)]

    def end(self) -> None:
        for process in psutil.process_iter():
            if process.is_running() and process.uids().real == OWNER.uid:
                process.kill()


@pytest.fixture
def team(request: pytest.FixtureRequest) -> Iterator[TeamRun]:
    folder = Path(tempfile.mkdtemp(prefix="opt-team-"))
    run = TeamRun(folder)
    yield run
    run.end()
    shutil.rmtree(folder, ignore_errors=True)


def closed_to_the_team(root: Path) -> set[str]:
    """What the team may not read, or may change, below a run folder. A link has no rights of its own."""
    found = set()
    below = (Path(folder) / name for folder, folders, files in os.walk(root) for name in (*folders, *files))
    for path in (root, *below):
        try:
            about = path.lstat()
        except FileNotFoundError:  # a run that goes on renames what it has written
            continue
        if stat.S_ISLNK(about.st_mode):
            continue
        needed = stat.S_IRGRP | (stat.S_IXGRP if stat.S_ISDIR(about.st_mode) else 0)
        may_read = about.st_gid == TEAM.gr_gid and about.st_mode & needed == needed
        if not may_read or about.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            found.add(str(path.relative_to(root)))
    return found


def test_a_team_sees_and_steers_a_run_and_nobody_else_does(team: TeamRun) -> None:
    submitted = team.cli(OWNER, "submit", team.folder / "RUN.yaml")
    assert (submitted.returncode, submitted.stdout, "warning" in submitted.stderr) == (0, "team\n", False)
    team.wait(lambda run: run.step >= 20 and run.state == "RUNNING")

    # What was made at submit, and what agents, supervisor and ranks have written since: readable, and no more.
    assert stat.S_IMODE(team.paths.root.stat().st_mode) == 0o2750
    assert stat.S_IMODE(team.paths.control.stat().st_mode) == 0o3770
    assert stat.S_IMODE(team.paths.secret.stat().st_mode) == 0o600
    assert closed_to_the_team(team.paths.root) == {"secret", "control"}
    assert {path.name for path in team.paths.root.iterdir()} >= {"journal", "metrics", "logs", "live.json", "agents"}

    status = team.cli(MEMBER, "status", "team", "--json")
    assert (json.loads(status.stdout)["state"], status.stderr) == ("RUNNING", "")
    for command in (["logs", "team"], ["report", "team"], ["incidents", "team"], ["status"]):
        seen = team.cli(MEMBER, *command)
        assert (seen.returncode, bool(seen.stdout)) == (0, True), (command, seen.stderr)

    for command in (["status", "team"], ["logs", "team"], ["hold", "team"]):
        refused = team.cli(STRANGER, *command)
        assert (refused.returncode, refused.stdout) == (1, "")
        assert refused.stderr == (
            f"error: run team belongs to {OWNER.uid}, and is closed to you\n  while: {team.paths.root}\n"
            f"  try:   ask {OWNER.uid} for access.group in RUN.yaml: one of your groups\n"
        )
    assert team.cli(STRANGER, "status").stdout == ""

    # The team steers by files, whose owner is the author. What is no command does no harm.
    control = team.paths.control
    traps = f"""
        mkfifo {control}/aa.json; ln -s {team.paths.live} {control}/ab.json; mkdir {control}/ac.json
        head -c 100000 /dev/zero | tr '\\0' '[' > {control}/ad.json; echo '[]' > {control}/ae.json
        echo '{{"id": "../live", "verb": "stop", "args": {{}}}}' > {control}/af.json
        echo '{{"id": "b1", "verb": "stop", "args": {{}}}}' > {control}/b0.json
        chmod a+r {control}/*.json; rmdir {control}/../journal; rm -f {team.paths.live}
    """
    MEMBER.call(team.folder, "sh", "-c", traps)
    held = team.cli(MEMBER, "hold", "team", "--reason", "lunch\x1b[2J")
    assert (held.returncode, held.stdout) == (0, ""), held.stderr
    team.wait(lambda run: run.state == "HELD")
    assert team.run.hold_reason == f"{MEMBER.uid}: lunch [2J"
    assert [path.name for path in control.iterdir()] == ["ac.json"]
    assert team.paths.live.exists()

    assert team.cli(OWNER, "release", "team").returncode == 0
    team.wait(lambda run: run.state == "RUNNING")
    assert team.cli(MEMBER, "stop", "team", "--yes").returncode == 0
    team.wait(lambda run: run.state == "STOPPED")
    assert team.authors() == [("hold", str(MEMBER.uid)), ("release", str(OWNER.uid)), ("stop", str(MEMBER.uid))]

    resumed = team.cli(MEMBER, "resume", "team")
    assert (resumed.returncode, resumed.stderr.splitlines()[0]) == (1, f"error: run 'team' belongs to {OWNER.uid}")
    assert closed_to_the_team(team.paths.root) == {"secret", "control", "control/ac.json"}


def test_who_may_look_and_not_steer_is_told_so(team: TeamRun) -> None:
    spec = (team.folder / "RUN.yaml").read_text().replace("control: true", "control: false")
    (team.folder / "RUN.yaml").write_text(spec)
    assert team.cli(OWNER, "submit", team.folder / "RUN.yaml").returncode == 0
    team.wait(lambda run: run.step >= 1)

    refused = team.cli(MEMBER, "hold", "team")

    assert (refused.returncode, team.authors()) == (1, [])
    assert refused.stderr.splitlines()[0] == "error: you may look at run team and not steer it"
    assert closed_to_the_team(team.paths.root) == {"secret"}


def test_a_run_without_a_group_is_closed(launch: Callable[..., LiveRun]) -> None:
    run = launch(steps=5)
    assert stat.S_IMODE(run.paths.root.stat().st_mode) == 0o700
    run.ends()


def test_who_is_not_in_the_group_and_who_closes_the_way_is_told(team: TeamRun) -> None:
    refused = team.cli(STRANGER, "submit", team.folder / "RUN.yaml")
    assert refused.returncode == 3
    assert "RUN.yaml:5:17: you are not in the group 'users' (you are in: " in refused.stderr

    private = team.folder / "private"
    private.mkdir(mode=0o700)
    os.chown(private, OWNER.uid, OWNER.uid)
    warned = team.cli(OWNER, "submit", team.folder / "RUN.yaml", "--root", private)
    assert warned.returncode == 0
    assert f"warning: {private} is closed to group users: chmod o+x, or another --root\n" in warned.stderr
