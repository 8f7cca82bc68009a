"""A store that several servers share, for the tests:
``--store tests.support.replicated_store:replicated``.

A stream of Valkey has what was published, in one order; each server applies it to a memory of its
own. So all have the same logs and the same offsets.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import secrets
from collections.abc import Sequence
from typing import Any

from redis.asyncio import Redis

from synap_realtime.protocol.cursor import Cursor
from synap_realtime.protocol.rooms import Room
from synap_realtime.server.errors import StoreUnavailableError
from synap_realtime.server.stores.base import (
    Page,
    Publication,
    PublishResult,
    Retention,
    StoreStats,
)
from synap_realtime.server.stores.clock import OffsetClock
from synap_realtime.server.stores.memory import MemoryStore

PORT = "TESTS_VALKEY_PORT"
_STREAM = "log"


class _Counter(OffsetClock):
    """Counts, so that all servers number the same stream alike."""

    def now(self) -> int:
        return 0

    def next(self, last: int) -> int:
        return last + 1


class _Replica(MemoryStore):
    description = "replicated store: of the tests"

    def __init__(self, retention: Retention) -> None:
        super().__init__(retention)
        self._epoch = "replicated"
        self._offset_clock = _Counter()

    async def head(self, room: Room) -> Cursor:
        return Cursor(self._epoch, self._offset)


class ReplicatedStore:
    """See the module. (What was received is known to each server for itself.)"""

    description = _Replica.description
    is_shared = True

    def __init__(self, port: int, retention: Retention) -> None:
        self._memory = _Replica(retention)
        self._redis: Any = Redis(port=port, decode_responses=True)
        self._name = secrets.token_hex(8)
        self._numbers = itertools.count()
        self._waiting: dict[str, tuple[float | None, asyncio.Future[PublishResult]]] = {}
        self._task: asyncio.Task[None] | None = None
        self._is_current = asyncio.Event()
        self._is_closed = False
        self.subscribe = self._memory.subscribe
        self.earliest = self._memory.earliest
        self.register_device = self._memory.register_device
        self.ack = self._memory.ack

    async def publish(self, publications: Sequence[Publication]) -> Sequence[PublishResult]:
        await self._until_current()
        receipts: list[asyncio.Future[PublishResult]] = []
        async with self._redis.pipeline() as pipeline:
            for room, id, text, published_at in publications:
                name = f"{self._name}-{next(self._numbers)}"
                receipt: asyncio.Future[PublishResult] = asyncio.get_running_loop().create_future()
                self._waiting[name] = published_at, receipt
                receipts.append(receipt)
                pipeline.xadd(_STREAM, {"name": name, "room": room, "id": id, "text": text})
            try:
                await pipeline.execute()
            except OSError as error:
                raise StoreUnavailableError(str(error)) from error
        return await asyncio.gather(*receipts)

    async def head(self, room: Room) -> Cursor:
        await self._until_current()
        return await self._memory.head(room)

    async def read(self, room: Room, after: Cursor, limit: int) -> Page:
        await self._until_current()
        return await self._memory.read(room, after, limit)

    async def get_ack(self, room: Room, device: str | None = None) -> Cursor | None:
        return await self._memory.get_ack(room, device)

    async def check(self) -> None:
        await self._redis.ping()

    async def usage(self) -> StoreStats:
        return await self._memory.usage()

    async def close(self) -> None:
        self._is_closed = True
        if self._task is not None:
            await self._task  # not cancelled: the client might miss the cancellation
        await self._redis.aclose()
        await self._memory.close()

    async def _until_current(self) -> None:
        if self._task is None:
            self._task = asyncio.create_task(self._apply_all())
        await self._is_current.wait()

    async def _apply_all(self) -> None:
        newest = await self._redis.xrevrange(_STREAM, count=1)
        until = newest[0][0] if newest else "0-0"
        last = "0-0"
        while not self._is_closed:
            if last == until:
                self._is_current.set()
            found = await self._redis.xread({_STREAM: last}, block=500, count=1)
            for _, entries in found:
                for last, fields in entries:  # noqa: B007 - it is where the next read begins
                    await self._apply(fields)

    async def _apply(self, fields: dict[str, str]) -> None:
        published_at, waiting = self._waiting.pop(fields["name"], (None, None))
        publication = Publication(Room(fields["room"]), fields["id"], fields["text"], published_at)
        (receipt,) = await self._memory.publish([publication])
        if waiting is not None and not waiting.done():
            waiting.set_result(receipt)


def replicated(retention: Retention) -> ReplicatedStore:
    return ReplicatedStore(int(os.environ[PORT]), retention)


def alone(retention: Retention) -> MemoryStore:
    """One that is not shared."""
    return MemoryStore(retention)


def dying(retention: Retention) -> MemoryStore:
    """Of a worker that never comes to take connections."""
    os._exit(3)
