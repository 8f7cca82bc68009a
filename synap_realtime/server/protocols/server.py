"""Accept, serve and shut down the connections of one server."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Sequence
from functools import partial

from ..app import Node
from ..listeners import BACKLOG
from ..resources.pacing import Pacer
from ..resources.trim import CONNECTION_BYTES, Trimmer
from .accepting import Acceptor
from .certificate import ReloadingCertificate
from .descriptors import bound_buffers
from .fanout import SocketFanoutGroup
from .http1 import Http1Protocol
from .io_uring import IoUring, IoUringUnavailableError
from .keepalive import IdleTimeouts
from .pending_connections import Closable, PendingConnections
from .proxies import TrustedProxies
from .tls import TlsAcceptor
from .unread import Unread
from .writes import WriteBatch

logger = logging.getLogger(__name__)

SHUTDOWN_GRACE_S = 3.0
"""After draining, connections that do not read, or whose request is incomplete, are aborted after
this time."""


class ConnectionServer:
    """Serves the connections of one node, and holds what they share."""

    def __init__(self, node: Node) -> None:
        self.node = node
        settings = node.settings
        self.pending_connections = PendingConnections(settings.max_pending_connections)
        self.request_bytes = node.budgets.requests
        self.answer_bytes = node.budgets.answers
        self.unread = Unread()
        self._trimmer = Trimmer(self._held_bytes)
        self.keepalive = IdleTimeouts(settings.idle_timeout_s, settings.ping_interval_s)
        self.proxies = TrustedProxies(settings.trusted_proxies)
        self.connections: set[Closable] = set()
        self.write_batch = WriteBatch()
        self.pacer = Pacer()
        self._ring: IoUring | None = None
        self.create_group: Callable[[], SocketFanoutGroup] = partial(
            SocketFanoutGroup, None, self.write_batch
        )
        self._connecting: set[asyncio.Task[None]] = set()
        self._stop_accepting: Callable[[], None] = lambda: None

    def listen(
        self, listeners: Sequence[socket.socket], certificate: ReloadingCertificate | None = None
    ) -> None:
        """Accept connections.

        Args:
            listeners: bound sockets.
            certificate: for TLS; None serves plain HTTP.
        """
        self.node.monitor_event_loop()
        self.node.bound_loop_errors()
        # With TLS every socket has its own ciphertext, so sockets cannot share a write.
        if certificate is None and self.node.settings.io_uring:
            self._open_ring()
        for listener in listeners:
            bound_buffers(listener)
            listener.listen(BACKLOG)
        self._trimmer.start()
        on_connection = (
            self._accept
            if certificate is None
            else TlsAcceptor(self, certificate, self._connection).accept
        )
        self._stop_accepting = Acceptor(listeners, on_connection).close

    def _accept(self, peer: socket.socket) -> None:
        task = asyncio.get_running_loop().create_task(self._connect(peer))
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)

    async def _connect(self, peer: socket.socket) -> None:
        try:
            await asyncio.get_running_loop().connect_accepted_socket(self._connection, peer)
        except OSError as error:  # the peer has closed the connection
            peer.close()
            logger.debug("accepting a connection failed: %s", error)

    def _open_ring(self) -> None:
        try:
            self._ring = IoUring()
        except IoUringUnavailableError as error:
            logger.debug("fan-out: io_uring unavailable: %s", error)
        else:
            self.create_group = partial(SocketFanoutGroup, self._ring, self.write_batch)
            logger.debug("fan-out: io_uring available")

    def _held_bytes(self) -> int:
        """Return about how many bytes this process holds for its peers."""
        return self.node.budgets.total() + CONNECTION_BYTES * len(self.connections)

    def _connection(self) -> Http1Protocol:
        return Http1Protocol(self)

    async def stop(self) -> None:
        """Drain the node, finish the responses in progress, then close connections and store."""
        await self.node.drain()
        self._stop_accepting()
        self.write_batch.flush()
        for connection in tuple(self.connections):
            connection.shutdown()
        loop = asyncio.get_running_loop()
        end = loop.time() + SHUTDOWN_GRACE_S
        while self.connections and loop.time() < end:  # noqa: ASYNC110 - polls only during shutdown
            await asyncio.sleep(0.02)
        for connection in tuple(self.connections):
            connection.abort()
        self.pending_connections.close()
        self.unread.close()
        self._trimmer.close()
        self.keepalive.close()
        await asyncio.sleep(0)  # let connection_lost() run
        await self.node.close()
        if self._ring is not None:
            self._ring.close()
