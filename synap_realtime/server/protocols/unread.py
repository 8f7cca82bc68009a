"""Connections whose peers have not read all of their answers."""

from __future__ import annotations

import asyncio
from typing import Protocol

CHECK_INTERVAL_S = 0.5


class Writer(Protocol):
    """A connection that writes answers."""

    def charge_unread(self) -> bool:
        """Charge the bytes that its peer has not read yet. Return False if there are none."""
        ...


class Unread:
    """Measures repeatedly how much of the answers has not been read, until everything has.

    No event says that the system's send buffer is empty, and a peer may leave an answer in it for
    as long as a connection may be idle.
    """

    def __init__(self) -> None:
        self._writers: set[Writer] = set()
        self._timer: asyncio.TimerHandle | None = None

    def add(self, writer: Writer) -> None:
        """Note that an answer was written to it, or that its peer has stopped reading."""
        if writer.charge_unread():
            self._writers.add(writer)
            if self._timer is None:
                loop = asyncio.get_running_loop()
                self._timer = loop.call_later(CHECK_INTERVAL_S, self._check)

    def discard(self, writer: Writer) -> None:
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
