"""PROTOCOL.md, "WebSocket": the frames of RFC 6455, as no library sends them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from .client import Client, SlowListener, fresh_room

MASK = b"\x12\x34\x56\x78"
TEXT, PING, CLOSE, LAST = 0x1, 0x9, 0x8, 0x80


def frame(first: int, payload: bytes = b"", *, mask: bytes = MASK) -> bytes:
    """A frame of a client: RFC 6455, section 5.2.

    Args:
        first: FIN, the reserved bits and the opcode.
        mask: without one, the frame is not masked.
    """
    size, masked = len(payload), 0x80 if mask else 0
    if size < 126:
        head = bytes((first, masked | size))
    elif size < 65536:
        head = bytes((first, masked | 126)) + size.to_bytes(2, "big")
    else:
        head = bytes((first, masked | 127)) + size.to_bytes(8, "big")
    if mask:
        payload = bytes(byte ^ mask[at % 4] for at, byte in enumerate(payload))
    return head + mask + payload


VIOLATIONS = {
    "without a mask": frame(LAST | TEXT, b"ping", mask=b""),
    "a reserved bit": frame(LAST | 0x40 | TEXT, b"ping"),
    "an unknown opcode": frame(LAST | 0x3, b"ping"),
    "an unknown control opcode": frame(LAST | 0xB),
    "a ping that is a fragment": frame(PING, b"a"),
    "a ping of 126 bytes": frame(LAST | PING, b"x" * 126),
    "a message inside another": frame(TEXT, b"pi") + frame(LAST | TEXT, b"ping"),
    "a continuation of nothing": frame(LAST, b"ping"),
    "a long form of a short length": b"\x81\xfe\x00\x04" + MASK + frame(LAST | TEXT, b"ping")[6:],
    "half a close code": frame(LAST | CLOSE, b"\x03"),
    "a close code that is none": frame(LAST | CLOSE, (1005).to_bytes(2, "big")),
}


@pytest.fixture
async def socket(client: Client) -> AsyncIterator[SlowListener]:
    """A WebSocket on a room of its own."""
    made = await asyncio.to_thread(SlowListener, client, fresh_room(), None)
    yield made
    made.close()


@pytest.mark.own_frames
@pytest.mark.parametrize("sent", VIOLATIONS.values(), ids=VIOLATIONS)
async def test_1002(client: Client, socket: SlowListener, sent: bytes) -> None:
    """WebSocket: a frame that violates RFC 6455 is answered with 1002."""
    socket.send_bytes(sent)
    assert await asyncio.to_thread(socket.close_code) == 1002
    assert await client.is_well()


@pytest.mark.own_frames
@pytest.mark.parametrize(
    "sent",
    [
        frame(LAST | TEXT, b"\xff\xfe"),
        frame(LAST | TEXT, b"\xed\xa0\x80"),
        frame(TEXT, b"a\xc3") + frame(LAST, b"b"),
    ],
    ids=["bytes", "surrogate", "in fragments"],
)
async def test_1007(socket: SlowListener, sent: bytes) -> None:
    """WebSocket: text that is not UTF-8 is answered with 1007."""
    socket.send_bytes(sent)
    assert await asyncio.to_thread(socket.close_code) == 1007


@pytest.mark.own_frames  # a host may reset the connection, so that the close frame is lost
@pytest.mark.parametrize("pieces", [1, 20])
async def test_1009(socket: SlowListener, pieces: int) -> None:
    """WebSocket: a message over 64 KiB is answered with 1009, also in fragments. Close codes: 4540
    means the same."""
    part = b"x" * (80 * 1024 // pieces)
    firsts = [TEXT, *[0] * (pieces - 1)]
    firsts[-1] |= LAST
    socket.send_bytes(b"".join(frame(first, part) for first in firsts))
    assert await asyncio.to_thread(socket.close_code) in (1009, 4540)


@pytest.mark.own_frames
async def test_1009_before_the_message_arrives(socket: SlowListener) -> None:
    """WebSocket: a message over 64 KiB is answered with 1009, as soon as its length is known."""
    socket.send_bytes(bytes((LAST | TEXT, 0xFF)) + (2**40).to_bytes(8, "big") + MASK)
    assert await asyncio.to_thread(socket.close_code) == 1009


@pytest.mark.own_frames
@pytest.mark.parametrize("opcode", [PING, 0xA], ids=["pings", "pongs"])
async def test_4029(socket: SlowListener, opcode: int) -> None:
    """WebSocket: more than 1,000 frames a second, of any kind, are answered with 4029."""
    for _ in range(20):
        with contextlib.suppress(ConnectionError):
            socket.send_bytes(frame(LAST | opcode) * 1500)
    assert await asyncio.to_thread(socket.close_code) == 4029


async def test_a_frame_in_pieces_is_one_message(socket: SlowListener) -> None:
    """WebSocket: it does not matter how the bytes of a frame arrive."""
    for byte in frame(TEXT, b"pi") + frame(LAST | PING, b"!") + frame(LAST, b"ng"):
        socket.send_bytes(bytes((byte,)))
        await asyncio.sleep(0.002)  # a packet of its own
    received = await asyncio.to_thread(socket.receive_bytes, b"pong")
    assert b"\x8a\x01!" in received, "the protocol ping between the fragments"
