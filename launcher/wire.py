"""Authenticated frames over TCP between supervisor, agents and commands.

Both sides prove that they know the run's secret (mutual challenge), then every frame is length, HMAC-SHA256 over
(direction, counter, body), body: a JSON list of the messages of one moment. The HMAC is checked before the body is
parsed. Nothing is encrypted.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
import secrets
import struct
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any

Message = dict[str, Any]

_NONCE_BYTES = 32
_MAC_BYTES = 32
_HEAD = struct.Struct("<I32s")
MAX_FRAME_BYTES = 256 << 20
HANDSHAKE_TIMEOUT_S = 5.0


class WireError(ConnectionError):
    """The peer does not know the secret, or a frame was altered."""


class Link:
    """An authenticated connection. `send` never blocks; `receive` returns None once the peer is gone."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, key: bytes, ours: bytes, theirs: bytes
    ) -> None:
        self._reader, self._writer, self._key = reader, writer, key
        self._ours, self._theirs = ours, theirs
        self._sent = self._received = 0
        self._unwritten: list[Message] = []
        self._unread: deque[Message] = deque()
        self.closed = False

    def send(self, message: Message) -> None:
        """Send it with whatever else is sent in this turn of the loop. It must not be changed afterwards."""
        if self.closed:
            return
        if not self._unwritten:
            asyncio.get_running_loop().call_soon(self._write)
        self._unwritten.append(message)

    def _write(self) -> None:
        if not self._unwritten:
            return
        body = json.dumps(self._unwritten, separators=(",", ":")).encode()
        self._unwritten.clear()
        mac = self._mac(self._ours, self._sent, body)
        self._sent += 1
        self._writer.write(_HEAD.pack(len(body), mac) + body)

    async def receive(self) -> Message | None:
        """The next message; None at the end of the connection. Raises WireError for a forged frame."""
        while not self._unread:
            try:
                length, mac = _HEAD.unpack(await self._reader.readexactly(_HEAD.size))
                if length > MAX_FRAME_BYTES:
                    raise WireError(f"a frame of {length} bytes")
                body = await self._reader.readexactly(length)
            except WireError:
                raise
            except (asyncio.IncompleteReadError, ConnectionError, OSError):
                return None
            if not hmac.compare_digest(mac, self._mac(self._theirs, self._received, body)):
                raise WireError("a frame failed its authentication")
            self._received += 1
            self._unread.extend(json.loads(body))
        return self._unread.popleft()

    async def flush(self) -> None:
        """Wait until what was sent has been handed to the kernel."""
        self._write()
        with contextlib.suppress(ConnectionError, OSError):
            await self._writer.drain()

    def close(self) -> None:
        if not self.closed:
            self._write()
        self.closed = True
        self._writer.close()

    def _mac(self, direction: bytes, counter: int, body: bytes) -> bytes:
        return hmac.digest(self._key, direction + struct.pack("<Q", counter) + body, "sha256")


def _proof(secret: bytes, role: bytes, server_nonce: bytes, client_nonce: bytes) -> bytes:
    return hmac.digest(secret, role + server_nonce + client_nonce, "sha256")


async def dial(host: str, port: int, secret: bytes, timeout_s: float = HANDSHAKE_TIMEOUT_S) -> Link:
    """Connect and prove who we are. Raises OSError, TimeoutError or WireError."""
    async with asyncio.timeout(timeout_s):
        reader, writer = await asyncio.open_connection(host, port)
        try:
            server_nonce = await reader.readexactly(_NONCE_BYTES)
            client_nonce = secrets.token_bytes(_NONCE_BYTES)
            writer.write(client_nonce + _proof(secret, b"client", server_nonce, client_nonce))
            answer = await reader.readexactly(_MAC_BYTES)
            if not hmac.compare_digest(answer, _proof(secret, b"server", server_nonce, client_nonce)):
                raise WireError(f"{host}:{port} does not know this run's secret")
        except (asyncio.IncompleteReadError, WireError) as error:
            writer.close()
            raise WireError(f"{host}:{port} refused the handshake") from error
        except BaseException:
            writer.close()
            raise
    return Link(reader, writer, _proof(secret, b"key", server_nonce, client_nonce), b"c", b"s")


async def serve(host: str, port: int, secret: bytes, handle: Callable[[Link], Awaitable[None]]) -> asyncio.Server:
    """Listen; `handle(link)` runs for every peer that knows the secret. Raises OSError."""

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(HANDSHAKE_TIMEOUT_S):
                server_nonce = secrets.token_bytes(_NONCE_BYTES)
                writer.write(server_nonce)
                hello = await reader.readexactly(_NONCE_BYTES + _MAC_BYTES)
                client_nonce, proof = hello[:_NONCE_BYTES], hello[_NONCE_BYTES:]
                if not hmac.compare_digest(proof, _proof(secret, b"client", server_nonce, client_nonce)):
                    raise WireError("wrong secret")
                writer.write(_proof(secret, b"server", server_nonce, client_nonce))
            link = Link(reader, writer, _proof(secret, b"key", server_nonce, client_nonce), b"s", b"c")
            try:
                await handle(link)
            finally:
                link.close()
        except (TimeoutError, asyncio.IncompleteReadError, ConnectionError, OSError):
            writer.close()
        except asyncio.CancelledError:
            writer.close()  # this process is ending; asyncio would print the cancellation as an error

    return await asyncio.start_server(accept, host, port)
