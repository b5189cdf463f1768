"""What an examination of many hosts comes to. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from launcher.doctor.checks import SKEW_WARN_S, clock
from launcher.errors import LaunchError
from launcher.health.finding import Finding, worst
from launcher.health.peers import against_peers
from launcher.hosts.records import Verdict
from launcher.remote.answer import Answer, findings_of


@dataclass(frozen=True)
class Examined:
    """One host. `problem`: why it could not be examined."""

    host: str
    findings: tuple[Finding, ...] = ()
    problem: LaunchError | None = None

    @property
    def verdict(self) -> Verdict:
        """Of all that was found; a host that could not be asked is not known to be well."""
        return "unknown" if self.problem else worst(self.findings)


def examined(answers: Sequence[Answer]) -> list[Examined]:
    """The hosts in the order of their names, each with what it found and what a comparison with the others shows."""
    hosts = [_read(one) for one in sorted(answers, key=lambda one: one.host)]
    odd = against_peers({one.host: one.findings for one in hosts if one.problem is None})
    return [Examined(one.host, (*one.findings, *odd.get(one.host, ())), one.problem) for one in hosts]


def exit_code(hosts: Sequence[Examined]) -> int:
    """1 if anything failed, 5 if somebody could not be asked, else 0."""
    if any(one.verdict == "fail" for one in hosts):
        return 1
    return 5 if any(one.problem for one in hosts) else 0


def _read(answer: Answer) -> Examined:
    if answer.problem or answer.told is None:
        return Examined(answer.host, problem=answer.problem)
    try:
        return Examined(answer.host, (*findings_of(answer.told), *_clock(answer)))
    except LaunchError as error:
        return Examined(answer.host, problem=error)


def _clock(answer: Answer) -> Iterator[Finding]:
    """Its clock beside ours: it told its time after it was asked, and before its answer came."""
    at = (answer.told or {}).get("at")
    if not isinstance(at, int | float):
        return
    low, high = at - answer.came_at, at - answer.sent_at
    if low > SKEW_WARN_S or high < -SKEW_WARN_S:  # else it is well, or the answer took too long to tell
        said = clock(low, high, "this machine")
        skew = round(max(low, -high), 1)
        yield Finding(
            code="clock",
            verdict=said.state,
            summary=said.said,
            evidence={"seconds": skew},
            limit=SKEW_WARN_S,
            limit_source="table",
        )
