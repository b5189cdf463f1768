"""Regular expressions that people write for what others print: a search takes a time that grows only with the text."""

from __future__ import annotations

from typing import Any

import re2


def pattern_flaw(pattern: str) -> str:
    """What is wrong with a regular expression; "" if nothing is."""
    try:
        compiled(pattern)
    except re2.error as error:
        said = error.args[0].decode("utf-8", "replace") if isinstance(error.args[0], bytes) else str(error)
        return f"not a regular expression of RE2: {said}"
    return ""


def compiled(pattern: str) -> Any:
    """A regular expression whose search takes a time that grows only with the text. Raises re2.error."""
    options = re2.Options()
    options.log_errors = False
    return re2.compile(pattern, options)
