"""WebSocket frames: any client input gets a clear close code, and the server keeps serving."""

from __future__ import annotations

import asyncio
import struct
from urllib.parse import urlsplit

import httpx
import pytest

from synap_realtime.server import create_app
from synap_realtime.server.config import load_settings
from synap_realtime.server.protocols import websocket
from synap_realtime.server.protocols.websocket import MAX_FRAMES_PER_S, WebSocketProtocol
from synap_realtime.server.serve import running_server
from tests.support.bad_input import (
    NOTE,
    SUBSCRIBE,
    UPGRADE,
    require_alive,
    spoken,
)
from tests.support.raw_http import http
from tests.support.timeouts import TIMEOUT_S
from tests.support.websocket_frames import BINARY, CLOSE, CONT, PING, PONG, TEXT, frame

pytestmark = pytest.mark.usefixtures("quiet_log")


async def test_protocol_violation_during_delivery_leaves_no_traceback(
    rooms: str,
) -> None:
    """The autouse fixture looks at the log."""
    items = [{**NOTE, "rooms": ["user_1"]}] * 100
    async with httpx.AsyncClient(base_url=rooms) as client:
        for _ in range(5):
            publishing = asyncio.create_task(
                client.post("/broadcast", json={"notifications": items})
            )
            await spoken(rooms, frame(3), struct.pack("!H", 1002))
            assert (await publishing).json()["success"]


async def test_frames_that_are_odd_but_right_are_read(rooms: str) -> None:
    split = frame(TEXT, b"pi", end=False) + frame(PING, b"x") + frame(CONT, b"ng")
    assert (await spoken(rooms, split, b"pong")).startswith(b"\x8a\x01x")
    nothing = frame(TEXT, end=False) + frame(CONT, end=False) * 500 + frame(CONT, b"ping")
    await spoken(rooms, nothing, b"pong")
    await spoken(rooms, frame(PONG, b"?") + frame(PING, b"x" * 125), b"x" * 125)
    junk = [
        b"", b"{}", b"{", b'{"action":"ack"}', b'{"action":"ack","cursor":7}', b"[" * 4096,
        b'{"action":"ack","cursor":"\\ud800"}', b'{"action":' + b"9" * 4080 + b"}", b"\x00",
        b'{"action":"ack","cursor":"a-999999999999999999"}', b'{"action":"ack","cursor":NaN}',
    ]  # fmt: skip
    texts = b"".join(frame(TEXT, text) for text in junk)
    await spoken(rooms, texts + frame(TEXT, b"ping"), b"pong")
    await require_alive(rooms, "odd frames")


async def test_stops_reading_a_flood_of_texts(rooms: str) -> None:
    closing = struct.pack("!H", 4029)
    assert closing in await spoken(rooms, frame(TEXT, b"x") * 1000, closing)
    await require_alive(rooms, "texts")


# --- WebSocket frames, to our own front -----------------------------------------------------------

FRAMES = {
    "a text that is not UTF-8": (frame(TEXT, b"\xff\xfe"), 1007),
    "what is not UTF-8, then a close": (frame(TEXT, b"\xff") + frame(CLOSE, b"\x03\xe8"), 1007),
    "a surrogate": (frame(TEXT, b"\xed\xa0\x80"), 1007),
    "half a character": (frame(TEXT, b"\xc3", end=False) + frame(CONT, b"("), 1007),
    "binary": (frame(BINARY, b"x"), 4540),
    "binary, then what is not UTF-8": (frame(BINARY, b"x") + frame(TEXT, b"\xff"), None),
    "a text over 4 KiB": (frame(TEXT, b"x" * 4097), 4540),
    "a text over the limit": (frame(TEXT, b"x" * 70_000), 1009),
    "fragments over the limit": (
        frame(TEXT, b"x" * 40_000, end=False) + frame(CONT, b"x" * 40_000), 1009
    ),
    "a text of 2^63": (frame(TEXT, length=2**63), 1002),
    "a text that begins in another": (frame(TEXT, b"a", end=False) + frame(TEXT, b"b"), 1002),
    "a continuation of nothing": (frame(CONT, b"x"), 1002),
    "unmasked": (frame(TEXT, b"ping", masked=False), 1002),
    "reserved bits": (frame(TEXT, b"ping", reserved=4), 1002),
    "an unknown opcode": (frame(3), 1002),
    "an unknown control opcode": (frame(11), 1002),
    "a ping of 126 bytes": (frame(PING, b"x" * 126), 1002),
    "a ping in fragments": (frame(PING, b"x", end=False), 1002),
    "a close of one byte": (frame(CLOSE, b"\x03"), 1002),
    "a close with 999": (frame(CLOSE, struct.pack("!H", 999)), 1002),
    "a close with 1005": (frame(CLOSE, struct.pack("!H", 1005)), 1002),
    "a close with 5000": (frame(CLOSE, struct.pack("!H", 5000)), 1002),
    "a close that is not UTF-8": (frame(CLOSE, b"\x03\xe8\xff"), 1007),
    "a close with 4000": (frame(CLOSE, struct.pack("!H", 4000)), 4000),
    "a close without a code": (frame(CLOSE), 1005),
    "two closes": (frame(CLOSE, b"\x03\xe8") * 2, 1000),
}  # fmt: skip


async def test_protocol_violations_get_their_close_code(own: str) -> None:
    for name, (sent, code) in FRAMES.items():
        closing = b"" if code in (None, 1005) else struct.pack("!H", code)
        said = await spoken(own, sent, closing or b"\x88")
        assert b"\x88" in said, (name, said)
        await require_alive(own, name)


FLOODS = {
    "pings": (b"", frame(PING)),
    "pongs": (b"", frame(PONG)),
    "fragments": (frame(TEXT, end=False), frame(CONT, end=False)),
}


@pytest.mark.parametrize("kind", FLOODS)
async def test_stops_reading_a_flood_of_frames(own: str, kind: str) -> None:
    """Each takes its time from everybody else, though it is no message."""
    begin, more = FLOODS[kind]
    closing = struct.pack("!H", 4029)
    assert closing in await spoken(own, begin + more * (MAX_FRAMES_PER_S + 1000), closing)
    await require_alive(own, kind)


async def test_pongs_for_a_non_reading_client_are_not_buffered() -> None:
    """Their pongs would wait behind each other, without an end."""
    written: list[int] = []

    class Watched(WebSocketProtocol):
        max_frames_per_s = 1_000_000

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            written.append(self._transport.get_write_buffer_size())

    pings = frame(PING, b"x" * 125) * 500
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(websocket, "WebSocketProtocol", Watched)
        async with running_server(create_app(load_settings(drain_timeout_s=0))) as url:
            where = urlsplit(url)
            reader, writer = await asyncio.open_connection(where.hostname, where.port, limit=1024)
            writer.write(http(SUBSCRIBE, *UPGRADE))
            await reader.readuntil(b"\r\n\r\n")
            async with asyncio.timeout(TIMEOUT_S):
                for _ in range(200):  # 13 MB
                    writer.write(pings)
                    await writer.drain()
            await require_alive(url, "pings")
            writer.transport.abort()
    assert max(written) < 1024 * 1024
