"""Schedule the pings and acknowledgements of one connection. Pure: the clock is injected.

Both must be sent while the consumer is busy. Each driver therefore has a keepalive (a task, a
thread) that sends the texts of :meth:`Keepalive.due`. The consumer only sets attributes here. Each
attribute is written by one side only, so threads need no lock.

See PROTOCOL.md, "WebSocket" and "Clients".
"""

from __future__ import annotations

import json
from collections.abc import Callable

from ..protocol.control import PING, PING_INTERVAL_S, PONG_TIMEOUT_S

ACK_INTERVAL_S = 0.5
"""Acknowledgements are cumulative, so they are sent at this interval."""


class Keepalive:
    """The timers of one connection."""

    def __init__(self, clock: Callable[[], float], *, acknowledges: bool) -> None:
        self._clock = clock
        self._acknowledges = acknowledges
        self._next_ping_at = clock() + PING_INTERVAL_S  # written by the keepalive
        self._pings = 0  # written by the keepalive
        self._pinged_at = 0.0  # written by the keepalive
        self._pongs = 0  # written by the consumer
        self._waited_s = 0.0  # written by the consumer
        self._received: str | None = None  # written by the consumer
        self._acknowledged: str | None = None  # written by the keepalive
        self._next_ack_at = clock()  # written by the keepalive

    def acknowledge(self, cursor: str | None) -> bool:
        """Record that the consumer has received everything up to here; return whether to wake the
        keepalive.
        """
        if not self._acknowledges or cursor is None or cursor == self._received:
            return False
        waits_already = self._received != self._acknowledged
        self._received = cursor
        return not waits_already

    def due(self) -> list[str]:
        """Return the texts to send now."""
        now = self._clock()
        texts = []
        if now >= self._next_ping_at:
            self._next_ping_at = now + PING_INTERVAL_S
            if self._pings <= self._pongs:
                self._pinged_at = now
            self._pings += 1
            texts.append(PING)
        if now >= self._next_ack_at:
            texts += self.pending_ack()
        return texts

    def pending_ack(self) -> list[str]:
        """Return the acknowledgement that is still to be sent, if any."""
        cursor = self._received
        if cursor == self._acknowledged:
            return []
        self._acknowledged = cursor
        self._ack_again_later()
        return [json.dumps({"action": "ack", "cursor": cursor})]

    @property
    def _has_pending_ack(self) -> bool:
        return self._received != self._acknowledged

    def _ack_again_later(self) -> None:
        self._next_ack_at = self._clock() + ACK_INTERVAL_S

    def next_wakeup_s(self) -> float:
        """Return how long the keepalive may sleep."""
        at = self._next_ping_at
        if self._has_pending_ack:
            at = min(at, self._next_ack_at)
        return max(0.0, at - self._clock())

    def receive_timeout_s(self) -> float:
        """Return how long to wait for the next message before checking :attr:`is_dead`."""
        if self._pings > self._pongs:
            return max(0.0, PONG_TIMEOUT_S - self._waited_s)
        return max(0.0, self._next_ping_at - self._clock()) + PONG_TIMEOUT_S

    def waited(self, since: float) -> None:
        """Record that the driver was receiving from ``since`` until now.

        Only this time counts towards the pong timeout: a pong may be queued behind messages that a
        busy consumer has not let the driver read.
        """
        if self._pings > self._pongs:
            self._waited_s += self._clock() - max(since, self._pinged_at)

    def pong(self) -> None:
        self._pongs = self._pings
        self._waited_s = 0.0

    @property
    def is_dead(self) -> bool:
        return self._pings > self._pongs and self._waited_s >= PONG_TIMEOUT_S
