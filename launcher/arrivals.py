"""What has arrived on the file descriptors of a node's ranks, taken when the agent looks: nothing here wakes it."""

from __future__ import annotations

import select
from collections.abc import Callable


class Arrivals:
    """Descriptors and who reads them."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._takers: dict[int, Callable[[], None]] = {}

    def follow(self, descriptor: int, take: Callable[[], None]) -> None:
        """From now on `take()` is called when there is something to read, or the other end has closed."""
        self._takers[descriptor] = take
        self._epoll.register(descriptor, select.EPOLLIN)

    def forget(self, descriptor: int) -> None:
        """To be called before the descriptor is closed."""
        self._epoll.unregister(descriptor)
        del self._takers[descriptor]

    def take(self) -> None:
        """Have all that has arrived read."""
        for descriptor, _ in self._epoll.poll(0):
            if descriptor in self._takers:  # it may have been closed by the reader before
                self._takers[descriptor]()

    def close(self) -> None:
        self._epoll.close()
