"""What ranks of test_warm run."""

import os
import signal
import sys
import time
from collections.abc import Mapping

IMPORTED_BY = os.getpid()


def hello(env: Mapping[str, str]) -> int:
    print("to stdout")
    print("to stderr", file=sys.stderr)
    return 0


def facts(env: Mapping[str, str]) -> None:
    """Where a forked rank finds itself."""
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    descriptors = sorted(int(name) for name in os.listdir("/proc/self/fd"))[:-1]
    print(env["WHO"], os.getpgid(0) == os.getpid(), os.getppid() == IMPORTED_BY, os.getcwd(), list(mask), descriptors)
    print(sorted(env), sys.stdin.read() == "")


def seven(env: Mapping[str, str]) -> int:
    return 7


def leaves(env: Mapping[str, str]) -> None:
    sys.exit(5)


def complains(env: Mapping[str, str]) -> None:
    sys.exit("the reason")


def fails(env: Mapping[str, str]) -> None:
    raise ValueError("wrong on purpose")


def sleeps(env: Mapping[str, str]) -> None:
    time.sleep(600)


def killed(env: Mapping[str, str]) -> None:
    os.kill(os.getpid(), signal.SIGSEGV)
