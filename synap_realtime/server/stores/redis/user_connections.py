"""The connections of each user over all nodes, for the limit of a user.

A node stores how many connections a user has at it, as an absolute number: a call may be repeated.
It has one call for a user under way at a time, which asks for all connections that wait.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Any

from ...errors import StoreUnavailableError
from .keys import ALL_PARTITIONS, KeySpace, partition_of
from .scripts import COUNT_CONNECTIONS, MEMBERS

RETRY_S = 1.0
"""The pause before a number that could not be stored is stored again."""

_RETRIED = 1000  # users that are tried again at a time


class _User:
    """The connections of a user at this node.

    Attributes:
        count: how many are open.
        stored: how many of them are counted in Redis; None if that is not known.
        waiting: connections that wait to be counted.
        most: the limit over all nodes.
        is_calling: whether a call is under way.
        is_outdated: whether Redis may have lost what that call stores.
    """

    __slots__ = ("count", "is_calling", "is_outdated", "most", "stored", "waiting")

    def __init__(self) -> None:
        self.count = 0
        self.stored: int | None = 0
        self.waiting: list[asyncio.Future[bool]] = []
        self.most = 0
        self.is_calling = False
        self.is_outdated = False


class UserConnections:
    """Counts the connections of the users of this node."""

    def __init__(self, keys: KeySpace, node: str, call: Callable[..., asyncio.Future[Any]]) -> None:
        """
        Args:
            call: calls a script with keys and arguments.
        """
        self._keys = keys
        self._node = node
        self._call = call
        self._users: dict[str, _User] = {}
        self._changed: set[str] = set()  # users for whom a call is due
        self._retry_timer: asyncio.TimerHandle | None = None
        self._has_stored = False
        self._is_closed = False

    async def acquire(self, user: str, most: int) -> bool:
        found = self._users.setdefault(user, _User())
        found.most = most
        waiting: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        found.waiting.append(waiting)
        self._has_changed(user, found)
        try:
            return await waiting
        except asyncio.CancelledError:
            if not waiting.cancelled() and waiting.exception() is None and waiting.result():
                self.release(user)  # it was counted just before
            raise

    def release(self, user: str) -> None:
        if self._is_closed:
            return
        found = self._users[user]
        found.count -= 1
        self._has_changed(user, found)

    async def report_again(self, partitions: Collection[int]) -> None:
        """Store the connections of this node again.

        It never fails: what is not stored now is stored later.
        """
        if not self._has_stored:
            return
        try:
            names = await self._users_of(self._node, partitions)
        except StoreUnavailableError:
            names = []  # the next connection comes here again
        names += [name for name in self._users if partition_of(name) in partitions]
        for name in set(names):
            found = self._users.setdefault(name, _User())
            found.is_outdated = True
            self._has_changed(name, found)

    async def remove(self, node: str) -> None:
        """Remove the connections of a failed node.

        Raises:
            StoreUnavailableError: some were not removed.
        """
        names = await self._users_of(node, ALL_PARTITIONS)
        await asyncio.gather(*(self._store(name, node, 0, 0, 0) for name in names))

    async def close(self) -> None:
        """Store what has changed, and remove connections that are still open.

        Raises:
            StoreUnavailableError: some were not removed.
        """
        self._is_closed = True
        if self._retry_timer is not None:
            self._retry_timer.cancel()
        for found in self._users.values():
            for waiting in found.waiting:
                if not waiting.done():
                    waiting.set_exception(StoreUnavailableError("the store is closed"))
        self._flush()
        if self._users:
            await self.remove(self._node)

    async def _users_of(self, node: str, partitions: Collection[int]) -> list[str]:
        found = await asyncio.gather(
            *(
                self._call(MEMBERS, (self._keys.connected_users(partition, node),))
                for partition in partitions
            )
        )
        return [name.decode() for [names] in found for name in names]

    def _has_changed(self, user: str, found: _User) -> None:
        if found.is_calling:
            return  # its reply leads to the next call
        if not self._changed:
            asyncio.get_running_loop().call_soon(self._flush)
        self._changed.add(user)

    def _flush(self) -> None:
        changed, self._changed = self._changed, set()
        for name in changed:
            user = self._users[name]
            if self._is_closed:
                user.count = 0  # a call that is answered during the removal may lead here
            waiting = [each for each in user.waiting if not each.done()]
            user.waiting, user.is_calling, user.is_outdated = [], True, False
            self._has_stored = True
            reply = self._store(name, self._node, user.count, len(waiting), user.most)
            reply.add_done_callback(partial(self._has_answered, name, user.count, waiting))

    def _store(self, name: str, node: str, count: int, more: int, most: int) -> asyncio.Future[Any]:
        keys = self._keys
        return self._call(
            COUNT_CONNECTIONS,
            (keys.connected_users(partition_of(name), node), keys.user_connections(name)),
            *(node, name, count, more, most),
        )

    def _has_answered(
        self,
        name: str,
        count: int,
        waiting: Sequence[asyncio.Future[bool]],
        reply: asyncio.Future[Any],
    ) -> None:
        found = self._users[name]
        error = reply.exception()
        [more] = [0] if error else reply.result()
        found.is_calling = False
        found.stored = None if error else count + more
        for number, each in enumerate([each for each in waiting if not each.done()]):
            if error:
                each.set_exception(error)
            else:
                found.count += number < more
                each.set_result(number < more)
        if found.waiting or found.is_outdated:
            self._has_changed(name, found)
        elif found.stored is None:
            self._retry_later()
        elif found.stored != found.count:
            self._has_changed(name, found)
        elif not found.count:
            del self._users[name]

    def _retry_later(self) -> None:
        if self._retry_timer is None and not self._is_closed:
            loop = asyncio.get_running_loop()
            self._retry_timer = loop.call_later(RETRY_S, self._retry)

    def _retry(self) -> None:
        self._retry_timer = None
        unknown = [
            (name, found)
            for name, found in self._users.items()
            if found.stored is None and not found.is_calling
        ]
        for name, found in unknown[:_RETRIED]:
            self._has_changed(name, found)
        if len(unknown) > _RETRIED:
            self._retry_later()
