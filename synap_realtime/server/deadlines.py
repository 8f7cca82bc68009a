"""Deadlines of connections: expiring tokens, pending and idle peers.

Each of :class:`TimerQueue`, :class:`PendingConnections` and :class:`IdleTimeouts` watches all
connections with one timer. A timer for each connection would take a tenth of the connection's
memory.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections import OrderedDict
from collections.abc import Mapping
from itertools import islice, takewhile
from typing import Protocol

PENDING_CHECK_INTERVAL_S = 1.0
"""Time between two checks of the pending connections."""

IDLE_CHECK_INTERVAL_S = 0.05
"""Shortest time between two checks for idle peers. A check handles all whose time has passed."""

MAX_PINGS_PER_CHECK = 200
"""Connections that were opened together become idle together. Their pings are spread over several
checks, so that a publish never waits for thousands of pings."""

_MAX_DELAY_S = 86_400.0  # event loops reject timers years ahead; the queue checks again after a day


class TimerTarget(Protocol):
    """An object whose :meth:`on_timer` is called once for each deadline that was scheduled."""

    is_over: bool
    """Whether the target is finished. Its deadlines are then ignored."""

    def on_timer(self) -> None: ...


class TimerQueue:
    """The deadlines of one server."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, TimerTarget]] = []
        self._order = itertools.count()  # breaks ties of equal times
        self._cancelled = 0
        self._timer: asyncio.TimerHandle | None = None

    def schedule(self, delay_s: float, target: TimerTarget) -> None:
        """Call ``target.on_timer()`` after a delay, in seconds."""
        loop = asyncio.get_running_loop()
        when = loop.time() + max(0.0, delay_s)
        is_next = not self._heap or when < self._heap[0][0]
        heapq.heappush(self._heap, (when, next(self._order), target))
        if is_next:
            self._wait(loop)

    def discard(self) -> None:
        """Note that a target is finished. Remove the finished targets once they are half of all."""
        self._cancelled += 1
        if self._cancelled > len(self._heap) // 2:
            self._cancelled = 0
            self._heap = [entry for entry in self._heap if not entry[2].is_over]
            heapq.heapify(self._heap)

    def close(self) -> None:
        """Cancel the timer, because the server has stopped."""
        if self._timer is not None:
            self._timer.cancel()
        self._heap.clear()

    def _wait(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._timer is not None:
            self._timer.cancel()
        delay_s = min(self._heap[0][0] - loop.time(), _MAX_DELAY_S)
        self._timer = loop.call_later(max(0.0, delay_s), self._check)

    def _check(self) -> None:
        self._timer = None
        loop = asyncio.get_running_loop()
        now = loop.time()
        due = []
        while self._heap and self._heap[0][0] <= now:
            due.append(heapq.heappop(self._heap)[2])
        for target in due:
            if not target.is_over:
                target.on_timer()
        if self._heap:
            self._wait(loop)


class Abortable(Protocol):
    """A connection that can be closed immediately."""

    def abort(self) -> None:
        """Close immediately, without sending pending data."""


class Closable(Abortable, Protocol):
    """A connection that can be closed gracefully."""

    def shutdown(self) -> None:
        """Close after the response that is in progress. The server stops."""


class PendingConnections:
    """Connections that wait for their peer, each with a deadline.

    A connection is pending until its peer has completed the TLS handshake, sent a whole request,
    read the response or answered the server's close. None of these peers is authenticated, so their
    number is limited: over the limit, the connection that has been pending for longest is aborted.
    Flooding the server thus displaces the flood first, as a well-behaved client sends its request
    soon after it has connected.

    Deadlines are checked once a second. A timer per connection would cost more than the rest of a
    request.
    """

    def __init__(self, max_connections: int) -> None:
        """
        Args:
            max_connections: the limit; 0 disables it.
        """
        self._max_connections = max_connections
        self._waiting: OrderedDict[Abortable, float] = OrderedDict()
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None

    def add(self, connection: Abortable, within_s: float) -> None:
        """Abort a connection unless it is removed in time.

        Adding it again sets a new deadline, but keeps its position in the order of eviction.

        Args:
            connection: the connection that waits for its peer.
            within_s: the time until it is aborted, in seconds.
        """
        self._waiting[connection] = self._loop.time() + within_s
        if self._max_connections and len(self._waiting) > self._max_connections:
            oldest, _ = self._waiting.popitem(last=False)
            oldest.abort()
        if self._timer is None:
            self._timer = self._loop.call_later(PENDING_CHECK_INTERVAL_S, self._check)

    def touch(self, connection: Abortable, within_s: float) -> None:
        """Set a new deadline and move a connection to the end of the order of eviction."""
        if connection in self._waiting:
            self._waiting.move_to_end(connection)
        self.add(connection, within_s)

    def remove(self, connection: Abortable) -> None:
        """Wait for a connection no longer. An unknown one is ignored."""
        self._waiting.pop(connection, None)

    def close(self) -> None:
        """Abort all pending connections and stop the timer."""
        if self._timer is not None:
            self._timer.cancel()
        for connection in tuple(self._waiting):
            connection.abort()
        self._waiting.clear()

    def _check(self) -> None:
        self._timer = None
        now = self._loop.time()
        for connection in [each for each, until in self._waiting.items() if until <= now]:
            del self._waiting[connection]
            connection.abort()
        if self._waiting:
            self._timer = self._loop.call_later(PENDING_CHECK_INTERVAL_S, self._check)


class IdleListener(Protocol):
    """A connection whose peer has to send a frame from time to time."""

    def ping(self) -> None:
        """Send a ping."""

    def on_idle(self) -> None:
        """Close the connection: the peer has sent nothing for the idle timeout."""


class IdleTimeouts:
    """Tracks the time of the last frame of each WebSocket. See PROTOCOL.md, "WebSocket".

    A peer that has sent nothing for the ping interval is pinged once. A compliant peer replies with
    a pong (RFC 6455, section 5.5.2), which counts as a frame.
    """

    def __init__(self, idle_timeout_s: float, ping_interval_s: float) -> None:
        """
        Args:
            idle_timeout_s: a peer that has sent nothing for this time is closed.
            ping_interval_s: a peer that has sent nothing for this time is pinged, and at the latest
                after a third of the idle timeout. 0 disables pings.
        """
        self._idle_timeout_s = idle_timeout_s
        self._ping_after_s = min(ping_interval_s or idle_timeout_s, idle_timeout_s / 3)
        self._pings = ping_interval_s > 0
        # Both hold the time at which something happens to each peer, earliest first. An ordered
        # dictionary would take twice the memory.
        self._quiet: dict[IdleListener, float] = {}  # it is pinged
        self._pinged: dict[IdleListener, float] = {}  # it is closed
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None

    def touch(self, peer: IdleListener) -> None:
        """Record a frame of a peer, or add a new peer."""
        if self._pinged:
            self._pinged.pop(peer, None)
        self._quiet.pop(peer, None)
        self._quiet[peer] = self._loop.time() + self._ping_after_s
        if self._timer is None:
            self._timer = self._loop.call_later(self._ping_after_s, self._check)

    def remove(self, peer: IdleListener) -> None:
        self._quiet.pop(peer, None)
        self._pinged.pop(peer, None)

    def close(self) -> None:
        """Stop the timer."""
        if self._timer is not None:
            self._timer.cancel()

    def _check(self) -> None:
        self._timer = None
        now = self._loop.time()
        for peer in _due(self._quiet, now, MAX_PINGS_PER_CHECK):
            if self._quiet.pop(peer, None) is None:
                continue  # removed by the ping of another one
            # Count from now: a stalled event loop pings late, and the peer still has time to reply.
            self._pinged[peer] = now + self._idle_timeout_s - self._ping_after_s
            if self._pings:
                peer.ping()
        for peer in _due(self._pinged, now):
            if self._pinged.pop(peer, None) is not None:
                peer.on_idle()
        self._schedule_check(now)

    def _schedule_check(self, now: float) -> None:
        due = [next(iter(peers.values())) for peers in (self._quiet, self._pinged) if peers]
        if due and self._timer is None:
            self._timer = self._loop.call_later(
                max(IDLE_CHECK_INTERVAL_S, min(due) - now), self._check
            )


def _due(
    peers: Mapping[IdleListener, float], now: float, most: int | None = None
) -> list[IdleListener]:
    """Return the peers whose time has come, earliest first, at most so many.

    In one pass: a search for the first item of a dictionary skips all removed ones each time.
    """
    due = takewhile(lambda item: item[1] <= now, peers.items())
    return [peer for peer, _ in islice(due, most)]
