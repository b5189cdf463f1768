"""For all tests: what whoever runs them has set for runs of their own does not count."""

import os
import signal
import sys
from collections.abc import Callable

import psutil
import pytest

os.environ["OPT_LAUNCH_SITE"] = ""
# Commands begin with `python`, and not every machine has a program of that name. What may not be looked into, as the
# folders of a root that became somebody else, would make "no such program" a "permission denied".
_READABLE = [part for part in os.environ.get("PATH", "").split(os.pathsep) if os.access(part, os.R_OK | os.X_OK)]
os.environ["PATH"] = os.pathsep.join([os.path.dirname(sys.executable), *_READABLE])
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in the background of a script; commands would inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)

Children = Callable[[], list[psutil.Process]]


@pytest.fixture
def children() -> Children:
    """The processes that this one has started since the test began; a cluster for other tests may be there already."""
    before = {*psutil.Process().children(recursive=True)}
    return lambda: [one for one in psutil.Process().children(recursive=True) if one not in before]
