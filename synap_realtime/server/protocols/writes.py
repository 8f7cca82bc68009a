"""Write to sockets: coalesced in one event-loop iteration, and without the transport's overhead.

Waking an idle reader costs more than the write itself, so :class:`WriteBatch` flushes responses and
frames together at the end of the iteration.

While a transport has no pending data, its socket can be written to directly
(:func:`write_direct`). That is what the transport itself would do, without its overhead.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket as sockets
import struct
import sys
from collections import deque
from typing import Any, Protocol

if sys.platform == "linux":
    import fcntl
    import termios

MAX_BATCH_BYTES = 256 * 1024
"""A larger batch is flushed before the iteration ends."""

MAX_UNSENT_BYTES = 64 * 1024
"""About how much unsent data the kernel buffers for each socket. Its default is up to 4 MiB."""

_RESET = struct.pack("ii", 1, 0)  # struct linger: on, for 0 s
_NOTSENT_LOWAT = getattr(sockets, "TCP_NOTSENT_LOWAT", 0x201 if sys.platform == "darwin" else None)


class Socket(Protocol):
    """A socket whose writes are batched."""

    def write_now(self, data: bytes, /) -> bool:
        """Write immediately. The transport buffers what the socket does not accept.

        Returns:
            Whether the socket is writable afterwards.
        """
        ...


class WriteBatch:
    """Responses and frames of many sockets. Those of one socket keep their order.

    The first response and the first frame of an iteration are written immediately: a publisher that
    waits for its response prepares the next request in the meantime, and a subscriber of a quiet
    server does not wait for the response to be written. The others follow at the end of the
    iteration, responses first.
    """

    def __init__(self) -> None:
        self._responses: deque[tuple[Socket, bytes]] = deque()
        self._frames: deque[tuple[Socket, bytes]] = deque()
        self._bytes = 0
        self._has_responded = False  # in this iteration
        self._has_delivered = False  # in this iteration
        self._flush_scheduled = False

    def add(self, socket: Socket, frame: bytes) -> bool:
        """Write a frame now, or at the end of this event-loop iteration.

        Returns:
            False if it was written now, and the socket is not writable any more.
        """
        is_writable = True
        if self._has_delivered:
            self._frames.append((socket, frame))
            self._bytes += len(frame)
        else:
            self._has_delivered = True
            is_writable = socket.write_now(frame)
        if not self._flush_scheduled or self._bytes > MAX_BATCH_BYTES:
            self._schedule_flush()
        return is_writable

    def add_response(self, socket: Socket, response: bytes) -> None:
        """Write a response now, or at the end of this event-loop iteration before the frames."""
        if self._has_responded:
            self._responses.append((socket, response))
            self._bytes += len(response)
        else:
            self._has_responded = True
            socket.write_now(response)
        if not self._flush_scheduled or self._bytes > MAX_BATCH_BYTES:
            self._schedule_flush()

    def flush(self) -> None:
        """Write everything now, so that a later direct write follows it."""
        self._has_responded = self._has_delivered = self._flush_scheduled = False
        self._bytes = 0
        for waiting in (self._responses, self._frames):
            while waiting:
                socket, data = waiting.popleft()
                socket.write_now(data)

    def _schedule_flush(self) -> None:
        if self._bytes > MAX_BATCH_BYTES:
            self.flush()
        else:
            self._flush_scheduled = True
            asyncio.get_running_loop().call_soon(self.flush)


def bound_buffers(listener: sockets.socket) -> None:
    """Bound the kernel memory that a peer that does not read can pin.

    Accepted sockets inherit the option from their listener. See tcp(7), ``TCP_NOTSENT_LOWAT``. Data
    in flight is not counted, so throughput does not suffer.
    """
    if _NOTSENT_LOWAT is not None:
        with contextlib.suppress(OSError):  # not supported by an older kernel
            listener.setsockopt(sockets.IPPROTO_TCP, _NOTSENT_LOWAT, MAX_UNSENT_BYTES)


def unsent_bytes(transport: asyncio.Transport) -> int:
    """Return the bytes in the kernel's send buffer that the peer has not acknowledged.

    See tcp(7), ``SIOCOUTQ``. Returns 0 where the system does not report them.
    """
    if sys.platform != "linux":
        return 0
    socket: Any = transport.get_extra_info("socket")
    try:
        held = fcntl.ioctl(socket.fileno(), termios.TIOCOUTQ, bytes(4))
    except (AttributeError, OSError, ValueError):  # not a socket, or closed
        return 0
    size: int = struct.unpack("i", held)[0]
    return size


def reset(transport: asyncio.Transport) -> None:
    """Abort a connection and free its kernel buffers.

    A socket that is closed with unsent bytes stays in the kernel for minutes if its peer does not
    read them. Such a connection is reset, so that a peer cannot pin that memory.
    """
    if not transport.is_closing() and unsent_bytes(transport):
        socket: Any = transport.get_extra_info("socket")
        with contextlib.suppress(OSError):
            socket.setsockopt(sockets.SOL_SOCKET, sockets.SO_LINGER, _RESET)
    transport.abort()


def write_direct(transport: asyncio.Transport, descriptor: int, data: bytes) -> bool:
    """Write to the socket without blocking. The transport buffers the rest.

    Args:
        transport: not closing, and without pending data.
        descriptor: the socket of the transport. The peer receives what is written to it: no TLS.
        data: the bytes to write.

    Returns:
        False if the connection is closed.
    """
    try:
        sent = os.write(descriptor, data)
    except BlockingIOError:
        sent = 0
    except OSError:
        return False
    if sent != len(data):
        transport.write(memoryview(data)[sent:])
    return True
