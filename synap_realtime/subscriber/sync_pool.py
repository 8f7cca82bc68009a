"""The synchronous driver of subscriptions that share connections: one thread for each connection.

All threads of the process share it. The thread ends with the last subscription.
"""

from __future__ import annotations

import os
import queue
import random
import threading
import time
from collections.abc import Generator

from ..protocol.notification import Notification
from . import connect, core
from .options import Options
from .pool import Pool
from .rooms import OneRoomOnlyError
from .shared import ConnectionOptions, SharedConnection
from .shared_subscription import Queued, SharedSubscription
from .sync_connection import SyncSocket


def notifications(options: Options) -> Generator[Notification, None, None]:
    """Subscribe to a room over a connection that others in this process share.

    Raises:
        OneRoomOnlyError: the server has no such connections.
    """
    pool = _pool_of_process()
    arrived: queue.SimpleQueue[Queued] = queue.SimpleQueue()
    member = SharedSubscription(options, arrived.put, time.monotonic, random.random)
    connection = pool.add(member)
    if connection is None:
        raise OneRoomOnlyError({options.room: options.after})
    try:
        while True:
            item = arrived.get()
            match item.content:
                case Notification() as notification:
                    yield notification
                case core.Notify(function, value):
                    if function is not None:
                        function(value)
                case None:
                    positions = {options.room: member.progress.after}
                    raise OneRoomOnlyError(positions, connection.token)
                case error:
                    raise error
            connection.on_processed(member, item)
    finally:
        connection.remove(member)


class _ProcessPool:
    """The connections of this process.

    Attributes:
        lock: for everything that is shared by the threads.
        pool: the connections.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.pool: Pool[_PooledConnection] = Pool(time.monotonic)

    def add(self, member: SharedSubscription) -> _PooledConnection | None:
        """Return the connection of a subscription; None if it needs one of its own."""
        with self.lock:
            if not self.pool.can_share(member.options):
                return None
            connection = self.pool.find(
                member.options, lambda common: _PooledConnection(common, self)
            )
            connection.shared.add(member)
            connection.wake()
            if connection.thread.ident is None:
                connection.thread.start()
            return connection


_pools: dict[int, _ProcessPool] = {}


def _pool_of_process() -> _ProcessPool:
    """Return the pool of this process: a forked one has none of the threads."""
    return _pools.setdefault(os.getpid(), _ProcessPool())


class _PooledConnection:
    """One connection, and the thread that receives on it."""

    def __init__(self, options: ConnectionOptions, process: _ProcessPool) -> None:
        self.shared = SharedConnection(options, time.monotonic, random.random)
        self.thread = threading.Thread(target=self._run, name="synap-subscriber", daemon=True)
        self._process = process
        self._connection = SyncSocket(options)
        self._is_over = threading.Event()

    @property
    def token(self) -> str | None:
        """The token that was sent last."""
        return self._connection.token

    def on_processed(self, member: SharedSubscription, item: Queued) -> None:
        with self._process.lock:
            self.shared.on_processed(member, item)
            self.wake()

    def remove(self, member: SharedSubscription) -> None:
        """Unsubscribe. After the last subscription, the connection is closed."""
        with self._process.lock:
            self.shared.remove(member)
            self.wake()
            if not self.shared.is_empty:
                return
            self._process.pool.remove(self)
            self._is_over.set()
        if self._connection.disconnect():
            self.thread.join(2 * connect.CLOSE_TIMEOUT_S)

    def wake(self) -> None:
        """Let the keepalive send what is due."""
        if self.shared.take_due():
            self._connection.wake.set()

    def _run(self) -> None:
        try:
            self._execute(self.shared.run())
        except Exception as error:  # noqa: BLE001 - raised by each consumer
            with self._process.lock:
                self._process.pool.remove(self)
                self.shared.end(error)
        finally:
            self._connection.disconnect()

    def _execute(self, steps: core.Steps) -> None:
        answer: core.EffectResult = None
        connection = self._connection
        while not self._is_over.is_set():
            with self._process.lock:
                try:
                    step = steps.send(answer)
                except StopIteration:
                    self._process.pool.remove(self)
                    if self.shared.was_refused:
                        self._process.pool.refuse(self.shared.options)
                    return
                self.wake()
            answer = None
            match step:
                case core.Connect(after):
                    answer = connection.connect(after)
                case core.StartKeepalive(keepalive):
                    connection.keep(keepalive)
                case core.Receive(timeout_s):
                    answer = connection.receive(timeout_s)
                case core.RenewToken():
                    answer = connection.renew_token()
                case core.Disconnect():
                    connection.disconnect()
                case core.Sleep(delay_s):
                    self._is_over.wait(delay_s)
