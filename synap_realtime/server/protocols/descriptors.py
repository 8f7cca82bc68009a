"""Sockets that are written to past their transport, while nothing waits in it.

This is what it would do, without its own part of it.
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
"""About so much of what a peer does not take stays in the system's buffer; by default it is 4 MiB
for each socket."""

_RESET = struct.pack("ii", 1, 0)  # struct linger: on, for 0 s
_NOTSENT_LOWAT = getattr(sockets, "TCP_NOTSENT_LOWAT", 0x201 if sys.platform == "darwin" else None)


def bound_buffers(listener: sockets.socket) -> None:
    """Bound what the system keeps for a peer that does not read; who is accepted inherits it.

    See tcp(7), ``TCP_NOTSENT_LOWAT``. What is on its way is not bounded by it, so a fast peer is
    as fast as ever.
    """
    if _NOTSENT_LOWAT is not None:
        with contextlib.suppress(OSError):  # an older kernel: memory is what it was
            listener.setsockopt(sockets.IPPROTO_TCP, _NOTSENT_LOWAT, MAX_UNSENT_BYTES)


def unsent_bytes(transport: asyncio.Transport) -> int:
    """What the system's buffer holds and the peer has not taken; 0 where the system does not say.

    See tcp(7), ``SIOCOUTQ``.
    """
    if sys.platform != "linux":
        return 0
    socket: Any = transport.get_extra_info("socket")
    try:
        held = fcntl.ioctl(socket.fileno(), termios.TIOCOUTQ, bytes(4))
    except (AttributeError, OSError, ValueError):  # it is no socket, or closed
        return 0
    size: int = struct.unpack("i", held)[0]
    return size


def reset(transport: asyncio.Transport) -> None:
    """End a connection now, with all that the system holds for it.

    A socket that is closed with bytes unsent stays in the system for minutes, as long as its peer
    does not take them: nobody would get that memory back. So such a one is reset.
    """
    if not transport.is_closing() and unsent_bytes(transport):
        socket: Any = transport.get_extra_info("socket")
        with contextlib.suppress(OSError):
            socket.setsockopt(sockets.SOL_SOCKET, sockets.SO_LINGER, _RESET)
    transport.abort()


def raw_fd(transport: asyncio.Transport) -> int | None:
    """Of its socket, if what is written there is what the peer gets."""
    socket = transport.get_extra_info("socket")
    if socket is None or os.name != "posix" or transport.get_extra_info("ssl_object") is not None:
        return None
    descriptor: int = socket.fileno()
    return descriptor


def write_direct(transport: asyncio.Transport, descriptor: int, data: bytes) -> bool:
    """Write as much as the peer takes now; the transport gets the rest.

    Args:
        transport: one that is not closing, in which nothing waits.

    Returns:
        False: the peer has gone.
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
