"""Direct access to the sockets of transports.

While a transport has no pending data, its socket can be written to directly. That is what the
transport itself would do, without its overhead.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket as sockets
import struct
import sys
from typing import Any

if sys.platform == "linux":
    import fcntl
    import termios

MAX_UNSENT_BYTES = 64 * 1024
"""About how much unsent data the kernel buffers for each socket. Its default is up to 4 MiB."""

_RESET = struct.pack("ii", 1, 0)  # struct linger: on, for 0 s
_NOTSENT_LOWAT = getattr(sockets, "TCP_NOTSENT_LOWAT", 0x201 if sys.platform == "darwin" else None)


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


def raw_fd(transport: asyncio.Transport) -> int | None:
    """Return the descriptor of the transport's socket, if the peer receives what is written to it.

    Returns None for TLS, and on systems other than POSIX.
    """
    socket = transport.get_extra_info("socket")
    if socket is None or os.name != "posix" or transport.get_extra_info("ssl_object") is not None:
        return None
    descriptor: int = socket.fileno()
    return descriptor


def write_direct(transport: asyncio.Transport, descriptor: int, data: bytes) -> bool:
    """Write to the socket without blocking. The transport buffers the rest.

    Args:
        transport: not closing, and without pending data.
        descriptor: the socket of the transport; see :func:`raw_fd`.
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
