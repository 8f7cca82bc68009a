"""Idle timeouts: when a peer is pinged, and when it is closed."""

from __future__ import annotations

import asyncio
import struct
import time
from dataclasses import dataclass, field

import pytest

from synap_realtime.server import create_app, deadlines
from synap_realtime.server.config.settings import load_settings
from synap_realtime.server.deadlines import IdleTimeouts
from synap_realtime.server.serve import running_server
from tests.support.timeouts import TIMEOUT_S

PING, PONG, CLOSE = 0x89, 0x8A, 0x88


@dataclass(eq=False)
class Peer:
    """A connection of nobody.

    Attributes:
        times: of its pings, and of its end.
    """

    pings: list[float] = field(default_factory=list)
    ended_at: float | None = None
    is_silent: asyncio.Event = field(default_factory=asyncio.Event)
    is_pinged: asyncio.Event = field(default_factory=asyncio.Event)

    def ping(self) -> None:
        self.pings.append(asyncio.get_running_loop().time())
        self.is_pinged.set()

    def on_idle(self) -> None:
        self.ended_at = asyncio.get_running_loop().time()
        self.is_silent.set()


async def test_pings_a_quiet_peer_once_and_closes_it_after_the_idle_timeout() -> None:
    watch, peer = IdleTimeouts(0.6, 0.1), Peer()
    begun = asyncio.get_running_loop().time()
    watch.touch(peer)
    async with asyncio.timeout(TIMEOUT_S):
        await peer.is_silent.wait()
    assert len(peer.pings) == 1
    assert peer.pings[0] - begun >= 0.1
    assert peer.ended_at is not None
    assert peer.ended_at - begun >= 0.6
    watch.close()


async def test_keeps_a_peer_that_answers_each_ping() -> None:
    watch, peer = IdleTimeouts(0.6, 0.1), Peer()
    watch.touch(peer)
    async with asyncio.timeout(TIMEOUT_S):
        for _ in range(8):  # longer than the idle timeout
            await peer.is_pinged.wait()
            peer.is_pinged.clear()
            watch.touch(peer)
    assert peer.ended_at is None
    watch.close()


async def test_a_stalled_event_loop_closes_no_peer_before_it_can_answer_a_ping() -> None:
    watch, peer = IdleTimeouts(0.6, 0.1), Peer()
    watch.touch(peer)
    time.sleep(0.8)  # noqa: ASYNC251 - longer than the idle timeout
    async with asyncio.timeout(TIMEOUT_S):
        await peer.is_pinged.wait()
        assert peer.ended_at is None
        await peer.is_silent.wait()
    assert peer.ended_at is not None
    assert peer.ended_at - peer.pings[0] >= 0.5
    watch.close()


async def test_neither_pings_nor_closes_a_closed_connection() -> None:
    watch, gone, here = IdleTimeouts(0.3, 0.1), Peer(), Peer()
    watch.touch(gone)
    watch.touch(here)
    watch.remove(gone)
    async with asyncio.timeout(TIMEOUT_S):
        await here.is_silent.wait()
    assert (gone.pings, gone.ended_at) == ([], None)
    watch.close()


async def test_without_an_interval_closes_but_does_not_ping() -> None:
    watch, peer = IdleTimeouts(0.2, 0), Peer()
    watch.touch(peer)
    async with asyncio.timeout(TIMEOUT_S):
        await peer.is_silent.wait()
    assert peer.pings == []
    watch.close()


async def test_spreads_the_pings_of_connections_that_were_opened_together(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(deadlines, "MAX_PINGS_PER_CHECK", 10)
    watch, peers = IdleTimeouts(60, 0.1), [Peer() for _ in range(100)]
    for peer in peers:
        watch.touch(peer)
    async with asyncio.timeout(TIMEOUT_S):
        for peer in peers:
            await peer.is_pinged.wait()
    first, last = peers[0].pings[0], peers[-1].pings[0]
    assert last - first >= 9 * deadlines.IDLE_CHECK_INTERVAL_S
    watch.close()


@pytest.mark.parametrize(
    "frame",
    [bytes((PONG, 0x80, 1, 2, 3, 4)), bytes((PING, 0x80, 1, 2, 3, 4)), b"\x01\x80\1\2\3\4"],
    ids=["pong", "ping", "fragment"],
)
async def test_every_frame_counts_as_life(frame: bytes) -> None:
    """On a socket: its peer answers each ping with this frame, and stays for far longer than the
    idle timeout; then it says nothing more, and is closed."""
    first = frame
    async with running_server(create_app(load_settings(idle_timeout_s=0.45))) as url:
        reader, writer = await asyncio.open_connection("127.0.0.1", int(url.rpartition(":")[2]))
        writer.write(
            b"GET /rooms/user_1/subscribe HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\n"
            b"Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
            b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
        )
        async with asyncio.timeout(TIMEOUT_S):
            await reader.readuntil(b"\r\n\r\n")
            begun = asyncio.get_running_loop().time()
            while asyncio.get_running_loop().time() - begun < 1.5:
                opcode, size = await reader.readexactly(2)
                await reader.readexactly(size)
                assert opcode in (PING, PONG)
                if opcode == PING:
                    writer.write(frame)
                    if first[0] == 1:  # the fragments of one message
                        frame = b"\x00" + first[1:]
            while (await reader.readexactly(2))[0] != CLOSE:
                pass
            assert struct.unpack("!H", await reader.readexactly(2)) == (4009,)
        writer.close()


async def test_does_not_close_a_connection_that_closed_after_its_ping() -> None:
    watch, gone, here = IdleTimeouts(0.3, 0.1), Peer(), Peer()
    watch.touch(gone)
    watch.touch(here)
    async with asyncio.timeout(TIMEOUT_S):
        await gone.is_pinged.wait()
        watch.remove(gone)
        await here.is_silent.wait()
    assert gone.ended_at is None
    watch.close()


async def test_pings_an_idle_peer_behind_a_busy_one() -> None:
    watch, busy, quiet = IdleTimeouts(60, 0.1), Peer(), Peer()
    watch.touch(busy)
    watch.touch(quiet)
    async with asyncio.timeout(TIMEOUT_S):
        while not quiet.is_pinged.is_set():
            watch.touch(busy)
            await asyncio.sleep(0.01)
    watch.close()
