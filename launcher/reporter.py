"""What a training process calls to be supervised: progress, metrics, saves, and what is asked of it.

One file, standard library only, Python 3.8 or newer, so that any trainer can load it by path
(environment variable OPT_LAUNCH_REPORTER). Without a launcher every call is a cheap no-op.

    reporter = connect()
    for step in range(start, steps):
        ...
        reporter.step(step, {"loss": loss}, samples=(first, last))
        if reporter.wanted() & SAVE: ...

Progress goes into a memory-mapped page that the agent samples, about a microsecond a store; nothing
here ever blocks the training thread.
"""

import json
import mmap
import os
import queue
import socket
import struct
import threading
import time
from contextlib import contextmanager

SAVE, STOP, SET = 1, 2, 4  # bits of `wanted()`
EXIT_CHECKPOINT_REJECTED = 79  # the exit status of a rank that refused its checkpoint

PAGE_BYTES = 4096
# sequence lock, step, section counter, monotonic time of the last step, of the phase's begin, phase name
_PAGE = struct.Struct("<QqQdd16s")
_FIELDS = struct.Struct("<qQdd16s")  # all but the lock: packing clears its target first, and 0 would read as unlocked
_LOCK_WORD, _SECTION_WORD = 0, 2  # of 8 bytes each, stored at once


def read_page(page):
    """(step, section, step_at, phase_at, phase) of a progress page; None while it is being written."""
    before = _PAGE.unpack_from(page, 0)
    after = _PAGE.unpack_from(page, 0)
    if before[0] % 2 or before[0] != after[0]:
        return None
    _, step, section, step_at, phase_at, phase = before  # read between two looks at the lock
    return step, section, step_at, phase_at, phase.rstrip(b"\0").decode("ascii", "replace")


def send_frame(sock, message):
    """Send one length-prefixed JSON message."""
    body = json.dumps(message, separators=(",", ":")).encode()
    sock.sendall(struct.pack("<I", len(body)) + body)


def receive_frame(stream):
    """The next message of a binary stream, or None at its end."""
    head = stream.read(4)
    if head is None or len(head) < 4:
        return None
    size = struct.unpack("<I", head)[0]
    body = stream.read(size)
    return json.loads(body) if body is not None and len(body) == size else None


class Reporter:
    """A rank's line to its agent. `attached` is False when there is none, and then all calls do nothing."""

    def __init__(self, page_path="", socket_path="", rank=0):
        self.rank = rank
        self.attached = bool(page_path and socket_path)
        self.finish_requests = queue.Queue()  # {"step", "results": {rank: str}}: see `save_part`
        self.asked = {}  # settings that hold from the start of this attempt: see `settings`
        self.skips = []  # [first, last + 1] of samples that are never to be trained on
        self._sequence, self._step, self._section = 0, -1, 0
        self._step_at, self._phase_at, self._phase = time.monotonic(), time.monotonic(), b"start"
        self._wanted, self._wish = 0, None
        self._changes, self._answers = {}, {}  # id -> settings not yet applied; id -> what was answered
        self._outbox = queue.Queue()
        self._page = None
        if not self.attached:
            return
        with open(page_path, "r+b") as file:
            self._page = mmap.mmap(file.fileno(), PAGE_BYTES)
        self._words = memoryview(self._page).cast("Q")
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.connect(socket_path)
        self._send({"type": "hello", "rank": rank, "pid": os.getpid()})
        self._sender = threading.Thread(target=self._send_loop, name="reporter-send", daemon=True)
        self._sender.start()
        threading.Thread(target=self._receive_loop, name="reporter-receive", daemon=True).start()
        self._store()

    # ------------------------------------------------------------ progress

    def step(self, step, metrics=None, samples=None, step_s=0.0, blocked_s=0.0, compute_s=(), checksums=None):
        """`step` (an int, counted from 0) is done. Give `metrics` on one rank only: that one speaks for all.

        A metric `skipped` of 1 says that the update was left out, as loss scaling does after an overflow.
        `compute_s`: of every rank, in their order, the seconds in which it computed and did not wait for others.
        `checksums`: {what: {rank: integer below 2^53}}, where the ranks of one entry must hold the same bits.
        """
        self._step, self._step_at = step, time.monotonic()
        self._section += 1
        if self._phase == b"start":
            self._phase, self._phase_at = b"", self._step_at
        if not self.attached:
            return
        self._store()
        if metrics is not None:
            plain = {k: _plain(v) for k, v in metrics.items()}
            self._send(
                {
                    "type": "step_done",
                    "step": step,
                    "metrics": plain,
                    "samples": samples,
                    "step_s": step_s,
                    "blocked_s": blocked_s,
                    "compute_s": list(compute_s),
                    "checksums": checksums or {},
                    "at": time.time(),
                }
            )

    def section(self):
        """Something moved within a step (called from module hooks): progress, though no step yet."""
        self._section += 1
        if self._page is not None:
            self._words[_SECTION_WORD] = self._section

    @contextmanager
    def phase(self, name):
        """Declare a long stretch without steps: save, eval, data or compile. Each has its own limit."""
        before = self._phase
        self._set_phase(name.encode("ascii")[:16])
        try:
            yield
        finally:
            self._set_phase(before)

    def _set_phase(self, name):
        self._phase, self._phase_at = name, time.monotonic()
        self._section += 1
        self._store()

    def _store(self):
        if self._page is None:
            return
        self._sequence += 1  # odd: being written
        self._words[_LOCK_WORD] = self._sequence
        fields = (self._step, self._section, self._step_at, self._phase_at, self._phase)
        _FIELDS.pack_into(self._page, 8, *fields)
        self._sequence += 1
        self._words[_LOCK_WORD] = self._sequence

    # ------------------------------------------------------------ what is asked

    def wanted(self):
        """Bits asked of the trainer: SAVE now, STOP after saving, SET what `settings` tells.

        Only one rank is told. Combine the bits over all ranks (a maximum in a collective the step does
        anyway), act on the result on all of them at the same step, then call `acted` with it.
        """
        return self._wanted | (SET if self._changes else 0)

    def acted(self, bits):
        """These wishes were fulfilled, on all ranks. (SET is answered by `applied`.)"""
        self._wanted &= ~bits

    def settings(self):
        """Changes of settings that this rank was told of and has not applied, {id: settings}, in their order.

        Settings, as in `asked`, with which an attempt begins: {"lr": a number, the peak of the learning rate, or
        "x0.5", so much of what the run was begun with; "clip": a number; "loss_scale": a number, or "reset" to the
        first one}. All are absolute: what is told twice changes nothing.
        """
        return dict(self._changes)

    def applied(self, id, step, effective, problem=""):
        """From `step` on these settings are in effect on all ranks, as read back: {"lr", "clip", ...}.

        Call it on every rank: the one that was told of `id` answers, or rank 0 for what the attempt was begun with
        (`id` None). `problem`: why nothing was changed.
        """
        answer = {"type": "settings_applied", "id": id, "step": step, "effective": effective, "problem": problem}
        if id is None:
            if self.rank == 0:
                self._send(answer)
        elif id in self._changes:
            self._answers[id] = answer  # before it is forgotten: the other thread may be told again at any moment
            del self._changes[id]
            self._send(answer)

    # ------------------------------------------------------------ checkpoints

    def save_part(self, step, directory, chunks, results="", state=None, blocked_s=0.0):
        """This rank's part of the checkpoint of `step` is on disk (fsynced).

        `chunks`: [{"key", "path", "offset", "length", "digest"}], paths relative to `directory`.
        `results`: what the last act of the save needs of this rank, opaque; when every rank has reported, one
        rank finds {"step", "directory", "results": {"0": ..., "1": ...}} in `finish_requests` and answers
        with `save_finished`. Leave it empty if there is no last act. `state`: JSON state, from rank 0.
        """
        message = {"type": "save_part", "step": step, "directory": str(directory), "chunks": chunks}
        self._send({**message, "results": results, "state": state, "blocked_s": blocked_s})

    def save_finished(self, step, directory, files):
        """The last act is done; `files`: {relative path: {"bytes": n, "digest": hex}}."""
        self._send({"type": "save_finished", "step": step, "directory": str(directory), "files": files})

    def save_failed(self, step, error):
        """This rank could not write its part; training goes on."""
        self._send({"type": "save_failed", "step": step, "error": str(error)[:2000]})

    def checkpoint_rejected(self, reason):
        """The checkpoint to resume from is damaged. Exit with EXIT_CHECKPOINT_REJECTED afterwards."""
        self._send({"type": "checkpoint_rejected", "reason": str(reason)[:2000]})

    # ------------------------------------------------------------ endings

    def error(self, kind, message):
        """The error this rank is about to die of: the exception's type name and its text."""
        self._send({"type": "error", "kind": kind, "message": str(message)[:4000]})

    def done(self, step, final_digest=None, **result):
        """The goal is reached; say it on one rank, then exit with 0 on all."""
        plain = {k: _plain(v) for k, v in result.items()}
        self._send({"type": "done", "step": step, "final_digest": final_digest, "result": plain})

    def close(self, timeout_s=5.0):
        """Wait until all that was said has left this process."""
        if self.attached:
            self._outbox.put(None)
            self._sender.join(timeout_s)

    # ------------------------------------------------------------ wire

    def _send(self, message):
        if self.attached:
            self._outbox.put(message)

    def _send_loop(self):
        while True:
            message = self._outbox.get()
            if message is None:
                return
            try:
                send_frame(self._socket, message)
            except OSError:
                return  # the agent is gone, and this process will be too

    def _receive_loop(self):
        stream = self._socket.makefile("rb")
        while True:
            try:
                message = receive_frame(stream)
            except (OSError, ValueError):
                return
            if message is None:
                return
            if message.get("type") == "wanted":
                if message.get("wish") != self._wish or self._wish is None:  # not the same wish said again
                    self._wish = message.get("wish")
                    self._wanted |= message["bits"]
            elif message.get("type") == "set":
                if message["id"] in self._answers:
                    self._send(self._answers[message["id"]])
                else:
                    self._changes[message["id"]] = message["settings"]
            elif message.get("type") == "finish":
                self.finish_requests.put(message)


def _plain(value):
    value = float(value)
    if value != value:  # noqa: PLR0124 - not a number
        return "nan"
    return value if abs(value) != float("inf") else ("inf" if value > 0 else "-inf")


def connect(env=None):
    """The reporter of this process, from OPT_LAUNCH_PAGE and OPT_LAUNCH_SOCKET; detached where they are not set.

    OPT_LAUNCH_SETTINGS and OPT_LAUNCH_SKIPS, JSON, are what the attempt begins with: `asked` and `skips`.

    Where a node's ranks were started by one process (OPT_LAUNCH_RANKS_PER_NODE), the first of them speaks for it.
    """
    env = os.environ if env is None else env
    rank = int(env.get("OPT_LAUNCH_RANK", env.get("RANK", "0")))
    speaks = "OPT_LAUNCH_RANKS_PER_NODE" not in env or env.get("LOCAL_RANK", "0") == "0"
    page, socket_path = env.get("OPT_LAUNCH_PAGE", ""), env.get("OPT_LAUNCH_SOCKET", "")
    reporter = Reporter(page, socket_path, rank) if speaks else Reporter(rank=rank)
    reporter.asked = json.loads(env.get("OPT_LAUNCH_SETTINGS") or "{}")
    reporter.skips = json.loads(env.get("OPT_LAUNCH_SKIPS") or "[]")
    return reporter
