"""Keepalive of WebSockets by protocol-level pings. See PROTOCOL.md, "WebSocket"."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from typing import Protocol

CHECK_INTERVAL_S = 0.05
"""Shortest time between two checks. A check handles all connections whose time has passed."""

MAX_PINGS_PER_CHECK = 200
"""Connections that were opened together become idle together. Their pings are spread over several
checks, so that a publish never waits for thousands of pings."""


class IdleListener(Protocol):
    """A connection whose peer has to send a frame from time to time."""

    def ping(self) -> None:
        """Send a ping."""

    def on_idle(self) -> None:
        """Close the connection: the peer has sent nothing for the idle timeout."""


class IdleTimeouts:
    """Tracks the time of the last frame of each peer, with one timer for all connections.

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
        # Both hold the time of the last frame of each peer, oldest first.
        self._quiet: OrderedDict[IdleListener, float] = OrderedDict()  # not pinged since
        self._pinged: OrderedDict[IdleListener, float] = OrderedDict()  # pinged since
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None

    def touch(self, peer: IdleListener) -> None:
        """Record a frame of a peer, or add a new peer."""
        if self._pinged:
            self._pinged.pop(peer, None)
        self._quiet[peer] = self._loop.time()
        self._quiet.move_to_end(peer)
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
        for _ in range(MAX_PINGS_PER_CHECK):
            if not self._quiet:
                break
            peer, received_at = next(iter(self._quiet.items()))
            if received_at + self._ping_after_s > now:
                break
            del self._quiet[peer]
            self._pinged[peer] = received_at
            if self._pings:
                peer.ping()
        while self._pinged:
            peer, received_at = next(iter(self._pinged.items()))
            if received_at + self._idle_timeout_s > now:
                break
            del self._pinged[peer]
            peer.on_idle()
        self._schedule_check(now)

    def _schedule_check(self, now: float) -> None:
        due = [
            next(iter(waiting.values())) + after_s
            for waiting, after_s in (
                (self._quiet, self._ping_after_s),
                (self._pinged, self._idle_timeout_s),
            )
            if waiting
        ]
        if due and self._timer is None:
            self._timer = self._loop.call_later(max(CHECK_INTERVAL_S, min(due) - now), self._check)
