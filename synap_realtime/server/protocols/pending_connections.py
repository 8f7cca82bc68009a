"""Connections that wait for their peer: however many knock, so many stay, and not for long."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from typing import Protocol

CHECK_INTERVAL_S = 1.0


class Abortable(Protocol):
    """What can be cut at once."""

    def abort(self) -> None: ...


class Closable(Abortable, Protocol):
    """And what can be asked to end by itself."""

    def shutdown(self) -> None:
        """The server stops."""


class PendingConnections:
    """Sockets that wait for the end of a TLS handshake, for a request, or for the rest of one, or
    for a peer who takes its answer, or the server's close: strangers, as far as we know.

    However many knock, so many stay. Who has waited for longest goes first: a client that means it
    has sent its request long before. One look a second finds those whose time is up: a timer for
    each would cost more than all the rest of a request.
    """

    def __init__(self, most: int) -> None:
        """
        Args:
            most: 0 is no limit.
        """
        self._most = most
        self._waiting: OrderedDict[Abortable, float] = OrderedDict()
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None

    def add(self, connection: Abortable, within_s: float) -> None:
        """It waits from now on, for so long at most; it does not move up by beginning anew."""
        self._waiting[connection] = self._loop.time() + within_s
        if self._most and len(self._waiting) > self._most:
            oldest, _ = self._waiting.popitem(last=False)
            oldest.abort()
        if self._timer is None:
            self._timer = self._loop.call_later(CHECK_INTERVAL_S, self._check)

    def touch(self, connection: Abortable, within_s: float) -> None:
        """It waits anew: who has done something has not waited for longest."""
        if connection in self._waiting:
            self._waiting.move_to_end(connection)
        self.add(connection, within_s)

    def remove(self, connection: Abortable) -> None:
        self._waiting.pop(connection, None)

    def close(self) -> None:
        """The server has stopped: nobody is waited for any more."""
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
