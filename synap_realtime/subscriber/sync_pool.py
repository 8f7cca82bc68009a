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
from . import connect
from .options import Options
from .pool import OneRoomOnlyError, Pool
from .shared import ConnectionOptions, SharedConnection
from .shared_subscription import Queued, SharedSubscription
from .steps import Notify, StepResult, Steps
from .sync_connection import SyncSocket


def notifications(options: Options) -> Generator[Notification, None, None]:
    """Subscribe over a connection with many rooms, which others in this process may share.

    Raises:
        OneRoomOnlyError: the server has no such connections.
    """
    arrived: queue.SimpleQueue[Queued] = queue.SimpleQueue()
    subscription = SharedSubscription(options, arrived.put, random.random)
    connection = _pool_of_process().add(subscription)
    try:
        while True:
            item = arrived.get()
            match item.content:
                case Notification() as notification:
                    yield notification
                case Notify(function, value):
                    if function is not None:
                        function(value)
                case None:
                    raise OneRoomOnlyError(subscription.positions, connection.token)
                case error:
                    raise error
            connection.on_processed(subscription, item)
    finally:
        connection.remove(subscription)


class _ProcessPool:
    """The connections of this process.

    Attributes:
        lock: for everything that is shared by the threads.
        pool: the connections.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.pool: Pool[_PooledConnection] = Pool(time.monotonic)

    def add(self, subscription: SharedSubscription) -> _PooledConnection:
        """Subscribe on a connection, and return it. Raises what :meth:`Pool.find` does."""
        with self.lock:
            connection = self.pool.find(
                subscription.options, lambda common: _PooledConnection(common, self)
            )
            connection.shared.add(subscription)
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
        self._socket = SyncSocket(options)

    @property
    def token(self) -> str | None:
        """The token that was sent last."""
        return self._socket.token

    def on_processed(self, subscription: SharedSubscription, item: Queued) -> None:
        with self._process.lock:
            self.shared.on_processed(subscription, item)
            self.wake()

    def remove(self, subscription: SharedSubscription) -> None:
        """Unsubscribe. After the last subscription, the connection is closed."""
        with self._process.lock:
            self.shared.remove(subscription)
            self.wake()
            if not self.shared.is_empty:
                return
            self._process.pool.remove(self)
            self._socket.is_over.set()
        if self._socket.close():
            self.thread.join(2 * connect.CLOSE_TIMEOUT_S)

    def wake(self) -> None:
        """Let the keepalive send what is due."""
        if self.shared.take_due():
            self._socket.wake.set()

    def _run(self) -> None:
        try:
            self._execute(self.shared.run())
        except Exception as error:  # noqa: BLE001 - raised by each consumer
            with self._process.lock:
                self._process.pool.remove(self)
                self.shared.end(error)
        finally:
            self._socket.disconnect()

    def _execute(self, steps: Steps) -> None:
        answer: StepResult = None
        while not self._socket.is_over.is_set():
            with self._process.lock:
                try:
                    step = steps.send(answer)
                except StopIteration:
                    self._process.pool.remove(self)
                    if self.shared.was_refused:
                        self._process.pool.refuse(self.shared.options)
                    return
                self.wake()
            answer = self._socket.execute(step)
