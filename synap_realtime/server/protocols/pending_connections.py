"""Bound the number and the age of connections that wait for their peer."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from typing import Protocol

CHECK_INTERVAL_S = 1.0


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
            self._timer = self._loop.call_later(CHECK_INTERVAL_S, self._check)

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
            self._timer = self._loop.call_later(CHECK_INTERVAL_S, self._check)
