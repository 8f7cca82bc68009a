"""Coalesce the writes of one event-loop iteration.

Waking an idle reader costs more than the write itself, so the frames are flushed together at the
end of the iteration.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Protocol

MAX_BYTES = 256 * 1024
"""A larger batch is flushed before the iteration ends."""


class Socket(Protocol):
    """A socket whose writes are batched."""

    def write_now(self, data: bytes, /) -> object:
        """Write immediately. The transport buffers what the socket does not accept."""


class WriteBatch:
    """Frames of many sockets. The frames of one socket keep their order."""

    def __init__(self) -> None:
        self._frames: deque[tuple[Socket, bytes]] = deque()
        self._bytes = 0
        self._flush_scheduled = False

    def add(self, socket: Socket, frame: bytes) -> None:
        """Write a frame at the end of this event-loop iteration."""
        if not self._flush_scheduled:
            self._flush_scheduled = True
            asyncio.get_running_loop().call_soon(self.flush)
        self._frames.append((socket, frame))
        self._bytes += len(frame)
        if self._bytes > MAX_BYTES:
            self.flush()

    def flush(self) -> None:
        """Write all frames now, so that a later direct write follows them."""
        frames = self._frames
        self._flush_scheduled = False
        self._bytes = 0
        while frames:
            socket, frame = frames.popleft()
            socket.write_now(frame)
