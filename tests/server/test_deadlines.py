"""Deadlines of connections: when a peer is pinged, closed or aborted, and in which order."""

from __future__ import annotations

import asyncio
import struct
from collections import Counter
from dataclasses import dataclass, field

import pytest

from synap_realtime.server import create_app
from synap_realtime.server.config import load_settings
from synap_realtime.server.deadlines import (
    IDLE_CHECK_INTERVAL_S,
    MAX_PINGS_PER_CHECK,
    IdleTimeouts,
    PendingConnections,
    TimerQueue,
)
from synap_realtime.server.serve import running_server
from tests.support.clocks import VirtualTimeLoop, in_virtual_time
from tests.support.timeouts import TIMEOUT_S

PING, PONG, CLOSE = 0x89, 0x8A, 0x88
DAY_S = 86_400


# --- Timer queue ----------------------------------------------------------------------------------


class Target:
    """Records when it is called."""

    def __init__(self) -> None:
        self.is_over = False
        self.times: list[float] = []

    def on_timer(self) -> None:
        self.times.append(asyncio.get_running_loop().time())


@in_virtual_time
async def test_calls_each_target_at_its_time_in_any_order_of_scheduling() -> None:
    queue = TimerQueue()
    targets = {delay_s: Target() for delay_s in (5.0, 1.0, 3.0, 3.5, 40 * DAY_S, -1.0)}
    for delay_s, target in targets.items():
        queue.schedule(delay_s, target)
    await asyncio.sleep(50 * DAY_S)
    for delay_s, target in targets.items():
        assert target.times == [pytest.approx(max(0.0, delay_s))]


@in_virtual_time
async def test_ignores_a_finished_target_and_removes_it_in_time() -> None:
    queue, targets = TimerQueue(), [Target() for _ in range(100)]
    for target in targets:
        queue.schedule(10, target)
    for target in targets[:60]:
        target.is_over = True
        queue.discard()
    assert len(queue._heap) < 60
    await asyncio.sleep(20)
    assert [target.times for target in targets] == [[]] * 60 + [[10]] * 40


@in_virtual_time
async def test_a_target_may_schedule_itself_again() -> None:
    queue = TimerQueue()

    class Repeating(Target):
        def on_timer(self) -> None:
            super().on_timer()
            queue.schedule(2, self)

    target = Repeating()
    queue.schedule(1, target)
    await asyncio.sleep(6)
    assert target.times == [1, 3, 5]
    queue.close()
    await asyncio.sleep(6)
    assert len(target.times) == 3


# --- Pending connections --------------------------------------------------------------------------


class Connection:
    """Records when it is aborted."""

    aborted_at: float | None = None

    def abort(self) -> None:
        self.aborted_at = asyncio.get_running_loop().time()


@in_virtual_time
async def test_aborts_a_connection_at_its_deadline() -> None:
    pending, late, done = PendingConnections(0), Connection(), Connection()
    pending.add(late, 10)
    pending.add(done, 10)
    pending.remove(done)
    await asyncio.sleep(60)
    assert (late.aborted_at, done.aborted_at) == (10, None)


@in_virtual_time
async def test_sets_a_new_deadline_for_a_connection_that_is_added_again() -> None:
    pending, later, sooner = PendingConnections(0), Connection(), Connection()
    for connection in (later, sooner):
        pending.add(connection, 10)
    await asyncio.sleep(5)
    pending.add(later, 10)
    pending.add(sooner, 2)
    await asyncio.sleep(60)
    assert (later.aborted_at, sooner.aborted_at) == (15, 7)


@in_virtual_time
async def test_evicts_the_connection_that_has_been_pending_for_longest() -> None:
    """A new deadline does not change the order; :meth:`touch` does."""
    pending = PendingConnections(2)
    first, second, third, fourth = (Connection() for _ in range(4))
    pending.add(first, 10)
    pending.add(second, 10)
    pending.add(first, 20)
    pending.add(third, 10)
    assert (first.aborted_at, second.aborted_at) == (0, None)
    pending.touch(second, 10)
    pending.add(fourth, 10)
    assert (second.aborted_at, third.aborted_at, fourth.aborted_at) == (None, 0, None)
    pending.close()
    assert (second.aborted_at, fourth.aborted_at) == (0, 0)


@in_virtual_time
async def test_touching_renews_the_deadline() -> None:
    pending, connection = PendingConnections(0), Connection()
    pending.add(connection, 10)
    for _ in range(10):
        await asyncio.sleep(5)
        pending.touch(connection, 10)
    assert connection.aborted_at is None
    await asyncio.sleep(60)
    assert connection.aborted_at == 60


# --- Idle peers -----------------------------------------------------------------------------------


@dataclass(eq=False)
class Peer:
    """Records when it is pinged, and when it is closed."""

    pings: list[float] = field(default_factory=list)
    ended_at: float | None = None
    is_pinged: asyncio.Event = field(default_factory=asyncio.Event)

    def ping(self) -> None:
        self.pings.append(asyncio.get_running_loop().time())
        self.is_pinged.set()

    def on_idle(self) -> None:
        self.ended_at = self.ended_at or asyncio.get_running_loop().time()


@in_virtual_time
async def test_pings_a_quiet_peer_once_and_closes_it_after_the_idle_timeout() -> None:
    idle, peer = IdleTimeouts(60, 10), Peer()
    idle.touch(peer)
    await asyncio.sleep(3600)
    assert (peer.pings, peer.ended_at) == ([10], 60)


@in_virtual_time
async def test_keeps_a_peer_that_answers_each_ping() -> None:
    idle, peer = IdleTimeouts(60, 10), Peer()
    idle.touch(peer)
    for _ in range(100):
        await peer.is_pinged.wait()
        peer.is_pinged.clear()
        idle.touch(peer)
    assert peer.ended_at is None
    idle.close()


@in_virtual_time
async def test_neither_pings_nor_closes_a_closed_connection() -> None:
    idle, gone, here = IdleTimeouts(60, 10), Peer(), Peer()
    idle.touch(gone)
    idle.touch(here)
    idle.remove(gone)
    await asyncio.sleep(3600)
    assert (here.pings, here.ended_at) == ([10], 60)
    assert (gone.pings, gone.ended_at) == ([], None)


@in_virtual_time
async def test_does_not_close_a_connection_that_closed_after_its_ping() -> None:
    idle, gone, here = IdleTimeouts(60, 10), Peer(), Peer()
    idle.touch(gone)
    idle.touch(here)
    await gone.is_pinged.wait()
    idle.remove(gone)
    await asyncio.sleep(3600)
    assert (gone.ended_at, here.ended_at) == (None, 60)


@in_virtual_time
async def test_without_an_interval_closes_but_does_not_ping() -> None:
    idle, peer = IdleTimeouts(60, 0), Peer()
    idle.touch(peer)
    await asyncio.sleep(3600)
    assert (peer.pings, peer.ended_at) == ([], 60)


@in_virtual_time
async def test_pings_an_idle_peer_behind_a_busy_one() -> None:
    """The one that was touched first is not the one that has been idle for longest."""
    idle, busy, quiet = IdleTimeouts(60, 10), Peer(), Peer()
    idle.touch(busy)
    idle.touch(quiet)
    for _ in range(20):
        await asyncio.sleep(1)
        idle.touch(busy)
    assert (quiet.pings, busy.pings) == ([10], [])
    idle.close()


@in_virtual_time
async def test_a_frame_renews_the_idle_timeout() -> None:
    idle, peer = IdleTimeouts(60, 10), Peer()
    idle.touch(peer)
    await asyncio.sleep(59)  # pinged at 10
    idle.touch(peer)
    await asyncio.sleep(3600)
    assert (peer.pings, peer.ended_at) == ([10, 69], 119)


@in_virtual_time
async def test_a_stalled_event_loop_closes_no_peer_before_it_can_answer_a_ping() -> None:
    idle, peer = IdleTimeouts(60, 10), Peer()
    idle.touch(peer)
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualTimeLoop)
    loop.elapsed_s += 100
    await asyncio.sleep(1)
    assert (peer.pings, peer.ended_at) == ([100], None)
    await asyncio.sleep(3600)
    assert peer.ended_at == 150


@in_virtual_time
async def test_spreads_the_pings_of_connections_that_were_opened_together() -> None:
    idle, peers = IdleTimeouts(60, 10), [Peer() for _ in range(3 * MAX_PINGS_PER_CHECK)]
    for peer in peers:
        idle.touch(peer)
    await asyncio.sleep(20)
    pinged = Counter(round(peer.pings[0], 3) for peer in peers)
    assert pinged == {
        round(10 + n * IDLE_CHECK_INTERVAL_S, 3): MAX_PINGS_PER_CHECK for n in range(3)
    }
    idle.close()


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
