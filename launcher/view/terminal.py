"""What a terminal would make of the text of a rank, without letting it touch ours. Pure."""

from __future__ import annotations

import re

_COLOUR = r"\x1b\[[0-9;:]*m"
_COLOURS = re.compile(_COLOUR)
# Strings for the terminal (titles, links) with their end; cursor and other sequences; what is left of either.
_CONTROL = re.compile(
    r"(?:\x1b[\]PX^_]|[\x90\x98\x9d-\x9f])[^\x07\x1b\x9c]*(?:\x07|\x1b\\|\x9c)"
    r"|(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]"
    r"|\x1b[ -/]*[0-~]?"
    r"|[\x00-\x08\x0a-\x1f\x7f-\x9f]"
)
_PARTS = re.compile(f"({_COLOUR}|\r)")
_RESET = "\x1b[0m"


def visible(text: str, *, colours: bool = False) -> str:
    """The last state of a line that was written over and over, without control sequences except colours."""
    parts = [part if index % 2 else _CONTROL.sub("", part) for index, part in enumerate(_PARTS.split(text))]
    states = "".join(parts).split("\r")
    last = next((state for state in reversed(states) if _COLOURS.sub("", state).strip()), "")
    if not colours:
        return _COLOURS.sub("", last)
    return last + _RESET if _COLOURS.search(last) else last
