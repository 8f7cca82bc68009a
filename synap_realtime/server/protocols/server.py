"""What the connections of one server share: from the first one taken to the last one gone."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Sequence
from functools import partial

from ..listeners import BACKLOG
from ..node import Node
from ..pacing import Pacer
from ..trim import CONNECTION_BYTES, Trimmer
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
"""After draining, who does not read or sent half a request is cut after so long."""


class ConnectionServer:
    """The connections of one node."""

    def __init__(self, node: Node) -> None:
        self.node = node
        settings = node.settings
        self.half_open = PendingConnections(settings.max_pending_connections)
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
        self._taking: set[asyncio.Task[None]] = set()
        self._stop_taking: Callable[[], None] = lambda: None

    def listen(
        self, listeners: Sequence[socket.socket], certificate: ReloadingCertificate | None = None
    ) -> None:
        """Take connections from now on, of sockets that are bound: with a certificate, over TLS."""
        self.node.monitor_event_loop()
        self.node.bound_loop_errors()
        # TLS has to encrypt for each. A worker is a process of its own, and has a ring of its own.
        if certificate is None and self.node.settings.io_uring:
            self._open_ring()
        for listener in listeners:
            bound_buffers(listener)
            listener.listen(BACKLOG)
        self._trimmer.start()
        take = (
            self._take
            if certificate is None
            else TlsAcceptor(self, certificate, self._connection).accept
        )
        self._stop_taking = Acceptor(listeners, take).close

    def _take(self, peer: socket.socket) -> None:
        task = asyncio.get_running_loop().create_task(self._connect(peer))
        self._taking.add(task)
        task.add_done_callback(self._taking.discard)

    async def _connect(self, peer: socket.socket) -> None:
        try:
            await asyncio.get_running_loop().connect_accepted_socket(self._connection, peer)
        except OSError as error:  # it has gone
            peer.close()
            logger.debug("a connection could not be taken: %s", error)

    def _open_ring(self) -> None:
        try:
            self._ring = IoUring()
        except IoUringUnavailableError as error:
            logger.debug("rooms with many listeners are told without io_uring: %s", error)
        else:
            self.create_group = partial(SocketFanoutGroup, self._ring, self.write_batch)
            logger.debug("rooms with many listeners are told by io_uring")

    def _held_bytes(self) -> int:
        """What peers make this process hold, about."""
        return self.node.budgets.total() + CONNECTION_BYTES * len(self.connections)

    def _connection(self) -> Http1Protocol:
        return Http1Protocol(self)

    async def stop(self) -> None:
        """Drain; answer what was begun, then take nothing more and let go of the store."""
        await self.node.drain()
        self._stop_taking()
        self.write_batch.flush()
        for connection in tuple(self.connections):
            connection.shutdown()
        loop = asyncio.get_running_loop()
        end = loop.time() + SHUTDOWN_GRACE_S
        while self.connections and loop.time() < end:  # noqa: ASYNC110 - a few looks
            await asyncio.sleep(0.02)
        for connection in tuple(self.connections):
            connection.abort()
        self.half_open.close()
        self.unread.close()
        self._trimmer.close()
        self.keepalive.close()
        await asyncio.sleep(0)  # their ends are heard
        await self.node.close()
        if self._ring is not None:
            self._ring.close()
