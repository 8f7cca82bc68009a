"""Sockets that are written to past their transport, while nothing waits in it.

This is what it would do, without its own part of it.
"""

from __future__ import annotations

import asyncio
import os


def descriptor_of(transport: asyncio.Transport) -> int | None:
    """Of its socket, if what is written there is what the peer gets."""
    socket = transport.get_extra_info("socket")
    if socket is None or os.name != "posix" or transport.get_extra_info("ssl_object") is not None:
        return None
    descriptor: int = socket.fileno()
    return descriptor


def write_past(transport: asyncio.Transport, descriptor: int, data: bytes) -> bool:
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
        transport.write(data[sent:])
    return True
