"""The command line as scripts see it: what is printed where, and every exit code."""

import json
import os
import pty
import resource
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from datetime import datetime
from importlib import metadata
from pathlib import Path

import pytest

from launcher.events import (
    AgentJoined,
    AttemptStarted,
    Decision,
    EpochStarted,
    Event,
    RunEnded,
    RunHeld,
    RunPaused,
    RunSubmitted,
    StepDone,
)
from launcher.journal import write_first_epoch
from launcher.paths import RunPaths

# Who runs the tests in the background may have had Ctrl-C ignored, and programs inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
PROGRAM = (sys.executable, "-m", "cli")
REPOSITORY = Path(__file__).parents[1]
DEMO = REPOSITORY / "examples" / "demo.yaml"
AT = 1_700_000_000.0


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str


def environment() -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("OPT_LAUNCH")}
    return kept | {"PYTHONPATH": str(REPOSITORY), "TERM": "xterm", "COLUMNS": "100", "OPT_LAUNCH_SITE": ""}


def call(*args: object, cwd: Path, **variables: str) -> Outcome:
    done = subprocess.run(
        [*PROGRAM, *map(str, args)], cwd=cwd, env=environment() | variables, capture_output=True, text=True,
        timeout=60, stdin=subprocess.DEVNULL, check=False,
    )  # fmt: skip
    return Outcome(done.returncode, done.stdout, done.stderr)


def make_run(root: Path, name: str, *events: Event, nodes: int = 1) -> RunPaths:
    paths = RunPaths(root / name)
    paths.make_folders()
    slots = {f"node{index}": (index,) for index in range(nodes)}
    joined = [
        AgentJoined(at=AT + 1, node=node, index=index, incarnation="i", host="h", port=1, pid=7)
        for index, node in enumerate(slots)
    ]
    begin = [
        EpochStarted(at=AT, host="login", pid=1, node="", job_id=""),
        RunSubmitted(
            at=AT, run=name, nodes=nodes, ranks_per_node=1, spares=0, target_step=3, probation=1, save_every=2
        ),
        *joined,
        AttemptStarted(at=AT + 2, attempt=1, slots=slots, incarnations={}, restore=None, why="first"),
        StepDone(at=AT + 3, attempt=1, step=0, metrics={"loss": 5.0}, step_s=1.0),
    ]  # fmt: skip
    write_first_epoch(paths, [*begin, *events])
    return paths


def ended(state: str) -> RunEnded:
    return RunEnded(at=AT + 4, state=state, reason="so it goes")  # type: ignore[arg-type]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "runs"


# ---------------------------------------------------------------- quick to start, light to load


def test_help_appears_at_once(tmp_path: Path) -> None:
    took = []
    for _ in range(5):  # processor time, the least of several: other work on the machine is no fault of ours
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert call("--help", cwd=tmp_path).code == 0
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        took.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(took) < 0.25


def modules_after(root: Path, *args: str) -> set[str]:
    script = (
        "import sys, cli\n"
        "try:\n    cli.app(sys.argv[1:])\n"
        "except SystemExit:\n    pass\n"
        "print('\\n'.join(sys.modules), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *args], cwd=root, env=environment(), capture_output=True, text=True, check=True
    )
    return {line.split(".")[0] for line in done.stderr.splitlines()}


def test_help_loads_neither_torch_nor_pydantic(tmp_path: Path) -> None:
    assert not modules_after(tmp_path, "--help") & {"torch", "pydantic", "yaml", "numpy"}


@pytest.mark.parametrize(
    "args", [("status", "a"), ("status", "a", "--json"), ("status",), ("logs", "a"), ("report", "a")]
)
def test_looking_at_a_run_does_not_load_torch(tmp_path: Path, root: Path, args: tuple[str, ...]) -> None:
    make_run(root, "a", ended("SUCCEEDED"))
    assert "torch" not in modules_after(tmp_path, *args)


# ---------------------------------------------------------------- exit codes


@pytest.mark.parametrize(("state", "code"), [("SUCCEEDED", 0), ("FAILED", 1), ("STOPPED", 1)])
def test_wait_tells_how_a_run_ended(tmp_path: Path, root: Path, state: str, code: int) -> None:
    make_run(root, "a", ended(state))
    outcome = call("wait", "a", cwd=tmp_path)
    assert (outcome.code, outcome.out) == (code, "")
    assert outcome.err == f"a: {state} at step 1: so it goes\n"


def test_wait_leaves_with_6_when_the_run_is_held(tmp_path: Path, root: Path) -> None:
    make_run(root, "a", RunHeld(at=AT + 4, reason="two nodes are needed"))
    outcome = call("wait", "a", cwd=tmp_path)
    assert outcome.code == 6
    assert outcome.err == "a: HELD at step 1: two nodes are needed\n  try:   opt-launch release a\n"


@pytest.mark.parametrize("flags", [(), ("--through-hold",)])
def test_wait_times_out_with_124(tmp_path: Path, root: Path, flags: tuple[str, ...]) -> None:
    make_run(root, "a", *([RunHeld(at=AT + 4, reason="x")] if flags else []))
    outcome = call("wait", "a", "--timeout", "1s", *flags, cwd=tmp_path)
    assert (outcome.code, outcome.out) == (124, "")
    assert "timed out" in outcome.err


def test_wait_waits_through_a_pause(tmp_path: Path, root: Path) -> None:
    make_run(root, "a", RunPaused(at=AT + 4, reason="ann: lunch"))
    outcome = call("wait", "a", "--timeout", "1s", cwd=tmp_path)
    assert outcome.code == 124
    told = "a: PAUSED at step 1: ann: lunch; waiting for it has timed out\n  try:   opt-launch unpause a\n"
    assert outcome.err == told


def test_wait_gives_up_on_a_run_of_which_nothing_lives(tmp_path: Path, root: Path) -> None:
    make_run(root, "a")
    begun = time.monotonic()
    outcome = call("wait", "a", "--timeout", "50", cwd=tmp_path)
    assert outcome.code == 1
    assert 5 <= time.monotonic() - begun < 20
    assert "none of its processes lives" in outcome.err
    assert "opt-launch resume a" in outcome.err


def test_ctrl_c_leaves_the_view_and_says_that_the_run_goes_on(tmp_path: Path, root: Path) -> None:
    make_run(root, "a", RunHeld(at=AT + 4, reason="x"))
    process = subprocess.Popen(
        [*PROGRAM, "status", "a", "--watch", "5s"], cwd=tmp_path, env=environment(), stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout
    assert process.stdout.readline().startswith("run a  GONE")
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "runs go on" in error
    assert "Traceback" not in error


@pytest.mark.parametrize("verb", ["status", "wait", "logs", "stop", "save", "hold", "release", "resume", "report"])
def test_no_such_run_is_4(tmp_path: Path, root: Path, verb: str) -> None:
    make_run(root, "a")
    outcome = call(verb, "b", cwd=tmp_path)
    assert (outcome.code, outcome.out) == (4, "")
    assert outcome.err.startswith("error: there is no run 'b'\n  while: looking in ")
    assert "try:   one of: a" in outcome.err


@pytest.mark.parametrize(
    "args", [("status", "--bogus"), ("nonsense",), ("wait", "a", "--timeout", "soon"), ("submit",)]
)
def test_usage_is_2(tmp_path: Path, root: Path, args: tuple[str, ...]) -> None:
    make_run(root, "a")
    outcome = call(*args, cwd=tmp_path)
    assert (outcome.code, outcome.out) == (2, "")


def test_a_bad_spec_is_3_and_touches_nothing(tmp_path: Path, root: Path) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_text("name: x\ntrainer: {size: tinny, steps: 3}\n")
    outcome = call("submit", bad, cwd=tmp_path)
    assert (outcome.code, outcome.out) == (3, "")
    assert outcome.err.startswith("error: ")
    assert "bad.yaml:2:" in outcome.err
    assert not root.exists()


@pytest.mark.parametrize("verb", ["stop", "save", "hold", "release", "replace"])
def test_a_run_that_has_ended_takes_no_commands(tmp_path: Path, root: Path, verb: str) -> None:
    make_run(root, "a", ended("STOPPED"))
    outcome = call(verb, "a", *{"stop": ["--yes"], "replace": ["node1"]}.get(verb, []), cwd=tmp_path)
    assert outcome.code == 1
    assert outcome.err == f"error: run a has ended: STOPPED\n  while: {verb} a\n  try:   opt-launch resume a\n"


def started_by_run(paths: RunPaths, job: str) -> None:
    """As the first node of `opt-launch run` says so; its process is gone, or Slurm knows the job no more."""
    about = {"backend": "own", "job_id": "own+x", "job": job, "life": job, "step": "x", "host": "elsewhere", "pid": 1}
    paths.allocation.write_text(json.dumps(about | {"started": 0.0}))


@pytest.mark.parametrize(
    ("job", "way"), [("", "the same command again, with --name a"), ("8", "the same script, or the same command again")]
)
def test_what_opt_launch_run_has_started_goes_on_by_the_same_command(
    tmp_path: Path, root: Path, job: str, way: str
) -> None:
    started_by_run(make_run(root, "a", ended("FAILED")), job)
    assert f"next: nothing, until a person says: {way}" in call("status", "a", cwd=tmp_path).out
    assert f"  try:   {way}" in call("save", "a", cwd=tmp_path).err


def test_logs_of_a_run_that_has_printed_nothing_say_so_and_why(tmp_path: Path, root: Path) -> None:
    make_run(root, "a")
    outcome = call("logs", "a", cwd=tmp_path)
    assert (outcome.code, outcome.out) == (0, "")
    assert outcome.err == (
        "nothing was printed yet: run a is GONE: none of its processes lives; "
        "next: nothing, until a person says: opt-launch resume a\n"
    )


# ---------------------------------------------------------------- what is printed


def test_status_as_json_is_one_object(tmp_path: Path, root: Path) -> None:
    make_run(root, "a", ended("SUCCEEDED"))
    outcome = call("status", "a", "--json", cwd=tmp_path)
    snap = json.loads(outcome.out)
    assert (snap["run"], snap["state"], snap["step"], outcome.err) == ("a", "SUCCEEDED", 1, "")


def test_status_without_a_terminal_is_plain_and_leaves(tmp_path: Path, root: Path) -> None:
    make_run(root, "a")
    for flags in ((), ("--once",)):
        outcome = call("status", "a", *flags, cwd=tmp_path)
        assert outcome.code == 0
        assert "\nstep 1 / 3  loss 5 " in outcome.out
        assert "\x1b" not in outcome.out


def test_a_run_of_which_no_process_lives_is_not_shown_as_well(tmp_path: Path, root: Path) -> None:
    make_run(root, "a")

    text = call("status", "a", cwd=tmp_path).out
    snap = json.loads(call("status", "a", "--json", cwd=tmp_path).out)
    saved = call("save", "a", cwd=tmp_path)

    assert text.startswith("run a  GONE  (none of its processes lives)\n")
    assert "next: nothing, until a person says: opt-launch resume a" in text
    assert (snap["alive"], {node["state"] for node in snap["nodes"]}) == (False, {"GONE"})
    assert (saved.code, "opt-launch resume a" in saved.err) == (1, True)


def test_status_of_all_runs_is_a_line_each(tmp_path: Path, root: Path) -> None:
    make_run(root, "a", ended("FAILED"))
    make_run(root, "b")
    outcome = call("status", "--root", root, cwd=tmp_path)
    assert [line.split()[:2] for line in outcome.out.splitlines()] == [["a", "FAILED"], ["b", "GONE"]]
    assert [one["run"] for one in json.loads(call("status", "--json", cwd=tmp_path).out)] == ["a", "b"]
    nowhere = call("status", cwd=tmp_path, OPT_LAUNCH_ROOT=str(tmp_path / "none"))
    assert (nowhere.code, nowhere.out) == (0, "")


def on_a_terminal(folder: Path, *args: str, **variables: str) -> str:
    """What a command writes to a terminal of 80 x 24 that it leaves with 0."""
    master, slave = pty.openpty()
    known = environment() | {"COLUMNS": "80", "LINES": "24"} | variables
    process = subprocess.Popen([*PROGRAM, *args], cwd=folder, env=known, stdout=slave, stdin=slave)
    os.close(slave)
    shown = b""
    while True:
        try:
            data = os.read(master, 65536)
        except OSError:  # the other end has been closed
            break
        if not data:
            break
        shown += data
    os.close(master)
    assert process.wait(20) == 0
    return shown.decode()


def test_status_on_a_terminal_is_the_screen(tmp_path: Path, root: Path) -> None:
    make_run(root, "a", ended("SUCCEEDED"))
    text = on_a_terminal(tmp_path, "status", "a", NO_COLOR="1")
    assert "NODES 1: 1 active" in text
    assert "\x1b[?1049l" in text  # the alternate screen was left
    assert "\x1b[3" not in text  # no colour was asked for


def read_until(master: int, text: str, shown: str = "") -> str:
    while text not in shown:
        shown += os.read(master, 65536).decode(errors="replace")
    return shown


@pytest.mark.parametrize(
    ("args", "seen"), [(("status", "a"), "GONE"), (("wait", "a", "--through-hold"), "a  HELD  step 1 / 3")]
)
def test_ctrl_c_on_a_terminal_leaves_it_as_it_was(tmp_path: Path, root: Path, args: tuple[str, ...], seen: str) -> None:
    make_run(root, "a", *([RunHeld(at=AT + 4, reason="x")] if args[0] == "wait" else []))
    master, slave = pty.openpty()
    variables = environment() | {"COLUMNS": "80", "LINES": "24"}
    process = subprocess.Popen([*PROGRAM, *args], cwd=tmp_path, env=variables, stdout=slave, stdin=slave, stderr=slave)
    os.close(slave)
    shown = read_until(master, seen)
    process.send_signal(signal.SIGINT)
    shown = read_until(master, "runs go on", shown)
    assert process.wait(20) == 130
    assert shown.count("\x1b[?1049h") == shown.count("\x1b[?1049l")
    assert shown.count("\x1b[?25l") == shown.count("\x1b[?25h")
    os.close(master)


def test_q_leaves_the_screen_and_the_run_goes_on(tmp_path: Path, root: Path) -> None:
    make_run(root, "a")
    process, master = started_on_a_terminal(tmp_path, "status", "a")
    shown = read_until(master, "q or Ctrl-C leaves")
    os.write(master, b"q")
    _, _, left = read_until(master, "\x1b[?1049l", shown).rpartition("\x1b[?1049l")
    assert "GONE" in read_until(master, "CHECKPOINTS", left)  # the last state stays
    assert process.wait(20) == 0
    os.close(master)


@pytest.mark.parametrize(("answer", "code"), [(b"\x03", 130), (b"n\n", 1)])
def test_ctrl_c_at_a_question_is_no_answer(tmp_path: Path, root: Path, answer: bytes, code: int) -> None:
    paths = make_run(root, "a")
    process, master = started_on_a_terminal(tmp_path, "stop", "a")
    read_until(master, "[y/N]:")
    os.write(master, answer)
    read_until(master, "runs go on" if code == 130 else "Aborted")
    assert process.wait(20) == code
    assert not [*paths.control.iterdir()]
    os.close(master)


def started_on_a_terminal(folder: Path, *args: str) -> tuple[subprocess.Popen[bytes], int]:
    """A command whose own terminal, of 80 x 24, is the one behind this descriptor: Ctrl-C typed there is a signal."""
    master, slave = pty.openpty()
    variables = environment() | {"COLUMNS": "80", "LINES": "24"}
    command = [sys.executable, "-c", "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); "
               "os.execv(sys.executable, [sys.executable, '-m', 'cli', *sys.argv[1:]])", *args]  # fmt: skip
    process = subprocess.Popen(
        command, cwd=folder, env=variables, stdin=slave, stdout=slave, stderr=slave, start_new_session=True
    )
    os.close(slave)
    return process, master


def test_names_of_any_length_keep_the_columns_of_the_list(tmp_path: Path, root: Path) -> None:
    long = "train-gpt-20261125-134251-a1b2c3d4"
    for name in ("a", long):
        make_run(root, name, ended("FAILED"))
    lines = call("status", "--root", root, cwd=tmp_path).out.splitlines()
    assert [line.index("FAILED") for line in lines] == [len(long) + 2] * 2


def test_the_root_comes_from_the_environment(tmp_path: Path, root: Path) -> None:
    make_run(root, "a", ended("SUCCEEDED"))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    assert call("wait", "-", cwd=elsewhere, OPT_LAUNCH_ROOT=str(root)).code == 0
    assert call("wait", "a", "--root", root, cwd=elsewhere).code == 0
    assert call("wait", "a", cwd=elsewhere).code == 4


def test_stop_ends_nothing_where_nobody_can_be_asked(tmp_path: Path, root: Path) -> None:
    make_run(root, "alpha")
    outcome = call("stop", "al", cwd=tmp_path)
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err.startswith("error: nobody can be asked")
    assert "while: stop alpha\n  try:   add --yes" in outcome.err
    assert not [*RunPaths(root / "alpha").control.iterdir()]


def run_with_logs(root: Path) -> RunPaths:
    paths = make_run(root, "a", nodes=2)
    for node in ("node0", "node1"):
        paths.log(1, node).parent.mkdir(exist_ok=True)
        rank = node[-1]
        lines = (f"2026-01-02T10:00:0{i}.00{rank}+00:00 rank {rank} out {node} says {i}\n" for i in range(5))
        paths.log(1, node).write_text("".join(lines))
    return paths


def test_logs_are_merged_by_time(tmp_path: Path, root: Path) -> None:
    run_with_logs(root)
    outcome = call("logs", "a", cwd=tmp_path)
    assert outcome.out.splitlines()[0] == "10:00:00.000 node0 rank 0   node0 says 0"
    assert [line.split()[1] for line in outcome.out.splitlines()[:4]] == ["node0", "node1", "node0", "node1"]
    assert len(call("logs", "a", "--node", "node1", "--rank", 1, cwd=tmp_path).out.splitlines()) == 5


def test_logs_since_a_while_ago_leave_out_what_is_older(tmp_path: Path, root: Path) -> None:
    paths = run_with_logs(root)
    stamp = datetime.now().astimezone().isoformat(timespec="milliseconds")
    with paths.log(1, "node0").open("a") as file:
        file.write(f"{stamp} rank 0 out just now\n")
    outcome = call("logs", "a", "--since", "5m", cwd=tmp_path)
    assert (outcome.code, outcome.out) == (0, f"{stamp[11:23]} node0 rank 0   just now\n")


def test_what_is_done_by_hand_is_checked_and_asked_about_first(tmp_path: Path, root: Path) -> None:
    paths = make_run(root, "a")
    paths.spec.write_text("name: a\ncommand: ['true']\n")
    wrong = call("do", "a", "{restart: {form: latest}, skip: 3 steps}", "--why", "x", "--yes", cwd=tmp_path)
    unasked = call("do", "a", "{restart: {from: latest}}", "--why", "x", cwd=tmp_path)
    assert (wrong.code, unasked.code) == (3, 2)
    assert "ACTIONS:1:12: unknown key 'form' (did you mean 'from'?)" in wrong.err
    assert "ACTIONS:1:33: '3 steps' is not a number of batches: write for example 64 batches" in wrong.err
    assert unasked.err == "error: nobody can be asked: no terminal\n  while: do a\n  try:   add --yes\n"
    assert not [*paths.control.iterdir()]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["incidents", "a", "approve"], "which incident?"),
        (["incidents", "a", "note", "1"], "a note needs its text, in quotes"),
        (["incidents", "a", "hold", "1", "because"], "only a note has a text"),
        (["policy", "set", "a", "hang.mode"], "'hang.mode' is not KEY=VALUE"),
        (["policy", "set", "a", "hang.mode=advise", "--for", "soon"], "'soon' is not a duration"),
    ],
)
def test_what_is_said_by_half_is_a_mistake_of_use(tmp_path: Path, root: Path, arguments: list[str], told: str) -> None:
    make_run(root, "a")
    outcome = call(*arguments, cwd=tmp_path)
    assert (outcome.code, outcome.out) == (2, "")
    assert told in " ".join(outcome.err.replace("│", " ").split())


@pytest.mark.parametrize(
    ("flag", "value", "message", "hint"),
    [
        ("--rank", "9", "run a has no rank 9, it has 2 ranks", "--rank 0 to 1"),
        ("--rank", "-1", "run a has no rank -1, it has 2 ranks", "--rank 0 to 1"),
        ("--node", "nope", "run a has no node 'nope'", "--node with one of: node0, node1"),
        ("--attempt", "9", "run a has had no attempt 9", "--attempt 1"),
    ],
)
def test_logs_of_what_does_not_exist_are_refused(
    tmp_path: Path, root: Path, flag: str, value: str, message: str, hint: str
) -> None:
    run_with_logs(root)
    outcome = call("logs", "a", flag, value, cwd=tmp_path)
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err == f"error: {message}\n  while: logs a\n  try:   {hint}\n"


@pytest.mark.parametrize("lines", [5, 20_000])
def test_a_reader_that_leaves_early_is_no_error(tmp_path: Path, root: Path, lines: int) -> None:
    line = "2026-01-02T10:00:00.000+00:00 rank 0 out something that was printed\n"
    paths = make_run(root, "a")
    paths.log(1, "node0").parent.mkdir()
    paths.log(1, "node0").write_text(line * lines)
    process = subprocess.Popen(
        [*PROGRAM, "logs", "a"], cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    assert process.stdout
    assert process.stderr
    process.stdout.close()
    assert (process.wait(20), process.stderr.read()) == (141, "")


@pytest.mark.parametrize("args", [("status", "a"), ("logs", "a"), ("report", "a"), ("policy", "schema")])
def test_output_that_cannot_be_written_is_an_error_with_advice(
    tmp_path: Path, root: Path, args: tuple[str, ...]
) -> None:
    run_with_logs(root)
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [*PROGRAM, *args], cwd=tmp_path, env=environment(), stdout=full, stderr=subprocess.PIPE, text=True,
            check=False,
        )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr == (
        "error: the output cannot be written: no space left on device\n"
        "  while: printing to standard output\n  try:   make room there, or write elsewhere\n"
    )


def test_colours_of_ranks_reach_terminals_only(tmp_path: Path, root: Path) -> None:
    paths = make_run(root, "a")
    paths.log(1, "node0").parent.mkdir()
    paths.log(1, "node0").write_text("2026-01-02T10:00:00.000+00:00 rank 0 out \x1b[31mred\x1b[0m\x1b[2J\n")
    assert call("logs", "a", cwd=tmp_path).out == "10:00:00.000 node0 rank 0   red\n"
    shown = {no_colour: on_a_terminal(tmp_path, "logs", "a", NO_COLOR=no_colour) for no_colour in ("", "1")}
    assert "\x1b[31mred" in shown[""]
    assert "\x1b[2J" not in shown[""]
    assert "\x1b" not in shown["1"]


def test_a_dry_run_prints_the_plan_and_touches_nothing(tmp_path: Path, root: Path) -> None:
    outcome = call("submit", DEMO, "--dry-run", "--nodes", 2, "--set", "trainer.steps=7", "--name", "x", cwd=tmp_path)
    assert outcome.code == 0
    assert f"# run      x in {root}" in outcome.out
    assert "steps: 7  # --set trainer.steps=7" in outcome.out
    assert 'name: "x"  # --name x' in outcome.out
    assert not root.exists()


def git_repo(folder: Path, **files: str) -> Path:
    folder.mkdir()
    for name, text in files.items():
        (folder / name.replace("_", ".")).write_text(text)
    subprocess.run(["git", "init", "-q"], cwd=folder, check=True)
    return folder


def test_a_dry_run_shows_what_of_the_code_would_be_copied_and_makes_nothing(tmp_path: Path) -> None:
    repo = git_repo(
        tmp_path / "repo", train_py="1", RUN_yaml="name: a\ncommand: [python, train.py]\n", _gitignore="out/\n"
    )
    (repo / "out").mkdir()
    (repo / "out" / "x").write_text("x")
    before, size = {*repo.rglob("*")}, sum(path.stat().st_size for path in repo.iterdir() if path.is_file())

    outcome = call("submit", "RUN.yaml", "--dry-run", cwd=repo)

    assert outcome.code == 0, outcome.err
    assert f"# code     copied: 3 files, {size} B of {repo}, where nothing is committed (" in outcome.out
    assert "#          untracked: .gitignore, RUN.yaml, train.py\n#          linked: out, runs\n" in outcome.out
    assert {*repo.rglob("*")} == before


def test_code_that_is_too_large_is_refused_and_nothing_is_left(tmp_path: Path) -> None:
    repo = git_repo(tmp_path / "repo", train_py="1", RUN_yaml="name: a\ncommand: [python, train.py]\n")
    with (repo / "weights.bin").open("wb") as file:
        file.truncate(201 * 1000**2)

    outcome = call("submit", "RUN.yaml", cwd=repo)

    assert (outcome.code, outcome.out) == (3, "")
    assert outcome.err == (
        "error: the code is too large to be copied for the run: 201.0 MB, more than 200 MB: weights.bin 201.0 MB, "
        "RUN.yaml 0.0 MB, train.py 0.0 MB\n"
        f"  while: {repo}\n"
        "  try:   have git ignore what is no code (.gitignore; it is linked, not copied), or launch.code: in_place\n"
    )
    assert [*(repo / "runs").iterdir()] == []


def test_incidents_tell_the_story_of_every_decision(tmp_path: Path, root: Path) -> None:
    crash = Decision(
        at=AT + 5, id="d1", incident=1, attempt=1, rule="rank-exit", detector="exit", nodes=("node0",), ranks=(0,),
        actions={"restart": {"from": "latest"}}, why="rank 0 exited with code 9", onset_at=AT + 4,
    )  # fmt: skip
    make_run(root, "a", crash)
    text = call("incidents", "a", cwd=tmp_path).out
    assert text.startswith("#1 ")
    assert "rank 0 exited with code 9" in text
    assert "does:    restart from latest" in text
    found = json.loads(call("incidents", "a", "--json", cwd=tmp_path).out)
    assert found[0]["rule"] == "rank-exit"
    assert len(found[0]["explain"]) == 1
    assert call("incidents", "a", "1", cwd=tmp_path).out == text
    assert json.loads(call("incidents", "a", "1", "--json", cwd=tmp_path).out) == found[0]
    for number, code in (("2", 1), ("aprove", 2)):
        assert call("incidents", "a", number, cwd=tmp_path).code == code


def test_reports(tmp_path: Path, root: Path) -> None:
    make_run(root, "a", ended("SUCCEEDED"))
    assert call("report", "a", cwd=tmp_path).out.startswith("# a: SUCCEEDED")
    assert json.loads(call("report", "a", "--format", "json", cwd=tmp_path).out)["time"]["slots"] == 1
    written = call("report", "a", "-o", "book.md", cwd=tmp_path)
    assert (written.out, (tmp_path / "book.md").read_text()[:3]) == ("", "# a")
    refused = call("report", "a", "--format", "html", cwd=tmp_path)
    assert refused.code == 1
    assert "not built yet" in refused.err


def test_a_report_that_cannot_be_written_says_where_and_what_to_do(tmp_path: Path, root: Path) -> None:
    make_run(root, "a", ended("SUCCEEDED"))
    outcome = call("report", "a", "-o", "/nonexistent/x", cwd=tmp_path)
    assert outcome.code == 1
    assert outcome.err == (
        "error: the report cannot be written: no such file or directory\n"
        "  while: report a -o /nonexistent/x\n  try:   check the path\n"
    )


def test_an_unknown_choice_is_told_the_known_ones(tmp_path: Path) -> None:
    error = call("report", "a", "--format", "pdf", cwd=tmp_path).err
    assert error.endswith("Error: Invalid value for '--format': 'pdf' is not one of 'md', 'html', 'json'.\n")


def test_the_version_is_shown(tmp_path: Path) -> None:
    assert call("--version", cwd=tmp_path).out == f"opt-launch {metadata.version('opt-launch')}\n"


def test_a_policy_is_replayed_on_old_curves_for_people_and_for_programs(tmp_path: Path) -> None:
    losses = [2.0 + step % 7 / 100 for step in range(200)] + [5.0] * 100 + [2.0] * 50
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "one.csv").write_text("\n".join(["step,loss", *(f"{at},{x}" for at, x in enumerate(losses))]))
    flags = ("--policy", "numerics", "--gpus", 992, "--step-time", "20s", "--save-every", 100)
    told = call("policy", "replay", "old", *flags, cwd=tmp_path)
    assert told.out.splitlines()[0] == "one: 350 rows, 1 onset, 1 decision"
    assert "costs 50 steps, 275.6 GPU-hours; doing nothing 102 steps" in told.out
    lines = [
        json.loads(line) for line in call("policy", "replay", "old", *flags, "--json", cwd=tmp_path).out.splitlines()
    ]
    keys = ("curve", "step", "onset", "rule", "kind", "action")
    assert [[line[key] for key in keys] for line in lines] == [
        ["one", 201, 200, "loss-spike", "onset", "none"],
        ["one", 250, 200, "loss-spike", "decision", "restart"],
    ]
    nothing = call("policy", "replay", "nothing", cwd=tmp_path)
    assert (nothing.code, nothing.out) == (4, "")
    (tmp_path / "bad.csv").write_text("a,b\n1,2\n")
    assert "no row with a step and a number is in it" in call("policy", "replay", "bad.csv", cwd=tmp_path).err
    assert "no such file, folder or run" in call("policy", "replay", "old/two.csv", cwd=tmp_path).err


def test_a_folder_may_hold_tables_of_other_things_beside_its_curves(tmp_path: Path) -> None:
    for name, text in {"a.csv": "step,loss\n1,2\n", "labels.csv": "curve,kind\na,blip\n", "z.csv": ""}.items():
        (tmp_path / "old" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "old" / name).write_text(text)
    told = call("policy", "replay", "old", cwd=tmp_path)
    assert (told.code, told.out) == (0, "a: 1 row, 0 onsets, 0 decisions\n")
    assert [line.split(": ")[:2] for line in told.err.splitlines()] == [
        ["left out", "old/labels.csv"],
        ["left out", "old/z.csv"],
    ]
    (tmp_path / "old" / "a.csv").unlink()
    assert call("policy", "replay", "old", cwd=tmp_path).code == 1


def test_a_bare_word_to_validate_is_a_shipped_policy_or_a_file_here(tmp_path: Path) -> None:
    unknown = call("policy", "validate", "nope", cwd=tmp_path)
    assert unknown.code == 3
    assert "no shipped policy is called 'nope' (shipped: cautious, default, infra, numerics, opt175b; " in unknown.err
    rule = "rules:\n  - {name: x, when: {hang: {}}, do: [{hold: {}}]}\n"
    (tmp_path / "nope").write_text(f"version: 1\nname: mine\n{rule}")
    assert call("policy", "validate", "nope", cwd=tmp_path).out == "nope: ok, 1 rule\n"


def test_policies_are_checked(tmp_path: Path) -> None:
    good = call("policy", "validate", "default", "cautious", cwd=tmp_path)
    assert good.code == 0
    assert good.out.startswith("default: ok, ")
    (tmp_path / "mine.yaml").write_text("version: 1\nname: mine\nrules:\n  - {name: x, when: {hagn: {}}, do: []}\n")
    bad = call("policy", "validate", "mine.yaml", cwd=tmp_path)
    assert (bad.code, bad.out) == (3, "")
    assert "mine.yaml:4:" in bad.err
    assert json.loads(call("policy", "schema", cwd=tmp_path).out)["$schema"].endswith("draft-07/schema#")


def test_an_error_shows_its_traceback_only_when_asked(tmp_path: Path) -> None:
    assert "Traceback" not in call("wait", "a", cwd=tmp_path).err
    assert "Traceback" in call("--debug", "wait", "a", cwd=tmp_path).err
