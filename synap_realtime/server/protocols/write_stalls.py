"""Who asks and takes no answer would stay for ever, with all that waits for it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

READER_TIMEOUT_S = 20.0
MIN_READ_BYTES = 64 * 1024
"""Of an answer that waits, a peer takes at least so much in each ``READER_TIMEOUT_S``."""


class WriteStallGuard:
    """One peer, while its answer waits."""

    __slots__ = ("_left", "_timer")

    def __init__(self) -> None:
        self._timer: asyncio.TimerHandle | None = None
        self._left = 0

    def watch(self, transport: asyncio.Transport, end: Callable[[], None]) -> None:
        """
        Args:
            end: called when it takes too little.
        """
        self._left = transport.get_write_buffer_size()
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(READER_TIMEOUT_S, self._check, transport, end)

    def stop(self) -> None:
        """It has taken enough, or has gone."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _check(self, transport: asyncio.Transport, end: Callable[[], None]) -> None:
        if transport.get_write_buffer_size() > self._left - MIN_READ_BYTES:
            end()
        else:
            self.watch(transport, end)
