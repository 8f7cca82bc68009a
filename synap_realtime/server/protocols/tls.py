"""Connections over TLS, until their handshake is done."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Callable
from typing import Protocol

from .certificate import ReloadingCertificate
from .pending_connections import Closable, PendingConnections

logger = logging.getLogger(__name__)

HANDSHAKE_TIMEOUT_S = 10.0
"""Who connects has so long to come to the end of the handshake."""

SHUTDOWN_TIMEOUT_S = 5.0
"""And so long to say goodbye, when the server has (RFC 8446, section 6.1)."""


class TlsServerState(Protocol):
    """What the connections of one server share."""

    half_open: PendingConnections
    connections: set[Closable]


class TlsAcceptor:
    """Takes connections, and hands on those that come through.

    The loop's own server would keep its peers to itself until they have shaken hands: none could be
    cut to make room for another, and all would see the same certificate.
    """

    def __init__(
        self,
        owner: TlsServerState,
        certificate: ReloadingCertificate,
        then: Callable[[], asyncio.Protocol],
    ) -> None:
        """
        Args:
            then: makes the protocol of a connection; it is called when that has been taken.
        """
        self._owner = owner
        self._certificate = certificate
        self._next = then
        self._tasks: set[asyncio.Task[None]] = set()

    def accept(self, peer: socket.socket) -> None:
        """See :class:`accepting.Acceptor`."""
        task = asyncio.get_running_loop().create_task(self._handshake(peer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _handshake(self, peer: socket.socket) -> None:
        stranger = _PendingTls(peer)
        self._owner.connections.add(stranger)
        self._owner.half_open.add(stranger, HANDSHAKE_TIMEOUT_S)
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                self._next,
                peer,
                ssl=self._certificate.context(),
                ssl_handshake_timeout=HANDSHAKE_TIMEOUT_S,
                ssl_shutdown_timeout=SHUTDOWN_TIMEOUT_S,
            )
        except OSError as error:
            logger.debug("a TLS handshake failed: %s", error)
        finally:
            self._owner.half_open.remove(stranger)
            self._owner.connections.discard(stranger)


class _PendingTls:
    """Who has connected, and no more than that."""

    def __init__(self, peer: socket.socket) -> None:
        self._peer = peer

    def abort(self) -> None:
        """Cut the connection: its transport reads that it has ended, and lets go of it."""
        with contextlib.suppress(OSError):  # it has gone
            self._peer.shutdown(socket.SHUT_RDWR)

    def shutdown(self) -> None:
        """The server stops: nothing was asked yet."""
        self.abort()
