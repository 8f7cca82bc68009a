"""Measure the responses that peers have not read yet."""

from __future__ import annotations

import asyncio
from typing import Protocol

CHECK_INTERVAL_S = 0.5


class Writer(Protocol):
    """A connection that writes responses."""

    def charge_unread(self) -> bool:
        """Charge the bytes that the peer has not read yet. Return False if there are none."""
        ...


class Unread:
    """Polls how much of each connection's responses is unread, until everything was read.

    Polling is needed because no event reports that the kernel's send buffer has become empty. A
    peer may leave a response in it for as long as a connection may be idle.
    """

    def __init__(self) -> None:
        self._writers: set[Writer] = set()
        self._timer: asyncio.TimerHandle | None = None

    def add(self, writer: Writer) -> None:
        """Track a connection after it wrote a response, or after its peer stopped reading."""
        if writer.charge_unread():
            self._writers.add(writer)
            if self._timer is None:
                loop = asyncio.get_running_loop()
                self._timer = loop.call_later(CHECK_INTERVAL_S, self._check)

    def discard(self, writer: Writer) -> None:
        """Track a connection no longer."""
        self._writers.discard(writer)

    def close(self) -> None:
        """Stop measuring."""
        if self._timer is not None:
            self._timer.cancel()

    def _check(self) -> None:
        self._timer = None
        for writer in tuple(self._writers):
            if not writer.charge_unread():
                self._writers.discard(writer)
        if self._writers:
            self._timer = asyncio.get_running_loop().call_later(CHECK_INTERVAL_S, self._check)
