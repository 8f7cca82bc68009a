"""The asynchronous driver of subscriptions that share connections: one task for each connection."""

from __future__ import annotations

import asyncio
import inspect
import random
import time
from collections.abc import AsyncGenerator
from weakref import WeakKeyDictionary

from ..protocol.notification import Notification
from . import core
from .aio_connection import AsyncSocket
from .options import Options
from .pool import Pool
from .rooms import OneRoomOnlyError
from .shared import ConnectionOptions, SharedConnection
from .shared_subscription import Queued, SharedSubscription

_pools: WeakKeyDictionary[asyncio.AbstractEventLoop, Pool[_PooledConnection]] = WeakKeyDictionary()


async def notifications(options: Options) -> AsyncGenerator[Notification, None]:
    """Subscribe to a room over a connection that others on this event loop share.

    Raises:
        OneRoomOnlyError: the server has no such connections.
    """
    loop = asyncio.get_running_loop()
    if (pool := _pools.get(loop)) is None:
        pool = _pools[loop] = Pool(time.monotonic)
    if not pool.can_share(options):
        raise OneRoomOnlyError({options.room: options.after})
    queue: asyncio.Queue[Queued] = asyncio.Queue()
    member = SharedSubscription(options, queue.put_nowait, time.monotonic, random.random)
    connection = pool.find(options, lambda common: _PooledConnection(common, pool))
    connection.add(member)
    try:
        while True:
            item = await queue.get()
            match item.content:
                case Notification() as notification:
                    yield notification
                case core.Notify(function, value):
                    if function is not None:
                        returned = function(value)
                        if inspect.isawaitable(returned):
                            await returned
                case None:
                    positions = {options.room: member.progress.after}
                    raise OneRoomOnlyError(positions, connection.token)
                case error:
                    raise error
            connection.on_processed(member, item)
    finally:
        await connection.remove(member)


class _PooledConnection:
    """One connection, and the task that receives on it."""

    def __init__(self, options: ConnectionOptions, pool: Pool[_PooledConnection]) -> None:
        self.shared = SharedConnection(options, time.monotonic, random.random)
        self._pool = pool
        self._connection = AsyncSocket(options)
        self._task: asyncio.Task[None] | None = None

    @property
    def token(self) -> str | None:
        """The token that was sent last."""
        return self._connection.token

    def add(self, member: SharedSubscription) -> None:
        self.shared.add(member)
        self._wake()
        if self._task is None:
            self._task = asyncio.create_task(self._run())

    async def remove(self, member: SharedSubscription) -> None:
        """Unsubscribe. After the last subscription, the connection is closed."""
        self.shared.remove(member)
        self._wake()
        if self.shared.is_empty and self._task is not None:
            self._pool.remove(self)
            self._task.cancel()
            await asyncio.wait([self._task])

    def on_processed(self, member: SharedSubscription, item: Queued) -> None:
        self.shared.on_processed(member, item)
        self._wake()

    def _wake(self) -> None:
        if self.shared.take_due():
            self._connection.wake.set()

    async def _run(self) -> None:
        try:
            await self._execute(self.shared.run())
        except Exception as error:  # noqa: BLE001 - raised by each consumer
            self._pool.remove(self)
            self.shared.end(error)
        finally:
            self._pool.remove(self)
            await self._connection.disconnect()

    async def _execute(self, steps: core.Steps) -> None:
        answer: core.EffectResult = None
        connection = self._connection
        while True:
            try:
                step = steps.send(answer)
            except StopIteration:
                if self.shared.was_refused:
                    self._pool.refuse(self.shared.options)
                return
            self._wake()
            answer = None
            match step:
                case core.Connect(after):
                    answer = await connection.connect(after)
                case core.StartKeepalive(keepalive):
                    connection.keep(keepalive)
                case core.Receive(timeout_s):
                    answer = await connection.receive(timeout_s)
                case core.RenewToken():
                    answer = await connection.renew_token()
                case core.Disconnect():
                    await connection.disconnect()
                case core.Sleep(delay_s):
                    await asyncio.sleep(delay_s)
