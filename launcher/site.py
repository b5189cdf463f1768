"""What a site, or a person, has set once for all runs: `site.yaml`, below RUN.yaml and above what is built in."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from launcher.document import Document, Path_, read_document
from launcher.errors import ConfigError, Mistake
from launcher.sections import Hosts, RunSpec
from launcher.sources import NOTHING, value_of
from launcher.validation import validated, without

VARIABLE = "OPT_LAUNCH_SITE"  # the file, or empty for none
DEFAULT = "~/.config/opt-launch/site.yaml"
OF_A_RUN = ("name", "trainer", "command")  # the sections that say what one run is

LEDGER: Path_ = ("hosts", "ledger")

# What means something on one backend only; elsewhere the defaults of a site for it count for nothing.
_ONLY_ON: dict[str, tuple[Path_, ...]] = {
    "slurm": (("cluster", "slurm"), ("cluster", "continue_by"), ("launch", "setup")),
    "local": (("cluster", "local"),),
}


def read_site(environment: Mapping[str, str]) -> tuple[Document, list[Mistake]]:
    """The defaults of the site without their wrong parts, and every mistake in them."""
    named = environment.get(VARIABLE)
    path = Path(named if named is not None else DEFAULT).expanduser()
    if named == "" or (named is None and not os.path.exists(path)):
        return NOTHING, []
    try:
        document = read_document(path)
    except ConfigError as error:
        because = f" ({VARIABLE} names it)" if named else ""
        return NOTHING, [
            replace(one, message=one.message + (because if not one.line else "")) for one in error.mistakes
        ]
    misplaced = [(key,) for key in OF_A_RUN if key in document.value]
    mistakes = [
        document.mistake(key, f"{key[0]!r} belongs to one run: write it in RUN.yaml", at_key=True) for key in misplaced
    ]
    stand_ins = {"name": "site", "command": ["true"]}
    _, findings = validated(RunSpec, {**without(document.value, misplaced), **stand_ins})
    mistakes += [
        document.mistake(place, message, at_key=message.startswith("unknown key")) for place, message in findings
    ]
    return _leave_out(document, [*misplaced, *(place for place, _ in findings)]), mistakes


def host_ledger(environment: Mapping[str, str]) -> Path:
    """The folder of the host ledger of this site. Raises ConfigError if the file of the site is wrong."""
    site, mistakes = read_site(environment)
    if mistakes:
        raise ConfigError(mistakes)
    named = value_of(site.value, LEDGER)
    return Path(site.name).absolute().parent / Path(named or Hosts().ledger).expanduser()


def for_backend(site: Document, values: Any) -> Document:
    """The defaults without what is for another backend than these values name."""
    backend = value_of(values, ("cluster", "backend")) or "local"
    return _leave_out(site, [path for name, paths in _ONLY_ON.items() if name != backend for path in paths])


def _leave_out(document: Document, paths: Iterable[Path_]) -> Document:
    paths = [*paths]
    kept = {
        place: mark for place, mark in document.values.items() if not any(place[: len(path)] == path for path in paths)
    }
    return replace(document, value=without(document.value, paths), values=kept)
