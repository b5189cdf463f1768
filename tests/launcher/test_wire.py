"""Nobody without the run's secret is heard, and nothing on the way can be changed."""

from __future__ import annotations

import asyncio
import os
import struct
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launcher import wire
from launcher.wire import Link, WireError

SECRET = b"the run's secret"
HERE = "127.0.0.1"
Relay = Callable[[int, bytes], list[bytes]]  # (number of the frame, its bytes) -> what is passed on


class Server:
    """Keeps what its peers say, and what went wrong."""

    def __init__(self) -> None:
        self.heard: list[Any] = []
        self.errors: list[Exception] = []
        self.links = 0
        self.over = asyncio.Event()

    async def handle(self, link: Link) -> None:
        self.links += 1
        try:
            while (message := await link.receive()) is not None:
                self.heard.append(message)
                link.send({"echo": message})
        except WireError as error:
            self.errors.append(error)
        finally:
            self.over.set()


async def with_server(test: Callable[[Server, int], Awaitable[None]]) -> Server:
    server = Server()
    listening = await wire.serve(HERE, 0, SECRET, server.handle)
    async with asyncio.timeout(20):
        await test(server, listening.sockets[0].getsockname()[1])
    listening.close()
    return server


async def relayed(port: int, relay: Relay) -> int:
    """A man in the middle who sees whole frames from client to server; his port."""

    async def between(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        to_server = await asyncio.open_connection(HERE, port)
        pipe = asyncio.ensure_future(_pump(to_server[0], writer))
        to_server[1].write(await reader.readexactly(64))  # the client's half of the handshake
        number = 0
        try:
            while True:
                head = await reader.readexactly(36)
                frame = head + await reader.readexactly(struct.unpack("<I", head[:4])[0])
                for passed_on in relay(number, frame):
                    to_server[1].write(passed_on)
                number += 1
        except (asyncio.IncompleteReadError, ConnectionError):
            to_server[1].close()
            pipe.cancel()

    server = await asyncio.start_server(between, HERE, 0)
    return server.sockets[0].getsockname()[1]


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(1 << 16):
        writer.write(data)
    writer.close()


json_messages = st.dictionaries(
    st.text(max_size=8), st.none() | st.booleans() | st.integers() | st.text(max_size=30) | st.lists(st.integers()),
    max_size=4,
)  # fmt: skip


@settings(max_examples=20, deadline=None)
@given(st.lists(json_messages, max_size=5))
def test_messages_arrive_whole_and_in_order_both_ways(messages: list[dict[str, Any]]) -> None:
    async def talk(server: Server, port: int) -> None:
        link = await wire.dial(HERE, port, SECRET)
        for message in messages:
            link.send(message)
        assert [await link.receive() for _ in messages] == [{"echo": message} for message in messages]
        link.close()

    assert asyncio.run(with_server(talk)).heard == messages


def test_a_peer_with_another_secret_is_refused_by_the_server() -> None:
    async def talk(server: Server, port: int) -> None:
        with pytest.raises(WireError, match="refused the handshake"):
            await wire.dial(HERE, port, b"another")

    assert asyncio.run(with_server(talk)).links == 0


def test_a_server_with_another_secret_is_refused_by_the_client() -> None:
    """It cannot check our proof, so it lets us in, and cannot prove itself."""

    async def impostor(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(os.urandom(32))
        await reader.readexactly(64)
        writer.write(os.urandom(32))

    async def talk() -> None:
        server = await asyncio.start_server(impostor, HERE, 0)
        with pytest.raises(WireError):
            await wire.dial(HERE, server.sockets[0].getsockname()[1], SECRET)

    asyncio.run(talk())


def test_a_handshake_seen_before_opens_nothing() -> None:
    async def talk(server: Server, port: int) -> None:
        seen: list[bytes] = []

        async def listen_in(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            to_server = await asyncio.open_connection(HERE, port)
            writer.write(await to_server[0].readexactly(32))
            seen.append(await reader.readexactly(64))
            to_server[1].write(seen[0])
            writer.write(await to_server[0].readexactly(32))

        middle = await asyncio.start_server(listen_in, HERE, 0)
        await wire.dial(HERE, middle.sockets[0].getsockname()[1], SECRET)
        links = server.links

        reader, writer = await asyncio.open_connection(HERE, port)
        await reader.readexactly(32)
        writer.write(seen[0])
        assert await reader.read() == b""
        assert server.links == links == 1

    asyncio.run(with_server(talk))


@pytest.mark.parametrize("position", [0, 3, 4, 20, 36, 40, -1])
def test_an_altered_frame_is_refused(position: int) -> None:
    def alter(number: int, frame: bytes) -> list[bytes]:
        changed = bytearray(frame)
        changed[position] ^= 1
        return [bytes(changed) + bytes(300)] if number == 1 else [frame]

    async def talk(server: Server, port: int) -> None:
        link = await wire.dial(HERE, await relayed(port, alter), SECRET)
        for message in ({"n": 0}, {"n": 1, "text": "x" * 50}, {"n": 2}):
            link.send(message)
            await link.flush()  # a frame of its own
        if position != 3:  # that one only makes the frame sixteen million bytes long: it is never whole
            await server.over.wait()
        link.close()
        await server.over.wait()

    server = asyncio.run(with_server(talk))
    assert server.heard == [{"n": 0}]
    assert len(server.errors) == (position != 3)


RELAYS: dict[str, Relay] = {
    "replayed": lambda number, frame: [frame, frame],
    "left out": lambda number, frame: [] if number == 0 else [frame],
    "invented": lambda number, frame: [struct.pack("<I", 2) + bytes(32) + b"{}", frame],
}


@pytest.mark.parametrize("how", sorted(RELAYS))
def test_a_frame_out_of_its_place_is_refused(how: str) -> None:
    async def talk(server: Server, port: int) -> None:
        link = await wire.dial(HERE, await relayed(port, RELAYS[how]), SECRET)
        for n in range(3):
            link.send({"n": n})
            await link.flush()
        await server.over.wait()
        link.close()

    server = asyncio.run(with_server(talk))
    assert len(server.errors) == 1
    assert server.heard in ([], [{"n": 0}])


def test_the_messages_of_a_moment_travel_in_one_frame() -> None:
    frames: list[int] = []

    def count(number: int, frame: bytes) -> list[bytes]:
        frames.append(number)
        return [frame]

    async def talk(server: Server, port: int) -> None:
        link = await wire.dial(HERE, await relayed(port, count), SECRET)
        for n in range(3):
            link.send({"n": n})
        assert [await link.receive() for _ in range(3)] == [{"echo": {"n": n}} for n in range(3)]
        link.close()

    asyncio.run(with_server(talk))
    assert frames == [0]


def test_a_frame_sent_back_to_its_sender_is_refused() -> None:
    """Both directions have keys of their own."""

    async def talk(server: Server, port: int) -> None:
        link = await wire.dial(HERE, port, SECRET)
        body = b'[{"n":0}]'
        frame = wire._HEAD.pack(len(body), link._mac(b"c", 0, body)) + body
        mirrored = asyncio.StreamReader()
        mirrored.feed_data(frame)
        link._reader = mirrored
        with pytest.raises(WireError):
            await link.receive()

    asyncio.run(with_server(talk))


@settings(max_examples=20, deadline=None)
@given(st.binary(max_size=200))
def test_garbage_never_reaches_the_handler_nor_ends_the_server(garbage: bytes) -> None:
    async def talk(server: Server, port: int) -> None:
        _, writer = await asyncio.open_connection(HERE, port)
        writer.write(garbage)
        writer.write_eof()
        link = await wire.dial(HERE, port, SECRET)
        link.send({"still": "there"})
        assert await link.receive() == {"echo": {"still": "there"}}
        link.close()
        writer.close()

    assert asyncio.run(with_server(talk)).heard == [{"still": "there"}]


def test_a_frame_of_absurd_length_is_refused_before_it_is_read() -> None:
    async def talk(server: Server, port: int) -> None:
        link = await wire.dial(HERE, port, SECRET)
        link._writer.write(wire._HEAD.pack(2**32 - 1, bytes(32)))
        await server.over.wait()
        link.close()

    server = asyncio.run(with_server(talk))
    assert "4294967295 bytes" in str(server.errors[0])


def test_a_silent_peer_cannot_keep_a_caller_waiting() -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async def talk() -> None:
        server = await asyncio.start_server(silent, HERE, 0)
        with pytest.raises(TimeoutError):
            await wire.dial(HERE, server.sockets[0].getsockname()[1], SECRET, timeout_s=0.2)

    asyncio.run(talk())


def test_the_end_of_a_connection_is_no_error() -> None:
    async def talk(server: Server, port: int) -> None:
        link = await wire.dial(HERE, port, SECRET)
        link.close()
        await server.over.wait()
        link.send({"into": "nothing"})

    assert asyncio.run(with_server(talk)).errors == []
