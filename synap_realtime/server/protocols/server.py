"""Accept, serve and shut down the connections of one server."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import socket
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from typing import Any

from ..app import Node
from ..listeners import BACKLOG
from ..resources.trim import CONNECTION_BYTES, Trimmer
from .fanout import SocketFanoutGroup
from .http1 import Http1Protocol
from .io_uring import IoUring, IoUringUnavailableError
from .server_state import ServerState
from .tls import ReloadingCertificate, TlsAcceptor
from .writes import bound_buffers

logger = logging.getLogger(__name__)

SHUTDOWN_GRACE_S = 3.0
"""After draining, connections that do not read, or whose request is incomplete, are aborted after
this time."""

ACCEPT_RETRY_S = 1.0
"""Pause between attempts while the system has no descriptor or memory left."""

ACCEPT_LOG_EVERY_S = 60.0
"""Time between log lines about pauses in accepting."""

MAX_ACCEPTED_PER_ITERATION = 32
"""Connections accepted in a row, so that many new ones do not delay those that are open."""

RESERVED_DESCRIPTORS = 16
"""Descriptors that are kept free for the store, the key file and the certificate."""

_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class ConnectionServer:
    """Accepts, serves and shuts down the connections of one node."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.state = ServerState(node)
        self._trimmer = Trimmer(self._held_bytes)
        self._ring: IoUring | None = None
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
            else TlsAcceptor(
                self.state.pending_connections,
                self.state.connections,
                certificate,
                partial(Http1Protocol, self.state),
            ).accept
        )
        self._stop_accepting = Acceptor(listeners, on_connection).close

    def _accept(self, peer: socket.socket) -> None:
        descriptor = peer.fileno() if os.name == "posix" else None
        create_protocol = partial(Http1Protocol, self.state, descriptor)
        connecting = asyncio.get_running_loop().connect_accepted_socket(create_protocol, peer)
        try:
            # Without a task: the coroutine waits once, until the protocol has its transport.
            connected = connecting.send(None)
        except OSError as error:  # the peer has closed the connection
            peer.close()
            logger.debug("accepting a connection failed: %s", error)
        else:
            connected.add_done_callback(partial(_finish, connecting))

    def _open_ring(self) -> None:
        try:
            self._ring = IoUring()
        except IoUringUnavailableError as error:
            logger.debug("fan-out: io_uring unavailable: %s", error)
        else:
            write_batch = self.state.write_batch
            self.state.create_group = partial(SocketFanoutGroup, self._ring, write_batch)
            logger.debug("fan-out: io_uring available")

    def _held_bytes(self) -> int:
        """Return about how many bytes this process holds for its peers."""
        return self.node.budgets.total() + CONNECTION_BYTES * len(self.state.connections)

    async def stop(self) -> None:
        """Drain the node, finish the responses in progress, then close connections and store."""
        await self.node.drain()
        self._stop_accepting()
        self.state.write_batch.flush()
        connections = self.state.connections
        for connection in tuple(connections):
            connection.shutdown()
        loop = asyncio.get_running_loop()
        end = loop.time() + SHUTDOWN_GRACE_S
        while connections and loop.time() < end:  # noqa: ASYNC110 - polls only during shutdown
            await asyncio.sleep(0.02)
        for connection in tuple(connections):
            connection.abort()
        self.state.close()
        self._trimmer.close()
        await asyncio.sleep(0)  # let connection_lost() run
        await self.node.close()
        if self._ring is not None:
            self._ring.close()


def _finish(connecting: Coroutine[Any, Any, object], _: asyncio.Future[None]) -> None:
    with contextlib.suppress(StopIteration):
        connecting.send(None)


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
            on_connection: called with the socket of each connection.
        """
        self._listeners = listeners
        self._on_connection = on_connection
        self._loop = asyncio.get_running_loop()
        self._max_descriptors = _max_descriptors()
        self._retry: asyncio.TimerHandle | None = None
        self._logged_at = -ACCEPT_LOG_EVERY_S
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
        for _ in range(MAX_ACCEPTED_PER_ITERATION):
            try:
                peer, _ = listener.accept()
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:  # including a peer that has closed already
                if error.errno in _EXHAUSTED:
                    self._pause(error.strerror or "out of resources")
                    return
                continue
            number = peer.fileno()
            self._on_connection(peer)
            if number >= self._max_descriptors - RESERVED_DESCRIPTORS:
                self._pause(f"{number} of {self._max_descriptors} open files are in use")
                return

    def _pause(self, cause: str) -> None:
        if self._retry is not None:
            return
        self._stop()
        self._retry = self._loop.call_later(ACCEPT_RETRY_S, self._resume)
        now = self._loop.time()
        if now - self._logged_at >= ACCEPT_LOG_EVERY_S:
            self._logged_at = now
            logger.error(
                "accepting connections paused: %s; trying again every %g s. Raise the limit of "
                "open files (ulimit -n, LimitNOFILE=), or lower --max-connections",
                cause,
                ACCEPT_RETRY_S,
            )


def _max_descriptors() -> int:
    """Return this process's limit of open files. Every descriptor is below it."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return 1 << 31
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 1 << 31 if soft == resource.RLIM_INFINITY else soft
