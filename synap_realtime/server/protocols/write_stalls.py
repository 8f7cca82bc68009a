"""Abort connections whose client stops reading a response, so that it cannot pin memory."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

READER_TIMEOUT_S = 20.0
"""Time between two checks of a pending response."""

MIN_READ_BYTES = 64 * 1024
"""A peer must read at least this much of a pending response in each ``READER_TIMEOUT_S``."""


class WriteStallGuard:
    """Watches the progress of one peer while a response is pending."""

    __slots__ = ("_left", "_timer")

    def __init__(self) -> None:
        self._timer: asyncio.TimerHandle | None = None
        self._left = 0

    def watch(self, transport: asyncio.Transport, on_stall: Callable[[], None]) -> None:
        """Start watching.

        Args:
            transport: the connection whose write buffer is watched.
            on_stall: called once if the peer reads too slowly.
        """
        self._left = transport.get_write_buffer_size()
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(READER_TIMEOUT_S, self._check, transport, on_stall)

    def stop(self) -> None:
        """Stop watching: the response was read, or the connection has ended."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _check(self, transport: asyncio.Transport, on_stall: Callable[[], None]) -> None:
        if transport.get_write_buffer_size() > self._left - MIN_READ_BYTES:
            on_stall()
        else:
            self.watch(transport, on_stall)
