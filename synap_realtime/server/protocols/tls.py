"""Accept TLS connections and bound their handshakes."""

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
"""Time for a client to complete the handshake."""

SHUTDOWN_TIMEOUT_S = 5.0
"""Time for a client to answer the server's closure alert (RFC 8446, section 6.1)."""


class TlsServerState(Protocol):
    """The part of the shared state of a server's connections that TLS needs."""

    pending_connections: PendingConnections
    connections: set[Closable]


class TlsAcceptor:
    """Performs the TLS handshake of new connections.

    The event loop's own server hides connections until their handshake is complete, so that none
    could be aborted to admit another, and it cannot replace its certificate.
    """

    def __init__(
        self,
        owner: TlsServerState,
        certificate: ReloadingCertificate,
        create_protocol: Callable[[], asyncio.Protocol],
    ) -> None:
        """
        Args:
            owner: tracks the connections whose handshake is not complete.
            certificate: the certificate for new handshakes.
            create_protocol: called for each accepted connection.
        """
        self._owner = owner
        self._certificate = certificate
        self._create_protocol = create_protocol
        self._tasks: set[asyncio.Task[None]] = set()

    def accept(self, peer: socket.socket) -> None:
        """See :class:`accepting.Acceptor`."""
        task = asyncio.get_running_loop().create_task(self._handshake(peer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _handshake(self, peer: socket.socket) -> None:
        pending = _PendingTls(peer)
        self._owner.connections.add(pending)
        self._owner.pending_connections.add(pending, HANDSHAKE_TIMEOUT_S)
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                self._create_protocol,
                peer,
                ssl=self._certificate.context(),
                ssl_handshake_timeout=HANDSHAKE_TIMEOUT_S,
                ssl_shutdown_timeout=SHUTDOWN_TIMEOUT_S,
            )
        except OSError as error:
            logger.debug("TLS handshake failed: %s", error)
        finally:
            self._owner.pending_connections.remove(pending)
            self._owner.connections.discard(pending)


class _PendingTls:
    """A connection whose TLS handshake is not complete."""

    def __init__(self, peer: socket.socket) -> None:
        self._peer = peer

    def abort(self) -> None:
        """Close immediately: the transport reads the end of the stream and closes the socket."""
        with contextlib.suppress(OSError):  # closed already
            self._peer.shutdown(socket.SHUT_RDWR)

    def shutdown(self) -> None:
        """Close immediately, as no request was sent yet. The server stops."""
        self.abort()
