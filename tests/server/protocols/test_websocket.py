"""A WebSocket after its handshake, over real sockets, on asyncio's loop and on uvloop's."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import socket as sockets
import ssl
import struct
import tracemalloc
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import cast

import pytest

from synap_realtime.server.deadlines import PendingConnections
from synap_realtime.server.protocols.websocket import (
    MAX_DROPPED_BYTES,
    MAX_FRAMES_PER_S,
    WebSocketProtocol,
)
from synap_realtime.server.protocols.writes import WriteBatch
from synap_realtime.server.protocols.ws_codec import text_frame
from synap_realtime.server.resources.pacing import Pacer
from tests.support.certificates import certify
from tests.support.waits import SetWaits
from tests.support.websocket_frames import CLOSE, CONT, PING, PONG, TEXT, frame

from .conftest import Run

CLOSED = struct.pack("!H", 1000)


class RecordingHandler:
    """A handler that records its callbacks."""

    def __init__(self) -> None:
        self.messages: list[str | bytes] = []
        self.times_stalled = 0
        self.times_writable = 0
        self.times_ended = 0
        self.times_gone = 0
        self.is_gone = asyncio.Event()
        self.is_writable = asyncio.Event()
        self.socket: WebSocketProtocol

    def on_activity(self) -> None: ...

    def on_message(self, message: str | bytes) -> None:
        self.messages.append(message)

    def on_pause(self) -> None:
        self.times_stalled += 1

    def on_resume(self) -> None:
        self.times_writable += 1
        self.is_writable.set()

    def on_close(self) -> None:
        self.times_ended += 1

    def on_disconnect(self) -> None:
        self.times_gone += 1
        self.is_gone.set()


class Server:
    """Makes a WebSocket of each connection, without a handshake.

    Attributes:
        made: one for each, in the order in which they came.
    """

    def __init__(
        self,
        max_pending: int,
        kind: type[WebSocketProtocol],
        handler: Callable[[], RecordingHandler],
    ) -> None:
        self.pending_connections = PendingConnections(max_pending)
        self.handler = handler
        self.made: asyncio.Queue[RecordingHandler] = asyncio.Queue()
        self.kind = kind
        self.port = 0

    def accept(self) -> asyncio.Protocol:
        server = self

        class Accepting(asyncio.Protocol):
            def connection_made(self, transport: asyncio.BaseTransport) -> None:
                stream = cast(asyncio.Transport, transport)
                is_tls = stream.get_extra_info("ssl_object") is not None
                stream.set_write_buffer_limits(high=1 if is_tls else 0)
                recorder = server.handler()
                recorder.socket = server.kind(
                    stream,
                    recorder,
                    pending_connections=server.pending_connections,
                    write_batch=WriteBatch(),
                    pacer=Pacer(),
                    max_message_bytes=65536,
                    descriptor=None if is_tls else stream.get_extra_info("socket").fileno(),
                )
                stream.set_protocol(recorder.socket)
                server.made.put_nowait(recorder)

        return Accepting()


@contextlib.asynccontextmanager
async def serving(
    max_pending: int = 0,
    kind: type[WebSocketProtocol] = WebSocketProtocol,
    handler: Callable[[], RecordingHandler] = RecordingHandler,
    tls: ssl.SSLContext | None = None,
) -> AsyncIterator[Server]:
    server = Server(max_pending, kind, handler)
    loop = asyncio.get_running_loop()
    listening = await loop.create_server(server.accept, "127.0.0.1", 0, ssl=tls)
    server.port = listening.sockets[0].getsockname()[1]
    try:
        yield server
    finally:
        listening.close()


Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@contextlib.asynccontextmanager
async def connected(
    server: Server, tls: ssl.SSLContext | None = None, limit: int = 65536
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter, RecordingHandler]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port, ssl=tls, limit=limit)
    try:
        yield reader, writer, await server.made.get()
    finally:
        writer.transport.abort()


def fill(socket: WebSocketProtocol) -> int:
    """Write until nobody takes it.

    Returns:
        How many bytes that were.
    """
    message = text_frame(b"x" * 100_000)
    written = 0
    while socket.is_writable:
        socket.write(message)
        written += len(message)
    return written


def close_said(said: bytes) -> int:
    """The code of the close frame that it begins with."""
    assert said[:1] == b"\x88", said[:100]
    return int.from_bytes(said[2:4], "big")


def test_messages_are_received_and_pings_answered(run: Run) -> None:
    async def test() -> None:
        async with serving() as server, connected(server) as (reader, writer, recorder):
            writer.write(frame(TEXT, b"a") + frame(PING, b"?") + frame(PONG) + frame(2, b"b"))
            assert await reader.readexactly(3) == b"\x8a\x01?"
            writer.write(frame(TEXT, b"x" * 65536))
            writer.write(frame(PING))
            assert await reader.readexactly(2) == b"\x8a\x00"
            assert recorder.messages == ["a", b"b", "x" * 65536]
            recorder.socket.write(text_frame(b"hello"))
            assert await reader.readexactly(7) == b"\x81\x05hello"

    run(test())


def test_the_peers_close_is_answered_and_the_server_ends_the_connection(run: Run) -> None:
    async def test() -> None:
        async with serving() as server:
            for body, answer in (
                (struct.pack("!H", 4000) + b"bye", b"\x88\x02" + struct.pack("!H", 4000)),
                (b"", b"\x88\x00"),
            ):
                async with connected(server) as (reader, writer, recorder):
                    behind = frame(TEXT, b"behind") + frame(PING)
                    writer.write(frame(TEXT, b"before") + frame(CLOSE, body) + behind)
                    assert await reader.read() == answer
                    await recorder.is_gone.wait()
                    assert recorder.messages == ["before"]
                    assert not recorder.socket.is_writable

    run(test())


def test_the_server_closes_and_receives_nothing_more(run: Run) -> None:
    async def test() -> None:
        async with serving() as server, connected(server) as (reader, writer, recorder):
            recorder.socket.write(text_frame(b"last"))
            recorder.socket.close(4008, "too slow")
            recorder.socket.close(1000)
            recorder.socket.write(text_frame(b"behind"))
            assert not recorder.socket.is_writable
            said = await reader.readexactly(6 + 2 + 2 + 8)
            assert said == b"\x81\x04last\x88\x0a" + struct.pack("!H", 4008) + b"too slow"
            writer.write(frame(TEXT, b"x") + frame(PING) + frame(CLOSE, struct.pack("!H", 4008)))
            assert await reader.read() == b""
            await recorder.is_gone.wait()
            assert recorder.messages == []
            assert recorder.times_gone == 1

    run(test())


def test_handler_receives_nothing_after_it_closed_the_connection(run: Run) -> None:
    class Ending(RecordingHandler):
        def on_message(self, message: str | bytes) -> None:
            super().on_message(message)
            self.socket.abort()

    async def test() -> None:
        async with serving(handler=Ending) as server, connected(server) as (_, writer, recorder):
            writer.write(frame(TEXT, b"a") + frame(TEXT, b"b") + frame(CLOSE))
            await recorder.is_gone.wait()
            assert recorder.messages == ["a"]

    run(test())


def test_aborts_client_that_does_not_answer_a_close(run: Run, set_waits: SetWaits) -> None:
    set_waits(close_handshake_s=0.05)

    async def test() -> None:
        async with serving() as server, connected(server) as (_, _, recorder):
            recorder.socket.close(1000)
            await recorder.is_gone.wait()
            assert recorder.times_gone == 1

    run(test())


def test_aborts_client_that_stops_reading(run: Run, set_waits: SetWaits) -> None:
    """The answer to its close waits behind all that it does not take."""
    set_waits(close_handshake_s=0.05)

    async def test() -> None:
        async with serving() as server, connected(server, limit=1024) as (_, writer, recorder):
            fill(recorder.socket)
            writer.write(frame(CLOSE, CLOSED))
            await recorder.is_gone.wait()

    run(test())


def test_unanswered_closes_are_bounded(run: Run) -> None:
    """The connection that has waited longest is closed first."""

    async def test() -> None:
        async with (
            serving(max_pending=2) as server,
            connected(server) as (_, _, first),
            connected(server) as (_, _, second),
            connected(server) as (_, _, third),
        ):
            for recorder in (first, second, third):
                recorder.socket.close(1000)
            await first.is_gone.wait()
            assert not second.is_gone.is_set()
            assert not third.is_gone.is_set()

    run(test())


def test_closed_connection_uses_no_pending_slot(run: Run) -> None:
    async def test() -> None:
        async with serving(max_pending=2) as server, connected(server) as (_, _, first):
            first.socket.close(1000)
            for _ in range(3):
                async with connected(server) as (reader, writer, recorder):
                    recorder.socket.close(1000)
                    await reader.readexactly(4)
                    writer.write(frame(CLOSE, CLOSED))
                    assert await reader.read() == b""
                    await recorder.is_gone.wait()
            assert not first.is_gone.is_set()

    run(test())


@pytest.mark.parametrize(
    ("begin", "more"),
    [
        (b"", frame(PING)),
        (b"", frame(PONG)),
        (b"", frame(TEXT, b"x")),
        (frame(TEXT, end=False), frame(CONT, end=False)),
    ],
    ids=["pings", "pongs", "texts", "fragments"],
)
def test_stops_reading_a_flood_of_frames(run: Run, begin: bytes, more: bytes) -> None:
    read: list[int] = []

    class Watched(WebSocketProtocol):
        __slots__ = ()

        def connection_lost(self, exc: Exception | None) -> None:
            read.append(self._decoder.frames)
            super().connection_lost(exc)

    async def test() -> None:
        async with serving(kind=Watched) as server, connected(server) as (reader, writer, recorder):
            closing = b"\x88\x11" + struct.pack("!H", 4029) + b"too many frames"
            # Twice: the first second may end in the middle of it.
            writer.write(begin + more * (2 * MAX_FRAMES_PER_S + 20_000))
            assert (await reader.read()).endswith(closing)
            writer.close()
            await recorder.is_gone.wait()
            assert read[0] < MAX_FRAMES_PER_S + 1000
            assert len(recorder.messages) < 2 * MAX_FRAMES_PER_S + 1000

    run(test())


def test_answers_a_flood_of_pings_in_a_few_writes(run: Run) -> None:
    """A write for each would keep everybody else waiting."""
    writes: list[bytes] = []

    class Watched(WebSocketProtocol):
        __slots__ = ()

        def write(self, frame: bytes) -> bool:
            writes.append(frame)
            return super().write(frame)

    async def test() -> None:
        async with (
            serving(kind=Watched) as server,
            connected(server) as (reader, writer, _recorder),
        ):
            count = MAX_FRAMES_PER_S // 2
            writer.write(b"".join(frame(PING, b"%03d" % n) for n in range(count)))
            expected = b"".join(b"\x8a\x03%03d" % n for n in range(count))
            assert await reader.readexactly(len(expected)) == expected
            assert len(writes) < 10

    run(test())


def test_frame_rate_is_counted_per_second(run: Run) -> None:
    async def test() -> None:
        async with serving() as server, connected(server) as (reader, writer, recorder):
            loop = asyncio.get_running_loop()
            for _ in range(2):
                writer.write(frame(PONG) * (MAX_FRAMES_PER_S * 2 // 3) + frame(PING))
                assert await reader.readexactly(2) == b"\x8a\x00"
                await asyncio.sleep(1 - loop.time() % 1)  # until the next second
            assert recorder.socket.is_writable

    run(test())


def test_pongs_for_a_non_reading_client_are_not_buffered(run: Run) -> None:
    waiting: list[int] = []

    class Watched(WebSocketProtocol):
        __slots__ = ()
        max_frames_per_s = 10_000_000

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            waiting.append(self._transport.get_write_buffer_size())

    async def test() -> None:
        async with (
            serving(kind=Watched) as server,
            connected(server, limit=1024) as (_, writer, recorder),
        ):
            pings = frame(PING, b"x" * 125) * 500
            for _ in range(200):  # 13 MB
                writer.write(pings)
                await writer.drain()
            assert not recorder.socket.is_writable

    run(test())
    assert max(waiting) < 1024 * 1024


def test_answers_the_latest_ping_when_the_peer_reads_again(run: Run) -> None:
    async def test() -> None:
        async with serving() as server, connected(server, limit=1024) as (reader, writer, recorder):
            written = fill(recorder.socket)
            writer.write(frame(PING, b"1") + frame(PING, b"2") + frame(TEXT, b"end"))
            while not recorder.messages:  # noqa: ASYNC110 - there is no event for a message
                await asyncio.sleep(0.001)
            assert not recorder.socket.is_writable
            await reader.readexactly(written)
            assert await reader.readexactly(3) == b"\x8a\x012"
            await recorder.is_writable.wait()
            writer.write(frame(PING, b"3"))
            assert await reader.readexactly(3) == b"\x8a\x013"

    run(test())


def test_writer_is_notified_when_its_peer_reads_again(run: Run) -> None:
    async def test() -> None:
        async with serving() as server, connected(server, limit=1024) as (reader, _, recorder):
            written = fill(recorder.socket)
            assert recorder.times_writable == 0
            await reader.readexactly(written)
            await recorder.is_writable.wait()
            assert recorder.socket.is_writable
            assert recorder.times_writable == 1

    run(test())


def test_violating_client_receives_the_close_reason_while_it_keeps_sending(run: Run) -> None:
    """Were the connection closed with bytes unread, it would be reset, and the reason lost."""

    async def test() -> None:
        async with serving() as server, connected(server) as (reader, writer, recorder):
            writer.write(frame(TEXT, b"x" * 65537) + b"\xff" * (MAX_DROPPED_BYTES // 2))
            said = await reader.read()  # to its end: the server's half is closed
            assert close_said(said) == 1009
            assert not recorder.is_gone.is_set()
            writer.close()
            await recorder.is_gone.wait()
            assert recorder.times_gone == 1

    run(test())


def test_aborts_failed_client_that_never_stops_sending(run: Run, set_waits: SetWaits) -> None:
    set_waits(close_handshake_s=3600)

    async def test() -> None:
        async with serving() as server, connected(server) as (_, writer, recorder):
            writer.write(frame(3))
            with contextlib.suppress(OSError):
                while not recorder.is_gone.is_set():
                    writer.write(b"\xff" * 65536)
                    await writer.drain()
                    await asyncio.sleep(0)
            await recorder.is_gone.wait()

    run(test())


def test_violating_client_receives_the_close_reason_over_tls(run: Run, tmp_path: Path) -> None:
    """TLS has no half-closed connections."""
    certified = certify(tmp_path)

    async def test() -> None:
        async with (
            serving(tls=certified.server()) as server,
            connected(server, tls=certified.client()) as (reader, writer, recorder),
        ):
            writer.write(frame(TEXT, b"a") + frame(3))
            said = await reader.read()
            assert close_said(said) == 1002
            await recorder.is_gone.wait()
            assert recorder.times_ended == 1
            assert recorder.messages == ["a"]

    run(test())


def test_write_to_a_reset_connection_is_no_error(run: Run) -> None:
    """uvloop closes a socket inside the write that fails, before it says so."""

    async def test() -> None:
        async with serving() as server:
            with sockets.create_connection(("127.0.0.1", server.port)) as client:
                recorder = await server.made.get()
                client.setsockopt(sockets.SOL_SOCKET, sockets.SO_LINGER, struct.pack("ii", 1, 0))
            for _ in range(100):
                recorder.socket.write(text_frame(b"x" * 1000))
            recorder.socket.close(1000)
            recorder.socket.abort()
            await recorder.is_gone.wait()
            recorder.socket.write(text_frame(b"x"))
            recorder.socket.close(1000)
            recorder.socket.abort()
            assert not recorder.socket.is_writable
            assert recorder.times_gone == 1

    run(test())


@pytest.mark.parametrize(
    "last_words",
    [
        frame(3),
        frame(CLOSE),
        frame(PING),
        frame(PING) * 9 + frame(CLOSE),
        frame(PING) * 9 + frame(3),
    ],
)
def test_frames_of_a_reset_connection_are_no_error(run: Run, last_words: bytes) -> None:
    """What answers them fails, and closes the connection."""

    async def test() -> None:
        async with serving() as server:
            with sockets.create_connection(("127.0.0.1", server.port)) as client:
                recorder = await server.made.get()
                client.sendall(last_words)
                client.setsockopt(sockets.SOL_SOCKET, sockets.SO_LINGER, struct.pack("ii", 1, 0))
            await recorder.is_gone.wait()
            assert recorder.times_gone == 1

    run(test())


def test_idle_connection_has_no_timer_and_takes_some_hundred_bytes(run: Run) -> None:
    async def test() -> None:
        async with serving() as server, connected(server) as (reader, writer, recorder):
            writer.write(frame(TEXT, b"ping") + frame(PING))
            await reader.readexactly(2)
            assert not server.pending_connections._waiting
            transport = recorder.socket._transport
            gc.collect()
            batch, pacer = WriteBatch(), Pacer()
            tracemalloc.start()
            many = [
                WebSocketProtocol(
                    transport,
                    recorder,
                    pending_connections=server.pending_connections,
                    write_batch=batch,
                    pacer=pacer,
                    max_message_bytes=65536,
                )
                for _ in range(1000)
            ]
            for socket in many:
                socket.data_received(frame(TEXT, b"x"))
            recorder.messages.clear()
            size, _ = tracemalloc.get_traced_memory()
            tracemalloc.stop()
            assert size / len(many) < 400

    run(test())
