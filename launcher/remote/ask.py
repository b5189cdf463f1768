"""Asks many hosts at once. Each has its own deadline: who is dead or slow keeps nobody else waiting."""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from launcher.errors import LaunchError, Unreachable
from launcher.remote.answer import Answer, Output, answer_of, command_for

PARALLEL = 64
_GRACE_S = 5.0  # after its deadline, before a call that does not come back is left to itself


class Transport(Protocol):
    """A way to run a command on a host. Used by many threads."""

    def run(self, host: str, command: Sequence[str], limit_s: float, /) -> Output:
        """Raises LaunchError if it cannot be run, or does not end in time."""
        ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class Question:
    """`verb` of `launcher.remote.there` with its arguments, for the opt-launch of that `python`."""

    verb: str
    asked: dict[str, Any]
    python: str
    limit_s: float


def ask(transport: Transport, questions: Mapping[str, Question], parallel: int = PARALLEL) -> Iterator[Answer]:
    """One answer of each host, as they come. `questions`: by host; so many are asked at the same time."""
    waiting, results = deque(questions), queue.SimpleQueue[Answer]()
    overdue_at: dict[str, float] = {}
    try:
        while waiting or overdue_at:
            while waiting and len(overdue_at) < parallel:
                host = waiting.popleft()
                question = questions[host]
                overdue_at[host] = time.monotonic() + question.limit_s + _GRACE_S
                threading.Thread(target=_ask, args=[transport, host, question, results], daemon=True).start()
            yield from _next(results, overdue_at, questions)
    finally:
        transport.close()


def _next(
    results: queue.SimpleQueue[Answer], overdue_at: dict[str, float], questions: Mapping[str, Question]
) -> Iterator[Answer]:
    """The next answer, and that of those who are overdue."""
    try:
        answer = results.get(timeout=max(0.0, min(overdue_at.values()) - time.monotonic()))
        if overdue_at.pop(answer.host, None) is not None:
            yield answer
    except queue.Empty:
        for host in [host for host, at in overdue_at.items() if at <= time.monotonic()]:
            del overdue_at[host]
            yield Answer(host, problem=Unreachable(f"no answer within {questions[host].limit_s:g} s"))


def _ask(transport: Transport, host: str, question: Question, results: queue.SimpleQueue[Answer]) -> None:
    sent_at = time.time()
    try:
        command = command_for(question.python, question.verb, question.asked)
        told = answer_of(transport.run(host, command, question.limit_s), question.python)
        results.put(Answer(host, told, sent_at=sent_at, came_at=time.time()))
    except LaunchError as error:
        results.put(Answer(host, problem=error))
    except Exception as error:  # of a library, in a thread of its own: the host is to have its answer
        results.put(Answer(host, problem=Unreachable(f"{type(error).__name__}: {error}")))
