"""Commands from people: over TCP to the supervisor, else as files in the run folder. Answered through the journal."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import os
import re
import stat
import time
import uuid
from pathlib import Path
from typing import Any

from launcher import wire
from launcher.errors import LaunchError, Unreachable
from launcher.events import CommandAnswered, CommandReceived
from launcher.journal import newest_epoch, read_journal
from launcher.paths import RunPaths, owner_of, user_name, write_atomically

VERBS = frozenset(
    {"stop", "save", "hold", "release", "pause", "unpause", "replace", "do", "approve", "note", "policy_set"}
)
ANSWER_S = 30.0  # how long an answer may take
REQUEST_BYTES, TEXT_LETTERS, ARGS_DEPTH = 8192, 500, 12
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,127}")
_POLL_S = 0.2


def command(paths: RunPaths, verb: str, args: dict[str, Any], timeout_s: float = ANSWER_S) -> tuple[bool, str]:
    """Have the run's supervisor do something; (done, what it said). Raises Unreachable if none answers in time."""
    id_ = uuid.uuid4().hex[:12]
    request = {"id": id_, "verb": verb, "args": args}
    deadline = time.monotonic() + timeout_s
    answer = asyncio.run(_by_wire(paths, request, timeout_s))
    if answer is not None:
        return answer
    leave(paths, id_, verb, args)
    taken = False
    while True:
        for event in reversed(read_journal(paths, steps=False).events):
            if isinstance(event, CommandAnswered) and event.id == id_:
                return event.ok, event.message
            taken = taken or (isinstance(event, CommandReceived) and event.id == id_)
        if time.monotonic() > deadline:
            break
        time.sleep(_POLL_S)
    if taken:
        raise Unreachable(
            f"'{verb}' was taken and is not done yet, after {timeout_s:.0f}s",
            where=f"run {paths.name}",
            hint=f"it goes on: opt-launch status {paths.name}",
        )
    drop_file(paths, id_)
    raise Unreachable(
        f"no supervisor answered '{verb}' within {timeout_s:.0f}s",
        where=f"run {paths.name}",
        hint=f"opt-launch status {paths.name} tells whether its processes live",
    )


def leave(paths: RunPaths, id_: str, verb: str, args: dict[str, Any] | None = None) -> None:
    """Leave a command as a file; left again, it is the same command. Raises OSError, LaunchError if we may not."""
    text = json.dumps({"id": id_, "verb": verb, "args": args or {}})
    try:
        # The run's owner reads it as one of the group.
        write_atomically(paths.control / f"{id_}.json", text, mode=0o640)
    except PermissionError as error:
        message = f"you may look at run {paths.name} and not steer it"
        hint = f"its owner, {owner_of(paths.root)}, decides: access.control: true in RUN.yaml"
        raise LaunchError(message, f"{verb} {paths.name}", hint) from error


async def _by_wire(paths: RunPaths, request: dict[str, Any], timeout_s: float) -> tuple[bool, str] | None:
    """The answer over TCP; None when no supervisor can be reached that way."""
    try:
        address = json.loads(paths.supervisor_address(newest_epoch(paths)).read_text())
        link = await wire.dial(address["host"], address["port"], paths.secret.read_bytes(), timeout_s=2.0)
    except (OSError, ValueError, TimeoutError):
        return None
    try:
        link.send({"type": "command", "author": user_name(os.getuid()), **request})
        answer = await asyncio.wait_for(link.receive(), timeout_s)
    except TimeoutError:
        return None
    finally:
        link.close()
    return (answer["ok"], answer["message"]) if answer else None


def received(body: Any, author: str, at: float) -> CommandReceived | None:
    """The event of a request; None if it is none."""
    body = body if isinstance(body, dict) else {}
    id_, verb, args = body.get("id"), body.get("verb"), body.get("args", {})
    if not isinstance(id_, str) or not _ID.fullmatch(id_) or verb not in VERBS or not isinstance(args, dict):
        return None
    try:
        return CommandReceived(at=at, id=id_, verb=verb, author=author, args=_plain(args))
    except ValueError:
        return None


def _plain(value: Any, depth: int = 0) -> Any:
    """What people send, texts as short lines that move nobody's cursor. Raises ValueError for what nobody needs."""
    if depth > ARGS_DEPTH or (isinstance(value, float) and not math.isfinite(value)):
        raise ValueError("no arguments of a command")
    if isinstance(value, str):
        return "".join(letter if letter.isprintable() else " " for letter in value[:TEXT_LETTERS])
    if isinstance(value, list):
        return [_plain(one, depth + 1) for one in value]
    if isinstance(value, dict):
        return {_plain(str(name)): _plain(one, depth + 1) for name, one in value.items()}
    return value


def take_files(paths: RunPaths, at: float) -> list[CommandReceived]:
    """Commands left as files, their authors being the files' owners. The files stay until answered.

    Others than the run's owner may have left them: a link, a pipe or a heap of data is no command.
    """
    found: list[CommandReceived] = []
    for file in sorted(paths.control.glob("*.json")):
        with contextlib.suppress(OSError):
            event = _read_file(file, at)
            if event is None or event.id != file.stem:
                file.unlink()
            else:
                found.append(event)
    return found


def _read_file(file: Path, at: float) -> CommandReceived | None:
    """The command in a file, None if there is none. Raises OSError where it may not be read."""
    if not stat.S_ISREG(file.lstat().st_mode):
        return None
    with open(os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as opened:
        about = os.fstat(opened.fileno())
        if not stat.S_ISREG(about.st_mode) or about.st_nlink != 1 or about.st_size > REQUEST_BYTES:
            return None
        try:
            return received(json.loads(opened.read(REQUEST_BYTES)), user_name(about.st_uid), at)
        except (ValueError, RecursionError):
            return None


def drop_file(paths: RunPaths, id_: str) -> None:
    """The command has been answered."""
    with contextlib.suppress(OSError):
        Path(paths.control / f"{id_}.json").unlink()
