"""What is written in one turn of the event loop, together at its end: answers and notifications.

Who reads falls asleep between two writes, and to wake it costs more than the write.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Protocol

MAX_BYTES = 256 * 1024
"""More than this is not kept until the turn ends."""


class Socket(Protocol):
    def write_now(self, data: bytes, /) -> object:
        """Write before anything else; what the peer does not take now goes to the transport."""


class WriteBatch:
    """Frames of many sockets, each of which gets its own in their order."""

    def __init__(self) -> None:
        self._frames: deque[tuple[Socket, bytes]] = deque()
        self._bytes = 0
        self._flush_scheduled = False

    def add(self, socket: Socket, frame: bytes) -> None:
        """Write it soon: before the loop waits for anything."""
        if not self._flush_scheduled:
            self._flush_scheduled = True
            asyncio.get_running_loop().call_soon(self.flush)
        self._frames.append((socket, frame))
        self._bytes += len(frame)
        if self._bytes > MAX_BYTES:
            self.flush()

    def flush(self) -> None:
        """Write all of it now: what is written next comes behind it."""
        frames = self._frames
        self._flush_scheduled = False
        self._bytes = 0
        while frames:
            socket, frame = frames.popleft()
            socket.write_now(frame)
