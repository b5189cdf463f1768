"""The agent's end of the ranks' Unix sockets. What a rank has sent stays in the kernel, also once the rank is dead."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Callable
from typing import Any

from launcher.arrivals import Arrivals

Message = dict[str, Any]

_READ_BYTES = 1 << 16
_HEAD_BYTES = 4


class RankSocket:
    """One rank's connection. Frames: length (4 bytes, little endian), then JSON."""

    def __init__(self, sock: socket.socket, arrivals: Arrivals, on_message: Callable[[RankSocket, Message], None]):
        sock.setblocking(False)
        self._sock, self._arrivals, self._on_message = sock, arrivals, on_message
        self._received, self._unsent = bytearray(), bytearray()
        self._closed = False
        arrivals.follow(sock.fileno(), self._take)

    def _take(self) -> None:
        try:
            data = self._sock.recv(_READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        self._received += data
        try:
            messages = [json.loads(body) for body in self._frames()]
        except ValueError:
            self.close()
            return
        for message in messages:
            self._on_message(self, message)
        if not data:
            self.close()
        elif len(data) == _READ_BYTES:
            self._take()

    def _frames(self) -> list[bytes]:
        frames: list[bytes] = []
        start = 0
        while len(self._received) >= start + _HEAD_BYTES:
            body = start + _HEAD_BYTES
            end = body + int.from_bytes(self._received[start:body], "little")
            if len(self._received) < end:
                break
            frames.append(bytes(self._received[body:end]))
            start = end
        del self._received[:start]
        return frames

    def send(self, message: Message) -> None:
        """Send as soon as the rank takes it; never blocks."""
        body = json.dumps(message).encode()
        self._unsent += len(body).to_bytes(_HEAD_BYTES, "little") + body
        self._flush()

    def _flush(self) -> None:
        if self._closed:
            return
        try:
            del self._unsent[: self._sock.send(self._unsent)]
        except BlockingIOError:
            pass
        except OSError:
            self.close()
            return
        loop = asyncio.get_running_loop()
        if self._unsent:
            loop.add_writer(self._sock, self._flush)
        else:
            loop.remove_writer(self._sock)

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._arrivals.forget(self._sock.fileno())
            asyncio.get_running_loop().remove_writer(self._sock)
            self._sock.close()


class RankListener:
    """Where the ranks of a node connect. Raises OSError when the path cannot be bound."""

    def __init__(self, path: str, arrivals: Arrivals, on_message: Callable[[RankSocket, Message], None]) -> None:
        self._sock = socket.socket(socket.AF_UNIX)
        self._sock.bind(path)
        self._sock.listen(1024)
        self._sock.setblocking(False)
        self._arrivals, self._on_message = arrivals, on_message
        arrivals.follow(self._sock.fileno(), self._accept)

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._sock.accept()
            except OSError:  # nobody is waiting
                return
            RankSocket(connection, self._arrivals, self._on_message)

    def close(self) -> None:
        self._arrivals.forget(self._sock.fileno())
        self._sock.close()
