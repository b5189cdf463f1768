"""The process in which checks run: what blocks or crashes here takes nothing else with it.

    python -P -m launcher.health.child PARENT NICENESS CONTEXT CHECK...

PARENT is the process without which nobody wants to know. CONTEXT is JSON. Writes a line of JSON when a check begins,
for each finding, and when a check is done.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import traceback
from dataclasses import asdict
from pathlib import Path
from typing import Any

from launcher.health import gpu
from launcher.health.checks import Check, by_name
from launcher.health.context import Context, Heard, SiteCheck
from launcher.health.finding import Finding
from launcher.warm import die_with


def run(check: Check, at: Context) -> None:
    """Tell what a check finds; what it stumbles over is not known."""
    tell(begins=check.name)
    completed = False
    try:
        for finding in check.run(at):
            tell(finding=asdict(finding))
        completed = True
    except PermissionError as error:
        unknown(check, f"not permitted: {error.filename}")
    except Exception as error:  # kernels and drivers write what they like, and any error may come of reading it
        unknown(check, f"{type(error).__name__}: {error}", traceback.format_exc())
    tell(done=check.name, completed=completed, after=dict(at.after))


def unknown(check: Check, summary: str, trace: str = "") -> None:
    evidence = {"traceback": trace} if trace else {}
    tell(finding=asdict(Finding(code=check.name, verdict="unknown", summary=summary, evidence=dict(evidence))))


def tell(**line: Any) -> None:
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


def main(argv: list[str]) -> int:
    parent, niceness, context, *names = argv
    die_with(int(parent))
    os.nice(int(niceness))
    at = context_of(json.loads(context))
    if max(gpu.on_bus(at), gpu.given(at)):
        with contextlib.suppress(ImportError):
            import pynvml as _  # noqa: F401 a slow disk is not to be taken for a slow driver
    for name in names:
        run(by_name(name, at.site), at)
    return 0


def context_of(asked: dict[str, Any]) -> Context:
    site = tuple(SiteCheck(**{**one, "command": tuple(one["command"])}) for one in asked["site"])
    heard = tuple(Heard(**one) for one in asked["heard"])
    folders = tuple(asked["folders"])
    return Context(**{**asked, "root": Path(asked["root"]), "folders": folders, "site": site, "heard": heard})


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
