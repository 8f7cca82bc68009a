"""The asynchronous driver of subscriptions that share connections: one task for each connection."""

from __future__ import annotations

import asyncio
import inspect
import random
import time
from collections.abc import AsyncGenerator
from weakref import WeakKeyDictionary

from ..protocol.notification import Notification
from .aio_connection import AsyncSocket
from .options import Options
from .pool import OneRoomOnlyError, Pool
from .shared import ConnectionOptions, SharedConnection
from .shared_subscription import Queued, SharedSubscription
from .steps import Notify, StepResult, Steps

_pools: WeakKeyDictionary[asyncio.AbstractEventLoop, Pool[_PooledConnection]] = WeakKeyDictionary()


async def notifications(options: Options) -> AsyncGenerator[Notification, None]:
    """Subscribe over a connection with many rooms, which others on this event loop may share.

    Raises:
        OneRoomOnlyError: the server has no such connections.
    """
    loop = asyncio.get_running_loop()
    if (pool := _pools.get(loop)) is None:
        pool = _pools[loop] = Pool(time.monotonic)
    queue: asyncio.Queue[Queued] = asyncio.Queue()
    subscription = SharedSubscription(options, queue.put_nowait, random.random)
    connection = pool.find(options, lambda common: _PooledConnection(common, pool))
    connection.add(subscription)
    try:
        while True:
            item = await queue.get()
            match item.content:
                case Notification() as notification:
                    yield notification
                case Notify(function, value):
                    if function is not None:
                        returned = function(value)
                        if inspect.isawaitable(returned):
                            await returned
                case None:
                    raise OneRoomOnlyError(subscription.positions, connection.token)
                case error:
                    raise error
            connection.on_processed(subscription, item)
    finally:
        await connection.remove(subscription)


class _PooledConnection:
    """One connection, and the task that receives on it."""

    def __init__(self, options: ConnectionOptions, pool: Pool[_PooledConnection]) -> None:
        self.shared = SharedConnection(options, time.monotonic, random.random)
        self._pool = pool
        self._socket = AsyncSocket(options)
        self._task: asyncio.Task[None] | None = None

    @property
    def token(self) -> str | None:
        """The token that was sent last."""
        return self._socket.token

    def add(self, subscription: SharedSubscription) -> None:
        self.shared.add(subscription)
        self._wake()
        if self._task is None:
            self._task = asyncio.create_task(self._run())

    async def remove(self, subscription: SharedSubscription) -> None:
        """Unsubscribe. After the last subscription, the connection is closed."""
        self.shared.remove(subscription)
        self._wake()
        if self.shared.is_empty and self._task is not None:
            self._pool.remove(self)
            self._task.cancel()
            await asyncio.wait([self._task])

    def on_processed(self, subscription: SharedSubscription, item: Queued) -> None:
        self.shared.on_processed(subscription, item)
        self._wake()

    def _wake(self) -> None:
        if self.shared.take_due():
            self._socket.wake.set()

    async def _run(self) -> None:
        try:
            await self._execute(self.shared.run())
        except Exception as error:  # noqa: BLE001 - raised by each consumer
            self._pool.remove(self)
            self.shared.end(error)
        finally:
            self._pool.remove(self)
            await self._socket.disconnect()

    async def _execute(self, steps: Steps) -> None:
        answer: StepResult = None
        while True:
            try:
                step = steps.send(answer)
            except StopIteration:
                if self.shared.was_refused:
                    self._pool.refuse(self.shared.options)
                return
            self._wake()
            answer = await self._socket.execute(step)
