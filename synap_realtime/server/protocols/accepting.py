"""Accept connections, with TLS and without."""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
from collections.abc import Callable, Sequence

logger = logging.getLogger(__name__)

RETRY_S = 1.0
"""Pause between attempts while the system has no descriptor or memory left."""

LOG_EVERY_S = 60.0
"""Time between log lines about that."""

MAX_PER_ITERATION = 32
"""Connections accepted in a row, so that many new ones do not delay those that are open."""

RESERVE = 16
"""Descriptors that are kept free for the store, the key file and the certificate."""

_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class Acceptor:
    """Accepts connections of some listening sockets.

    asyncio's server logs nothing when file descriptors run out, and libuv's closes the queued
    connections. This one leaves them in the kernel's accept queue until descriptors are free.
    """

    def __init__(
        self, listeners: Sequence[socket.socket], on_connection: Callable[[socket.socket], None]
    ) -> None:
        """
        Args:
            listeners: listening sockets; the acceptor closes them.
            on_connection: called with the non-blocking socket of each connection.
        """
        self._listeners = listeners
        self._on_connection = on_connection
        self._loop = asyncio.get_running_loop()
        self._max_descriptors = _max_descriptors()
        self._retry: asyncio.TimerHandle | None = None
        self._logged_at = -LOG_EVERY_S
        for listener in listeners:
            listener.setblocking(False)
        self._resume()

    def close(self) -> None:
        """Stop accepting, and close the listening sockets."""
        self._stop()
        for listener in self._listeners:
            listener.close()

    def _resume(self) -> None:
        self._retry = None
        for listener in self._listeners:
            self._loop.add_reader(listener.fileno(), self._accept, listener)

    def _stop(self) -> None:
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
            return
        for listener in self._listeners:
            self._loop.remove_reader(listener.fileno())

    def _accept(self, listener: socket.socket) -> None:
        for _ in range(MAX_PER_ITERATION):
            try:
                peer, _ = listener.accept()
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:  # including a peer that has closed already
                if error.errno in _EXHAUSTED:
                    self._pause(error.strerror or "out of resources")
                    return
                continue
            peer.setblocking(False)
            number = peer.fileno()
            self._on_connection(peer)
            if number >= self._max_descriptors - RESERVE:
                self._pause(f"{number} of {self._max_descriptors} open files are in use")
                return

    def _pause(self, cause: str) -> None:
        if self._retry is not None:
            return
        self._stop()
        self._retry = self._loop.call_later(RETRY_S, self._resume)
        now = self._loop.time()
        if now - self._logged_at >= LOG_EVERY_S:
            self._logged_at = now
            logger.error(
                "accepting connections paused: %s; trying again every %g s. Raise the limit of "
                "open files (ulimit -n, LimitNOFILE=), or lower --max-connections",
                cause,
                RETRY_S,
            )


def _max_descriptors() -> int:
    """Return this process's limit of open files. Every descriptor is below it."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return 1 << 31
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 1 << 31 if soft == resource.RLIM_INFINITY else soft
