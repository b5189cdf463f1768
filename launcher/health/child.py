"""The process in which checks run: what blocks or crashes here takes nothing else with it.

    python -P -m launcher.health.child CONTEXT CHECK...

CONTEXT is JSON. Writes a line of JSON when a check begins, for each finding, and when a check is done.
"""

from __future__ import annotations

import json
import sys
import traceback
from dataclasses import asdict
from pathlib import Path
from typing import Any

from launcher.health.checks import Check, by_name
from launcher.health.context import Context
from launcher.health.finding import Finding


def run(check: Check, at: Context) -> None:
    """Tell what a check finds; what it stumbles over is not known."""
    tell(begins=check.name)
    try:
        for finding in check.run(at):
            tell(finding=asdict(finding))
    except PermissionError as error:
        unknown(check, f"not permitted: {error.filename}")
    except Exception as error:  # whatever it is, the next check is to run
        unknown(check, f"{type(error).__name__}: {error}", traceback.format_exc())
    tell(done=check.name, after=dict(at.after))


def unknown(check: Check, summary: str, trace: str = "") -> None:
    evidence = {"traceback": trace} if trace else {}
    tell(finding=asdict(Finding(code=check.name, verdict="unknown", summary=summary, evidence=dict(evidence))))


def tell(**line: Any) -> None:
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


def main(argv: list[str]) -> int:
    asked = json.loads(argv[0])
    at = Context(**{**asked, "root": Path(asked["root"]), "folders": tuple(asked["folders"])})
    for name in argv[1:]:
        run(by_name(name), at)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
