"""Taking connections from the system, with TLS and without."""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
from collections.abc import Callable, Sequence

logger = logging.getLogger(__name__)

RETRY_S = 1.0
"""Where the system has no descriptor or memory left, no connection is accepted for so long."""

LOG_EVERY_S = 60.0
"""While it stays so, it is logged so often."""

MAX_PER_TURN = 32
"""Many who connect at the same moment take turns with those who are there."""

RESERVE = 16
"""Descriptors that are left to the store, the key file and the certificate."""

_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class Acceptor:
    """Accepts connections of some listening sockets.

    The loop's own server logs nothing when descriptors run out, and libuv's closes the connections
    that wait. Here they wait in the system's backlog until there are descriptors again.
    """

    def __init__(
        self, listeners: Sequence[socket.socket], take: Callable[[socket.socket], None]
    ) -> None:
        """
        Args:
            listeners: they listen; the acceptor closes them.
            take: called with each connection, which does not block.
        """
        self._listeners = listeners
        self._take = take
        self._loop = asyncio.get_running_loop()
        self._most = _most_descriptors()
        self._retry: asyncio.TimerHandle | None = None
        self._logged_at = -LOG_EVERY_S
        for listener in listeners:
            listener.setblocking(False)
        self._resume()

    def close(self) -> None:
        """Accept no more."""
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
        for _ in range(MAX_PER_TURN):
            try:
                peer, _ = listener.accept()
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:  # or a peer that has gone already
                if error.errno in _EXHAUSTED:
                    self._pause(error.strerror or "out of resources")
                    return
                continue
            peer.setblocking(False)
            number = peer.fileno()
            self._take(peer)
            if number >= self._most - RESERVE:
                self._pause(f"{number} of {self._most} open files are in use")
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


def _most_descriptors() -> int:
    """Of this process; the number of a descriptor is below it."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return 1 << 31
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 1 << 31 if soft == resource.RLIM_INFINITY else soft
