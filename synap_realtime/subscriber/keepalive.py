"""What one connection says on its own: pings and acknowledgements. Pure: the clock is handed in.

Both must go out while the consumer is busy, so each shell has a keeper (a task, a thread) that
sends what :meth:`Keepalive.due` gives. The consumer's side only leaves word here. Each attribute
is written by one of the two, so threads need no lock.

See PROTOCOL.md, "WebSocket" and "Clients".
"""

from __future__ import annotations

import json
from collections.abc import Callable

from ..protocol.control import PING, PING_INTERVAL_S, PONG_TIMEOUT_S

ACK_INTERVAL_S = 0.5
"""Acknowledgements are cumulative: one now and then says as much as one each."""


class Keepalive:
    """The timers of one connection."""

    def __init__(self, clock: Callable[[], float], *, acknowledges: bool) -> None:
        self._clock = clock
        self._acknowledges = acknowledges
        self._next_ping_at = clock() + PING_INTERVAL_S  # the keeper's
        self._pings = 0  # the keeper's
        self._pinged_at = 0.0  # the keeper's
        self._pongs = 0  # the consumer's
        self._waited_s = 0.0  # the consumer's
        self._received: str | None = None  # the consumer's
        self._acknowledged: str | None = None  # the keeper's
        self._next_ack_at = clock()  # the keeper's

    def acknowledge(self, cursor: str | None) -> bool:
        """The consumer has received everything up to here; tells whether to wake the keeper."""
        if not self._acknowledges or cursor is None or cursor == self._received:
            return False
        waits_already = self._received != self._acknowledged
        self._received = cursor
        return not waits_already

    def due(self) -> list[str]:
        """The texts to send now."""
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
        """The acknowledgement that is still to be sent, if any."""
        cursor = self._received
        if cursor == self._acknowledged:
            return []
        self._acknowledged = cursor
        self._next_ack_at = self._clock() + ACK_INTERVAL_S
        return [json.dumps({"action": "ack", "cursor": cursor})]

    def next_wakeup_s(self) -> float:
        """How long the keeper may sleep."""
        at = self._next_ping_at
        if self._received != self._acknowledged:
            at = min(at, self._next_ack_at)
        return max(0.0, at - self._clock())

    def receive_timeout_s(self) -> float:
        """How long to wait for the next message before asking :attr:`is_dead`."""
        if self._pings > self._pongs:
            return max(0.0, PONG_TIMEOUT_S - self._waited_s)
        return max(0.0, self._next_ping_at - self._clock()) + PONG_TIMEOUT_S

    def waited(self, since: float) -> None:
        """We listened from ``since`` until now.

        Only such time counts against the peer: a pong may stand behind messages that a busy
        consumer has not let us read.
        """
        if self._pings > self._pongs:
            self._waited_s += self._clock() - max(since, self._pinged_at)

    def pong(self) -> None:
        self._pongs = self._pings
        self._waited_s = 0.0

    @property
    def is_dead(self) -> bool:
        return self._pings > self._pongs and self._waited_s >= PONG_TIMEOUT_S
