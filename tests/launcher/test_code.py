"""What is taken down of the code of a run: copied, linked, refused, left in place, taken anew. With the real git."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from launcher.code import git as git_module
from launcher.code import plan as plan_module
from launcher.code.git import read_work_tree
from launcher.code.plan import Plan, heaviest, plan
from launcher.code.present import present
from launcher.code.record import Code, code_of_ranks, original_folder, read_code
from launcher.code.renew import renew
from launcher.code.take import forget, share, take
from launcher.errors import LaunchError, WrongUse
from launcher.paths import RunPaths
from launcher.program import program_of
from launcher.sections import RunSpec
from launcher.view.code import planned

COMMAND: dict[str, Any] = {"name": "a", "command": ["python", "train.py"]}
TRAINER = {"size": "tiny", "steps": 1}


def spec(**sections: Any) -> RunSpec:
    return RunSpec.model_validate({**COMMAND, **sections})


def git(folder: Path, *arguments: str) -> str:
    command = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-c", "protocol.file.allow=always", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout.strip()


def write(folder: Path, **texts: str) -> None:
    for name, text in texts.items():
        path = folder / name.replace("__", "/").replace("_py", ".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    """A work tree with code, data that git ignores, and something beside it."""
    root = tmp_path / "proj" / "repo"
    write(root, train_py="print(1)\n", lib__a_py="A = 1\n", data__corpus="text", lib__cache__x="y")
    (root / ".gitignore").write_text("data/\ncache/\n.env\n__pycache__/\n*.ckpt\n")
    write(tmp_path / "proj", other__table="1")
    (root / ".env").write_text("TOKEN=secret")
    git(root, "init", "-q", "-b", "main")
    git(root, "add", "-A")
    git(root, "commit", "-q", "-m", "one")
    return root


@pytest.fixture
def paths(tmp_path: Path) -> RunPaths:
    made = RunPaths(tmp_path / "runs" / "a")
    made.make_folders()
    return made


def taken(paths: RunPaths, folder: Path, **sections: Any) -> Code:
    return take(paths, plan(spec(**sections), folder, paths.root.parent))


def tree(root: Path) -> dict[str, str]:
    """What a copy holds: links as where they lead, files as their text."""
    found: dict[str, str] = {}
    for folder, folders, files in os.walk(root):
        folders[:] = [name for name in folders if name != ".git"]
        for name in (*folders, *files):
            path = Path(folder, name)
            if path.is_symlink():
                found[str(path.relative_to(root))] = f"-> {os.readlink(path)}"
            elif path.is_file():
                found[str(path.relative_to(root))] = path.read_text()
    return found


# ---------------------------------------------------------------- what is copied


def test_code_is_copied_and_what_git_ignores_is_linked(repo: Path, paths: RunPaths) -> None:
    write(repo, new_py="N = 1\n", train_py="print(2)\n")
    code = taken(paths, repo)

    assert tree(code.tree_in(paths)) == {
        ".gitignore": (repo / ".gitignore").read_text(),
        "train.py": "print(2)\n",
        "new.py": "N = 1\n",
        "lib/a.py": "A = 1\n",
        "lib/cache": f"-> {repo}/lib/cache",
        "data": f"-> {repo}/data",
        ".env": f"-> {repo}/.env",
    }
    assert (code.mode, code.number, code.branch, code.commit) == ("snapshot", 1, "main", git(repo, "rev-parse", "HEAD"))
    assert (code.changed, code.untracked, code.folder, code.root) == (("train.py",), ("new.py",), str(repo), str(repo))
    assert "+print(2)" in paths.code_diff(1).read_text()
    assert read_code(paths) == code
    files = [path for path in paths.code_folder.rglob("*") if path.is_file() and not path.is_symlink()]
    assert not [path for path in files if "secret" in path.read_text("latin1")]


def test_what_the_author_does_afterwards_does_not_reach_the_copy(repo: Path, paths: RunPaths) -> None:
    code = taken(paths, repo)
    write(repo, train_py="print(2)\n")
    (repo / "lib" / "a.py").unlink()

    assert tree(code.tree_in(paths))["train.py"] == "print(1)\n"
    assert tree(code.tree_in(paths))["lib/a.py"] == "A = 1\n"


def test_ranks_of_a_subfolder_work_in_its_copy_and_find_what_lies_around(repo: Path, paths: RunPaths) -> None:
    code = taken(paths, repo / "lib", command=["python", "a.py", "--data", "../data", "--table=../../other/table"])
    folder = code.working_folder(paths)

    assert folder == code.tree_in(paths) / "lib"
    for relative in ("a.py", "../data/corpus", "../../other/table", "cache/x", "../train.py"):
        assert Path(os.path.join(folder, relative)).exists(), relative


def test_files_keep_their_time_and_whether_they_can_be_executed(repo: Path, paths: RunPaths) -> None:
    (repo / "train.py").chmod(0o755)
    os.utime(repo / "train.py", (1e9, 1e9))
    copy = taken(paths, repo).tree_in(paths)

    assert os.access(copy / "train.py", os.X_OK)
    assert not (copy / "lib" / "a.py").stat().st_mode & 0o111
    assert (copy / "train.py").stat().st_mtime == 1e9


def test_links_lead_to_copies_or_to_the_original(repo: Path, paths: RunPaths, tmp_path: Path) -> None:
    for name, to in {"inner": "lib", "beside": "../other", "far": "../../far", "whole": str(repo / "lib")}.items():
        (repo / name).symlink_to(to)
    copy = tree(taken(paths, repo).tree_in(paths))

    assert (copy["inner"], copy["beside"]) == ("-> lib", "-> ../other")
    assert (copy["far"], copy["whole"]) == (f"-> {tmp_path / 'far'}", f"-> {repo / 'lib'}")


def test_submodules_and_other_work_trees_inside_are_copied_with_what_they_ignore_linked(
    repo: Path, paths: RunPaths, tmp_path: Path
) -> None:
    other = tmp_path / "dep"
    write(other, dep_py="D = 1\n")
    (other / ".gitignore").write_text("big/\n")
    git(other.parent, "init", "-q", str(other))
    git(other, "add", "-A")
    git(other, "commit", "-q", "-m", "dep")
    git(repo, "submodule", "add", "-q", str(other), "deps/dep")
    git(repo, "clone", "-q", str(other), "cloned")
    write(repo, deps__dep__big__blob="x", cloned__mine_py="M = 1\n")
    code = taken(paths, repo)

    copy = tree(code.tree_in(paths))
    assert copy["deps/dep/dep.py"] == copy["cloned/dep.py"] == "D = 1\n"
    assert copy["cloned/mine.py"] == "M = 1\n"
    assert copy["deps/dep/big"] == f"-> {repo}/deps/dep/big"
    assert code.nested == {"deps/dep": git(other, "rev-parse", "HEAD"), "cloned": git(other, "rev-parse", "HEAD")}


def test_a_submodule_that_was_never_fetched_is_nothing(repo: Path, paths: RunPaths) -> None:
    (repo / "dep").mkdir()
    git(repo, "update-index", "--add", "--cacheinfo", f"160000,{git(repo, 'rev-parse', 'HEAD')},dep")

    assert "dep" not in taken(paths, repo).nested


def test_a_tracked_file_that_is_gone_is_gone_in_the_copy(repo: Path, paths: RunPaths) -> None:
    (repo / "lib" / "a.py").unlink()
    code = taken(paths, repo)

    assert "lib/a.py" not in tree(code.tree_in(paths))
    assert code.changed == ("lib/a.py",)


def test_names_of_any_kind_are_copied(repo: Path, paths: RunPaths) -> None:
    for name in ("with space.py", "new\nline.py", 'quote".py', "é.py", os.fsdecode(b"\xff.py")):
        (repo / name).write_text(name if name.isprintable() else "x")

    assert len([name for name in tree(taken(paths, repo).tree_in(paths)) if name.endswith(".py")]) == 7
    (shown,) = [line for line in planned(plan(spec(), repo, paths.root.parent)) if line.startswith("untracked: ")]
    assert shown == 'untracked: new?line.py, quote".py, with space.py, é.py, ?.py'


def test_a_work_tree_without_a_commit_is_copied_too(tmp_path: Path, paths: RunPaths) -> None:
    root = tmp_path / "fresh"
    write(root, train_py="1")
    git(root, "init", "-q", "-b", "main")
    code = taken(paths, root)

    assert tree(code.tree_in(paths)) == {"train.py": "1"}
    assert (code.commit, code.untracked) == ("", ("train.py",))


def test_git_in_the_copy_tells_its_commit_and_reaches_nothing_of_the_user(repo: Path, paths: RunPaths) -> None:
    write(repo, train_py="print(2)\n")
    commit, copy = git(repo, "rev-parse", "HEAD"), taken(paths, repo).tree_in(paths)
    git(repo, "commit", "-qam", "later")

    assert git(copy, "rev-parse", "HEAD") == commit
    assert git(copy, "branch", "--show-current") == "main"
    assert git(copy, "status", "--short") == "M train.py"
    git(copy, "commit", "-qam", "of the trainer")
    assert git(repo, "log", "-1", "--format=%s") == "later"


def test_folders_of_runs_are_not_code_whatever_git_thinks_of_them(repo: Path) -> None:
    paths = RunPaths(repo / "runs" / "b")
    paths.make_folders()
    write(paths.root, secret="key")
    code = taken(paths, repo)

    assert tree(code.tree_in(paths))["runs"] == f"-> {repo}/runs"
    assert code.untracked == ()
    write(code.tree_in(paths), train_py="of the trainer")
    again = taken(paths, repo)
    assert (again.nested, again.changed) == ({}, ()), "the first copy is none of it"
    beside = RunPaths(repo / "c")
    beside.make_folders()
    write(beside.root, secret="key", journal__x="1")
    assert "c" in plan(spec(), repo, repo).linked


# ---------------------------------------------------------------- who may read it


def test_what_only_its_owner_may_read_and_git_does_not_track_stays_so(repo: Path, paths: RunPaths) -> None:
    write(repo, key_py="K = 1\n", train_py="print(1)\n")
    for name in ("key.py", "train.py"):
        (repo / name).chmod(0o600)
    before = os.umask(0o027)  # of a run that a group may read
    try:
        copy = taken(paths, repo).tree_in(paths)
    finally:
        os.umask(before)

    assert oct((copy / "key.py").stat().st_mode & 0o777) == "0o600"
    assert oct((copy / "train.py").stat().st_mode & 0o777) == "0o640"
    assert oct((copy / "lib").stat().st_mode & 0o777) == "0o750"


# ---------------------------------------------------------------- checkpoints


def checkpoints(glob: str, **complete: str) -> dict[str, Any]:
    return {"glob": glob, "complete": complete or {"settled": "5s"}}


@pytest.mark.parametrize(
    ("glob", "complete", "made"),
    [
        ("out/ckpt-{step}", {}, {"out"}),
        ("out/deep/{step}/model.pt", {}, {"out/deep"}),
        ("out/*/ckpt-{step}", {}, {"out"}),
        ("out/ckpt-{step}", {"marker": "done/{step}.ok"}, {"out", "done"}),
        ("out/ckpt-{step}", {"marker": "DONE"}, {"out"}),
        ("data/out/ckpt-{step}", {}, {"data/out"}),
        ("/elsewhere/ckpt-{step}", {}, set()),
    ],
)
def test_checkpoints_are_written_where_the_user_has_them(
    repo: Path, paths: RunPaths, glob: str, complete: dict[str, str], made: set[str]
) -> None:
    code = taken(paths, repo, checkpoints=checkpoints(glob, **complete), capabilities={"resume": "newest"})

    assert code.mode == "snapshot"
    assert original_folder(paths) == repo
    for folder in made:
        (code.working_folder(paths) / folder / "written").write_text("1")
        assert (repo / folder / "written").read_text() == "1"


def test_checkpoints_that_git_does_not_know_are_not_taken_for_code(repo: Path, paths: RunPaths) -> None:
    write(repo, out__ckpt="x" * 1000)
    code = taken(paths, repo, checkpoints=checkpoints("out/ckpt-{step}"), capabilities={"resume": "newest"})

    assert tree(code.tree_in(paths))["out"] == f"-> {repo}/out"
    assert code.untracked == ()


# ---------------------------------------------------------------- what is run in place


IN_PLACE = {
    "checkpoints beside code": (
        {"checkpoints": checkpoints("ckpt-{step}.pt")},
        "checkpoints lie beside code: ckpt-{step}.pt names no folder of their own",
    ),
    "checkpoints among tracked files": (
        {"checkpoints": checkpoints("lib/ckpt-{step}")},
        "checkpoints lie beside code: lib/ has lib/a.py, which git tracks",
    ),
    "checkpoints outside": (
        {"checkpoints": checkpoints("../out/ckpt-{step}")},
        "checkpoints lie outside of the work tree: ../out/ckpt-{step}",
    ),
    "a path that leads far away": (
        {"command": ["python", "train.py", "--data=../../far"]},
        "the command names ../../far, outside of the work tree",
    ),
    "a path beside that is not there yet": (
        {"command": ["python", "train.py", "../new"]},
        "the command names ../new, outside of the work tree",
    ),
}


@pytest.mark.parametrize("case", IN_PLACE)
def test_what_a_copy_would_break_is_run_in_place_and_that_is_said(repo: Path, tmp_path: Path, case: str) -> None:
    sections, why = IN_PLACE[case]

    asked = plan(spec(**sections), repo, tmp_path / "runs")
    assert (asked.mode, asked.why) == ("in_place", why)
    with pytest.raises(LaunchError, match=r"launch\.code: snapshot: ") as refused:
        plan(spec(**sections, launch={"code": "snapshot"}), repo, tmp_path / "runs")
    assert refused.value.exit_code == 3


def without_git(monkeypatch: pytest.MonkeyPatch, repo: Path) -> Path:
    monkeypatch.setenv("PATH", str(repo))
    return repo


PLACES: dict[str, tuple[Callable[[pytest.MonkeyPatch, Path], Path], str]] = {
    "no work tree": (lambda _, repo: repo.parent, "not a git work tree"),
    "no git": (without_git, "git is not installed"),
    "an ignored folder": (lambda _, repo: repo / "data", "git ignores this folder"),
    "the inside of git": (lambda _, repo: repo / ".git", "this operation must be run in a work tree"),
}


@pytest.mark.parametrize("case", PLACES)
def test_where_git_knows_nothing_code_is_run_in_place(
    repo: Path, paths: RunPaths, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    place, why = PLACES[case]
    folder = place(monkeypatch, repo)
    code = taken(paths, folder)

    assert (code.mode, code.why) == ("in_place", why)
    assert code.working_folder(paths) == folder


def test_a_git_that_takes_too_long_is_not_waited_for(
    repo: Path, paths: RunPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(git_module, "TIMEOUT_S", 0.0)

    assert taken(paths, repo).why.startswith("git rev-parse took longer than 0s")


def test_in_place_the_commit_and_the_changes_are_taken_down_all_the_same(repo: Path, paths: RunPaths) -> None:
    write(repo, train_py="print(2)\n")
    code = taken(paths, repo, launch={"code": "in_place"})

    assert (code.mode, code.why, code.commit) == ("in_place", "launch.code: in_place", git(repo, "rev-parse", "HEAD"))
    assert code.changed == ("train.py",)
    assert "+print(2)" in paths.code_diff(1).read_text()
    assert code_of_ranks(paths) == code


def test_runs_of_ones_own_allocation_begin_where_they_were_called(
    repo: Path, paths: RunPaths, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    code = taken(paths, repo, cluster={"backend": "own"})
    monkeypatch.chdir(tmp_path)

    assert (code.mode, code.commit) == ("in_place", git(repo, "rev-parse", "HEAD"))
    assert (code_of_ranks(paths), original_folder(paths)) == (None, tmp_path)


def test_of_our_own_trainer_the_version_is_taken_down_and_nothing_is_copied(repo: Path, paths: RunPaths) -> None:
    code = take(paths, plan(RunSpec.model_validate({"name": "a", "trainer": TRAINER}), repo, paths.root.parent))

    assert (code.mode, bool(code.version), code.tree) == ("installed", True, "")
    assert code.root != str(repo)
    assert code_of_ranks(paths) is None


# ---------------------------------------------------------------- too much


def test_too_much_is_refused_with_what_is_large(repo: Path, paths: RunPaths, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_module, "MOST_BYTES", 3_000_000)
    write(repo, out__run__weights="x" * 2_500_000, notes="x" * 700_000)

    with pytest.raises(LaunchError) as refused:
        taken(paths, repo)
    assert refused.value.message == (
        "the code is too large to be copied for the run: 3.2 MB, more than 3 MB: "
        "out/run/weights 2.5 MB, notes 0.7 MB, .gitignore 0.0 MB"
    )
    assert (refused.value.exit_code, "launch.code: in_place" in refused.value.hint) == (3, True)
    assert not any(paths.code_folder.iterdir()), "nothing was begun"
    assert taken(paths, repo, launch={"code": "in_place"}).mode == "in_place"


def test_too_many_files_are_refused_with_where_they_are(
    repo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan_module, "MOST_FILES", 20)
    for number in range(30):
        write(repo, **{f"images__train__{number}": "x"})

    with pytest.raises(LaunchError, match="more than 20: images/train 30, lib 2"):
        plan(spec(), repo, tmp_path)


def test_of_nested_folders_the_innermost_that_has_most_is_named() -> None:
    weights = {"a/b/c/1": 5, "a/b/c/2": 5, "a/b/d": 1, "e": 3}

    assert heaviest(weights) == [("a/b/c", 10), ("e", 3)]


# ---------------------------------------------------------------- half written


def test_a_copy_that_breaks_off_never_counts(repo: Path, paths: RunPaths, monkeypatch: pytest.MonkeyPatch) -> None:
    first = taken(paths, repo)
    asked = plan(spec(), repo, paths.root.parent)
    (repo / "lib" / "a.py").unlink()

    with pytest.raises(FileNotFoundError):
        take(paths, asked)

    assert read_code(paths) == first
    assert not paths.code(2).exists()
    second = taken(paths, repo)
    assert (second.number, read_code(paths)) == (2, second)
    assert "lib/a.py" not in tree(second.tree_in(paths))


# ---------------------------------------------------------------- anew


def renewed(paths: RunPaths, before: RunSpec, after: RunSpec, *, asked_for: bool = False) -> Any:
    return renew(paths, before, after, asked_for=asked_for)


def test_code_stays_unless_somebody_says_so(repo: Path, paths: RunPaths) -> None:
    code = taken(paths, repo)
    write(repo, train_py="print(2)\n")

    assert renewed(paths, spec(), spec(command=["x"])) is None
    assert read_code(paths) == code


def test_new_code_sees_what_ranks_have_made_in_the_former_copy(repo: Path, paths: RunPaths) -> None:
    first = taken(paths, repo).tree_in(paths)
    write(first, made__deep__model="1", lib__log="1", lib__deep__log="1", late="1", lib____pycache____x="1")
    (first / "newest").symlink_to("made/deep")
    write(repo, train_py="print(2)\n", late="of the author")
    (repo / "lib" / "a.py").unlink()
    change = renewed(paths, spec(), spec(), asked_for=True)

    second = change.code.tree_in(paths)
    assert (second / "made" / "deep" / "model").read_text() == "1"
    assert (second / "newest" / "model").read_text() == "1"
    assert (second / "lib" / "log").read_text() == (second / "lib" / "deep" / "log").read_text() == "1"
    assert (second / "late").read_text() == "of the author"
    assert (second / "train.py").read_text() == "print(2)\n"
    assert not os.path.lexists(second / "lib" / "a.py"), "code that is gone does not come back"
    assert not (second / "lib" / "__pycache__").exists()
    assert [*change.change] == ["code"]
    third = renewed(paths, spec(), spec(), asked_for=True).code.tree_in(paths)
    assert (third / "made" / "deep" / "model").read_text() == "1"
    assert (first / "train.py").read_text() == "print(1)\n", "the former stays"


def test_what_was_taken_anew_can_be_taken_back(repo: Path, paths: RunPaths) -> None:
    first = taken(paths, repo)
    forget(paths, renewed(paths, spec(), spec(), asked_for=True).code.number)

    assert read_code(paths) == first
    assert sorted(path.name for path in paths.code_folder.iterdir()) == ["0001", "0001.files", "0001.json"]


def test_a_run_goes_from_code_in_place_to_a_copy_and_back(repo: Path, paths: RunPaths) -> None:
    in_place, copied = spec(launch={"code": "in_place"}), spec()
    taken(paths, repo, launch={"code": "in_place"})

    assert renewed(paths, in_place, copied).code.mode == "snapshot"
    assert renewed(paths, copied, in_place).code.mode == "in_place"
    assert read_code(paths) == read_code(paths)
    assert original_folder(paths) == repo


def test_what_cannot_be_taken_anew_is_refused(repo: Path, paths: RunPaths, tmp_path: Path) -> None:
    taken(paths, repo, launch={"code": "in_place"})
    with pytest.raises(WrongUse, match=r"nothing can be copied anew: .*launch.code: in_place"):
        renewed(paths, spec(launch={"code": "in_place"}), spec(launch={"code": "in_place"}), asked_for=True)
    repo.rename(tmp_path / "moved")
    with pytest.raises(LaunchError, match="the code is gone"):
        renewed(paths, spec(), spec())
    with pytest.raises(LaunchError, match="is gone, where the code was taken from"):
        renewed(paths, spec(), spec(), asked_for=True)


# ---------------------------------------------------------------- sweeps


def test_runs_of_a_sweep_share_their_copies_as_hard_links(repo: Path, paths: RunPaths, tmp_path: Path) -> None:
    other = RunPaths(tmp_path / "runs" / "b")
    other.make_folders()
    code = taken(paths, repo)
    share(other, paths)

    mine, theirs = (one.root / code.tree for one in (paths, other))
    assert tree(mine) == tree(theirs)
    assert os.path.samefile(mine / "train.py", theirs / "train.py")
    assert read_code(other) == code
    (theirs / "made").write_text("by one run")
    assert not (mine / "made").exists()


# ---------------------------------------------------------------- what ranks are started with


def started(paths: RunPaths, run: RunSpec, tmp_path: Path) -> Any:
    return program_of(run, paths, "node0", tmp_path, "127.0.0.1")


def test_absolute_paths_of_code_name_its_copy_and_others_stay(repo: Path, paths: RunPaths, tmp_path: Path) -> None:
    (tmp_path / "alias").symlink_to(repo)
    command = [
        "/bin/sh", f"{repo}/train.py", f"--config={repo}/lib/a.py", f"{tmp_path}/alias/lib/a.py",
        f"--data={repo}/data/corpus", f"{repo}/missing", "train.py", "--lr=1",
    ]  # fmt: skip
    run = spec(command=command, launch={"env": {"PYTHONPATH": f"{repo}/lib:/opt/x:lib"}})
    code = take(paths, plan(run, repo, paths.root.parent))
    copy, program = code.tree_in(paths), started(paths, run, tmp_path)

    assert program.command == (
        "/bin/sh", f"{copy}/train.py", f"--config={copy}/lib/a.py", f"{copy}/lib/a.py",
        f"--data={repo}/data/corpus", f"{repo}/missing", "train.py", "--lr=1",
    )  # fmt: skip
    assert (program.cwd, program.env["PWD"]) == (str(copy), str(copy))
    assert program.env["PYTHONPATH"] == f"{copy}/lib:/opt/x:lib"


def test_behind_a_prefix_cwd_is_the_folder_of_the_user(repo: Path, paths: RunPaths, tmp_path: Path) -> None:
    run = spec(launch={"prefix": ["box", "{cwd}", "{run}"]})
    take(paths, plan(run, repo, paths.root.parent))

    assert started(paths, run, tmp_path).prefix == ("box", str(repo), str(paths.root))


def test_a_run_from_before_code_was_taken_down_begins_where_its_agent_does(
    paths: RunPaths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    program = started(paths, spec(), tmp_path)
    assert (program.cwd, program.command) == (str(tmp_path), ("python", "train.py"))
    assert (read_code(paths), original_folder(paths)) == (None, tmp_path)


# ---------------------------------------------------------------- what an attempt finds


def test_an_attempt_tells_the_code_it_finds_in_place(repo: Path, paths: RunPaths) -> None:
    code = taken(paths, repo, launch={"code": "in_place"})
    command = ["python", "train.py"]
    first = present(code, command)
    write(repo, lib__a_py="A = 2\n", helper_py="H = 1\n", results__out="much")

    second = present(code, command)
    assert [*first["files"]] == ["train.py"]
    assert [*second["files"]] == ["helper.py", "lib/a.py", "train.py"]
    assert first["files"]["train.py"] == second["files"]["train.py"]
    git(repo, "commit", "-qam", "two")
    assert present(code, command)["commit"] != first["commit"]


def test_without_git_the_files_that_the_command_names_are_told(tmp_path: Path, paths: RunPaths) -> None:
    write(tmp_path / "plain", train_py="1")
    code = taken(paths, tmp_path / "plain")

    assert [*present(code, ["python", "train.py", "--x"])["files"]] == ["train.py"]


def test_reading_a_work_tree_changes_nothing_in_it(repo: Path, paths: RunPaths) -> None:
    index = (repo / ".git" / "index").read_bytes()
    write(repo, lib__a_py="A = 2\n")
    os.utime(repo / "train.py", (1e9, 1e9))
    before = git_module.changed_in(repo, "HEAD")
    read_work_tree(repo)
    taken(paths, repo)

    assert (repo / ".git" / "index").read_bytes() == index
    assert before == ("lib/a.py",), "a file that was only touched is as it was"


def test_the_record_can_be_read_by_people_and_by_later_versions(repo: Path, paths: RunPaths) -> None:
    code = taken(paths, repo)
    body = json.loads(paths.code_record(1).read_text())

    assert isinstance(plan(spec(), repo, paths.root), Plan)
    assert body["tree"] == f"code/0001/{repo.name}"
    paths.code_record(1).write_text(json.dumps({**body, "of_the_future": 1}))
    assert read_code(paths) == code
