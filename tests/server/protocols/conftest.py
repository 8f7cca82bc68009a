"""Sockets for tests of fan-out, and whether the system has io_uring."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import platform
import re
import socket
import sys
from collections.abc import Iterator

from ..conftest import Run as Run


def _has_io_uring() -> bool:
    """Whether the system gives it, as it says itself: what ours makes of it is for the tests."""
    if sys.platform != "linux" or platform.machine() not in ("x86_64", "aarch64"):
        return False
    release = tuple(map(int, re.findall(r"\d+", platform.release())[:2]))
    setup = ctypes.CDLL(None, use_errno=True).syscall
    return release >= (5, 18) and setup(425, 0, 0) < 0 and ctypes.get_errno() == errno.EFAULT


HAS_IO_URING = _has_io_uring()

WAYS = ["io_uring", "loop"] if HAS_IO_URING else ["loop"]
"""How many are written to in one go."""


@contextlib.contextmanager
def pairs(count: int) -> Iterator[tuple[list[socket.socket], list[socket.socket]]]:
    """So many connections over loopback: our ends, which do not block, and the peers'."""
    ours, peers = [], []
    with contextlib.ExitStack() as undo, socket.create_server(("127.0.0.1", 0)) as listener:
        for _ in range(count):
            peers.append(undo.enter_context(socket.create_connection(listener.getsockname())))
            ours.append(undo.enter_context(listener.accept()[0]))
            for each in (ours[-1], peers[-1]):
                each.setblocking(False)
        yield ours, peers


def drained(peer: socket.socket) -> bytes:
    """What has come."""
    parts = []
    with contextlib.suppress(BlockingIOError):
        while part := peer.recv(1 << 20):
            parts.append(part)
    return b"".join(parts)


def received(peer: socket.socket, size: int) -> bytes:
    """The next so many bytes."""
    peer.settimeout(10)
    got = bytearray()
    while len(got) < size:
        part = peer.recv(size - len(got))
        assert part, "it has ended"
        got += part
    peer.setblocking(False)
    return bytes(got)
