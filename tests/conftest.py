"""For all tests: what whoever runs them has set for runs of their own does not count."""

import os
import sys
from collections.abc import Callable

import psutil
import pytest

os.environ["OPT_LAUNCH_SITE"] = ""
# Commands begin with `python`, and not every machine has a program of that name.
os.environ["PATH"] = os.pathsep.join(filter(None, [os.path.dirname(sys.executable), os.environ.get("PATH")]))

Children = Callable[[], list[psutil.Process]]


@pytest.fixture
def children() -> Children:
    """The processes that this one has started since the test began; a cluster for other tests may be there already."""
    before = {*psutil.Process().children(recursive=True)}
    return lambda: [one for one in psutil.Process().children(recursive=True) if one not in before]
