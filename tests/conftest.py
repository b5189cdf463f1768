"""For all tests: what whoever runs them has set for runs of their own does not count."""

import os
from collections.abc import Callable

import psutil
import pytest

os.environ["OPT_LAUNCH_SITE"] = ""

Children = Callable[[], list[psutil.Process]]


@pytest.fixture
def children() -> Children:
    """The processes that this one has started since the test began; a cluster for other tests may be there already."""
    before = {*psutil.Process().children(recursive=True)}
    return lambda: [one for one in psutil.Process().children(recursive=True) if one not in before]
