"""Checks of the site's own: commands, which may speak as plugins of Nagios do."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator

from launcher.health.context import Context, SiteCheck
from launcher.health.finding import Finding
from launcher.terms import Verdict
from launcher.warm import die_with

# https://nagios-plugins.org/doc/guidelines.html: OK, WARNING, CRITICAL, UNKNOWN
_NAGIOS: dict[int, Verdict] = {0: "ok", 1: "warn", 2: "fail", 3: "unknown"}
PREFIX = "site-"  # of their codes, so that they are told from ours
_SUMMARY_LETTERS, _OUTPUT_BYTES = 300, 64 << 10


def runner(check: SiteCheck) -> Callable[[Context], Iterator[Finding]]:
    """The check as a function. The command is of our process group, and ends with us."""

    def run(_at: Context) -> Iterator[Finding]:
        ours = os.getpid()
        done = subprocess.Popen(
            check.command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            preexec_fn=lambda: die_with(ours),  # noqa: PLW1509 this process has one thread
        )
        assert done.stdout is not None
        with done.stdout:
            text = done.stdout.read(_OUTPUT_BYTES).decode(errors="replace")
        yield found(check, done.wait(), text)

    return run


def found(check: SiteCheck, code: int, output: str) -> Finding:
    """What its exit code, or the signal that ended it (negative), and its output say."""
    line = next((line.strip() for line in output.splitlines() if line.strip()), "")
    verdict = "unknown" if code < 0 else _NAGIOS.get(code, "unknown") if check.nagios else "fail" if code else "ok"
    how = f"ended by signal {-code}" if code < 0 else f"exit code {code}"
    return Finding(
        code=f"{PREFIX}{check.name}",
        verdict=verdict,
        summary=f"{line[:_SUMMARY_LETTERS]} ({how})" if line and code else line[:_SUMMARY_LETTERS] or how,
        evidence={"exit_code": code},
        remedy="drain" if verdict == "fail" else "none",
    )
